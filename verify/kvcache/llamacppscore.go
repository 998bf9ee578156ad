package kvcache

import (
	"encoding/binary"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// stockBlock is how many numbers share a scale in Q8_0, Q8_1, Q4_1 and Q5_1.
const stockBlock = 32

// stockScorer gives the inner products of rounded queries with stored keys. It
// serves one window and KV head, so its buffers are not shared.
type stockScorer struct {
	d     int // head_dim
	width int // columns of keys: d, and for Q8_1 queries one per block
	row   transform.CacheRow
	pairs rope.Layout // of queries
	query gguf.Type
	keys  gemm.Weights
	q     []float32
	bytes []byte
}

// Score implements refmodel.Scorer.
func (s *stockScorer) Score(t refmodel.Tile) {
	s.q = linalg.Grow(&s.q, t.Rows*s.width)
	rows := s.q
	for r := range t.Rows {
		row := rows[r*s.width : (r+1)*s.width]
		copy(row, t.Q[r*t.LDQ:r*t.LDQ+s.d])
		s.row.ToCacheBasis(row[:s.d], s.d, s.pairs)
		s.round(row)
	}
	t.Q, t.LDQ = rows, s.width
	t.Product(&s.keys, s.width)
}

// Fork implements refmodel.Scorer.
func (s *stockScorer) Fork() refmodel.Scorer { return s.fork() }

func (s *stockScorer) fork() *stockScorer {
	f := *s
	f.q, f.bytes = nil, nil
	return &f
}

// round replaces a query by what is left of it after rounding. Numbers that the
// type cannot hold become NaN, which every measurement shows.
func (s *stockScorer) round(row []float32) {
	t := s.query
	if t == gguf.TypeQ8_1 {
		t = gguf.TypeQ8_0 // the same scale and codes
	}
	n, _ := gguf.RowBytes(t, s.d)
	if cap(s.bytes) < n {
		s.bytes = make([]byte, n)
	}
	b, x := s.bytes[:n], row[:s.d]
	rest := row[s.d:]
	for i := range rest {
		var amax float32
		for _, v := range x[i*stockBlock : (i+1)*stockBlock] {
			amax = max(amax, float32(math.Abs(float64(v))))
		}
		rest[i] = amax
	}
	if gguf.QuantizeCacheRow(t, b, x) != nil || gguf.DequantizeRow(t, x, b) != nil {
		for i := range row {
			row[i] = float32(math.NaN())
		}
		return
	}
	// A block of Q8_1 carries the sum of its numbers, to be multiplied by the
	// minimum of the key's block. It is made with the scale before its rounding to
	// F16 and is itself F16, so it is not quite the sum of what was stored.
	for i, amax := range rest {
		sum := 0
		for _, c := range b[i*34+2 : (i+1)*34] {
			sum += int(int8(c))
		}
		stored := dtype.F16ToF32(binary.LittleEndian.Uint16(b[i*34:]))
		rest[i] = dtype.F16Round(float32(amax/127*float32(sum))) - float32(stored*float32(sum))
	}
}

// packWithMinima packs keys of a type with minima, and beside each key's numbers
// the minima of its blocks: the products of these with what round leaves behind
// a query correct the scores to the sums that the query's blocks carry.
func (s *stockScorer) packWithMinima(t gguf.Type, stored []byte, k []float32) {
	blocks := s.d / stockBlock
	s.width = s.d + blocks
	_, size := t.Block()
	rows := len(k) / s.d
	wide := make([]float32, rows*s.width)
	for r := range rows {
		copy(wide[r*s.width:], k[r*s.d:(r+1)*s.d])
		for i := range blocks {
			// Both types begin with an F16 scale and an F16 minimum.
			wide[r*s.width+s.d+i] = dtype.F16ToF32(binary.LittleEndian.Uint16(stored[(r*blocks+i)*size+2:]))
		}
	}
	s.keys.PackRows(rows, s.width, wide, s.width, 1)
}

// halfSummer also adds up values as llama.cpp's CPU backend does when V is F16
// and K is not: key by key, the sum rounded to F16 each time, relative to the
// largest score so far. Over a long context the rounding is not small: terms
// below half a unit in the last place of the sum are lost altogether.
type halfSummer struct {
	*stockScorer
	sum []float32
}

// Fork implements refmodel.Scorer.
func (s *halfSummer) Fork() refmodel.Scorer { return &halfSummer{stockScorer: s.fork()} }

// Sum implements refmodel.Summer. Softmax probabilities say all that is needed:
// exp(s_j - s_max) is p_j / p_max, over the keys up to j.
func (s *halfSummer) Sum(dst []float32, ldd int, p []float32, ldp int, v []float32, n, pos, n0 int) {
	d := s.d
	s.sum = linalg.Grow(&s.sum, d)
	acc := s.sum
	for r := range n {
		clear(acc)
		var top, total float32
		for j := n0; j <= pos+r; j++ {
			pj := p[r*ldp+j]
			if pj == 0 {
				continue // masked, or too small to change anything
			}
			w := float32(1)
			if pj > top {
				if top > 0 {
					m := top / pj
					for i, a := range acc {
						acc[i] = roundHalf(float32(a * m))
					}
					total = float32(total * m)
				}
				top = pj
			} else {
				w = pj / top
			}
			total += w
			row := v[j*d : j*d+d][:len(acc)]
			for i, a := range acc {
				acc[i] = roundHalf(float32(w*row[i]) + a)
			}
		}
		out := dst[r*ldd : r*ldd+d]
		for i, a := range acc {
			out[i] = a / total
		}
	}
}

// roundHalf rounds to the nearest F16 number. It is made of float32 operations
// only, so that it runs at their speed: Veltkamp's splitting, which keeps the
// upper 24-13 bits. On an exact tie it may take either neighbour. Numbers
// beyond F16, where ggml's sum becomes infinite, are rounded all the same.
func roundHalf(x float32) float32 {
	if x < 0x1p-14 && x > -0x1p-14 {
		// Here F16 numbers are 2^-24 apart, as float32 numbers are next to 0.75.
		return x + 0.75 - 0.75
	}
	c := float32(x * (1<<13 + 1))
	return c - (c - x)
}
