package refmodel

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
)

// GradientOptions of Model.Gradients.
type GradientOptions struct {
	// Seed draws the labels: one at every position, from what the model itself predicts
	// there. E[g g^T] over draws then is the Fisher information, and (g.e)^2 / 2 estimates the
	// divergence that an error e of keys or values causes.
	Seed uint64
	// Labels, if set, are taken instead of drawn: Labels[window][position] is what position
	// should have predicted; a negative one counts for nothing.
	Labels [][]int32
	// From is the first position of each window whose prediction counts.
	From int
	// Progress, if set, is told how many steps are done: two a layer and batch of windows.
	Progress func(done, total int)
}

// A Gradient is what the keys and values of one layer do to the loss, the sum over windows and
// positions of -log p(label), through all layers that read them. Rows are Windows*T tokens; all
// arrays are [rows, n_kv_heads*head_dim]. They are valid only during the call and must not be
// changed.
type Gradient struct {
	Layer int
	// First is the number of the first window, T the length of each.
	First, T, Windows int
	K, V              []float32 // keys after RoPE, as attention reads them, and values
	DK, DV            []float32 // the gradients
}

// gradientFloats bounds the hidden states that a batch of windows keeps, rows x hidden x layers
// numbers; a single window may need more.
const gradientFloats = 1 << 27

// Differentiable says, by name, which feature of a model has no backward pass here; nil where
// all have one.
func Differentiable(c *family.Config) error {
	for l := range c.Layers {
		if y := &c.Layers[l]; y.PostNorms && y.FFN.Experts > 0 && y.FFN.Beside == 0 {
			return format.Unsupportedf("layer %d of this %s model norms what its experts give, which the backward pass "+
				"does not support", l, c.Family.Name)
		}
	}
	return c.Require("the backward pass", features)
}

// Gradients runs windows of token ids, all of the same length, forward and then backward, and
// calls visit for every layer with keys and values of its own, from the last to the first, batch of
// windows by batch. Its memory is the input of every layer for one batch, one or several windows
// (see gradientFloats), and what one layer needs; a layer is computed again from its input. With
// RoundInputs the gradient goes straight through the rounding. What it gives depends neither on
// threads nor on the machine, and not on which windows share a batch. It refuses what
// Differentiable refuses, and ends with the first error of visit.
func (m *Model) Gradients(ctx context.Context, windows [][]int32, o GradientOptions,
	visit func(g *Gradient) error) error {
	if m.Resident {
		return fmt.Errorf("the backward pass of a resident model: it needs matrices as they are read")
	}
	if err := Differentiable(m.Config); err != nil {
		return err
	}
	all, err := newBatch(windows)
	if err != nil {
		return err
	}
	if o.Labels != nil && len(o.Labels) != len(windows) {
		return fmt.Errorf("labels for %d of %d windows", len(o.Labels), len(windows))
	}
	for i, x := range o.Labels {
		if len(x) != all.T {
			return fmt.Errorf("window %d has %d labels for %d tokens", i, len(x), all.T)
		}
		for _, id := range x {
			if int(id) >= m.Config.Vocab {
				return fmt.Errorf("window %d: label %d is outside the vocabulary of %d", i, id, m.Config.Vocab)
			}
		}
	}
	layers := len(m.Config.Layers)
	per := max(1, gradientFloats/(all.T*m.Config.Hidden*layers))
	batches := (len(windows) + per - 1) / per
	done := 0
	step := func() {
		if done++; o.Progress != nil {
			o.Progress(done, 2*layers*batches)
		}
	}
	for at := 0; at < len(windows); at += per {
		b, err := newBatch(windows[at:min(len(windows), at+per)])
		if err != nil {
			return err
		}
		if err := m.gradients(ctx, b, at, &o, visit, step); err != nil {
			return err
		}
	}
	return nil
}

// gradients is Gradients for the windows of one batch, of which the first has number first.
func (m *Model) gradients(ctx context.Context, b *batch, first int, o *GradientOptions,
	visit func(g *Gradient) error, step func()) error {
	x := &Variant{}
	if err := m.embed(b, x); err != nil {
		return err
	}
	if err := m.perLayerInputs(ctx, b); err != nil {
		return err
	}
	layers := len(m.Config.Layers)
	t := &tape{inputs: make([][]float32, layers), middle: make([][]float32, layers), grads: map[int]*sharedGrads{}}
	for l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.inputs[l] = slices.Clone(x.Hidden)
		if err := m.attention(ctx, l, b, []*Variant{x}, Hooks{}); err != nil {
			return err
		}
		if err := m.ffn(ctx, l, b, []*Variant{x}, Hooks{}); err != nil {
			return err
		}
		if m.Config.PerLayerInput > 0 {
			t.middle[l] = slices.Clone(x.Hidden)
		}
		if err := m.finish(ctx, l, b, []*Variant{x}); err != nil {
			return err
		}
		step()
	}
	t.shared = x.Shared
	dx, err := m.lossBack(ctx, b, x.Hidden, first, o)
	if err != nil {
		return err
	}
	for l := layers - 1; l >= 0; l-- {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.layerBack(ctx, l, b, t, dx, func(g *Gradient) error {
			g.First = first
			return visit(g)
		}); err != nil {
			return err
		}
		t.inputs[l], t.middle[l] = nil, nil
		step()
	}
	return nil
}
