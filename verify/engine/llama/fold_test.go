package llama_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/sample"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// folded are the samples whose keys can be multiplied by a number and queries divided by it, in the
// weights that their chains name. In the others a clamp stands between (olmo), or the rows are
// latent (deepseek2).
var folded = []string{"llama", "qwen2", "qwen3", "hunyuan", "olmo2", "gptneox", "gpt2", "falcon", "smollm3",
	"cohere2", "gemma2", "gpt-oss", "lfm2"}

// factor is what keys are multiplied by: no power of two, so that digits change.
const factor = 1.7

// TestFold: keys times 1.7 with queries divided by it leave the predictions as they are but for
// rounding, in every chain; keys alone change them. The weights are changed in memory and put back.
func TestFold(t *testing.T) {
	w := start(t, llama.Start{})
	for _, name := range folded {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			path := filepath.Join(t.TempDir(), name+".gguf")
			if err := sample.Write(path, name); err != nil {
				t.Fatal(err)
			}
			m, err := w.Load(ctx, path, place())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the worker ends with the test
			f, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			both, alone := map[string][]byte{}, map[string][]byte{}
			for _, a := range m.Facts.Owners() {
				kq := []llama.Chain{a.K, a.Q}
				// In a fused matrix K and Q are rows of one tensor.
				values := map[string][]float32{}
				for i, c := range kq {
					by := float32(factor)
					if i == 1 {
						by = 1 / by
					}
					scaleChain(t, f, a, c, i == 1, by, values)
					for n, x := range values {
						if i == 0 {
							alone[n] = wire.Float32s(x)
						}
						both[n] = wire.Float32s(x)
					}
				}
			}
			f32 := int32(gguf.TypeF32)
			base, two, one := m.Lane(f32, f32), m.Lane(f32, f32), m.Lane(f32, f32)
			two.Patch, one.Patch = "both", "alone"
			if err := m.Patch(ctx, "both", both); err != nil {
				t.Fatal(err)
			}
			if err := m.Patch(ctx, "alone", alone); err != nil {
				t.Fatal(err)
			}
			win := ppl.From([][]int32{ids(96, 1), ids(96, 2)}, 48)
			_, lanes, err := w.Measure(ctx, win, llama.Measure{Threads: 1, Lanes: []llama.Lane{base, two, one, base}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("both %g, keys alone %g", lanes[1].MaxAbsDLogit, lanes[2].MaxAbsDLogit)
			// Float32 sums of rounded products: 1e-6 of logits up to 30, some layers on.
			if d := lanes[1].MaxAbsDLogit; d > 1e-3 || d == 0 {
				t.Errorf("keys times %g and queries divided by it change a logit by %g", factor, d)
			}
			if d := lanes[2].MaxAbsDLogit; d < 0.01 {
				t.Errorf("keys times %g alone change a logit by %g", factor, d)
			}
			if d := lanes[3].MaxAbsDLogit; d != 0 {
				t.Errorf("with the weights put back a logit differs by %g", d)
			}
		})
	}
}

// scaleChain multiplies what a chain ends with: the gains of its norm, else the rows and the bias of
// its product.
func scaleChain(t *testing.T, f *gguf.File, a *llama.Attention, c llama.Chain, query bool, by float32,
	values map[string][]float32) {
	t.Helper()
	names := c.Weights()
	if gain := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, "_norm.weight") }); gain >= 0 {
		names = names[gain : gain+1]
	}
	for _, n := range names {
		x := values[n]
		info, ok := f.Tensor(n)
		if !ok {
			t.Fatalf("no tensor %s", n)
		}
		if x == nil {
			x = make([]float32, info.Elements())
			if err := f.ReadRows(info, 0, info.Rows(), x); err != nil {
				t.Fatal(err)
			}
			values[n] = x
		}
		from, to := 0, len(x)
		if strings.Contains(n, "attn_qkv") {
			width := len(x) / ((a.Heads + 2*a.KVHeads) * a.HeadDim) // of a row; 1 in a bias
			from, to = a.Heads*a.HeadDim*width, (a.Heads+a.KVHeads)*a.HeadDim*width
			if query {
				from, to = 0, from
			}
		}
		for i := from; i < to; i++ {
			x[i] *= by
		}
	}
}

// TestAbort: where the library ends its process, the program that asked lives on and says what the
// library said last. A model without a vocabulary cannot tokenize, which the library asserts.
func TestAbort(t *testing.T) {
	w := start(t, llama.Start{})
	path := filepath.Join(t.TempDir(), "llama.gguf")
	if err := sample.Write(path, "llama"); err != nil {
		t.Fatal(err)
	}
	m, err := w.Load(t.Context(), path, place())
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Windows(t.Context(), ppl.Text{Name: "text", Data: []byte("a river and a stone")}, 4, 1)
	if err == nil || !strings.Contains(err.Error(), "ended") || !strings.Contains(err.Error(), "last lines") {
		t.Fatalf("said %v", err)
	}
	t.Log(err)
	if _, err := w.Load(t.Context(), path, llama.Place{}); err == nil {
		t.Error("a worker that ended loads a model")
	}
	if _, err := llama.NewWorker(t.Context(), llama.Start{Dir: t.TempDir(), Program: builtWorker}); err == nil ||
		!strings.Contains(err.Error(), llama.Env) {
		t.Errorf("without a library: %v", err)
	}
}
