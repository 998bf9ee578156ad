package kvcache

import (
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/coded"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A storedPart is one part of a group as the kernels read it: the tokens of a window, sinks with a
// scale of zero. below is those of the group below, where the part is given them.
type storedPart struct{ own, below *coded.Cache }

// stored makes part i of a group from what the group stores, and the group below.
func stored(g *codec.Group, i, sink int, x, lower storedRows, anchor int, table *rope.Table, pairs rope.Layout) (
	s storedPart, err error) {
	value := g.Parts[i].Value
	m := coded.Matrix{Mean: g.PartMean(i), Decode: g.PartDecode(i)}
	if s.own, err = storedCache(m, value, g.B(), sink, x, anchor, table, pairs); err != nil || g.Below == nil {
		return s, err
	}
	m = coded.Matrix{Mean: make([]float32, len(m.Mean)), Decode: g.PartBelow(i)}
	s.below, err = storedCache(m, value, g.BelowSigns, sink, lower, anchor, table, pairs)
	return s, err
}

func storedCache(m coded.Matrix, value bool, b, sink int, x storedRows, anchor int, table *rope.Table,
	pairs rope.Layout) (*coded.Cache, error) {
	keys, values := []coded.Matrix{m}, []coded.Matrix(nil)
	if value {
		keys, values, anchor = nil, keys, 0
	}
	code, err := coded.NewCode(b, keys, values)
	if err != nil {
		return nil, err
	}
	c, err := coded.NewCache(code, anchor, table, pairs)
	if err != nil {
		return nil, err
	}
	w := (b + 31) / 32
	zero := make([]uint32, w)
	for range sink {
		c.Append(zero, 0)
	}
	for j, a := range x.alpha {
		c.Append(x.words[j*w:(j+1)*w], dtype.F32ToF16(a))
	}
	return c, nil
}

// kernelKeys scores the keys of one head as a runtime does, with the kernels on signs and scales.
type kernelKeys struct {
	d      int
	cache  storedPart // nothing for keys that are not coded
	plain  gemm.Weights
	exact  exactKeys
	worker coded.Worker
	q      []float32
	added  []float32 // scores of the group below
	scale  []float32 // what keys were multiplied by, nil for none
}

// Score implements refmodel.Scorer. The rows of a call are the heads of a kernel's pass.
func (s *kernelKeys) Score(t refmodel.Tile) {
	if s.cache.own == nil {
		t.Product(&s.plain, s.d)
		return
	}
	q := linalg.Grow(&s.q, t.Rows*s.d)
	for r := range t.Rows {
		row := q[r*s.d : (r+1)*s.d]
		copy(row, t.Q[r*t.LDQ:])
		for i := range s.scale {
			row[i] /= s.scale[i]
		}
	}
	// Rows of t.Dst before t.From belong to nobody, so whole blocks of keys may be written.
	const block = 16
	from := t.From / block * block
	s.worker.Scores(t.Dst, t.LD, s.cache.own, q, t.Rows, from, t.To)
	if s.cache.below != nil {
		added := linalg.Grow(&s.added, t.Rows*t.LD)
		s.worker.Scores(added, t.LD, s.cache.below, q, t.Rows, from, t.To)
		for r := range t.Rows {
			row := t.Dst[r*t.LD : r*t.LD+t.To]
			for j := from; j < t.To; j++ {
				row[j] += added[r*t.LD+j]
			}
		}
	}
	s.exact.overlay(t)
}

// Fork implements refmodel.Scorer.
func (s *kernelKeys) Fork() refmodel.Scorer { return s.fork() }

func (s *kernelKeys) fork() *kernelKeys {
	f := *s
	f.worker, f.q, f.added, f.exact.scores = coded.Worker{}, nil, nil, nil
	return &f
}

// kernelHead also adds up the values of its head with the kernels.
type kernelHead struct {
	*kernelKeys
	vd, sink, recent  int
	cache             storedPart
	kept              gemm.Weights // exact values; packed by the first Sum
	packed            bool
	coded, exact, out []float32
	worker            coded.Worker
}

// Fork implements refmodel.Scorer.
func (s *kernelHead) Fork() refmodel.Scorer {
	return &kernelHead{kernelKeys: s.fork(), vd: s.vd, sink: s.sink, recent: s.recent, cache: s.cache}
}

// Sum implements refmodel.Summer.
func (s *kernelHead) Sum(dst []float32, ldd int, p []float32, ldp int, v []float32, n, pos, n0 int) {
	if !s.packed {
		s.kept.PackT(s.vd, len(v)/s.vd, v, s.vd, 1)
		s.packed = true
	}
	end := pos + n
	first := n0 / coded.Step * coded.Step
	old, kept, out := linalg.Grow(&s.coded, n*ldp), linalg.Grow(&s.exact, n*ldp), linalg.Grow(&s.out, n*s.vd)
	clear(out)
	for r := range n {
		row, o, e := p[r*ldp:][:end], old[r*ldp:][:end], kept[r*ldp:][:end]
		lo := min(max(n0, s.sink), end)
		hi := min(max(lo, pos+r-s.recent+1), end)
		clear(o[first:lo])
		copy(o[lo:hi], row[lo:hi])
		clear(o[hi:])
		copy(e[n0:lo], row[n0:lo])
		clear(e[lo:hi])
		copy(e[hi:], row[hi:])
	}
	s.worker.Sums(out, s.cache.own, old, ldp, n, first, end)
	if s.cache.below != nil {
		s.worker.Sums(out, s.cache.below, old, ldp, n, first, end)
	}
	gemm.MulRange(out, s.vd, kept, ldp, n, &s.kept, 0, s.vd, n0, end, true, 1)
	for r := range n {
		copy(dst[r*ldd:][:s.vd], out[r*s.vd:])
	}
}
