// Package ladder measures whether the attention of a layer can be replaced by a state of finite
// size: rung by rung, on text that nothing was fitted to, and in a queue that stops where a gate
// is not passed. spec/ladder.md has the rungs, their gates and how the state works.
//
// Statistics, codebooks and numbers of slots come from fit text only. Nothing is random: samples
// are strided, and the directions of random features come from a fixed generator.
package ladder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Constants of the methods; they are part of the rungs' definitions.
const (
	sinks          = 4
	slotWindow     = 32
	codebookWindow = 64
	rungKappa      = 0.5
	rungSaturation = 0.25
	codebookSize   = 64 // of RW0
)

// rungDecay is the decay per token of RW2 at a context: 1/4096, as in the source, and less where the
// context is so long that decay alone would bring log(z'/z) near its gate.
func rungDecay(T int) float64 { return min(1.0/4096, 1/float64(8*T)) }

// targets are the errors on fit text for which RW1.8 allots slots; the last one counts.
var targets = []float64{0.20, 0.10, 0.05}

// revision is part of what a record depends on; it is raised whenever a method changes.
const revision = 3

// Options of Run.
type Options struct {
	Layers string // "first,middle,last", "all" or numbers with commas
	Ctx    []int  // contexts, in tokens; the queue runs once for each
	Until  string // the last rung
	// FitWindows and EvalWindows are how many windows of the shortest context are fitted to and
	// measured on; longer contexts get as many tokens.
	FitWindows, EvalWindows int
	Queries                 int // sampled from fit text, to measure masses with
	Fit, Eval               ppl.Text
	Out                     string // folder of records; "" keeps none
	Resume                  bool   // take finished rungs whose inputs are the same from Out
	Tool                    string
	Threads                 int
	Progress                progress.Func
}

// DefaultOptions are those of the command line, without texts.
func DefaultOptions() Options {
	return Options{Layers: "first,middle,last", Ctx: []int{512}, Until: "RW3.1", FitWindows: 8, EvalWindows: 4,
		Queries: 4096}
}

// check refuses options that cannot be.
func (o *Options) check() error {
	ids := []string{}
	for _, r := range spec.Ladder() {
		ids = append(ids, r.ID)
	}
	if o.Until == "RW1" {
		o.Until = "RW1.8"
	}
	if !slices.Contains(ids, o.Until) {
		return option.Bad("Until", o.Until, "expected a rung: %s", strings.Join(ids, ", "))
	}
	if len(o.Ctx) == 0 {
		return option.Bad("Ctx", "none", "expected at least one context")
	}
	for _, n := range o.Ctx {
		if n < minContext {
			return option.Bad("Ctx", n, "expected at least %d tokens: in fewer there is too little between window and sinks",
				minContext)
		}
	}
	for _, x := range []struct {
		field   string
		n, most int
	}{{"FitChunks", o.FitWindows, 1 << 16}, {"Chunks", o.EvalWindows, 1 << 16}, {"Queries", o.Queries, 1 << 20}} {
		if x.n < 1 || x.n > x.most {
			return option.Bad(x.field, x.n, "expected 1 to %d", x.most)
		}
	}
	if o.Fit.SHA256() == o.Eval.SHA256() {
		return option.Errorf("%s is the text that is fitted to; measure on another", o.Eval.Name)
	}
	return nil
}

// sampled returns the layers that an option names.
func sampled(s string, layers int) ([]int, error) {
	var out []int
	switch s {
	case "all":
		for l := range layers {
			out = append(out, l)
		}
	case "", "first,middle,last":
		out = []int{0, layers / 2, layers - 1}
	default:
		for _, f := range strings.Split(s, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(f))
			if err != nil || n < 0 || n >= layers {
				return nil, option.Bad("Layers", s, "expected first,middle,last or all or numbers from 0 to %d", layers-1)
			}
			out = append(out, n)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if layers < spec.LadderMonotone {
		return nil, option.Errorf("the model has %d layer: the gates of the ladder compare at least %d",
			layers, spec.LadderMonotone)
	}
	if len(out) < spec.LadderMonotone {
		return nil, option.Bad("Layers", s, "the gates compare at least %d layers", spec.LadderMonotone)
	}
	return out, nil
}

// A session is the ladder of one model at one context.
type session struct {
	o          *Options
	model      *refmodel.Model
	source     spec.Source
	T          int
	layers     []int
	fit, eval  *ppl.Windows
	fitT, evlT spec.Text

	loaded map[int]*layer
}

// Run measures the rungs up to the one asked for at each context. An *option.Error names the
// field that cannot be. What was finished when ctx ends, or an error comes, is in the folder.
func Run(ctx context.Context, ck *checkpoint.Checkpoint, o Options) (*spec.LadderJSON, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	layers, err := sampled(o.Layers, len(ck.Config.Layers))
	if err != nil {
		return nil, err
	}
	if err := ck.Config.Require("the ladder", 0); err != nil {
		return nil, err
	}
	shortest := slices.Min(o.Ctx)
	var sessions []*session
	for _, T := range o.Ctx {
		s := &session{o: &o, T: T, layers: layers, model: refmodel.New(ck.Config, ck, o.Threads)}
		part := func(t ppl.Text, n int) (*ppl.Windows, spec.Text, error) {
			w, err := ppl.Tokenize(ctx, ck, t, T, max(1, n*shortest/T))
			if err != nil {
				return nil, spec.Text{}, err
			}
			return w, t.Info(w), nil
		}
		if s.fit, s.fitT, err = part(o.Fit, o.FitWindows); err != nil {
			return nil, err
		}
		if s.eval, s.evlT, err = part(o.Eval, o.EvalWindows); err != nil {
			return nil, err
		}
		native := 0
		for _, l := range layers {
			if s.native(l) {
				native++
			}
		}
		if len(layers)-native < spec.LadderMonotone {
			return nil, option.Errorf("of the layers %v all but %d slide over less than %d tokens: "+
				"their cache is finite already, and the gates compare at least %d others", layers, len(layers)-native, T, spec.LadderMonotone)
		}
		sessions = append(sessions, s)
	}
	if o.Out != "" {
		if err := prepareFolder(o.Out, o.Resume); err != nil {
			return nil, err
		}
	}
	digest, err := ck.Digest(ctx, o.Progress.Of("reading the source, MiB"))
	if err != nil {
		return nil, err
	}
	out := &spec.LadderJSON{Tool: o.Tool, Until: o.Until, Passed: true}
	for _, s := range sessions {
		s.source = spec.Source{Name: ck.Name(), Container: string(ck.Container), SHA256: digest}
		run := func(r spec.Rung, why string, done []*spec.LadderRecord) (*spec.LadderRecord, error) {
			return s.rung(ctx, r, why, done)
		}
		records, err := queue(spec.Ladder(), o.Until, run)
		if err != nil {
			return nil, err
		}
		s.loaded = nil
		for _, r := range records {
			out.Records = append(out.Records, *r)
		}
		out.Passed = out.Passed && records[len(records)-1].Status == spec.RungPass
	}
	out.Verdicts = Verdicts(out.Records)
	return out, nil
}

// native says whether layer l slides over fewer tokens than the context has.
func (s *session) native(l int) bool {
	n := s.model.Config.Layers[l].Window
	return n > 0 && n < s.T
}

// rung takes a finished record, or runs a rung, or writes why it is blocked.
func (s *session) rung(
	ctx context.Context, r spec.Rung, why string, done []*spec.LadderRecord,
) (*spec.LadderRecord, error) {
	x := &spec.LadderRecord{Rung: r, Tool: s.o.Tool, Source: s.source, Fit: s.fitT, Eval: s.evlT, Ctx: s.T}
	opened := opener(r, done)
	before := ""
	if opened != nil {
		before = opened.Inputs
	}
	var err error
	if x.Inputs, err = inputs(x, s.layers, s.o.Queries, before); err != nil {
		return nil, err
	}
	if why == "" && s.o.Resume && s.o.Out != "" {
		old, err := readRecord(recordPath(s.o.Out, r.ID, s.T))
		if err == nil && old.Inputs == x.Inputs && old.Status != spec.RungBlocked {
			return old, nil
		}
	}
	begin := time.Now()
	if why != "" {
		x.Status, x.Reason = spec.RungBlocked, why
	} else if r.ID == "RW2" && opened == nil {
		x.Status, x.Reason = spec.RungBlocked, "only fixed features passed RW1; decay and live insertion are there for slots"
	} else {
		if err := s.measure(ctx, x, opened); err != nil {
			return nil, err
		}
		summarise(x)
		judge(x, opened)
	}
	x.Seconds = time.Since(begin).Seconds()
	if s.o.Out != "" {
		if err := writeRecord(s.o.Out, x); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// opener returns the record that a rung goes on from: RW2 from the passing rung of merged slots
// with the smallest share of the cache, RW3 and RW3.1 from that of RW2's; the first of equals.
func opener(r spec.Rung, done []*spec.LadderRecord) (best *spec.LadderRecord) {
	for _, d := range done {
		if d.Status != spec.RungPass {
			continue
		}
		switch r.ID {
		case "RW2":
			if slices.Contains([]string{"RW1.6", "RW1.7", "RW1.8"}, d.Rung.ID) && (best == nil || *d.Share < *best.Share) {
				best = d
			}
		case "RW2.1":
			if d.Rung.ID == "RW2" {
				best = d
			}
		case "RW3", "RW3.1":
			if group(d.Rung.ID) == "RW2" && (best == nil || *d.Share < *best.Share) {
				best = d
			}
		}
	}
	return best
}

// inputs returns the digest of all that a record depends on.
func inputs(x *spec.LadderRecord, layers []int, queries int, before string) (string, error) {
	b, err := json.Marshal(struct {
		Revision  int
		Tool      string
		Rung      spec.Rung
		Source    spec.Source
		Fit, Eval spec.Text
		Ctx       int
		Layers    []int
		Queries   int
		Before    string
	}{revision, x.Tool, x.Rung, x.Source, x.Fit, x.Eval, x.Ctx, layers, queries, before})
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

// windows are those of fit text and the held-out ones.
func (s *session) windows() [][]int32 { return slices.Concat(s.fit.Tokens, s.eval.Tokens) }

// load runs the model up to the last sampled layer and keeps what the sampled layers work on.
func (s *session) load(ctx context.Context) error {
	if s.loaded != nil {
		return nil
	}
	kept := map[int]*activations{}
	last := slices.Max(s.layers) + 1
	tick := s.o.Progress.Of(fmt.Sprintf("activations at %d tokens", s.T))
	opt := refmodel.Options{Progress: func(done, _ int) { tick(done, last) }}
	opt.Hooks.Attention = func(a *refmodel.Attention) error {
		if slices.Contains(s.layers, a.Layer) && !s.native(a.Layer) {
			kept[a.Layer] = capture(s.model.Config, a, len(s.fit.Tokens), true)
		}
		return nil
	}
	if err := s.model.Run(ctx, s.windows(), []*refmodel.Variant{{Until: last}}, opt); err != nil {
		return err
	}
	loaded := map[int]*layer{}
	tick = s.o.Progress.Of(fmt.Sprintf("statistics at %d tokens", s.T))
	for i, l := range s.layers {
		if kept[l] != nil {
			var err error
			if loaded[l], err = fitLayer(ctx, kept[l], s.o.Queries, s.model.Threads); err != nil {
				return err
			}
		}
		tick(i+1, len(s.layers))
	}
	s.loaded = loaded
	return nil
}

// each measures every sampled layer; steps is how many ticks one takes.
func (s *session) each(
	ctx context.Context, x *spec.LadderRecord, steps int, f func(l *layer, tick func()) (spec.LadderLayer, error),
) error {
	if err := s.load(ctx); err != nil {
		return err
	}
	count := progress.Count(s.o.Progress.Of(fmt.Sprintf("%s at %d tokens", x.Rung.ID, s.T)), steps*len(s.loaded))
	for _, n := range s.layers {
		if s.native(n) {
			x.Layers = append(x.Layers, spec.LadderLayer{Layer: n, Native: true})
			continue
		}
		out, err := f(s.loaded[n], count)
		s.loaded[n].forget()
		if err != nil {
			return err
		}
		x.Layers = append(x.Layers, out)
	}
	return nil
}

// options returns how a record's slots work.
func options(x *spec.LadderRecord, cost string) slotOptions {
	return slotOptions{window: x.Window, sinks: x.Sinks, cost: cost, kappa: x.Kappa, saturation: x.Saturation,
		decay: x.Decay, stored: x.Stored}
}

// describe puts how slots work into a record.
func (s *session) describe(x *spec.LadderRecord, o slotOptions) {
	x.Window, x.Sinks, x.Queries = o.window, o.sinks, s.o.Queries
	x.Kappa, x.Saturation, x.Decay, x.Stored = o.kappa, o.saturation, o.decay, o.stored
}

// measure runs one rung.
func (s *session) measure(ctx context.Context, x, opened *spec.LadderRecord) error {
	sizes := ladderSizes(s.T)
	features := func(W, S int, make1 makeFeatures, correct bool) error {
		x.Window, x.Sinks, x.Queries = W, S, s.o.Queries
		return s.each(ctx, x, len(sizes), func(l *layer, tick func()) (spec.LadderLayer, error) {
			return l.features(ctx, sizes, W, S, make1, correct, tick)
		})
	}
	codes := func(ctx context.Context, _ int, st *stats, fit []*head, m int) (featureMap, error) {
		b, err := fitCodebook(ctx, st, fit, m)
		if err != nil {
			return nil, err
		}
		return b.weights, nil
	}
	slotted := func(o slotOptions) error {
		s.describe(x, o)
		return s.each(ctx, x, len(sizes), func(l *layer, tick func()) (_ spec.LadderLayer, err error) {
			o := o
			if o.cost == "" {
				if o.cost, err = l.chooseCost(ctx, o, chosenAt(s.T)); err != nil {
					return spec.LadderLayer{}, err
				}
			}
			return l.slots(ctx, o, uniform(sizes, l.y.KVHeads), tick)
		})
	}
	second := slotOptions{
		window: slotWindow, sinks: sinks, kappa: rungKappa, saturation: rungSaturation, stored: storedF32,
	}
	switch x.Rung.ID {
	case "RW0":
		return s.replayCodebook(ctx, x)
	case "RW1.0":
		return features(0, 0, func(_ context.Context, h int, st *stats, fit []*head, m int) (featureMap, error) {
			return favor(st, fit, m, uint64(h)+1), nil
		}, false)
	case "RW1.1":
		return features(0, 0, func(ctx context.Context, _ int, st *stats, fit []*head, m int) (featureMap, error) {
			return taylor(ctx, st, fit, m)
		}, false)
	case "RW1.2":
		return features(0, 0, codes, false)
	case "RW1.3", "RW1.4":
		return features(min(codebookWindow, s.T/4), sinks, codes, x.Rung.ID == "RW1.4")
	case "RW1.5":
		return slotted(slotOptions{window: slotWindow, sinks: sinks, evict: true, cost: costProd, stored: storedF32})
	case "RW1.6":
		return slotted(slotOptions{window: slotWindow, sinks: sinks, cost: costProd, stored: storedF32})
	case "RW1.7":
		return slotted(second)
	case "RW1.8":
		s.describe(x, second)
		return s.each(ctx, x, len(allotments(s.T)), func(l *layer, tick func()) (spec.LadderLayer, error) {
			return l.allotted(ctx, second, tick)
		})
	case "RW2", "RW2.1":
		s.describe(x, options(opened, ""))
		x.Decay, x.Stored = rungDecay(s.T), storedF16
		if x.Rung.ID == "RW2.1" {
			x.Stored = stored8
		}
		return s.each(ctx, x, 1, func(l *layer, tick func()) (spec.LadderLayer, error) {
			i := slices.IndexFunc(opened.Layers, func(y spec.LadderLayer) bool { return y.Layer == l.layer })
			was := opened.Layers[i]
			var plans [][]int
			for _, step := range was.Steps {
				plans = append(plans, step.Slots)
			}
			out, err := l.slots(ctx, options(x, was.Cost), plans, func() {})
			tick()
			return out, err
		})
	}
	s.describe(x, options(opened, ""))
	if x.Rung.ID == "RW3" {
		return s.oneByOne(ctx, x, opened)
	}
	return s.together(ctx, x)
}

// chosenAt is the number of slots at which costs of merging are compared.
func chosenAt(T int) int { return min(64, T/4) }

// allotted measures slots given to KV heads for each of the targets.
func (l *layer) allotted(ctx context.Context, o slotOptions, tick func()) (out spec.LadderLayer, err error) {
	if o.cost, err = l.chooseCost(ctx, o, chosenAt(l.T)); err != nil {
		return out, err
	}
	plans, err := l.allot(ctx, o, targets, tick)
	if err != nil {
		return out, err
	}
	return l.slots(ctx, o, plans, func() {})
}

// replayCodebook is RW0.
func (s *session) replayCodebook(ctx context.Context, x *spec.LadderRecord) error {
	x.Queries = s.o.Queries
	m := min(codebookSize, s.T/2)
	return s.each(ctx, x, 1, func(l *layer, tick func()) (spec.LadderLayer, error) {
		out := spec.LadderLayer{Layer: l.layer, Monotone: true}
		var replayed squares
		var e fitAndHeld
		for h := range l.stats {
			heads, err := l.heads(ctx, h, 0, l.windows)
			if err != nil {
				return out, err
			}
			b, err := fitCodebook(ctx, l.stats[h], heads[:l.fit], m)
			if err != nil {
				return out, err
			}
			windows := l.measured()
			got := make([]squares, len(windows))
			for i, w := range windows {
				if err := stop(ctx); err != nil {
					return out, err
				}
				N, D := heads[w].near(0, 0)
				got[i] = heads[w].compare(heads[w].far(b.weights(heads[w]), N, D, 0, 0))
			}
			e.add(l.sum(windows, got))
			replayed.add(b.replay(heads[l.fit]))
		}
		rel := replayed.rel()
		out.Replay = &rel
		out.Steps = []spec.LadderStep{l.step(e, float64(m), l.y.KVHeads*4*m*(l.y.HeadDim+1))}
		tick()
		return out, nil
	})
}

// oneByOne is RW3: each sampled layer alone runs on the state that RW2 measured.
func (s *session) oneByOne(ctx context.Context, x, opened *spec.LadderRecord) error {
	if err := s.load(ctx); err != nil {
		return err
	}
	var sets [][]*replacement
	for _, y := range opened.Layers {
		if y.Native {
			continue
		}
		last := y.Steps[len(y.Steps)-1]
		sets = append(sets, []*replacement{{layer: y.Layer, stats: s.loaded[y.Layer].stats, o: options(x, y.Cost),
			slots: last.Slots, share: last.Share}})
	}
	var err error
	x.Live, err = live(ctx, s.model, s.eval, sets, s.o.Progress.Of(fmt.Sprintf("%s at %d tokens", x.Rung.ID, s.T)))
	return err
}

// together is RW3.1: all layers, with slots allotted layer by layer as the model runs.
func (s *session) together(ctx context.Context, x *spec.LadderRecord) error {
	var set []*replacement
	c := s.model.Config
	tick := s.o.Progress.Of(fmt.Sprintf("%s, allotment at %d tokens", x.Rung.ID, s.T))
	steps := len(allotments(s.T))
	opt := refmodel.Options{}
	opt.Hooks.Attention = func(a *refmodel.Attention) error {
		if s.native(a.Layer) {
			x.Layers = append(x.Layers, spec.LadderLayer{Layer: a.Layer, Native: true})
			return nil
		}
		l, err := fitLayer(ctx, capture(c, a, len(s.fit.Tokens), false), s.o.Queries, s.model.Threads)
		if err != nil {
			return err
		}
		done := a.Layer * steps
		o := options(x, "")
		out, err := l.allotted(ctx, o, func() { done++; tick(done, steps*len(c.Layers)) })
		if err != nil {
			return err
		}
		out.Steps = out.Steps[len(out.Steps)-1:]
		x.Layers = append(x.Layers, out)
		o.cost = out.Cost
		set = append(set, &replacement{layer: a.Layer, stats: l.stats, o: o,
			slots: out.Steps[0].Slots, share: out.Steps[0].Share})
		return nil
	}
	if err := s.model.Run(ctx, s.windows(), []*refmodel.Variant{{}}, opt); err != nil {
		return err
	}
	var err error
	tick = s.o.Progress.Of(fmt.Sprintf("%s at %d tokens", x.Rung.ID, s.T))
	x.Live, err = live(ctx, s.model, s.eval, [][]*replacement{set}, tick)
	return err
}
