// Package activations takes what fits and audits need from the queries and keys of a forward
// pass: samples of keys with their query metric, and the energies of rotary pairs.
package activations

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// addEnergies sums pair energies over all tokens but each window's first sink ones.
func addEnergies(e *transform.PairEnergy, c *family.Config, a *refmodel.Attention, sink int) {
	y := &c.Layers[a.Layer]
	qw, kw := y.Heads*y.HeadDim, y.KVHeads*y.HeadDim
	for r := range a.T * a.Windows {
		if r%a.T >= sink {
			e.Add(a.Q[r*qw:(r+1)*qw], a.K[r*kw:(r+1)*kw], y.Group(), c.PairsIn(a.Layer))
		}
	}
}

// anchors returns the table that turns keys to their blocks, nil for none.
func anchors(y *family.Layer, a *refmodel.Attention, p kvcache.Policy) *rope.Table {
	if p.Anchor == 0 {
		return nil
	}
	return rope.NewTable(y.Rope.Pure(), a.T)
}

// meetings returns how the queries of each window meet the keys of heads, [head][window].
func meetings(ctx context.Context, c *family.Config, a *refmodel.Attention, heads []int,
	scale func(h int) []float32, p kvcache.Policy, table *rope.Table, threads int) ([][]*meeting, error) {
	met := make([][]*meeting, len(heads))
	for i := range met {
		met[i] = make([]*meeting, a.Windows)
	}
	err := parallel.For(ctx, threads, len(heads)*a.Windows, func(j int) error {
		i, w := j/a.Windows, j%a.Windows
		var err error
		met[i][w], err = meet(ctx, c, a, heads[i], w, scale(heads[i]), p, table)
		return err
	})
	return met, err
}

// Keys collects the keys of KV head h that a cache with this policy would code,
// in the frame it would code them in: scaled by the balance (nil for none),
// without each window's sinks, anchored. Shape [n, head_dim].
func Keys(c *family.Config, a *refmodel.Attention, h int, scale []float32, p kvcache.Policy) []float32 {
	return keys(c, a, h, scale, p, anchors(&c.Layers[a.Layer], a, p))
}

// keys is Keys with the table for anchors, nil for none.
func keys(c *family.Config, a *refmodel.Attention, h int, scale []float32, p kvcache.Policy,
	table *rope.Table) []float32 {
	y := &c.Layers[a.Layer]
	d, width := y.HeadDim, y.KVHeads*y.HeadDim
	sink := min(p.Sink, a.T)
	out := make([]float32, 0, a.Windows*(a.T-sink)*d)
	for w := range a.Windows {
		from := len(out)
		for i := sink; i < a.T; i++ {
			row := (w*a.T+i)*width + h*d
			out = append(out, a.K[row:row+d]...)
		}
		part := out[from:]
		if scale != nil {
			for i := range part {
				part[i] *= scale[i%d]
			}
		}
		if table != nil {
			kvcache.ToAnchor(part, d, sink, p.Anchor, table, c.PairsIn(a.Layer))
		}
	}
	return out
}

// A meeting is how the queries of one window meet the keys of one KV head.
type meeting struct {
	queries []float32 // weighted, [T*group, head_dim], query heads of a token side by side
	seen    []float64 // how much attention each key gets, [T]
}

// meet collects the queries of KV head h's group in window w, in the frame in
// which keys are coded, times the root of their weight. The weight 1 - sum p^2 of
// a query's attention probabilities p is the curvature of softmax: a query that
// looks at one key alone hardly feels an error in its scores. With anchors a
// query meets keys in the frame of each block up to its own; every query is
// turned into one of them, in rotation. A key gets the sum of p(1-p) over its
// queries.
func meet(ctx context.Context, c *family.Config, a *refmodel.Attention, h, w int, scale []float32, p kvcache.Policy,
	table *rope.Table) (*meeting, error) {
	y := &c.Layers[a.Layer]
	d, width, g := y.HeadDim, y.Heads*y.HeadDim, y.Group()
	m := &meeting{queries: make([]float32, a.T*g*d), seen: make([]float64, a.T)}
	for j := range g {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		a.Probabilities(c, w, h*g+j, func(i, lo int, probs []float32) {
			seen := m.seen[lo : lo+len(probs)]
			for k, v := range probs {
				seen[k] += float64(float64(v) * float64(1-v))
			}
			q := m.queries[(i*g+j)*d:][:d]
			copy(q, a.Q[(w*a.T+i)*width+(h*g+j)*d:])
			if scale != nil {
				for k := range q {
					q[k] /= scale[k]
				}
			}
			if table != nil {
				table.ApplyInverse(q, i%(i/p.Anchor+1)*p.Anchor, c.PairsIn(a.Layer))
			}
			weight := float32(math.Sqrt(max(0, 1-fmath.SumSq(probs))))
			for k := range q {
				q[k] *= weight
			}
		})
	}
	return m, nil
}

// metric returns E[w q q^T] over the queries of all windows, [d, d].
func metric(windows []*meeting, d, threads int) []float64 {
	sum, n := moments(windows, d, threads)
	out := make([]float64, d*d)
	for i, v := range sum {
		out[i] = float64(v) / float64(n)
	}
	return out
}

// moments returns the sum of w q q^T over the queries of all windows, [d, d], and how many they are.
func moments(windows []*meeting, d, threads int) (sum []float32, queries int) {
	var w gemm.Weights
	var t []float32
	sum = make([]float32, d*d)
	for _, x := range windows {
		n := len(x.queries) / d
		t = gemm.Transpose(t, x.queries, n, d)
		w.PackT(d, n, x.queries, d, threads)
		gemm.MulAdd(sum, d, t, n, d, &w, threads)
		queries += n
	}
	return sum, queries
}
