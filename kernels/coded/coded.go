// Package coded is attention over tokens that a cache keeps as signs: what a runtime
// computes for one query of every head of a layer, from storage that holds nothing else.
//
// A group is a code over the keys, the values or both of some KV heads of a layer. A
// token of it is b signs s and a scale alpha (package onebit has the storage), and stands
// for the concatenated parts
//
//	x_p = mean_p + alpha M_p s
//
// where p is a KV head's key, turned back to the start of its block of anchor positions
// if the cache has anchors, or a KV head's value. Then, with R(-n0) the turn back,
//
//	score = q.k = o + alpha (q'.s),  q' = M_p^T R(-n0) q,  o = mean_p.R(-n0) q
//	sum   = sum_j w_j v_j = (sum_j w_j) mean_p + M_p t,  t = sum_j (w_j alpha_j) s_j
//
// Nothing here knows of softmax, masks or of tokens that are kept beside the coded ones.
//
// # Bits
//
// q' is what onebit.Projection says, for the length of the query before it is turned; o is
// onebit.Offset. Sums over signs are those of package onebit, M_p t is a chain of fused
// multiply-adds over ascending signs that starts from 0 and to which (sum of w) mean is
// added, rounded. The sum of the weights is fmath.Sum, rounded to float32. So results do not
// depend on the machine, and scores not on how a range of tokens is divided into calls at
// multiples of Step. Sums of several calls are rounded at the end of each.
package coded

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// Step is the number of tokens that ranges of Scores and Sums are multiples of, but for
// their ends: what onebit rounds and transposes together.
const Step = onebit.SumTokens

// A Matrix is the mean and the decode matrix of a part, with its gain: [B, D], row i is
// what sign i stands for.
type Matrix struct {
	Head         int // the KV head
	Mean, Decode []float32
}

// A part is a Matrix in the order of the kernels.
type part struct {
	head, d int
	mean    []float32
	project *onebit.Projection // keys
	expand  gemm.Weights       // values: [D, B]
}

// A Code is the matrices of a group. It is immutable once made and safe for concurrent
// use.
type Code struct {
	b            int
	keys, values []part
	// The signs that mean something for some part of keys, and of values.
	keySigns, valueSigns onebit.Range
}

// NewCode prepares a group of b signs from the matrices of its parts of K and of V, each
// in the order of their heads. It fails where sizes do not fit each other.
func NewCode(b int, keys, values []Matrix) (*Code, error) {
	if b < 8 || b > onebit.MaxBits || b%8 != 0 {
		return nil, fmt.Errorf("a code of %d signs: the kernels take multiples of 8 up to %d", b, onebit.MaxBits)
	}
	for _, list := range [][]Matrix{keys, values} {
		for j, m := range list {
			d := len(m.Mean)
			if d == 0 || len(m.Decode) != b*d || j > 0 && m.Head <= list[j-1].Head {
				return nil, fmt.Errorf("part %d of a code of %d signs, head %d: a mean of %d numbers, a matrix of %d", j, b, m.Head,
					d, len(m.Decode))
			}
		}
	}
	return newCode(keys, values, used(keys, b), used(values, b)), nil
}

func newCode(keys, values []Matrix, keySigns, valueSigns onebit.Range) *Code {
	c := &Code{b: keySigns.B, keySigns: keySigns, valueSigns: valueSigns}
	for _, m := range keys {
		r, d := c.keySigns, len(m.Mean)
		c.keys = append(c.keys, part{head: m.Head, d: d, mean: m.Mean,
			project: onebit.NewProjection(m.Decode[r.From*d:r.To*d], r.Len(), d)})
	}
	for _, m := range values {
		r, d := c.valueSigns, len(m.Mean)
		p := part{head: m.Head, d: d, mean: m.Mean}
		p.expand.PackT(d, r.Len(), m.Decode[r.From*d:r.To*d], d, 1)
		c.values = append(c.values, p)
	}
	return c
}

// used returns the signs from the first to the last whose row is not zero in some matrix, in whole
// words.
func used(list []Matrix, b int) onebit.Range {
	from, to := b, 0
	for _, m := range list {
		d := len(m.Mean)
		for i, v := range m.Decode {
			if v != 0 {
				from, to = min(from, i/d), max(to, i/d+1)
			}
		}
	}
	const word = 32
	from = min(from, to) / word * word
	return onebit.Range{B: b, From: from, To: min(b, (max(from+1, to)+word-1)/word*word)}
}

// B returns the signs of a token.
func (c *Code) B() int { return c.b }

// A Cache stores the tokens of one group. Methods that read may run concurrently, with a
// Worker each.
type Cache struct {
	code   *Code
	anchor int // a multiple of onebit.BlockKeys, 0 for none
	table  *rope.Table
	pairs  rope.Layout

	n      int
	bits   []uint32
	scales []uint16
}

// NewCache returns an empty cache. With anchor positions a block, table, without magnitude,
// must reach the start of the last block that will be scored.
func NewCache(c *Code, anchor int, table *rope.Table, pairs rope.Layout) (*Cache, error) {
	if anchor < 0 || anchor%onebit.BlockKeys != 0 || anchor > 0 && table == nil {
		return nil, fmt.Errorf("anchors of %d tokens: the kernels take multiples of %d, and need a table of angles", anchor,
			onebit.BlockKeys)
	}
	return &Cache{code: c, anchor: anchor, table: table, pairs: pairs}, nil
}

// OpenCache returns a cache of the tokens that bits and scales hold, as package onebit has
// them; it keeps the slices. It fails as NewCache does, and where they do not fit.
func OpenCache(c *Code, anchor int, table *rope.Table, pairs rope.Layout,
	bits []uint32, scales []uint16) (*Cache, error) {
	x, err := NewCache(c, anchor, table, pairs)
	if err != nil {
		return nil, err
	}
	if len(bits) != onebit.Len(len(scales), c.b) {
		return nil, fmt.Errorf("%d words of signs for %d tokens of %d signs: want %d", len(bits), len(scales), c.b,
			onebit.Len(len(scales), c.b))
	}
	x.n, x.bits, x.scales = len(scales), bits, scales
	return x, nil
}

// Len returns how many tokens there are.
func (c *Cache) Len() int { return c.n }

// Bytes returns what the tokens take: whole blocks of signs, and scales.
func (c *Cache) Bytes() int { return 4*onebit.Len(c.n, c.code.b) + 2*c.n }

// Append adds the token at the next position: its signs, onebit.Words(B) words, and its
// scale in binary16.
func (c *Cache) Append(words []uint32, scale uint16) {
	if need := onebit.Len(c.n+1, c.code.b); need > len(c.bits) {
		c.bits = append(c.bits, make([]uint32, need-len(c.bits))...)
	}
	onebit.Set(c.bits, c.code.b, c.n, words)
	c.scales = append(c.scales, scale)
	c.n++
}

// A Worker holds the memory of one goroutine's calls. The zero value is ready.
type Worker struct {
	tables         onebit.Tables
	sums           onebit.Sums
	queries        onebit.Queries
	turned, coords []float32
	t, one         []float32
	offsets        []float32 // of the rows of coords
	shared         []float32 // of one block
	lengths        []float64
}

// maxBlocks is how many blocks' queries are projected at once: eight queries is what the
// kernels multiply together, and more projections would leave the first-level cache.
const maxBlocks = 8

// Scores sets dst[h*ld+j] to the score of query h with token j, from <= j < to, for the
// query heads of all KV heads that the group has keys of: those of KV head k are
// k*group to (k+1)*group-1, query h is q[h*d:(h+1)*d]. from is a multiple of 16.
func (w *Worker) Scores(dst []float32, ld int, c *Cache, q []float32, group, from, to int) {
	if from < 0 || from%onebit.BlockKeys != 0 || to > c.n {
		panic(fmt.Sprintf("coded: scores of tokens %d to %d of %d", from, to, c.n))
	}
	if from >= to || len(c.code.keys) == 0 {
		return
	}
	b, signs := c.code.b, c.code.keySigns
	block := c.anchor
	if block == 0 {
		block = (to + onebit.BlockKeys - 1) / onebit.BlockKeys * onebit.BlockKeys
	}
	parts := c.code.keys
	blocksAtOnce := max(1, min(maxBlocks, (to-from/block*block+block-1)/block))
	rowsOfPart := blocksAtOnce * group
	width := parts[0].project.Width()
	coords := linalg.Grow(&w.coords, len(parts)*rowsOfPart*width)
	offsets := linalg.Grow(&w.offsets, len(parts)*rowsOfPart)
	shared := linalg.Grow(&w.shared, len(parts)*group)
	lengths := linalg.Grow(&w.lengths, len(parts)*rowsOfPart)
	for i := range parts {
		for r := range rowsOfPart {
			h := parts[i].head*group + r%group
			lengths[i*rowsOfPart+r] = onebit.Length(q[h*parts[i].d : (h+1)*parts[i].d])
		}
	}
	for first := from / block * block; first < to; first += blocksAtOnce * block {
		n := min(blocksAtOnce, (to-first+block-1)/block)
		for i := range parts {
			p := &parts[i]
			rows := linalg.Grow(&w.turned, blocksAtOnce*group*p.d)[:n*group*p.d]
			for k := range n {
				copy(rows[k*group*p.d:], q[p.head*group*p.d:][:group*p.d])
				if c.anchor > 0 {
					for r := range group {
						c.table.ApplyInverse(rows[(k*group+r)*p.d:][:p.d], first+k*block, c.pairs)
					}
				}
			}
			w.queries.Set(p.project, rows, p.d, n*group, lengths[i*rowsOfPart:])
			p.project.Apply(coords[i*rowsOfPart*width:], width, &w.queries)
			for r := range n * group {
				offsets[i*rowsOfPart+r] = onebit.Offset(p.mean, rows[r*p.d:(r+1)*p.d])
			}
		}
		for k := range n {
			lo, hi := max(from, first+k*block), min(to, first+(k+1)*block)
			// Neighbouring heads have neighbouring rows, and share a pass over the signs.
			for i0 := 0; i0 < len(parts); {
				i1 := i0 + 1
				for i1 < len(parts) && parts[i1].head == parts[i1-1].head+1 {
					i1++
				}
				w.tables.Reset((i1-i0)*group, signs)
				for i := i0; i < i1; i++ {
					for r := range group {
						row, h := i*rowsOfPart+k*group+r, (i-i0)*group+r
						w.tables.Set(h, coords[row*width:][:signs.Len()])
						shared[h] = offsets[row]
					}
				}
				onebit.Score(dst[parts[i0].head*group*ld+lo:], ld, &w.tables, c.bits[lo*onebit.Words(b):], c.scales[lo:], hi-lo,
					shared[:(i1-i0)*group])
				i0 = i1
			}
		}
	}
}

// Sums adds to out[h*d:(h+1)*d] the sum of the values of tokens from <= j < to times the
// weights p[h*ld+j], for the query heads of all KV heads that the group has values of.
// from is a multiple of Step.
func (w *Worker) Sums(out []float32, c *Cache, p []float32, ld, group, from, to int) {
	if from < 0 || from%Step != 0 || to > c.n {
		panic(fmt.Sprintf("coded: sums of tokens %d to %d of %d", from, to, c.n))
	}
	if from >= to {
		return
	}
	b, signs, parts := c.code.b, c.code.valueSigns, c.code.values
	n := signs.Len()
	for i0 := 0; i0 < len(parts); {
		i1 := i0 + 1
		for i1 < len(parts) && parts[i1].head == parts[i1-1].head+1 {
			i1++
		}
		heads, h0 := (i1-i0)*group, parts[i0].head*group
		t := linalg.Grow(&w.t, heads*n)
		clear(t)
		w.sums.Add(t, n, p[h0*ld+from:], ld, heads, signs, c.bits[from*onebit.Words(b):], c.scales[from:], to-from)
		for i := i0; i < i1; i++ {
			x := &parts[i]
			one := linalg.Grow(&w.one, group*x.d)
			gemm.Mul(one, x.d, t[(i-i0)*group*n:], n, group, &x.expand, 1)
			for r := range group {
				h := x.head*group + r
				weight := float32(fmath.Sum(p[h*ld+from : h*ld+to]))
				row := out[h*x.d : (h+1)*x.d]
				for j, m := range x.mean {
					row[j] += one[r*x.d+j] + float32(weight*m)
				}
			}
		}
		i0 = i1
	}
}
