package kvcache

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// byKernel scores keys as a runtime does that decodes one token after the other:
// with the kernels of package onebit on stored signs and scales, for queries that
// are turned to each block's anchor and projected onto the code.
type byKernel struct {
	d, b, anchor, sink int
	table              *rope.Table // nil without anchors
	pairs              rope.Layout
	scale              []float32 // what keys were multiplied by, nil for none

	bits       []uint32
	scales     []uint16
	project    *onebit.Projection // a query becomes b numbers
	mean       []float32          // for its offset
	exceptions *codec.Exceptions
	exact      exactKeys

	tables         onebit.Tables
	queries        onebit.Queries
	turned, coords []float32
	offsets        []float32
	lengths        []float64
}

// newKernel stores what coded keys consist of: words, alpha and x are those of the
// keys from sink on.
func newKernel(c *codec.Code, p Policy, sink int, words []uint32, alpha []float32, x *codec.Exceptions) (*byKernel,
	error) {
	if p.Anchor%onebit.BlockKeys != 0 {
		return nil, fmt.Errorf("anchors of %d keys: the kernels score keys in blocks of %d", p.Anchor, onebit.BlockKeys)
	}
	coded := len(alpha)
	T := sink + coded
	k := &byKernel{
		d: c.D, b: c.B, anchor: p.Anchor, sink: sink, exceptions: x,
		bits: make([]uint32, onebit.Len(T, c.B)), scales: make([]uint16, T),
	}
	w := c.Words()
	for i, a := range alpha {
		onebit.Set(k.bits, c.B, sink+i, words[i*w:(i+1)*w])
		k.scales[sink+i] = dtype.F32ToF16(a)
	}
	k.project = onebit.NewProjection(c.Decode, c.B, c.D)
	k.mean = c.Mean
	return k, nil
}

// Score implements refmodel.Scorer. The rows of a call are the heads of a kernel's
// pass over the keys.
func (k *byKernel) Score(t refmodel.Tile) {
	block := k.anchor
	if block == 0 {
		block = len(k.scales)
	}
	width := k.project.Width()
	k.turned, k.coords = linalg.Grow(&k.turned, t.Rows*k.d), linalg.Grow(&k.coords, t.Rows*width)
	k.offsets, k.lengths = linalg.Grow(&k.offsets, t.Rows), linalg.Grow(&k.lengths, t.Rows)
	for from := t.From / block * block; from < t.To; from += block {
		for r := range t.Rows {
			row := k.turned[r*k.d : (r+1)*k.d]
			copy(row, t.Q[r*t.LDQ:])
			for i := range k.scale {
				row[i] /= k.scale[i]
			}
			k.lengths[r] = onebit.Length(row)
			if k.table != nil {
				k.table.ApplyInverse(row, from, k.pairs)
			}
		}
		k.queries.Set(k.project, k.turned, k.d, t.Rows, k.lengths)
		k.project.Apply(k.coords, width, &k.queries)
		for r := range t.Rows {
			k.offsets[r] = onebit.Offset(k.mean, k.turned[r*k.d:(r+1)*k.d])
		}
		k.tables.Build(k.coords, width, t.Rows, k.b)
		// Rows of t.Dst before t.From belong to nobody, so whole blocks of keys may be written.
		lo := max(from, t.From/onebit.BlockKeys*onebit.BlockKeys)
		hi := min(from+block, t.To)
		onebit.Score(t.Dst[lo:], t.LD, &k.tables, k.bits[lo*onebit.Words(k.b):], k.scales[lo:], hi-lo, k.offsets)
		lo = max(lo, k.sink)
		if k.exceptions == nil || lo >= hi {
			continue
		}
		per := k.exceptions.Per
		at := (lo - k.sink) * per
		for r := range t.Rows {
			onebit.AddExceptions(t.Dst[r*t.LD+lo:], k.turned[r*k.d:(r+1)*k.d], k.exceptions.Index[at:], k.exceptions.Values[at:],
				per, hi-lo)
		}
	}
	k.exact.overlay(t)
}

// Fork implements refmodel.Scorer.
func (k *byKernel) Fork() refmodel.Scorer {
	f := *k
	f.tables, f.queries, f.exact.scores = onebit.Tables{}, onebit.Queries{}, nil
	f.turned, f.coords, f.offsets, f.lengths = nil, nil, nil, nil
	return &f
}
