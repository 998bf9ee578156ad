// Package calibrate runs text through a model and fits, layer by layer while the
// activations of that layer are in memory, what a conversion needs: the K/Q
// balance and the key codes of every KV head. Memory does not grow with the
// number of layers.
package calibrate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"

	"phaseconv/format/family"
	"phaseconv/kernels/fmath"
	"phaseconv/kernels/gemm"
	"phaseconv/kernels/rope"
	"phaseconv/rotations"
	"phaseconv/verify/kvcache"
	"phaseconv/verify/refmodel"
)

// Options says what to fit.
type Options struct {
	// Kinds are the codes to fit for each head.
	Kinds []string
	// Bits is the number of signs per number of a frame, on average over all heads;
	// other codes have one.
	Bits float64
	// Signs of the frame of each head, [layer][KV head]; nil spreads Bits evenly.
	Signs   [][]int
	Policy  kvcache.Policy
	Balance bool
	Seed    uint64
	Threads int
	// Progress is called after each layer.
	Progress func(done, total int)
	// Only, if set, says which layers to fit; the forward pass goes through the
	// others, and ends behind the last that is needed.
	Only func(layer int) bool
	// Store, if set, keeps fitted layers, and gives back those that it has.
	Store Store
	// Trace, if set, sees the steps of every iterative fit; see rotations.Sample. It
	// is called from several goroutines.
	Trace func(s *rotations.Sample, kind string, start, step int, c *rotations.Code)
}

// Head is what was fitted to one KV head.
type Head struct {
	Codes  map[string]*rotations.Code
	Curves map[string][]rotations.Point
	// Train holds the measures on the keys that were fitted.
	Train  map[string]rotations.Beta
	Tokens int // keys fitted
}

// Layer is what was fitted to one layer.
type Layer struct {
	Balance *rotations.Balance // nil when not asked for
	Heads   []Head
}

// Result of Run.
type Result struct {
	Layers []Layer
}

// KeyScale returns what the balance multiplies the keys of a head by, as a
// function of layer and head that gives nil where nothing was balanced.
func (r *Result) KeyScale(c *family.Config) func(layer, head int) []float32 {
	if r.Layers[0].Balance == nil {
		return nil
	}
	return func(l, h int) []float32 { return r.Layers[l].Balance.RowScale(h, c.HeadDim, c.Pairs, false) }
}

// Run fits on windows of token ids. When ctx ends, it returns the error of ctx
// after at most one step of one fit.
func Run(ctx context.Context, m *refmodel.Model, windows [][]int32, o Options) (*Result, error) {
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if err := o.Policy.Check(m.Config.HeadDim); err != nil {
		return nil, err
	}
	if o.Signs == nil {
		var err error
		if o.Signs, err = Even(m.Config, o.Bits); err != nil {
			return nil, err
		}
	}
	f := &fitter{ctx: ctx, cfg: m.Config, o: o, last: -1, res: &Result{Layers: make([]Layer, m.Config.Layers)}}
	f.todo = make([]bool, m.Config.Layers)
	for l := range f.todo {
		if o.Only != nil && !o.Only(l) {
			continue
		}
		if o.Store != nil {
			if x := o.Store.Load(l); x != nil {
				f.res.Layers[l] = *x
				continue
			}
		}
		f.todo[l], f.last = true, l
	}
	if f.last >= 0 {
		// Progress is that of the layers that the pass goes through.
		opt := refmodel.Options{Tap: f, Progress: func(done, _ int) { f.progress(done) }}
		if err := m.Run(ctx, windows, []*refmodel.Lane{{}}, opt); !errors.Is(err, errDone) {
			if err == nil {
				err = fmt.Errorf("layer %d was not reached", f.last)
			}
			return nil, err
		}
		f.progress(f.last + 1)
	}
	return f.res, nil
}

// errDone ends a forward pass whose rest nobody needs.
var errDone = errors.New("all layers are fitted")

// fitter is the tap that fits a layer as its activations pass.
type fitter struct {
	ctx  context.Context
	cfg  *family.Config
	o    Options
	todo []bool // layers to fit
	last int    // of them, -1 for none
	res  *Result
}

func (f *fitter) progress(done int) {
	if f.o.Progress != nil {
		f.o.Progress(done, f.last+1)
	}
}

// FFN implements refmodel.Tap.
func (f *fitter) FFN(int, []float32) error { return nil }

// Attention implements refmodel.Tap.
func (f *fitter) Attention(a *refmodel.Attention) error {
	if !f.todo[a.Layer] {
		return nil
	}
	c := f.cfg
	layer := &f.res.Layers[a.Layer]
	layer.Heads = make([]Head, c.KVHeads)
	if f.o.Balance {
		layer.Balance = Energies(c, a, f.o.Policy.Sink).Balance(c.Family.QKNorm == family.NormHead)
	}
	errs := make([]error, c.KVHeads)
	// With fewer heads than threads the matrix products inside share them out.
	inner := max(1, f.o.Threads/c.KVHeads)
	refmodel.Parallel(f.o.Threads, c.KVHeads, func(h int) {
		errs[h] = f.fitHead(a, layer, h, inner)
	})
	for h, err := range errs {
		if err != nil {
			return fmt.Errorf("layer %d, KV head %d: %w", a.Layer, h, err)
		}
	}
	if f.o.Store != nil {
		if err := f.o.Store.Save(a.Layer, layer); err != nil {
			return err
		}
	}
	if a.Layer == f.last {
		return errDone
	}
	return nil
}

// Energies sums pair energies over all tokens but each window's first sink ones.
func Energies(c *family.Config, a *refmodel.Attention, sink int) *rotations.PairEnergy {
	e := rotations.NewPairEnergy(c.KVHeads, c.HeadDim)
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	for r := range a.T * a.Windows {
		if r%a.T >= sink {
			e.Add(a.Q[r*qw:(r+1)*qw], a.K[r*kw:(r+1)*kw], c.Group(), c.Pairs)
		}
	}
	return e
}

func (f *fitter) fitHead(a *refmodel.Attention, layer *Layer, h, threads int) error {
	c := f.cfg
	var scale []float32
	if layer.Balance != nil {
		scale = layer.Balance.RowScale(h, c.HeadDim, c.Pairs, false)
	}
	s, err := sample(f.ctx, c, a, h, scale, f.o.Policy, threads)
	if err != nil {
		return err
	}
	s.Seed = f.o.Seed
	keys := s.Keys
	head := Head{Codes: map[string]*rotations.Code{}, Curves: map[string][]rotations.Point{}, Train: map[string]rotations.Beta{}, Tokens: s.N()}
	for _, kind := range f.o.Kinds {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		b := c.HeadDim
		if kind == "frame" {
			b = f.o.Signs[a.Layer][h]
		}
		if f.o.Trace != nil {
			s.Trace = func(start, step int, c *rotations.Code) { f.o.Trace(s, kind, start, step, c) }
		}
		code, curve, err := rotations.Fit(kind, b, s)
		if err != nil {
			return err
		}
		head.Codes[kind], head.Train[kind] = code, code.Measure(keys)
		if curve != nil {
			head.Curves[kind] = curve
		}
	}
	layer.Heads[h] = head
	return nil
}

// sample collects what the codes of KV head h are fitted to.
func sample(ctx context.Context, c *family.Config, a *refmodel.Attention, h int, scale []float32, p kvcache.Policy, threads int) (*rotations.Sample, error) {
	s := &rotations.Sample{D: c.HeadDim, Keys: Keys(c, a, h, scale, p), Layer: a.Layer, Head: h, Threads: threads, Stop: ctx.Err}
	var err error
	s.Metric, s.Weights, err = attention(ctx, c, a, h, scale, p, threads)
	return s, err
}

// Keys collects the keys of KV head h that a cache with this policy would code,
// in the frame it would code them in: scaled by the balance (nil for none),
// without each window's sinks, anchored. Shape [n, head_dim].
func Keys(c *family.Config, a *refmodel.Attention, h int, scale []float32, p kvcache.Policy) []float32 {
	d, width := c.HeadDim, c.KVHeads*c.HeadDim
	sink := min(p.Sink, a.T)
	out := make([]float32, 0, a.Windows*(a.T-sink)*d)
	var table *rope.Table
	if p.Anchor > 0 {
		table = rope.NewTable(c.RopeOf(a.Layer).Pure(), a.T)
	}
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
			kvcache.Anchored(part, d, sink, p.Anchor, table, c.Pairs, false)
		}
	}
	return out
}

// attention returns the metric E[w q q^T] over the queries of KV head h's group, [head_dim,
// head_dim], in the frame in which keys are coded. The weight w = 1 - sum p^2 of
// a query's attention probabilities p is the curvature of softmax: a query that
// looks at one key alone hardly feels an error in its scores. With anchors a
// query meets keys in the frame of each block up to its own; every query is
// turned into one of them, in rotation. It also returns how much attention each
// coded key gets, the sum of p(1-p) over its queries.
func attention(ctx context.Context, c *family.Config, a *refmodel.Attention, h int, scale []float32, p kvcache.Policy, threads int) (metric, weights []float64, err error) {
	d, width, g := c.HeadDim, c.Heads*c.HeadDim, c.Group()
	var table *rope.Table
	if p.Anchor > 0 {
		table = rope.NewTable(c.RopeOf(a.Layer).Pure(), a.T)
	}
	n := a.Windows * a.T * g
	qt := make([]float32, d*n)
	q := make([]float32, d)
	for w := range a.Windows {
		seen := make([]float64, a.T)
		for j := range g {
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			a.Probabilities(c, w, h*g+j, func(i, lo int, probs []float32) {
				for k, v := range probs {
					seen[lo+k] += float64(v) * float64(1-v)
				}
				r := w*a.T + i
				copy(q, a.Q[r*width+(h*g+j)*d:])
				if scale != nil {
					for k := range q {
						q[k] /= scale[k]
					}
				}
				if table != nil {
					table.ApplyInverse(q, i%(i/p.Anchor+1)*p.Anchor, c.Pairs)
				}
				weight := float32(math.Sqrt(max(0, 1-fmath.SumSq(probs))))
				for k, v := range q {
					qt[k*n+r*g+j] = v * weight
				}
			})
		}
		weights = append(weights, seen[min(p.Sink, a.T):]...)
	}
	var w gemm.Weights
	w.PackRows(d, n, qt, n, threads)
	m := make([]float32, d*d)
	gemm.Mul(m, d, qt, n, d, &w, threads)
	metric = make([]float64, d*d)
	for i, v := range m {
		metric[i] = float64(v) / float64(n)
	}
	return metric, weights, nil
}
