package llama_test

import (
	"context"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// TestFused: where one product makes queries, keys and values, taps are the part of its rows that the
// graph of the file says: the layer's input times these rows, with their bias.
func TestFused(t *testing.T) {
	w := start(t, llama.Start{})
	for _, name := range []string{"gpt2", "gptneox", "falcon"} {
		t.Run(name, func(t *testing.T) {
			path := sampleText(t, name)
			m, err := w.Load(t.Context(), path, place())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // the worker ends with the test
			c, err := checkpoint.OpenAs(path, m.Facts.Graph())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			seen := 0
			all := llama.Wants{Pre: true, QKV: true, In: true}
			err = m.Activations(t.Context(), [][]int32{ids(96, 1)}, llama.Tap{Threads: 1, Wants: all}, nil,
				func(a *llama.Activation) error {
					for part, tap := range map[string]string{"attn_q": llama.TapQPre, "attn_k": llama.TapKPre, "attn_v": llama.TapV} {
						got := a.Values[tap]
						if got == nil { // nothing turns
							got = a.Values[map[string]string{llama.TapQPre: llama.TapQ, llama.TapKPre: llama.TapK}[tap]]
						}
						seen++
						if d := worst(got, product(t, c, a.Layer, part, a.Values[llama.TapIn])); !(d < 1e-4) { // float32 sums
							t.Errorf("layer %d, %s: largest difference %g of the rms", a.Layer, tap, d)
						}
					}
					return nil
				})
			if err != nil || seen != 6 {
				t.Errorf("%d activations, %v", seen, err)
			}
		})
	}
}

// product multiplies rows by a projection and adds its bias.
func product(t *testing.T, c *checkpoint.Checkpoint, layer int, part string, x []float32) []float32 {
	t.Helper()
	m, ok := c.Find(family.Name(layer, part+".weight"))
	if !ok {
		t.Fatalf("no %s", part)
	}
	rows, err := c.ReadAll(m)
	if err != nil {
		t.Fatal(err)
	}
	bias := make([]float32, m.Rows())
	if b, ok := c.Find(family.Name(layer, part+".bias")); ok {
		if bias, err = c.ReadAll(b); err != nil {
			t.Fatal(err)
		}
	}
	cols := m.Cols()
	var out []float32
	for ; len(x) > 0; x = x[cols:] {
		for r := range bias {
			sum := float64(bias[r])
			for i, v := range rows[r*cols : (r+1)*cols] {
				sum += float64(v) * float64(x[i])
			}
			out = append(out, float32(sum))
		}
	}
	return out
}
