package refmodel

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// FinalNorm returns the normed hidden states that the output head multiplies.
func (m *Model) FinalNorm(hidden []float32) ([]float32, error) {
	gain, err := m.vector("output_norm.weight", false)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(hidden))
	m.norm(out, hidden, gain)
	return out, nil
}

// PackHead loads rows [v0, v1) of the output head, those of so many tokens, for HeadLogits.
// The next Run or PackHead of the model takes their place. It fails when ctx ends and when the
// head cannot be read.
func (m *Model) PackHead(ctx context.Context, v0, v1 int) error {
	t, ok := m.w.Find("output.weight")
	if !ok {
		t, ok = m.w.Find("token_embd.weight")
	}
	if !ok || v0 < 0 || v1 > t.Rows() || v0 > v1 {
		return fmt.Errorf("no output head for tokens [%d, %d)", v0, v1)
	}
	return m.pack(ctx, &m.mats[0], t, v0, v1-v0)
}

// HeadLogits computes the logits of the tokens of PackHead for normed hidden states: dst receives
// rows x tokens numbers. What a row gives does not depend on the rows beside it.
func (m *Model) HeadLogits(ctx context.Context, dst, normed []float32) error {
	w := &m.mats[0]
	rows := len(normed) / m.Config.Hidden
	if err := m.mul(ctx, dst, normed, rows, w); err != nil {
		return err
	}
	if s := m.Config.LogitScale; s != 1 {
		fmath.Scale(dst[:rows*w.N()], float32(s))
	}
	if c := m.Config.LogitSoftcap; c > 0 {
		for j, v := range dst[:rows*w.N()] {
			dst[j] = float32(c * fmath.Tanh(float64(v)/c))
		}
	}
	return nil
}

// Logits computes columns [v0, v1) of the logits of each set of normed hidden
// states: dst[i] receives rows x (v1-v0) numbers. See PackHead.
func (m *Model) Logits(ctx context.Context, dst, normed [][]float32, v0, v1 int) error {
	if err := m.PackHead(ctx, v0, v1); err != nil {
		return err
	}
	for i, x := range normed {
		if err := m.HeadLogits(ctx, dst[i], x); err != nil {
			return err
		}
	}
	return nil
}
