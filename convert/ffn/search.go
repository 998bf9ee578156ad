// Package ffn finds changes of weights that help the matrices of a quantised file: what llama-quantize
// loses of them is emulated, and candidates are compared by the divergence that it causes.
package ffn

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/quantweights"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Options of Search.
type Options struct {
	Mode plan.FFN
	// Type may have an importance matrix of the source: rotations are not tried then.
	Type quantweights.FileType
	// File is the element type of matrices in the file that llama-quantize is given.
	File gguf.Type
	// Text is cut into windows of Ctx tokens; the first of them are fitted to, Tokens in all, and half as
	// many tokens behind them are compared on.
	Text     ppl.Text
	Ctx      int
	Tokens   int
	Seed     uint64
	Threads  int
	Progress progress.Func
}

// A Result is the change that measured best.
type Result struct {
	// View has the change in it; where nothing is changed it is what Search was given.
	View   *checkpoint.Edited
	Report *spec.FFNFold
}

// Unchanged is the name of the candidate that changes nothing.
const Unchanged = "as they are"

// winErrors is how many standard errors of the difference a change must be better by, and winShare
// what may be left of the divergence: whatever moves a weight draws the errors of rounding anew, and the
// best of ten draws is a little better on the text it was chosen on (docs/ffn.md).
const (
	winErrors = 3.0
	winShare  = 0.9
)

// search holds what the steps share.
type search struct {
	o    Options
	c    *checkpoint.Checkpoint
	v    *checkpoint.Edited
	held *ppl.Windows
	base ppl.Positions
	fit  *fitting

	tried []tried
}

// tried is a candidate that was measured.
type tried struct {
	name string
	mode plan.FFN
	view *checkpoint.Edited
	d    ppl.Divergence
	bits float64
}

// Search measures the changes that o.Mode allows on top of v, whose checkpoint is c, and returns the
// one to make. Candidates are fitted to the first windows of the text and compared on others:
// divergences from the model in floats, prediction by prediction, by their roots.
func Search(ctx context.Context, c *checkpoint.Checkpoint, v *checkpoint.Edited, o Options) (*Result, error) {
	fit, compare := max(2, o.Tokens/o.Ctx), max(2, o.Tokens/2/o.Ctx)
	w, err := ppl.TokenizeSpread(ctx, c, o.Text, o.Ctx, fit+compare)
	if err != nil {
		return nil, err
	}
	s := &search{o: o, c: c, v: v, held: every(w, compare, false)}
	stats, err := NewStats(ctx, v.Config(), v, every(w, compare, true), o.Threads, o.Progress)
	if err != nil {
		return nil, err
	}
	_, head := v.Find("output.weight")
	types, err := o.Type.Types(v.Config(), v, head)
	if err != nil {
		return nil, option.Of("Weights", o.Type.Name, err)
	}
	s.fit = &fitting{stats: stats, types: types, weigh: o.Type.Importance.Edited(v.Edits), threads: o.Threads}
	m := refmodel.New(v.Config(), v, o.Threads)
	base, err := ppl.Run(ctx, m, s.held, refmodel.Options{Progress: o.Progress.Of("comparing weight types")},
		&refmodel.Variant{})
	if err != nil {
		return nil, err
	}
	s.base = base[0]
	if err := s.candidates(ctx); err != nil {
		return nil, err
	}
	return s.result(len(w.Tokens) - len(s.held.Tokens)), nil
}

// every takes windows that are fitted to, or those between them, from all over a text.
func every(w *ppl.Windows, compare int, fitted bool) *ppl.Windows {
	out := *w
	out.Tokens, out.Targets = nil, nil
	n := len(w.Tokens)
	for i := range w.Tokens {
		if held := (i+1)*compare/n > i*compare/n; held != fitted {
			p := w.Part(i, i+1)
			out.Tokens, out.Targets = append(out.Tokens, p.Tokens...), append(out.Targets, p.Targets...)
		}
	}
	return &out
}

// candidates measures what the mode allows.
func (s *search) candidates(ctx context.Context) error {
	if err := s.try(ctx, Unchanged, plan.FFNNone, func(*checkpoint.Edited) error { return nil }); err != nil {
		return err
	}
	if s.o.Mode.Scales() {
		if err := s.scales(ctx); err != nil {
			return err
		}
	}
	// An importance matrix says nothing about the inputs behind a rotation.
	if s.o.Mode.Rotates() && s.o.Type.Importance == nil && plan.CheckStream(s.c) == nil {
		return s.rotations(ctx)
	}
	return nil
}

// scales tries changes of neurons, then scales behind norms on top of the best of them.
func (s *search) scales(ctx context.Context) error {
	neurons := func(kind neuronsKind) func(v *checkpoint.Edited) error {
		return func(v *checkpoint.Edited) error { return s.fit.neurons(ctx, v, kind) }
	}
	kinds := []struct {
		name string
		kind neuronsKind
	}{{"neurons scaled", closedForm}, {"neurons scaled for the type", tunedScales},
		{"neurons scaled and ordered for the type", arranged}}
	for _, k := range kinds {
		if err := s.try(ctx, k.name, plan.FFNScale, neurons(k.kind)); err != nil {
			return err
		}
	}
	if transform.CheckChannels(s.v.Config()) != nil {
		return nil
	}
	best := s.best(func(x tried) bool { return true })
	with, name := s.tried[best].view, ""
	if best > 0 {
		name = s.tried[best].name + ", "
	}
	for _, tuned := range []bool{false, true} {
		what := "norms scaled"
		if tuned {
			what = "norms scaled for the type"
		}
		err := s.tryOn(ctx, with, name+what, plan.FFNScale,
			func(v *checkpoint.Edited) error { return s.fit.channels(ctx, v, tuned) })
		if err != nil {
			return err
		}
	}
	return nil
}

// rotations tries rotations of the stream, then changes of neurons beside the best of them.
func (s *search) rotations(ctx context.Context) error {
	kinds := []string{"hadamard", "srht", learned}
	first := len(s.tried)
	var qs []*transform.ResidualRotation
	for _, kind := range kinds {
		q, err := s.rotation(ctx, kind)
		if err != nil {
			return err
		}
		if q == nil {
			continue
		}
		qs = append(qs, q)
		if err := s.try(ctx, "stream rotated: "+kind, plan.FFNRotate, s.turn(q)); err != nil {
			return err
		}
	}
	if len(qs) == 0 {
		return nil
	}
	best := s.best(func(x tried) bool { return x.mode == plan.FFNRotate })
	return s.try(ctx, s.tried[best].name+", neurons scaled and ordered for the type", plan.FFNRotate,
		func(v *checkpoint.Edited) error {
			if err := s.turn(qs[best-first])(v); err != nil {
				return err
			}
			return s.fit.neurons(ctx, v, arranged)
		})
}

func (s *search) turn(q *transform.ResidualRotation) func(v *checkpoint.Edited) error {
	return func(v *checkpoint.Edited) error { return transform.FoldStream(v, q, s.o.Threads) }
}

// try makes a candidate of the unchanged weights and measures it.
func (s *search) try(ctx context.Context, name string, mode plan.FFN, fold func(v *checkpoint.Edited) error) error {
	return s.tryOn(ctx, s.v, name, mode, fold)
}

func (s *search) tryOn(ctx context.Context, on *checkpoint.Edited, name string, mode plan.FFN,
	fold func(v *checkpoint.Edited) error) error {
	v, err := on.Clone()
	if err != nil {
		return err
	}
	s.fit.tick = s.o.Progress.Of("fitting: " + name)
	if err := fold(v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	x := tried{name: name, mode: mode, view: v}
	if x.d, x.bits, err = Measure(ctx, v, s.o, s.held, s.base); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.tried = append(s.tried, x)
	return nil
}

// Measure returns how far weights in a type are from base, on the windows that it ran, and the bits
// that a weight takes. An importance matrix of o.Type is that of the source, before the edits of v.
func Measure(ctx context.Context, v *checkpoint.Edited, o Options, held *ppl.Windows,
	base ppl.Positions) (ppl.Divergence, float64,
	error) {
	_, head := v.Find("output.weight")
	o.Type.Importance = o.Type.Importance.Edited(v.Edits)
	w, err := quantweights.New(o.Type, v.Config(), v, o.File, head, o.Threads)
	if err != nil {
		return ppl.Divergence{}, 0, option.Of("Weights", o.Type.Name, err)
	}
	m := refmodel.New(v.Config(), w, o.Threads)
	m.RoundInputs = true
	p, err := ppl.Run(ctx, m, held, refmodel.Options{Progress: o.Progress.Of("comparing weight types")},
		&refmodel.Variant{})
	if err != nil {
		return ppl.Divergence{}, 0, err
	}
	res, err := ppl.Measure(ctx, held, o.Progress.Of("comparing predictions"), base, p[0])
	if err != nil {
		return ppl.Divergence{}, 0, err
	}
	if err := res.Check(); err != nil {
		return ppl.Divergence{}, 0, err
	}
	return res.Divergences[0], w.Bits(), nil
}

// best returns the candidate with the smallest divergence among some, the unchanged weights if there
// is none.
func (s *search) best(among func(tried) bool) int {
	best, least := 0, math.Inf(1)
	for i, x := range s.tried {
		if among(x) && x.d.Mean < least {
			best, least = i, x.d.Mean
		}
	}
	return best
}

// result takes the best of what the mode allows: a change only if it beats none by more than chance,
// unless its kind was asked for.
func (s *search) result(fitted int) *Result {
	r := &spec.FFNFold{Weights: s.o.Type.Name, FileType: s.o.Type.Label, Mode: string(s.o.Mode), FitWindows: fitted,
		Text: s.o.Text.Info(s.held)}
	for _, x := range s.tried {
		r.Tried = append(r.Tried, Row(x.name, x.d, x.bits))
	}
	best := s.best(func(x tried) bool { return s.o.Mode == plan.FFNAuto || x.mode == s.o.Mode })
	if s.o.Mode == plan.FFNAuto && best > 0 && !wins(s.tried[best].d, s.tried[0].d) {
		best = 0
	}
	r.Chosen = s.tried[best].name
	out := &Result{View: s.v, Report: r}
	if best > 0 {
		out.View = s.tried[best].view
	}
	return out
}

// wins says whether a change with divergence a is worth making where none has b.
func wins(a, b ppl.Divergence) bool { return a.Mean <= winShare*b.Mean && ppl.Better(a, b, winErrors) }

// Row describes a measurement.
func Row(name string, d ppl.Divergence, bits float64) spec.FFNTry {
	return spec.FFNTry{Name: name, Bits: bits, KLD: d.Mean, KLDErr: d.MeanErr, PPLRatio: d.Ratio, SameTop: d.SameTop}
}
