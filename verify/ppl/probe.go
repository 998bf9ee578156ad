package ppl

import (
	"context"

	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A Block is a stretch of positions of the first Windows windows, see Windows.Block.
type Block struct {
	Windows   int
	Positions []int // computed, the same in each window
	Scored    []int // of them, those whose predictions count
}

// Block returns about n positions for Probe: all that is scored of some windows, or where that is
// more the last n of one window, of which the first quarter is not scored. Errors of a cache add
// up in the keys and values behind them: after a hundred positions or two most of what they do in
// a whole run is there (docs/slowmean.md).
func (w *Windows) Block(n int) *Block {
	per := w.PerWindow()
	b := &Block{Windows: min(len(w.Tokens), max(1, n/per))}
	size := min(per, n)
	for p := w.Ctx - 1 - size; p < w.Ctx-1; p++ {
		b.Positions = append(b.Positions, p)
	}
	b.Scored = b.Positions
	if size < per {
		b.Scored = b.Positions[size/4:]
	}
	return b
}

// Of returns the windows with only what the block scores: for Measure.
func (b *Block) Of(w *Windows) *Windows {
	out := &Windows{Ctx: w.Ctx, first: w.first, Tokens: w.Tokens[:b.Windows]}
	for i := range out.Tokens {
		for _, p := range b.Scored {
			out.Targets = append(out.Targets, w.Targets[i*w.PerWindow()+p-w.First()])
		}
	}
	return out
}

// Base returns what the block scores of a whole run of w.
func (b *Block) Base(w *Windows, s Positions) Positions {
	out, d := Positions{Model: s.Model}, s.Model.Config.Hidden
	for i := range b.Windows {
		for _, p := range b.Scored {
			at := i*w.PerWindow() + p - w.First()
			out.Normed = append(out.Normed, s.Normed[at*d:(at+1)*d]...)
		}
	}
	return out
}

// Probe returns what Measure compares with b.Base, of variants that look at the context of a run
// of the windows; see refmodel.Model.Probes. The variants' hidden states are given up.
func (b *Block) Probe(ctx context.Context, m *refmodel.Model, c *refmodel.Context, tick func(done, total int),
	variants ...*refmodel.Variant) ([]Positions, error) {
	if err := m.Probes(ctx, c.Part(b.Windows), b.Positions, variants, tick); err != nil {
		return nil, err
	}
	out, d := make([]Positions, len(variants)), m.Config.Hidden
	skip, size := (len(b.Positions)-len(b.Scored))*d, len(b.Positions)*d
	for i, v := range variants {
		var rows []float32
		for at := 0; at < len(v.Hidden); at += size {
			rows = append(rows, v.Hidden[at+skip:at+size]...)
		}
		normed, err := m.FinalNorm(rows)
		if err != nil {
			return nil, err
		}
		out[i], v.Hidden = Positions{m, normed}, nil
	}
	return out, nil
}
