package bits

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
)

// given says which groups, [layer][group], can be coded given the group of the same number and parts
// in the layer below: those of every second layer, if all readers of the layer below have passed when
// its own have.
func (g *Groups) given(c *family.Config) [][]bool {
	out := make([][]bool, len(g.Parts))
	for l, groups := range g.Parts {
		out[l] = make([]bool, len(groups))
		if l%2 == 0 || c.LastReader(l-1) > c.LastReader(l) {
			continue
		}
		for i, parts := range groups {
			out[l][i] = i < len(g.Parts[l-1]) && slices.Equal(parts, g.Parts[l-1][i])
		}
	}
	return out
}

// IsGiven says whether a group is coded given that below. Layers that there are not have none.
func (g *Groups) IsGiven(layer, group int) bool {
	return layer < len(g.Given) && group < len(g.Given[layer]) && g.Given[layer][group]
}

// AnyGiven says whether a group of a layer is.
func (g *Groups) AnyGiven(layer int) bool {
	return layer < len(g.Given) && slices.Contains(g.Given[layer], true)
}

// aligned says whether groups that are given others keep the number of these where those of keys are
// left out.
func (g *Groups) aligned() bool {
	keys := func(l int) (n int) {
		for _, parts := range g.Parts[l] {
			if !parts[0].Value {
				n++
			}
		}
		return n
	}
	for l := range g.Given {
		if g.AnyGiven(l) && keys(l) != keys(l-1) {
			return false
		}
	}
	return true
}

// A Fitter fits groups with their signs, each given that below where the groups say so: it carries
// what the lower layer of a pair stores of the calibration text to the upper one. Layers come in
// order, and the groups of a layer too.
type Fitter struct {
	g     *Groups
	layer int         // whose codes lower has
	lower [][]float32 // signs times scales of all tokens, by group; nil where nobody is given them
}

// NewFitter returns a fitter of the groups g, whose signs may still change.
func NewFitter(g *Groups) *Fitter { return &Fitter{g: g, layer: -1} }

// Fit fits the group that a sample is of.
func (f *Fitter) Fit(ctx context.Context, s *fit.GroupSample) (*codec.Group, []fit.Point, error) {
	l, i := s.Layer, s.Index
	if f.g.IsGiven(l, i) {
		if f.layer != l-1 {
			return nil, nil, fmt.Errorf("layer %d: the codes of layer %d, which it is given, are not there", l, l-1)
		}
		s.Below, s.BelowSigns, f.lower[i] = f.lower[i], f.g.Signs[l-1][i], nil
		s.BelowKeySigns, s.BelowValueSigns = f.g.Shares.Of(s.Parts, s.BelowSigns)
	}
	signs := f.g.Signs[l][i]
	s.KeySigns, s.ValueSigns = f.g.Shares.Of(s.Parts, signs)
	code, curve, err := fit.Group(ctx, signs, s)
	if err != nil || !f.g.IsGiven(l+1, i) {
		return code, curve, err
	}
	if f.layer != l {
		f.layer, f.lower = l, make([][]float32, len(f.g.Parts[l]))
	}
	f.lower[i], err = code.SpreadRows(ctx, s.Rows, s.Threads)
	return code, curve, err
}
