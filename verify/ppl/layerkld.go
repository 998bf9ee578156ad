package ppl

import (
	"context"

	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// layerLanes is how many layers are measured at a time, each with hidden states of its own.
const layerLanes = 8

// LayerSteps returns how many steps LayerKLD takes: in each pass, the layers and the pieces of
// the vocabulary.
func LayerSteps(m *refmodel.Model) (n int) {
	layers := len(m.Config.Layers)
	for l0 := 0; l0 < layers; l0 += layerLanes {
		n += layers - l0 + pieces(m)
	}
	return n
}

// A LayerCoder is a cache of which one layer alone can be coded.
type LayerCoder interface {
	Only(layer int) refmodel.Cache
	// First is the first layer that Only has to see: an earlier one where a layer is coded given
	// another.
	First(layer int) int
}

// LayerKLD returns by how much predictions diverge when the cache of one layer
// alone is coded, for each layer, at positions from on of each window. tick, if
// not nil, is told how many of LayerSteps are done.
func LayerKLD(ctx context.Context, m *refmodel.Model, windows [][]int32, from int, cache LayerCoder,
	tick func(done, total int)) ([]Divergence, error) {
	w := From(windows, from)
	var out []Divergence
	var base Positions
	start := &refmodel.Variant{} // with float hidden states in front of layer l0
	layers := len(m.Config.Layers)
	step := progress.Count(tick, LayerSteps(m))
	for l0 := 0; l0 < layers; l0 += layerLanes {
		l1 := min(layers, l0+layerLanes)
		float := &refmodel.Variant{From: l0, Start: start.Hidden, Shared: start.Shared, Until: l1}
		next := float
		variants := []*refmodel.Variant{float}
		if l0 == 0 {
			float.Until, next = 0, &refmodel.Variant{From: l1, Until: l1}
		}
		for l := l0; l < l1; l++ {
			// Without a code in front of it, a layer gets what it gets in the float model.
			variants = append(variants, &refmodel.Variant{Cache: cache.Only(l), From: max(l0, cache.First(l))})
		}
		coded := variants[1:]
		if next != float {
			variants = append(variants, next)
		}
		if err := m.Run(ctx, windows, variants, refmodel.Options{Progress: func(int, int) { step() }}); err != nil {
			return nil, err
		}
		start = next
		var err error
		if l0 == 0 {
			if base, err = positions(m, w, float); err != nil {
				return nil, err
			}
		}
		var streams []Positions
		for _, l := range coded {
			s, err := positions(m, w, l)
			if err != nil {
				return nil, err
			}
			streams = append(streams, s)
		}
		r, err := Measure(ctx, w, func(int, int) { step() }, base, streams...)
		if err != nil {
			return nil, err
		}
		out = append(out, r.Divergences...)
	}
	return out, nil
}
