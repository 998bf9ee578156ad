package activations

import (
	"context"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A Fisher holds E[g g^T] of the gradients g of a model's own loss with respect to the keys of every
// layer and KV head, and E[g.g] for values, in the frame in which a cache would code them: keys
// turned back to their block, without each window's sinks. (g.e)^2 / 2 estimates what an error e
// costs. For values directions do not help, as their errors add up over tokens (docs/codes.md).
type Fisher struct {
	heads [][]fisherHead // [layer][KV head]
}

type fisherHead struct {
	rows int
	k    []float64 // sum, [head_dim, head_dim]
	v    float64   // sum
}

// NewFisher runs windows forward and backward; labels are drawn from the model's predictions.
func NewFisher(ctx context.Context, m *refmodel.Model, windows [][]int32, p kvcache.Policy, seed uint64,
	progress func(done, total int)) (*Fisher, error) {
	c := m.Config
	f := &Fisher{heads: make([][]fisherHead, len(c.Layers))}
	err := m.Gradients(ctx, windows, refmodel.GradientOptions{Seed: seed, Progress: progress},
		func(g *refmodel.Gradient) error { return f.add(c, g, p, m.Threads) })
	return f, err
}

// add adds what the windows of a batch say about one layer.
func (f *Fisher) add(c *family.Config, g *refmodel.Gradient, p kvcache.Policy, threads int) error {
	y := &c.Layers[g.Layer]
	if f.heads[g.Layer] == nil {
		f.heads[g.Layer] = make([]fisherHead, y.KVHeads)
	}
	var table *rope.Table
	if p.Anchor > 0 {
		table = rope.NewTable(y.Rope.Pure(), g.T)
	}
	sink := min(p.Sink, g.T)
	for h := range f.heads[g.Layer] {
		x := &f.heads[g.Layer][h]
		if x.k == nil {
			x.k = make([]float64, y.HeadDim*y.HeadDim)
		}
		for w := range g.Windows {
			dk := rows(g.DK, w*g.T+sink, (w+1)*g.T, h, y.HeadDim, y.KVHeads)
			kvcache.ToAnchor(dk, y.HeadDim, sink, p.Anchor, table, c.PairsIn(g.Layer))
			addMoments(x.k, dk, y.HeadDim, threads)
			dv := rows(g.DV, w*g.T+sink, (w+1)*g.T, h, y.ValueDim, y.KVHeads)
			x.v += linalg.Dot64(dv, dv)
			x.rows += g.T - sink
		}
	}
	return nil
}

// rows copies head h's part of rows [from, to), d numbers each.
func rows(x []float32, from, to, h, d, heads int) []float32 {
	out := make([]float32, 0, (to-from)*d)
	for i := from; i < to; i++ {
		out = append(out, x[(i*heads+h)*d:][:d]...)
	}
	return out
}

// addMoments adds x^T x of the rows of one window, summed in float32, to sums in float64.
func addMoments(sum []float64, x []float32, d, threads int) {
	n := len(x) / d
	if n == 0 {
		return
	}
	var w gemm.Weights
	w.PackT(d, n, x, d, threads)
	out := make([]float32, d*d)
	gemm.Mul(out, d, gemm.Transpose(nil, x, n, d), n, d, &w, threads)
	for i, v := range out {
		sum[i] += float64(v)
	}
}

// Metric returns the metric of one part of a layer with d numbers. scale is what the keys of a head are multiplied
// by before they are coded, nil for none: their gradients are divided by it.
func (f *Fisher) Metric(layer int, p codec.Part, d int, scale []float32) []float64 {
	x := &f.heads[layer][p.Head]
	n := float64(max(1, x.rows))
	out := make([]float64, d*d)
	for i := range out {
		switch {
		case p.Value && i%(d+1) == 0:
			out[i] = x.v / n / float64(d)
		case p.Value:
		default:
			if out[i] = x.k[i] / n; scale != nil {
				out[i] /= float64(scale[i/d]) * float64(scale[i%d])
			}
		}
	}
	return out
}
