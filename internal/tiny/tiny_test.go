package tiny_test

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// logits runs one window through a model and returns the logits of all positions.
func logits(t *testing.T, path string, window []int32) []float32 {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := refmodel.New(c.Config, c, 2)
	lane := &refmodel.Variant{}
	if err := m.Run(context.Background(), [][]int32{window}, []*refmodel.Variant{lane}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	x, err := m.FinalNorm(lane.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(window)*c.Config.Vocab)
	if err := m.Logits(t.Context(), [][]float32{out}, [][]float32{x}, 0, c.Config.Vocab); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSameFunction: both containers of a model compute the same function. What
// may differ is rms_norm_eps, which GGUF rounds to float32, and the order in which
// a head's dimensions are added up: a few roundings on logits of about 4.
func TestSameFunction(t *testing.T) {
	for _, family := range tiny.Families {
		m := tiny.New(t, family, tiny.Options{Seed: 3, Bias: true, DType: "BF16"})
		dir := t.TempDir()
		m.HF(t, filepath.Join(dir, "hf"))
		m.GGUF(t, filepath.Join(dir, "m.gguf"))
		window := make([]int32, 48)
		for i := range window {
			window[i] = int32(i * 37 % 256)
		}
		a, b := logits(t, filepath.Join(dir, "hf"), window), logits(t, filepath.Join(dir, "m.gguf"), window)
		var worst, size float64
		for i := range a {
			worst = max(worst, math.Abs(float64(a[i])-float64(b[i])))
			size = max(size, math.Abs(float64(a[i])))
		}
		if !(worst < 2e-5*size) || size < 0.5 {
			t.Errorf("%s: logits up to %.3g differ by %.3g", family, size, worst)
		}
		// The check can fail: with the rows of W_K in the folder's order, a model
		// of interleaved pairs is another function.
		if family == "llama" {
			k := m.Find("model.layers.0.self_attn.k_proj.weight")
			slices.Reverse(k.Values)
			m.GGUF(t, filepath.Join(dir, "n.gguf"))
			c := logits(t, filepath.Join(dir, "n.gguf"), window)
			worst = 0
			for i := range a {
				worst = max(worst, math.Abs(float64(a[i])-float64(c[i])))
			}
			if worst < 1e-3*size {
				t.Errorf("other keys change logits by %.3g only", worst)
			}
		}
	}
}

// TestTokenizer: both containers hold the same tokenizer, and it works.
func TestTokenizer(t *testing.T) {
	dir := t.TempDir()
	m := tiny.HF(t, filepath.Join(dir, "hf"), "qwen2", tiny.Options{})
	m.GGUF(t, filepath.Join(dir, "m.gguf"))
	const text = "There is a tin in there.\n\u00e9\x00 the"
	var ids [2][]int32
	for i, path := range []string{"hf", "m.gguf"} {
		c, err := checkpoint.Open(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		v, err := c.Vocab()
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Tokens) != m.Options.Vocab || v.EOS != int32(tiny.EndOfText) {
			t.Errorf("%s: %d tokens, EOS %d", path, len(v.Tokens), v.EOS)
		}
		tok, err := tokenizer.New(v)
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = tok.Encode(text, tokenizer.Plain)
	}
	if !slices.Equal(ids[0], ids[1]) || len(ids[0]) >= len(text) || len(ids[0]) < 10 {
		t.Errorf("%d and %d ids of %d bytes: %v, %v", len(ids[0]), len(ids[1]), len(text), ids[0], ids[1])
	}
}

// TestDeterministic: the same options give the same numbers, another seed others.
func TestDeterministic(t *testing.T) {
	a, b, c := tiny.New(t, "llama", tiny.Options{}), tiny.New(t, "llama", tiny.Options{}),
		tiny.New(t, "llama", tiny.Options{Seed: 1})
	for i := range a.Tensors {
		if !slices.Equal(a.Tensors[i].Values, b.Tensors[i].Values) {
			t.Errorf("%s differs", a.Tensors[i].Name)
		}
		if slices.Equal(a.Tensors[i].Values, c.Tensors[i].Values) {
			t.Errorf("%s is the same for another seed", a.Tensors[i].Name)
		}
	}
}
