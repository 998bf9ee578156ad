package ppl

import (
	"context"

	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// probeRun is how many neighbouring positions are probed together: they meet the keys in one
// product.
const probeRun = 16

// Spread returns the positions at which about n predictions of the windows are scored, the same
// in each window, in runs of probeRun that lie evenly over what is scored; all where there are no
// more than n.
func (w *Windows) Spread(n int) []int {
	per := w.PerWindow()
	runs := max(1, n/len(w.Tokens)/probeRun)
	length := min(probeRun, max(1, n/len(w.Tokens)))
	if runs*length >= per {
		runs, length = 1, per
	}
	var out []int
	for i := range runs {
		from, to := i*per/runs, (i+1)*per/runs
		at := w.First() + from + (to-from-length)/2
		for k := range length {
			out = append(out, at+k)
		}
	}
	return out
}

// At returns the windows with only these positions scored, in ascending order: for Measure.
func (w *Windows) At(positions []int) *Windows {
	out := &Windows{Ctx: w.Ctx, first: w.first, Tokens: w.Tokens}
	for i := range w.Tokens {
		for _, p := range positions {
			out.Targets = append(out.Targets, w.Targets[i*w.PerWindow()+p-w.First()])
		}
	}
	return out
}

// At returns what s, a whole run of w, has at these positions of each window.
func (s Positions) At(w *Windows, positions []int) Positions {
	out, d := Positions{Model: s.Model}, s.Model.Config.Hidden
	for i := range w.Tokens {
		for _, p := range positions {
			at := i*w.PerWindow() + p - w.First()
			out.Normed = append(out.Normed, s.Normed[at*d:(at+1)*d]...)
		}
	}
	return out
}

// Probe returns what Measure compares for w.At(positions), of variants that look at the context of
// a run of w; see refmodel.Model.Probes. The variants' hidden states are given up.
func Probe(ctx context.Context, m *refmodel.Model, c *refmodel.Context, positions []int,
	tick func(done, total int), variants ...*refmodel.Variant) ([]Positions, error) {
	if err := m.Probes(ctx, c, positions, variants, tick); err != nil {
		return nil, err
	}
	out := make([]Positions, len(variants))
	for i, v := range variants {
		normed, err := m.FinalNorm(v.Hidden)
		if err != nil {
			return nil, err
		}
		out[i], v.Hidden = Positions{m, normed}, nil
	}
	return out, nil
}
