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
	rmsNorm(out, hidden, gain, m.Config.NormEps, m.Threads)
	return out, nil
}

// Logits computes columns [v0, v1) of the logits of each set of normed hidden
// states: dst[i] receives rows x (v1-v0) numbers. The vocabulary is processed in
// pieces so that memory does not grow with it. It fails when ctx ends and when the head cannot
// be read.
func (m *Model) Logits(ctx context.Context, dst, normed [][]float32, v0, v1 int) error {
	t, ok := m.w.Find("output.weight")
	if !ok {
		t, ok = m.w.Find("token_embd.weight")
	}
	if !ok || v0 < 0 || v1 > t.Rows() || v0 > v1 {
		return fmt.Errorf("no output head for tokens [%d, %d)", v0, v1)
	}
	w := &m.mats[0]
	if err := m.pack(ctx, w, t, v0, v1-v0); err != nil {
		return err
	}
	d := m.Config.Hidden
	for i, x := range normed {
		if err := m.mul(ctx, dst[i], x, len(x)/d, w); err != nil {
			return err
		}
		if c := m.Config.LogitSoftcap; c > 0 {
			for j, v := range dst[i][:len(x)/d*(v1-v0)] {
				dst[i][j] = float32(c * fmath.Tanh(float64(v)/c))
			}
		}
	}
	return nil
}
