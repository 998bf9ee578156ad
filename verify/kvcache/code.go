// Package kvcache stands in for the KV cache of a runtime: it replaces the keys
// of the forward pass by what a storage format gives back.
package kvcache

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Policy is which keys a 1-bit cache codes and in which frame.
type Policy struct {
	// Anchor is the block length B: key n is turned back to its block's start
	// n - n mod B before it is coded. 0 codes keys as they are.
	Anchor int
	// Sink keys at the start and Recent keys at the end of the context stay F16.
	Sink, Recent int
	// Exceptions is how many coordinates of a coded key are kept beside its signs:
	// those where the decoded key is furthest from the key.
	Exceptions int
}

// CheckContext refuses a context of T tokens in which every query sees tokens that stay F16 alone:
// a measurement there would say that the code costs nothing.
func (p Policy) CheckContext(T int) error {
	if p.Sink >= T || p.Recent >= T-p.Sink { // no sum that could overflow
		return option.Bad("Ctx", T, "the first %d (sink) and the last %d (recent) tokens stay F16, so nothing coded would be "+
			"measured; take a longer context or keep fewer", p.Sink, p.Recent)
	}
	return nil
}

// Check refuses impossible numbers, for keys of d numbers.
func (p Policy) Check(d int) error {
	for _, x := range []struct {
		field string
		n     int
		most  int // that a sidecar can say
	}{{"Anchor", p.Anchor, spec.MaxAnchor}, {"Sink", p.Sink, spec.MaxSink}, {"Recent", p.Recent, spec.MaxRecent}} {
		if x.n < 0 || x.n > x.most {
			return option.Bad(x.field, x.n, "expected 0 to %d", x.most)
		}
	}
	return option.Of("Exceptions", nil, codec.CheckExceptions(p.Exceptions, d))
}

// KeyBytes returns what a coded key takes: words of signs, a scale in F16, and
// its exceptions.
func (p Policy) KeyBytes(c *codec.Code) int {
	return 4*c.Words() + 2 + codec.ExceptionBytes*p.Exceptions
}

// Codes is a cache that stores every key but those that the policy keeps in a
// 1-bit code, and values in float32.
type Codes struct {
	Policy Policy
	// Scale, if set, gives per layer and head what keys are multiplied by before
	// they are coded and divided by afterwards: codes that were fitted to balanced
	// keys can then be tried on a model that is not balanced. nil is for none.
	Scale func(layer, head int) []float32
	// Kernels scores keys with the kernels of package onebit, as a runtime does for
	// one query after the other, instead of as products with decoded keys. Scores
	// then carry the rounding of queries that the kernels do.
	Kernels bool

	cfg   *family.Config
	codes [][]*codec.Code // [layer][KV head]
}

// NewCodes returns a cache for codes[layer][head].
func NewCodes(cfg *family.Config, codes [][]*codec.Code, p Policy) (*Codes, error) {
	if err := cfg.Require("a cache of codes", family.OwnHeads|family.SharedKV); err != nil {
		return nil, err
	}
	if len(codes) != len(cfg.Layers) {
		return nil, fmt.Errorf("codes for %d of %d layers", len(codes), len(cfg.Layers))
	}
	for l, heads := range codes {
		y := &cfg.Layers[l]
		if err := p.Check(y.HeadDim); err != nil {
			return nil, err
		}
		if n := cfg.OwnKVHeads(l); len(heads) != n {
			return nil, fmt.Errorf("layer %d: codes for %d of %d KV heads", l, len(heads), n)
		}
		for h, c := range heads {
			if c == nil || c.D != y.HeadDim {
				return nil, fmt.Errorf("layer %d, head %d: the code is missing or not for head_dim %d", l, h, y.HeadDim)
			}
		}
	}
	return &Codes{Policy: p, cfg: cfg, codes: codes}, nil
}

// ToAnchor turns keys k, [n, d] from position pos0 on, back to the start of their blocks of
// B positions, in place: key n by n - n mod B. B of 0 does nothing. t is a table without
// magnitude that reaches the last block start.
func ToAnchor(k []float32, d, pos0, B int, t *rope.Table, pairs rope.Layout) {
	for i := 0; i < len(k) && B > 0; i += d {
		pos := pos0 + i/d
		t.ApplyInverse(k[i:i+d], pos-pos%B, pairs)
	}
}

// FromAnchor is the inverse of ToAnchor.
func FromAnchor(k []float32, d, pos0, B int, t *rope.Table, pairs rope.Layout) {
	for i := 0; i < len(k) && B > 0; i += d {
		pos := pos0 + i/d
		t.Apply(k[i:i+d], pos-pos%B, pairs)
	}
}

// Keys codes the keys of one window.
func (c *Codes) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	return c.code(layer, head, 0, k)
}

// A Coder replaces what tokens store by what a cache gives back of it.
type Coder interface {
	// Code replaces the keys, [n, n_kv_heads, head_dim], and values of tokens at positions from,
	// from+1, ... of a window in place; the first Policy.Sink of a window become F16. Codes given the
	// layer below find what that layer stored for the same tokens: layers are called in order. Recent tokens
	// are the caller's to leave out. Codes of keys alone do not look at v, which may be nil.
	Code(ctx context.Context, layer, from int, k, v []float32) error
}

// Code implements Coder.
func (c *Codes) Code(ctx context.Context, layer, from int, k, _ []float32) error {
	d, heads := c.cfg.Layers[layer].HeadDim, len(c.codes[layer])
	for h := range heads {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		x := head(k, heads*d, h, d)
		if _, err := c.code(layer, h, from, x); err != nil {
			return err
		}
		paste(k, x, heads*d, h, d)
	}
	return nil
}

// code codes the keys of one head from position from of a window on.
func (c *Codes) code(layer, head, from int, k []float32) (refmodel.Scorer, error) {
	code := c.codes[layer][head]
	d := code.D
	T := len(k) / d
	sink := min(max(0, c.Policy.Sink-from), T)
	exact := slices.Clone(k)
	roundF16(exact)
	var scale []float32
	if c.Scale != nil {
		scale = c.Scale(layer, head)
	}
	if scale != nil {
		for i := range k {
			k[i] *= scale[i%d]
		}
	}
	var table *rope.Table
	if c.Policy.Anchor > 0 {
		table = rope.NewTable(c.cfg.Layers[layer].Rope.Pure(), from+T)
		ToAnchor(k, d, from, c.Policy.Anchor, table, c.cfg.PairsIn(layer))
	}
	words, alpha := make([]uint32, T*code.Words()), make([]float32, T)
	coded := k[sink*d:]
	// The keys of one window and head: the forward pass looks at its context between those.
	if err := code.EncodeKeys(context.Background(), coded, words, alpha); err != nil {
		return nil, err
	}
	hat := coded
	if c.Policy.Exceptions > 0 {
		hat = make([]float32, len(coded))
	}
	code.DecodeKeys(hat, words, alpha)
	var x *codec.Exceptions
	if c.Policy.Exceptions > 0 {
		var err error
		if x, err = codec.Except(coded, hat, d, c.Policy.Exceptions); err != nil {
			return nil, err
		}
		x.Add(hat, d)
		copy(coded, hat)
	}
	if c.Kernels {
		n := len(coded) / d
		s, err := newKernel(code, c.Policy, T-n, words, alpha[:n], x)
		if err != nil {
			return nil, err
		}
		s.table, s.pairs, s.scale = table, c.cfg.PairsIn(layer), scale
		s.exact.pack(exact, d, T-n, c.Policy.Recent)
		return s, nil
	}
	if table != nil {
		FromAnchor(k, d, from, c.Policy.Anchor, table, c.cfg.PairsIn(layer))
	}
	if scale != nil {
		for i := range k {
			k[i] /= scale[i%d]
		}
	}
	copy(k, exact[:sink*d])
	s := &decoded{d: d}
	s.coded.PackRows(T, d, k, d, 1)
	s.exact.pack(exact, d, 0, c.Policy.Recent) // the first are among the coded
	return s, nil
}

// Only returns the cache that codes the keys of one layer and keeps all others as
// they are.
func (c *Codes) Only(layer int) refmodel.Cache { return onlyLayer{c, layer} }

// First is the layer itself.
func (c *Codes) First(layer int) int { return layer }

type onlyLayer struct {
	*Codes
	layer int
}

// Keys codes the keys of one window if they are the layer's.
func (o onlyLayer) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	if layer != o.layer {
		return nil, nil
	}
	return o.Codes.Keys(layer, head, k)
}

// Values keeps the values as they are.
func (c *Codes) Values(layer, head int, v []float32) error { return nil }

// decoded scores keys that were coded and read back, as a matrix product.
type decoded struct {
	d     int
	coded gemm.Weights
	exact exactKeys
}

// Score implements refmodel.Scorer.
func (s *decoded) Score(t refmodel.Tile) {
	t.Product(&s.coded, s.d)
	s.exact.overlay(t)
}

// Fork implements refmodel.Scorer.
func (s *decoded) Fork() refmodel.Scorer {
	f := *s
	f.exact.scores = nil
	return &f
}

// exactKeys are the keys that a policy keeps: the first of a window, and the latest
// of each query's own context.
type exactKeys struct {
	d, sink, recent int
	keys            gemm.Weights
	scores          []float32
}

// pack keeps keys, [T, d], if any of them are exact for anyone.
func (e *exactKeys) pack(keys []float32, d, sink, recent int) {
	e.d, e.sink, e.recent = d, sink, recent
	if sink > 0 || recent > 0 {
		e.keys.PackRows(len(keys)/d, d, keys, d, 1)
	}
}

// overlay replaces scores of coded keys by those of exact ones. Arguments are those
// of refmodel.Scorer.
func (e *exactKeys) overlay(t refmodel.Tile) {
	if first := min(e.sink, t.To); t.From < first {
		sink := t
		sink.To = first
		sink.Product(&e.keys, e.d)
	}
	if e.recent == 0 {
		return
	}
	e.scores = linalg.Grow(&e.scores, t.Rows*t.LD)
	recent := t
	recent.Dst, recent.From = e.scores, max(t.From, t.Pos-e.recent+1)
	recent.Product(&e.keys, e.d)
	for r := range t.Rows {
		from, to := max(t.From, t.Pos+r-e.recent+1), min(t.To, t.Pos+r+1)
		if from < to {
			copy(t.Dst[r*t.LD+from:r*t.LD+to], e.scores[r*t.LD+from:r*t.LD+to])
		}
	}
}
