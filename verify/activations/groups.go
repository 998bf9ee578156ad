package activations

import (
	"context"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// GroupSamples collects what the codes of a layer's groups, each given by its parts, are fitted
// to: the tokens that a cache with this policy would code. Their metric is that of the queries for
// keys, or what fisher says where it is not nil. scale is that of Samples. It fails only when ctx
// ends.
func GroupSamples(ctx context.Context, c *family.Config, a *refmodel.Attention, groups [][]codec.Part,
	scale func(h int) []float32, p kvcache.Policy, fisher *Fisher, threads int) ([]*fit.GroupSample, error) {
	y := &c.Layers[a.Layer]
	sink := min(p.Sink, a.T)
	table := anchors(y, a, p)
	samples := make([]*fit.GroupSample, len(groups))
	for i, parts := range groups {
		s := &fit.GroupSample{Parts: parts, KeyDim: y.HeadDim, ValueDim: y.ValueDim, Layer: a.Layer, Index: i,
			Threads: threads, Metrics: make([][]float64, len(parts))}
		size := s.D()
		s.Rows = make([]float32, a.Windows*(a.T-sink)*size)
		at := 0
		for k, part := range parts {
			var out []float32
			d := y.HeadDim
			if part.Value {
				d = y.ValueDim
				for w := range a.Windows {
					out = append(out, rows(a.V, w*a.T+sink, (w+1)*a.T, part.Head, d, y.KVHeads)...)
				}
			} else {
				out = keys(c, a, part.Head, scale(part.Head), p, table)
			}
			switch {
			case fisher != nil:
				s.Absolute, s.Metrics[k] = true, fisher.Metric(a.Layer, part, d, scale(part.Head))
			case !part.Value:
				// One head at a time: the queries of all together may be larger than the keys.
				met, err := meetings(ctx, c, a, []int{part.Head}, scale, p, table, threads)
				if err != nil {
					return nil, err
				}
				s.Metrics[k] = metric(met[0], d, threads)
			}
			for n := 0; n*d < len(out); n++ {
				copy(s.Rows[n*size+at:][:d], out[n*d:])
			}
			at += d
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		samples[i] = s
	}
	return samples, nil
}
