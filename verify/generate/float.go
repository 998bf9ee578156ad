package generate

import (
	"context"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
)

// chunkTokens is how many tokens are packed for the kernels together: the last chunk is
// packed again for every token.
const chunkTokens = 64

// packed holds rows of all KV heads of a layer as matrices of the kernels, whose chains of
// sums go on from chunk to chunk.
type packed struct {
	heads, d   int
	transposed bool // for sums over tokens
	n          int
	chunks     [][]gemm.Weights // [chunk][head]
	tail       []float32        // rows of the last chunk, if it is not full
}

func (p *packed) append(x []float32) {
	width := p.heads * p.d
	p.n += len(x) / width
	for len(x) > 0 {
		if len(p.tail) == 0 {
			p.chunks = append(p.chunks, make([]gemm.Weights, p.heads))
		}
		k := min(len(x), chunkTokens*width-len(p.tail))
		p.tail = append(p.tail, x[:k]...)
		x = x[k:]
		last, rows := p.chunks[len(p.chunks)-1], len(p.tail)/width
		for h := range last {
			if p.transposed {
				last[h].PackT(p.d, rows, p.tail[h*p.d:], width, 1)
			} else {
				last[h].PackRows(rows, p.d, p.tail[h*p.d:], width, 1)
			}
		}
		if rows == chunkTokens {
			p.tail = p.tail[:0]
		}
	}
}

// scores sets dst[h*ld+j] for query heads h, group of them for each KV head, and tokens
// from <= j <= pos.
func (p *packed) scores(dst []float32, ld int, q []float32, group, from, pos int) {
	for i := from / chunkTokens; i*chunkTokens <= pos; i++ {
		at := i * chunkTokens
		lo, hi := max(from-at, 0), min(pos+1-at, chunkTokens)
		for h := range p.heads {
			gemm.MulRange(dst[h*group*ld+at:], ld, q[h*group*p.d:], p.d, group, &p.chunks[i][h], lo, hi, 0, p.d, false, 1)
		}
	}
}

// sums adds to out, [heads*group, d].
func (p *packed) sums(out, w []float32, ld, group, from, pos int) {
	for i := from / chunkTokens; i*chunkTokens <= pos; i++ {
		at := i * chunkTokens
		lo, hi := max(from-at, 0), min(pos+1-at, chunkTokens)
		for h := range p.heads {
			gemm.MulRange(out[h*group*p.d:], p.d, w[h*group*ld+at:], ld, group, &p.chunks[i][h], 0, p.d, lo, hi, true, 1)
		}
	}
}

// bytes counts float32 numbers.
func (p *packed) bytes() int { return 4 * p.n * p.heads * p.d }

// floatLayer keeps keys and values as they are.
type floatLayer struct {
	group        int
	keys, values packed
}

func newFloatLayer(y *family.Layer) *floatLayer {
	return &floatLayer{group: y.Group(), keys: packed{heads: y.KVHeads, d: y.HeadDim},
		values: packed{heads: y.KVHeads, d: y.HeadDim, transposed: true}}
}

func (l *floatLayer) append(_ context.Context, k, v []float32) error {
	l.keys.append(k)
	l.values.append(v)
	return nil
}

func (l *floatLayer) scores(dst []float32, ld int, q []float32, from, pos int) {
	l.keys.scores(dst, ld, q, l.group, from, pos)
}

func (l *floatLayer) sums(out, p []float32, ld, from, pos int) {
	clear(out)
	l.values.sums(out, p, ld, l.group, from, pos)
}

func (l *floatLayer) bytes() Bytes { return Bytes{Float: l.keys.bytes() + l.values.bytes()} }
