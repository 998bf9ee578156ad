package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/backends"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// AdviseOptions of Advise.
type AdviseOptions struct {
	// Texts are measured one by one; their names tell them apart.
	Texts []ppl.Text
	// SkipShort leaves out, with a note, what a text is too short for: contexts after the first,
	// or the whole text if others are left. Without it that is an error.
	SkipShort bool
	// Ctx lists context lengths. The shortest is measured on Chunks windows (0: all
	// that the text gives), longer ones on as many tokens, but at least one window.
	Ctx    []int
	Chunks int
	MaxKLD float64
	// Types are the types to choose from, F16 always among them. Pairs, if set, are
	// measured instead of a search.
	Types []gguf.Type
	Pairs []kvcache.CacheTypes
	// Rotation: llama.cpp's attention rotation is on, its default.
	Rotation bool
	// Where is what the chosen pair has to run on. Without a Backend all pairs count as running.
	Where backends.Setup
	// Source and Model are the paths of the published model and of the GGUF file to run, for the
	// commands of the result. ConvertedModel is the converted one's. Empty ones get placeholders.
	Source, Model, ConvertedModel string
	// HalfSums reproduces the F16 sums of llama.cpp's CPU backend, see kvcache.LlamaCpp.
	HalfSums bool
	// FloatInputs leaves the inputs of matrix products in float32. Without it those of
	// GGUF files are rounded as llama.cpp's CPU backend does, see refmodel.Model.
	FloatInputs bool
	Threads     int
	Progress    progress.Func
}

// adviseTypes is what Advise tries when it is not told.
var adviseTypes = []gguf.Type{gguf.TypeQ8_0, gguf.TypeQ5_1, gguf.TypeQ5_0, gguf.TypeQ4_1, gguf.TypeIQ4_NL,
	gguf.TypeQ4_0}

// positionBands is into how many bands of positions a divergence is cut.
const positionBands = 8

// slack of the search: the divergences of K and V alone nearly add up in the pair
// (on SmolLM2 and seven pairs, 0.95 to 1.25 times the sum), so a pair whose sum is
// beyond slack times the gate has no chance.
const slack = 1.25

// pairsPerRun is how many pairs of the search are measured in one pass.
const pairsPerRun = 3

// adviser holds what the steps of Advise share.
type adviser struct {
	o      AdviseOptions
	models []adviseModel
	base   []*engine.Reference // per entry of texts: models[0] with F16 caches
	ppl    []float64           // of base
	texts  []adviseText
	rows   []spec.AdviseRow
	worst  map[adviseKey]float64 // largest KLD over texts and contexts
	notes  []string              // on what was not measured
}

// An adviseText is one text at one context.
type adviseText struct {
	name string
	*ppl.Windows
}

type adviseModel struct {
	engine.Engine
	converted bool
}

type adviseKey struct {
	k, v      gguf.Type
	converted bool
}

// Advise measures stock cache types with a model as published, as converted, or
// both (either may be nil), and names the smallest pair of types whose mean KLD
// from the published model with F16 caches (the converted one, if it is alone)
// is at most MaxKLD on every text at every context.
//
// It measures each type for K alone, for V alone and for both, and then, from the smallest
// pair on, those pairs of different types that run where they have to and whose parts promise
// to pass.
func Advise(ctx context.Context, published, converted *checkpoint.Checkpoint, o AdviseOptions) (*spec.AdviseJSON,
	error) {
	o.Threads = parallel.Threads(o.Threads)
	round := !o.FloatInputs && runAsTheyAre(published, converted)
	own := func(c *checkpoint.Checkpoint) engine.Engine {
		if c == nil {
			return nil
		}
		e := engine.NewOwn(c, o.Threads)
		e.Model.RoundInputs, e.HalfSums = round, o.HalfSums
		return e
	}
	out, err := advise(ctx, own(published), own(converted), o, round)
	if err != nil || out.Improve == nil {
		return out, err
	}
	g, err := audit.ReadGains(ctx, published, slices.Max(o.Ctx))
	if err != nil {
		return nil, err
	}
	expect(out.Improve, g)
	return out, nil
}

// AdviseWith is Advise with engines of one kind, which decide how products and sums are computed.
func AdviseWith(ctx context.Context, published, converted engine.Engine, o AdviseOptions) (*spec.AdviseJSON, error) {
	return advise(ctx, published, converted, o, false)
}

func advise(ctx context.Context, published, converted engine.Engine, o AdviseOptions, round bool) (*spec.AdviseJSON,
	error) {
	a := &adviser{o: o, worst: map[adviseKey]float64{}}
	out := &spec.AdviseJSON{MaxKLD: o.MaxKLD, Rotation: o.Rotation, RoundedInputs: round, Choices: []spec.AdviseChoice{}}
	if o.Where.Backend != "" {
		out.Backend, out.TensorSplit, out.Facts = string(o.Where.Backend), o.Where.TensorSplit, backends.Source
		if a.mlx() {
			out.Facts = backends.MLXSource
		}
	}
	for _, x := range []struct {
		e         engine.Engine
		name      string
		converted bool
	}{{published, "published", false}, {converted, "converted", true}} {
		if x.e == nil {
			continue
		}
		if out.Base == "" {
			out.Base = x.name + " model, F16 caches"
		}
		a.models = append(a.models, adviseModel{x.e, x.converted})
	}
	if len(a.models) == 0 {
		return nil, fmt.Errorf("no model to advise on")
	}
	if id := a.models[0].Identity(); id.Engine != engine.Own {
		out.Engine = &id
	}
	if err := a.checkTypes(); err != nil {
		return nil, err
	}
	base := a.models[0]
	if len(o.Ctx) == 0 {
		return nil, option.Errorf("no context length to measure at")
	}
	for _, n := range o.Ctx {
		if err := ppl.CheckContext(base.Config(), n); err != nil {
			return nil, err
		}
	}
	contexts := slices.Compact(slices.Sorted(slices.Values(o.Ctx)))
	if len(o.Texts) == 0 {
		return nil, option.Errorf("no text to measure on")
	}
	if err := a.tokenize(ctx, base, contexts, out); err != nil {
		return nil, err
	}
	if err := a.search(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(a.rows, func(x, y spec.AdviseRow) int {
		return cmp.Or(compareBool(x.Converted, y.Converted), cmp.Compare(y.BytesPerToken, x.BytesPerToken),
			cmp.Compare(x.KType, y.KType), cmp.Compare(x.VType, y.VType), cmp.Compare(x.Ctx, y.Ctx))
	})
	out.Rows, out.BasePPL = a.rows, a.ppl
	out.Notes = append(out.Notes, a.notes...)
	for _, m := range a.models {
		c, ok := a.choose(m)
		if ok {
			out.Choices = append(out.Choices, c)
		}
		out.Passed = a.passed(m, c, ok) // of the last, which is the one to run
		if published != nil && converted == nil {
			out.Improve = a.improve(m, c, ok)
		}
	}
	return out, nil
}

// tokenize cuts the texts into windows of each context.
func (a *adviser) tokenize(ctx context.Context, base adviseModel, contexts []int, out *spec.AdviseJSON) error {
	var short error
	for i, text := range a.o.Texts {
		if slices.ContainsFunc(a.o.Texts[:i], func(t ppl.Text) bool { return t.Name == text.Name }) {
			return option.Errorf("two texts have the name %s, by which results are told apart", text.Name)
		}
		for _, n := range contexts {
			chunks := a.o.Chunks
			if chunks > 0 {
				chunks = max(1, chunks*contexts[0]/n)
			}
			w, err := base.Windows(ctx, text, n, chunks)
			var tooShort *ppl.ShortError
			if errors.As(err, &tooShort) && a.o.SkipShort {
				out.Notes = append(out.Notes, fmt.Sprintf("not measured at context %d: %v", n, err))
				short = err
				continue
			}
			if err != nil {
				return err
			}
			a.texts = append(a.texts, adviseText{text.Name, w})
			f16 := kvcache.F16
			f16.Rotation = a.o.Rotation
			a.base = append(a.base, &engine.Reference{Engine: base.Engine, Lane: engine.Stock(f16)})
			out.Texts = append(out.Texts, text.Info(w))
		}
	}
	if len(a.texts) == 0 {
		return short
	}
	return nil
}

// ctx is the longest context.
func (a *adviser) ctx() int {
	n := 0
	for _, t := range a.texts {
		n = max(n, t.Ctx)
	}
	return n
}

// mlx says whether the runtime is mlx-lm.
func (a *adviser) mlx() bool { return a.o.Where.Backend == backends.MLX }

// runs says whether a pair runs where it has to.
func (a *adviser) runs(m adviseModel, k, v gguf.Type) (backends.Runs, string) {
	if a.o.Where.Backend == "" {
		return backends.Yes, ""
	}
	return a.o.Where.Judge(m.Config(), k, v)
}

// passes says whether a pair that was measured runs and is below the gate.
func (a *adviser) passes(m adviseModel, p kvcache.CacheTypes) bool {
	worst, ok := a.worst[adviseKey{p.K, p.V, m.converted}]
	runs, _ := a.runs(m, p.K, p.V)
	return ok && runs == backends.Yes && worst <= a.o.MaxKLD
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// checkTypes fills in the types and refuses those that a model cannot have.
func (a *adviser) checkTypes() error {
	fits := func(k, v gguf.Type) error {
		for _, m := range a.models {
			if err := m.Fits(kvcache.CacheTypes{K: k, V: v, Rotation: a.o.Rotation}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(a.o.Pairs) > 0 {
		for _, p := range a.o.Pairs {
			if err := fits(p.K, p.V); err != nil {
				return err
			}
		}
		return nil
	}
	asked := len(a.o.Types) > 0
	types := a.o.Types
	if !asked {
		types = adviseTypes
		if a.mlx() {
			types = kvcache.MLXTypes
		}
	}
	a.o.Types = nil
	for _, t := range types {
		if err := fits(t, t); err != nil {
			if asked {
				return err
			}
			continue // an odd head_dim; the other types may do
		}
		if t != gguf.TypeF16 && !slices.Contains(a.o.Types, t) {
			a.o.Types = append(a.o.Types, t)
		}
	}
	if len(a.o.Types) == 0 && !asked {
		return fmt.Errorf("head_dim %d is not a multiple of 32: stock runtimes have no quantised cache type for this model", a.models[0].Config().Layers[0].HeadDim)
	}
	return nil
}

func (a *adviser) search(ctx context.Context) error {
	if len(a.o.Pairs) > 0 {
		for _, m := range a.models {
			if err := a.measure(ctx, m, a.o.Pairs, "measuring cache types"); err != nil {
				return err
			}
		}
		return nil
	}
	for _, m := range a.models {
		pairs := []kvcache.CacheTypes{kvcache.F16}
		for _, t := range a.o.Types {
			pairs = append(pairs, kvcache.CacheTypes{K: t, V: gguf.TypeF16},
				kvcache.CacheTypes{K: gguf.TypeF16, V: t}, kvcache.CacheTypes{K: t, V: t})
		}
		if err := a.measure(ctx, m, pairs, "measuring K alone, V alone and both"); err != nil {
			return err
		}
		a.noteMixed(m)
		candidates := a.candidates(m)
		for len(candidates) > 0 {
			n := min(pairsPerRun, len(candidates))
			if err := a.measure(ctx, m, candidates[:n], "measuring pairs"); err != nil {
				return err
			}
			if slices.ContainsFunc(candidates[:n], func(p kvcache.CacheTypes) bool { return a.passes(m, p) }) {
				break // all others are larger
			}
			candidates = candidates[n:]
		}
	}
	return nil
}

// candidates lists the pairs of different types that run, are smaller than every pair that
// passed and may pass themselves, smallest first.
func (a *adviser) candidates(m adviseModel) []kvcache.CacheTypes {
	limit := math.MaxInt
	for key := range a.worst {
		if p := (kvcache.CacheTypes{K: key.k, V: key.v}); key.converted == m.converted && a.passes(m, p) {
			limit = min(limit, a.bytes(m, p))
		}
	}
	sum := func(p kvcache.CacheTypes) float64 {
		return a.worst[adviseKey{p.K, gguf.TypeF16, m.converted}] + a.worst[adviseKey{gguf.TypeF16, p.V, m.converted}]
	}
	var out []kvcache.CacheTypes
	for _, k := range a.o.Types {
		for _, v := range a.o.Types {
			p := kvcache.CacheTypes{K: k, V: v}
			runs, _ := a.runs(m, k, v)
			if k != v && runs == backends.Yes && a.bytes(m, p) < limit && sum(p) <= slack*a.o.MaxKLD {
				out = append(out, p)
			}
		}
	}
	slices.SortStableFunc(out, func(x, y kvcache.CacheTypes) int {
		return cmp.Or(cmp.Compare(a.bytes(m, x), a.bytes(m, y)), cmp.Compare(sum(x), sum(y)))
	})
	return out
}

// noteMixed tells, once, where pairs of different types were left out because none of them runs.
func (a *adviser) noteMixed(m adviseModel) {
	if a.mlx() {
		return // it has no such pairs anywhere
	}
	var first kvcache.CacheTypes
	why := ""
	for _, k := range a.o.Types {
		for _, v := range a.o.Types {
			switch runs, reason := a.runs(m, k, v); {
			case k == v:
			case runs == backends.Yes:
				return
			case why == "":
				first, why = kvcache.CacheTypes{K: k, V: v}, reason
			}
		}
	}
	note := fmt.Sprintf("no pair of two different quantised types was measured, because none runs there: %s; --pairs %s/%s measures one",
		why, kvcache.TypeName(first.K), kvcache.TypeName(first.V))
	if why != "" && !slices.Contains(a.notes, note) {
		a.notes = append(a.notes, note)
	}
}

// passed says whether a pair that is smaller than F16 caches was chosen, or none was measured but F16.
func (a *adviser) passed(m adviseModel, c spec.AdviseChoice, ok bool) bool {
	f16 := a.bytes(m, kvcache.F16)
	if !ok || c.BytesPerToken < float64(f16) {
		return ok
	}
	for key := range a.worst {
		if key.converted == m.converted && a.bytes(m, kvcache.CacheTypes{K: key.k, V: key.v}) < f16 {
			return false
		}
	}
	return true
}

// bytes is what a token takes in the caches.
func (a *adviser) bytes(m adviseModel, p kvcache.CacheTypes) int {
	n, _ := m.Size(p, a.ctx())
	return n
}

// cache is what the caches take at the longest context.
func (a *adviser) cache(m adviseModel, p kvcache.CacheTypes) int64 {
	_, n := m.Size(p, a.ctx())
	return n
}

// measure runs pairs of one model at all contexts and appends their rows.
func (a *adviser) measure(ctx context.Context, m adviseModel, pairs []kvcache.CacheTypes, step string) error {
	for i, w := range a.texts {
		on := ""
		if len(a.o.Texts) > 1 {
			on = " on " + w.name
		}
		progress := a.o.Progress.Of(fmt.Sprintf("%s%s at context %d%s", step, on, w.Ctx, suffix(m.converted)))
		if err := a.pass(ctx, m, i, pairs, progress); err != nil {
			return err
		}
	}
	return nil
}

// pass runs pairs of one model on text number i.
func (a *adviser) pass(ctx context.Context, m adviseModel, i int, pairs []kvcache.CacheTypes,
	tick func(done, total int),
) error {
	var lanes []engine.Lane
	for _, p := range pairs {
		p.Rotation = a.o.Rotation
		l := engine.Stock(p)
		if base := a.base[i]; m.Engine == base.Engine && p == *base.Lane.Types {
			l = engine.Lane{Again: base}
		}
		lanes = append(lanes, l)
	}
	res, err := m.Compare(ctx, a.texts[i].Windows, a.base[i], lanes,
		engine.Options{Run: tick, Compare: a.o.Progress.Of("comparing predictions")})
	if err != nil {
		return err
	}
	if len(a.ppl) <= i {
		a.ppl = append(a.ppl, res.Base.PPL)
	}
	for j, p := range pairs {
		if err := a.add(m, p, a.texts[i], &res.Divergences[j]); err != nil {
			return err
		}
	}
	return nil
}

func suffix(converted bool) string {
	if converted {
		return ", converted"
	}
	return ""
}

func (a *adviser) add(m adviseModel, p kvcache.CacheTypes, w adviseText, d *ppl.Divergence) error {
	for _, x := range []float64{d.Mean, d.Ratio} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Errorf("cache types %s/%s at context %d: the result is not a number", kvcache.TypeName(p.K),
				kvcache.TypeName(p.V), w.Ctx)
		}
	}
	token, all := m.Size(p, w.Ctx)
	row := spec.AdviseRow{
		KType: kvcache.TypeName(p.K), VType: kvcache.TypeName(p.V), Ctx: w.Ctx, Converted: m.converted,
		BytesPerToken: float64(token), PPLRatio: d.Ratio, KLD: d.Mean, KLDErr: d.MeanErr, SameTop: d.SameTop,
		CacheBytes: all, Positions: ppl.Bands(d, w.Windows, positionBands),
	}
	if len(a.o.Texts) > 1 {
		row.Text = w.name
	}
	if a.o.Where.Backend != "" {
		runs, reason := a.runs(m, p.K, p.V)
		row.Runs, row.Reason = string(runs), reason
	}
	a.rows = append(a.rows, row)
	key := adviseKey{p.K, p.V, m.converted}
	a.worst[key] = max(a.worst[key], d.Mean)
	return nil
}

// smallest returns the smallest pair of a model that accept takes, of equal ones the better.
func (a *adviser) smallest(m adviseModel, accept func(p kvcache.CacheTypes, worst float64) bool) (
	best kvcache.CacheTypes, found bool,
) {
	var worst float64
	for key, x := range a.worst {
		p := kvcache.CacheTypes{K: key.k, V: key.v, Rotation: a.o.Rotation}
		if key.converted != m.converted || !accept(p, x) {
			continue
		}
		if !found || cmp.Or(cmp.Compare(a.bytes(m, p), a.bytes(m, best)), cmp.Compare(x, worst),
			cmp.Compare(kvcache.TypeName(p.K), kvcache.TypeName(best.K)),
			cmp.Compare(kvcache.TypeName(p.V), kvcache.TypeName(best.V))) < 0 {
			best, worst, found = p, x, true
		}
	}
	return best, found
}

// choose names the smallest pair of a model that passed.
func (a *adviser) choose(m adviseModel) (spec.AdviseChoice, bool) {
	p, ok := a.smallest(m, func(p kvcache.CacheTypes, _ float64) bool { return a.passes(m, p) })
	if !ok {
		return spec.AdviseChoice{}, false
	}
	file := a.o.Model
	if m.converted {
		file = a.o.ConvertedModel
	}
	if a.mlx() {
		file = cmp.Or(file, "MODEL")
	}
	return spec.AdviseChoice{
		KType: kvcache.TypeName(p.K), VType: kvcache.TypeName(p.V), Converted: m.converted,
		BytesPerToken: float64(a.bytes(m, p)), Worst: a.worst[adviseKey{p.K, p.V, m.converted}],
		Flags: kvcache.Flags(p.K, p.V),
		Ctx:   a.ctx(), CacheBytes: a.cache(m, p),
		Lines: backends.Launch{
			Model: file, Ctx: a.ctx(), K: p.K, V: p.V, Rotation: a.o.Rotation,
			MLX: a.mlx(),
		}.Lines(),
	}, true
}
