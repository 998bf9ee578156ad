// Package calibrate runs text through a model and fits, layer by layer while the
// activations of that layer are in memory, what a conversion needs: the K/Q
// balance and the key codes of every KV head. Memory does not grow with the
// number of layers.
package calibrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Options says what to fit.
type Options struct {
	// Kinds are the codes to fit for each head.
	Kinds []codec.Kind
	// Bits is the number of signs per number of a frame, on average over all heads;
	// other codes have one.
	Bits float64
	// Signs of the frame of each head, [layer][KV head]; nil spreads Bits evenly.
	Signs [][]int
	// Joint, if set, is fitted instead of Kinds.
	Joint   *Joint
	Policy  kvcache.Policy
	Balance bool
	Seed    uint64
	Threads int
	// Progress, if set, is told how much is done: layers passed and codes fitted, together.
	Progress func(done, total int)
	// Gradients, if set, is told the same of the backward pass of joint codes.
	Gradients func(done, total int)
	// Only, if set, says which layers to fit; the forward pass goes through the
	// others, and ends behind the last that is needed.
	Only func(layer int) bool
	// Store, if set, keeps fitted layers, and gives back those that it has.
	Store Store
	// Tap, if set, runs windows and shows their activations in place of the model, see engine.Engine.
	Tap func(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error
	// Trace, if set, sees the steps of every iterative fit; see fit.Sample. It
	// is called from several goroutines.
	Trace func(s *fit.Sample, kind codec.Kind, start, step int, c *codec.Code)
}

// Joint says which groups to fit.
type Joint struct {
	bits.Groups
	// Fisher takes the metric of keys and values from gradients of the model's own loss on every
	// second window instead of from queries: a backward pass more.
	Fisher bool
}

// Allocation returns what bits.Allocate needs of these options.
func (o *Options) Allocation() bits.Options {
	return bits.Options{Bits: o.Bits, Policy: o.Policy, Balance: o.Balance, Seed: o.Seed, Threads: o.Threads,
		Progress: o.Progress}
}

// A Store keeps fitted layers for later runs.
type Store interface {
	// Load returns a layer that was saved, or nil if there is none that can be
	// used; why not is the store's to tell. It fails only when ctx ends.
	Load(ctx context.Context, layer int) (*Layer, error)
	// Save keeps a layer.
	Save(ctx context.Context, layer int, x *Layer) error
}

// Head is what was fitted to one KV head.
type Head struct {
	Codes  map[codec.Kind]*codec.Code
	Curves map[codec.Kind][]fit.Point
	// Train holds the measures on the keys that were fitted.
	Train  map[codec.Kind]codec.Beta
	Tokens int // keys fitted
}

// Group is what was fitted to one group of a layer.
type Group struct {
	Code   *codec.Group
	Curve  []fit.Point
	Tokens int // fitted
}

// Layer is what was fitted to one layer.
type Layer struct {
	PairScale *transform.PairScale // nil when not asked for
	Heads     []Head
	Groups    []Group // instead of Heads, of joint codes
}

// Result of Run.
type Result struct {
	Layers []Layer
}

// KeyScale returns what the balance multiplies the keys of a head by, as a
// function of layer and head that gives nil where nothing was balanced.
func (r *Result) KeyScale(c *family.Config) func(layer, head int) []float32 {
	if !slices.ContainsFunc(r.Layers, func(x Layer) bool { return x.PairScale != nil }) {
		return nil
	}
	return func(l, h int) []float32 {
		if r.Layers[l].PairScale == nil {
			return nil
		}
		return r.Layers[l].PairScale.KeyScale(h, c.Layers[l].HeadDim, c.PairsIn(l))
	}
}

// Edits returns the balance as edits of keys, nil where nothing was balanced.
func (r *Result) Edits() transform.ModelEdits {
	var out transform.ModelEdits
	for l, x := range r.Layers {
		if x.PairScale == nil {
			continue
		}
		if out == nil {
			out = make(transform.ModelEdits, len(r.Layers))
		}
		for _, s := range x.PairScale.Scale {
			out[l] = append(out[l], transform.KeyEdit{Pairs: &transform.PairRotation{Scale: s}})
		}
	}
	return out
}

// Run fits on windows of token ids. When ctx ends, it returns its cause after at most one
// step of one fit.
func Run(ctx context.Context, m *refmodel.Model, windows [][]int32, o Options) (*Result, error) {
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if err := m.Config.Require("calibration", family.OwnHeads|family.SharedKV); err != nil {
		return nil, err
	}
	for l := range m.Config.Layers {
		if err := o.Policy.Check(m.Config.Layers[l].HeadDim); err != nil {
			return nil, err
		}
	}
	if o.Signs == nil && o.Joint == nil {
		var err error
		if o.Signs, err = bits.Even(m.Config, o.Bits); err != nil {
			return nil, err
		}
	}
	f := &fitter{cfg: m.Config, o: o, last: -1, res: &Result{Layers: make([]Layer, len(m.Config.Layers))}}
	if o.Joint != nil {
		f.groups = bits.NewFitter(&o.Joint.Groups)
	}
	f.todo = make([]bool, len(m.Config.Layers))
	f.gather = activations.NewGatherer(f.cfg, o.Policy, o.Threads, func(l int) bool { return f.todo[l] })
	for l := range f.todo {
		if o.Only != nil && !o.Only(l) {
			continue
		}
		if o.Store != nil {
			x, err := o.Store.Load(ctx, l)
			if err != nil {
				return nil, err
			}
			if x != nil {
				f.res.Layers[l] = *x
				continue
			}
		}
		f.todo[l] = true
	}
	f.todoBelow()
	for l, todo := range f.todo {
		if todo {
			f.last = max(f.last, f.cfg.LastReader(l))
		}
	}
	if j := o.Joint; f.last >= 0 && j != nil && j.Fisher {
		var err error
		if f.fisher, err = activations.NewFisher(ctx, m, everySecond(windows), o.Policy, o.Seed, o.Gradients); err != nil {
			return nil, err
		}
	}
	if f.last >= 0 {
		tap := o.Tap
		if tap == nil {
			tap = func(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error {
				return m.Run(ctx, windows, []*refmodel.Variant{{}}, refmodel.Options{Hooks: h, Progress: p})
			}
		}
		hooks := refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return f.attention(ctx, a) }, NoPre: true,
			NoValues: o.Joint == nil}
		f.progress(0, 0)
		if err := tap(ctx, windows, hooks, f.passed); !errors.Is(err, errDone) {
			if err == nil {
				err = fmt.Errorf("layer %d was not reached", f.last)
			}
			return nil, err
		}
		f.progress(f.last+1, 0)
	}
	return f.res, nil
}

// todoBelow adds the layers that others which are to be fitted are given: their codes of the
// calibration text are nowhere kept, and a layer that is fitted once more comes out the same.
func (f *fitter) todoBelow() {
	for l := 1; f.o.Joint != nil && l < len(f.todo); l++ {
		if f.todo[l] && !f.todo[l-1] && f.o.Joint.AnyGiven(l) {
			f.todo[l-1], f.res.Layers[l-1] = true, Layer{}
		}
	}
}

// everySecond returns half of the windows: gradients take thrice the time of a forward pass, and
// their second moments settle sooner than codes do.
func everySecond(windows [][]int32) (out [][]int32) {
	for i := 0; i < len(windows); i += 2 {
		out = append(out, windows[i])
	}
	return out
}

// errDone ends a forward pass whose rest nobody needs.
var errDone = errors.New("all layers are fitted")

// fitter fits a layer as its activations pass.
type fitter struct {
	cfg  *family.Config
	o    Options
	todo []bool // layers to fit
	last int    // the last layer that a fit needs, -1 for none
	at   int    // the layer that passes
	res  *Result

	gather *activations.Gatherer
	fisher *activations.Fisher // nil where queries are the metric

	groups *bits.Fitter // of joint codes
}

// passed reports layers of the forward pass, or the share of them that an engine has passed.
func (f *fitter) passed(done, total int) { f.progress(done*len(f.cfg.Layers)/max(1, total), 0) }

// progress reports that so many layers have been passed, and that of the next one so many
// codes are fitted. Layers count as much as that with most heads.
func (f *fitter) progress(layers, fits int) {
	if f.o.Progress != nil {
		heads := 0
		for l := range f.cfg.Layers {
			heads = max(heads, f.cfg.Layers[l].KVHeads)
		}
		each := len(f.o.Kinds)*heads + 1
		if j := f.o.Joint; j != nil {
			each = 1
			for _, groups := range j.Parts {
				each = max(each, 1+len(groups))
			}
		}
		f.o.Progress(layers*each+fits, (f.last+1)*each)
	}
}

func (f *fitter) attention(ctx context.Context, a *refmodel.Attention) error {
	f.at = a.Layer
	x, err := f.gather.Add(ctx, a)
	if err != nil {
		return err
	}
	if l := a.Layer; f.todo[l] && f.cfg.Layers[l].Owner != l {
		if err := f.save(ctx, l); err != nil { // there is nothing to fit
			return err
		}
	}
	if x != nil {
		if err := f.fit(ctx, x); err != nil {
			return err
		}
	}
	if a.Layer == f.last {
		return errDone
	}
	return nil
}

// fit fits the codes of a layer's keys, or of its groups.
func (f *fitter) fit(ctx context.Context, x *activations.Gathered) error {
	c, l := f.cfg, x.Layer
	y, layer := &c.Layers[l], &f.res.Layers[l]
	if f.o.Balance && transform.CheckPairScale(y) == nil {
		layer.PairScale = x.PairScale()
	}
	scale := func(h int) []float32 {
		if layer.PairScale == nil {
			return nil
		}
		return layer.PairScale.KeyScale(h, y.HeadDim, c.PairsIn(l))
	}
	if f.o.Joint != nil {
		if err := f.fitGroups(ctx, x, scale, layer); err != nil {
			return err
		}
		return f.save(ctx, l)
	}
	layer.Heads = make([]Head, y.KVHeads)
	xs, err := x.Samples(ctx, scale)
	if err != nil {
		return err
	}
	if err := f.fitHeads(ctx, xs, layer.Heads); err != nil {
		return err
	}
	return f.save(ctx, l)
}

// save keeps a layer.
func (f *fitter) save(ctx context.Context, l int) error {
	if f.o.Store == nil {
		return nil
	}
	return f.o.Store.Save(ctx, l, &f.res.Layers[l])
}

// fitHeads fits every kind of code to every head. Each fit is a task of its own:
// with the few heads of a layer as tasks, threads would wait for the last one.
func (f *fitter) fitHeads(ctx context.Context, xs []*fit.Sample, heads []Head) error {
	type task struct {
		head  int
		kind  codec.Kind
		code  *codec.Code
		curve []fit.Point
		train codec.Beta
	}
	var tasks []*task
	for _, kind := range f.o.Kinds {
		for h := range xs {
			tasks = append(tasks, &task{head: h, kind: kind})
		}
	}
	// Long ones first, so that none begins when the others end.
	slices.SortStableFunc(tasks, func(a, b *task) int {
		return cmp.Compare(f.effort(b.kind, xs[b.head]), f.effort(a.kind, xs[a.head]))
	})
	layer := xs[0].Layer
	fitted := progress.Count(func(done, _ int) { f.progress(f.at, done) }, len(tasks))
	err := parallel.For(ctx, f.o.Threads, len(tasks), func(i int) error {
		t := tasks[i]
		s := *xs[t.head]
		s.Seed = f.o.Seed
		if f.o.Trace != nil {
			s.Trace = func(start, step int, c *codec.Code) { f.o.Trace(&s, t.kind, start, step, c) }
		}
		var err error
		if t.code, t.curve, err = fit.Fit(ctx, t.kind, f.signs(t.kind, &s), &s); err == nil {
			t.train, err = t.code.Measure(ctx, s.Keys)
		}
		if err != nil {
			return fmt.Errorf("layer %d, KV head %d: %w", layer, t.head, err)
		}
		fitted()
		return nil
	})
	if err != nil {
		return err
	}
	for h, s := range xs {
		heads[h] = Head{Codes: map[codec.Kind]*codec.Code{}, Curves: map[codec.Kind][]fit.Point{},
			Train: map[codec.Kind]codec.Beta{}, Tokens: s.N()}
	}
	for _, t := range tasks {
		head := &heads[t.head]
		head.Codes[t.kind], head.Train[t.kind] = t.code, t.train
		if t.curve != nil {
			head.Curves[t.kind] = t.curve
		}
	}
	return nil
}

// fitGroups fits the code of every group of a layer, one after the other: they take much memory,
// and each keeps all threads busy.
func (f *fitter) fitGroups(ctx context.Context, a *activations.Gathered, scale func(h int) []float32,
	layer *Layer) error {
	j := f.o.Joint
	for i, parts := range j.Parts[a.Layer] {
		s, err := a.Groups(ctx, parts, scale, f.fisher)
		if err != nil {
			return err
		}
		s.Index = i
		g := Group{Tokens: s.N()}
		if g.Code, g.Curve, err = f.groups.Fit(ctx, s); err != nil {
			return err
		}
		layer.Groups = append(layer.Groups, g)
		f.progress(f.at, i+1)
	}
	return nil
}

// Groups returns the fitted joint codes, [layer][group].
func (r *Result) Groups() [][]*codec.Group {
	out := make([][]*codec.Group, len(r.Layers))
	for l, layer := range r.Layers {
		for _, g := range layer.Groups {
			out[l] = append(out[l], g.Code)
		}
	}
	return out
}

// Codes returns the fitted codes of a kind, [layer][KV head].
func (r *Result) Codes(kind codec.Kind) [][]*codec.Code {
	out := make([][]*codec.Code, len(r.Layers))
	for l, layer := range r.Layers {
		for _, h := range layer.Heads {
			out[l] = append(out[l], h.Codes[kind])
		}
	}
	return out
}

// signs returns how many signs a code gets.
func (f *fitter) signs(kind codec.Kind, s *fit.Sample) int {
	if kind == codec.Frame {
		return f.o.Signs[s.Layer][s.Head]
	}
	return s.D
}

// effort orders fits by how long they take.
func (f *fitter) effort(kind codec.Kind, s *fit.Sample) float64 {
	switch kind {
	case codec.Learned:
		return 1
	case codec.Frame:
		return float64(f.signs(kind, s)) / float64(s.D)
	case codec.SRHT:
		return 0.5
	}
	return 0
}
