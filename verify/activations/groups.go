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
// to: the tokens that a cache with this policy would code, with the query metric for keys. scale
// is that of Samples. It fails only when ctx ends.
func GroupSamples(ctx context.Context, c *family.Config, a *refmodel.Attention, groups [][]codec.Part,
	scale func(h int) []float32, p kvcache.Policy, threads int) ([]*fit.GroupSample, error) {
	y := &c.Layers[a.Layer]
	sink := min(p.Sink, a.T)
	table := anchors(y, a, p)
	out := make([]*fit.GroupSample, len(groups))
	for i, parts := range groups {
		s := &fit.GroupSample{Parts: parts, KeyDim: y.HeadDim, ValueDim: y.ValueDim, Layer: a.Layer, Index: i, Threads: threads,
			Metrics: make([][]float64, len(parts))}
		size := s.D()
		s.Rows = make([]float32, a.Windows*(a.T-sink)*size)
		at := 0
		for k, part := range parts {
			var rows []float32
			d := y.HeadDim
			if part.Value {
				d = y.ValueDim
				rows = values(a, part.Head, d, y.KVHeads*d, sink)
			} else {
				rows = keys(c, a, part.Head, scale(part.Head), p, table)
				// One head at a time: the queries of all together may be larger than the keys.
				met, err := meetings(ctx, c, a, []int{part.Head}, scale, p, table, threads)
				if err != nil {
					return nil, err
				}
				s.Metrics[k] = metric(met[0], d, threads)
			}
			for n := 0; n*d < len(rows); n++ {
				copy(s.Rows[n*size+at:][:d], rows[n*d:])
			}
			at += d
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out[i] = s
	}
	return out, nil
}

// values collects the values of KV head h without each window's sinks, [n, d].
func values(a *refmodel.Attention, h, d, width, sink int) []float32 {
	out := make([]float32, 0, a.Windows*(a.T-sink)*d)
	for w := range a.Windows {
		for i := sink; i < a.T; i++ {
			out = append(out, a.V[(w*a.T+i)*width+h*d:][:d]...)
		}
	}
	return out
}
