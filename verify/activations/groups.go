package activations

import (
	"context"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
)

// keyMetric returns the metric of one head's keys for a code of groups.
func (x *Gathered) keyMetric(ctx context.Context, h int, scale func(h int) []float32) ([]float64, error) {
	d := x.g.c.Layers[x.Layer].HeadDim
	if x.heads != nil {
		return x.heads[h].metric(d, scale(h)), nil
	}
	// One head at a time: the queries of all together may be larger than the keys.
	table := anchors(&x.g.c.Layers[x.Layer], x.Attention, x.g.policy)
	met, err := meetings(ctx, x.g.c, x.Attention, []int{h}, scale, x.g.policy, table, x.g.threads)
	if err != nil {
		return nil, err
	}
	return metric(met[0], d, x.g.threads), nil
}

// Groups collects what the code of a group of the layer's heads, given by its parts, is fitted to: the
// tokens that a cache with this policy would code. Their metric is that of the queries for keys, or
// what fisher says where it is not nil. scale is that of Samples. It fails only when ctx ends.
func (x *Gathered) Groups(ctx context.Context, parts []codec.Part, scale func(h int) []float32, fisher *Fisher) (
	*fit.GroupSample, error) {
	g, a := x.g, x.Attention
	c, y := g.c, &g.c.Layers[a.Layer]
	sink := min(g.policy.Sink, a.T)
	table := anchors(y, a, g.policy)
	s := &fit.GroupSample{Parts: parts, KeyDim: y.HeadDim, ValueDim: y.ValueDim, Layer: a.Layer,
		Threads: g.threads, Metrics: make([][]float64, len(parts))}
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
			out = keys(c, a, part.Head, scale(part.Head), g.policy, table)
		}
		switch {
		case fisher != nil:
			s.Absolute, s.Metrics[k] = true, fisher.Metric(a.Layer, part, d, scale(part.Head))
		case !part.Value:
			var err error
			if s.Metrics[k], err = x.keyMetric(ctx, part.Head, scale); err != nil {
				return nil, err
			}
		}
		for n := 0; n*d < len(out); n++ {
			copy(s.Rows[n*size+at:][:d], out[n*d:])
		}
		at += d
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s, nil
}
