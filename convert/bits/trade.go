package bits

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A Candidate is one way to group heads and anchor keys.
type Candidate struct {
	GroupOptions
	Anchor int
}

// Tried is a candidate and what it was measured to cost.
type Tried struct {
	Candidate
	// KLD is the divergence of drafts on a window that they were not fitted to.
	KLD, KLDErr float64
	// Cost is that of a decode step for each coded token, see DecodeCost.
	Cost float64
}

// Weights of DecodeCost, for each sign and query head, from the kernels' times (docs/speed.md: 576
// signs, heads of 64, AVX-512): scores and sums over values together are 1.
const (
	costScores = 0.4
	costSums   = 0.6
	// costTurn and costTable are what a block of one anchor costs once: the product M^T q' for each
	// number of a key, and the tables of its result.
	costTurn  = 0.75
	costTable = 42
)

// DecodeCost returns what attention to one coded token costs in a decode step, over all layers, in
// units of one sign scored and summed for one query head. It counts arithmetic, not bytes: these
// are equal where the bits are. Keys without anchor turn once for all tokens. A group that is given
// that below scores and sums with the signs of both, each with transformed queries of its own.
func DecodeCost(c *family.Config, g *Groups, anchor int) float64 {
	var cost float64
	for l, groups := range g.Parts {
		y := &c.Layers[l]
		each := costScores // for a part of K
		if anchor > 0 {
			each += (costTurn*float64(y.HeadDim) + costTable) / float64(anchor)
		}
		for i, parts := range groups {
			keys, values := g.Shares.used(parts, g.Signs[l][i])
			if g.IsGiven(l, i) {
				k, v := g.Shares.used(parts, g.Signs[l-1][i])
				keys, values = keys+k, values+v
			}
			var token float64
			for _, p := range parts {
				if p.Value {
					token += float64(costSums * float64(values))
				} else {
					token += float64(each * float64(keys))
				}
			}
			cost += float64(token * float64(y.Group()))
		}
	}
	return cost
}

// tradePower says what decode cost is worth: twice the cost must lower the divergence by a quarter.
// It is log2(4/3).
const tradePower = 0.41503749927884376

// Worth is what a choice among candidates makes least.
func (t *Tried) Worth() float64 { return float64(t.KLD * fmath.Pow(t.Cost, tradePower)) }

// Anchors are those that a choice looks at.
var Anchors = []int{64, 128, 256}

// SpanChoices returns the lengths of vectors with which the heads of a model's layers are divided
// into other groups each, at most limit: for one head, two, four and so on, and for as many as
// the limit allows.
func SpanChoices(c *family.Config, parts Parts, limit int) (out []int) {
	per, heads := 0, 0 // of one head, of the widest layer
	for l := range c.Layers {
		y := &c.Layers[l]
		d := max(y.HeadDim, y.ValueDim)
		if parts == PartsBoth {
			d = y.HeadDim + y.ValueDim
		}
		per, heads = max(per, d), max(heads, y.KVHeads)
	}
	for n := 1; n < heads && n*per < limit; n *= 2 {
		out = append(out, n*per)
	}
	return append(out, limit)
}

// Choose measures candidates by drafts of their codes, on a window that these are not fitted to,
// and returns what each costs and the number of the one of least Worth.
func Choose(ctx context.Context, m *refmodel.Model, windows [][]int32, candidates []Candidate, o Options) (
	tried []Tried, best int, err error) {
	c := m.Config
	var surveys []*jointSurvey
	var few [][]int32
	var middle []int32
	for _, x := range candidates {
		g, err := JointGroups(c, x.GroupOptions)
		if err != nil {
			return nil, 0, err
		}
		w, mid, err := g.draftWindows(c, windows)
		if err != nil {
			return nil, 0, err
		}
		if middle = mid; len(w) > len(few) {
			few = w
		}
		own := o
		own.Policy.Anchor = x.Anchor
		surveys = append(surveys, newSurvey(c, own, g))
		tried = append(tried, Tried{Candidate: x, Cost: DecodeCost(c, g, x.Anchor)})
	}
	step := progress.Count(o.Progress, len(c.Layers)*(len(candidates)+1))
	hooks := refmodel.Hooks{Attention: func(a *refmodel.Attention) error {
		for _, s := range surveys {
			s.done = step
			if err := s.attention(ctx, a); err != nil {
				return err
			}
		}
		return nil
	}}
	if err := m.Run(ctx, few, []*refmodel.Variant{{}}, refmodel.Options{Hooks: hooks}); err != nil {
		return nil, 0, err
	}
	var variants []*refmodel.Variant
	for _, s := range surveys {
		cache, err := s.cache(func([]codec.Part) bool { return true })
		if err != nil {
			return nil, 0, err
		}
		variants = append(variants, &refmodel.Variant{Cache: cache})
	}
	res, err := ppl.Compare(ctx, m, ppl.From([][]int32{middle}, len(middle)/2),
		refmodel.Options{Progress: func(int, int) { step() }}, &refmodel.Variant{}, variants...)
	if err != nil {
		return nil, 0, err
	}
	for i := range tried {
		d := &res.Divergences[i]
		if tried[i].KLD, tried[i].KLDErr = d.Mean, d.MeanErr; !(d.Mean >= 0) {
			return nil, 0, fmt.Errorf("drafts of codes with vectors of %d numbers diverge by %g", tried[i].Span, d.Mean)
		}
		if tried[i].Worth() < tried[best].Worth() {
			best = i
		}
	}
	return tried, best, nil
}
