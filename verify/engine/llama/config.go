package llama

import (
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// Modes of RoPE nodes.
const (
	ropePairs  = 0 // dimensions (2i, 2i+1)
	ropeHalves = 2 // dimensions (i, i + n/2)
)

// Params returns the rotation's parameters as package rope has them, and the layout of pairs. ok is
// false for kinds that it does not have (several sections, factors whose numbers are not known).
func (r *Rope) Params() (p rope.Params, pairs rope.Layout, ok bool) {
	if r == nil || r.Mode != ropePairs && r.Mode != ropeHalves {
		return p, rope.Half, false
	}
	if r.Mode == ropePairs {
		pairs = rope.Interleaved
	}
	p = rope.Params{Theta: float64(r.Theta), Dim: r.Dim}
	scaled := r.FreqScale != 0 && r.FreqScale != 1
	switch {
	case r.Factors != "":
		if len(r.Divisors) != r.Dim/2 || scaled {
			return p, pairs, false
		}
		p.Scaling, p.Divisors = rope.Divisor, make([]float64, len(r.Divisors))
		for i, v := range r.Divisors {
			p.Divisors[i] = float64(v)
		}
	case r.Ext != 0 && scaled:
		p.Scaling, p.Factor, p.OriginalContext = rope.YaRN, 1/float64(r.FreqScale), int(r.Original)
		p.BetaFast, p.BetaSlow = float64(r.BetaFast), float64(r.BetaSlow)
	case scaled:
		p.Scaling, p.Factor = rope.Linear, 1/float64(r.FreqScale)
	}
	return p, pairs, p.Check() == nil
}

// Caches describes the model's caches as a configuration with one layer for each, in the order of
// Owners. It is good for what depends on the sizes of heads only: types, bytes, codes, backends.
// Layers without attention are not in it, and no forward pass can be made of it.
func (f *Facts) Caches() *family.Config {
	c := &family.Config{
		Family: &family.Family{Name: f.Arch, GGUFArch: f.Arch}, Hidden: f.Hidden, Vocab: f.Vocab, Context: f.Context,
	}
	for i, a := range f.Owners() {
		y := family.Layer{}
		y.HeadShape = family.HeadShape{Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, ValueDim: a.ValueDim}
		y.Owner, y.Sinks = i, a.Sinks
		if a.ValueDim == 0 {
			y.Kind, y.ValueDim = family.Latent, a.HeadDim
		}
		if p, pairs, ok := a.Rope.Params(); ok {
			y.Rope, c.Pairs = p, pairs
		}
		c.Layers = append(c.Layers, y)
	}
	return c
}
