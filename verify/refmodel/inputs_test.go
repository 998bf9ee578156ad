package refmodel

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestRoundInputs: blocks of Q8_0 and Q8_K keep their largest number and have no number
// further off than half a step, other types are rounded number by number, and zeros stay.
// libllama compares the products with llama.cpp's.
func TestRoundInputs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		typ   gguf.Type
		block int
		step  float64 // of the largest number of a block
	}{{gguf.TypeF16, 1, 1. / 1024}, {gguf.TypeBF16, 1, 1. / 128}, {gguf.TypeQ8_0, 32, 1. / 127},
		{gguf.TypeQ8_K, 256, 1. / 127}} {
		x := make([]float32, 3*256)
		for i := range x[:512] { // the last blocks are zero
			x[i] = float32(r.NormFloat64() * math.Exp(float64(i%7)))
		}
		y := slices.Clone(x)
		roundInputs(c.typ, y)
		same := 0
		for at := 0; at < len(x); at += c.block {
			var largest float64
			for _, v := range x[at : at+c.block] {
				largest = max(largest, math.Abs(float64(v)))
			}
			for i := at; i < at+c.block; i++ {
				// The scale of Q8_0 is itself an F16 number.
				if d := math.Abs(float64(y[i]) - float64(x[i])); d > (c.step/2+1./2048)*largest {
					t.Errorf("%v: %g became %g beside %g", c.typ, x[i], y[i], largest)
				}
				if x[i] == y[i] && x[i] != 0 {
					same++
				}
			}
		}
		if same > 8 {
			t.Errorf("%v: %d of 512 numbers were not rounded", c.typ, same)
		}
	}
	for name, want := range map[string]gguf.Type{
		"F32": gguf.TypeF32, "F16": gguf.TypeF16, "BF16": gguf.TypeBF16, "Q8_0": gguf.TypeQ8_0, "Q4_1": gguf.TypeQ8_0,
		"IQ4_NL": gguf.TypeQ8_0, "MXFP4": gguf.TypeQ8_0, "IQ4_XS": gguf.TypeQ8_K, "IQ2_XXS": gguf.TypeQ8_K,
		"Q4_K": gguf.TypeQ8_K, "F8_E4M3": gguf.TypeF32,
	} {
		if got := inputType(name); got != want {
			t.Errorf("inputs of %s are rounded to %v, expected %v", name, got, want)
		}
	}
}

// TestRoundedModel: a model rounds the inputs of all its products if it is told to, unless
// its matrices are F32.
func TestRoundedModel(t *testing.T) {
	run := func(dtype, family string, round bool) []float32 {
		path := filepath.Join(t.TempDir(), "model.gguf")
		tiny.GGUF(t, path, family, tiny.Options{Seed: 4, DType: dtype})
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := New(c.Config, c, 2)
		m.RoundInputs = round
		variant := &Variant{}
		if err := m.Run(context.Background(), [][]int32{{1, 2, 3, 4, 5, 6, 7}}, []*Variant{variant}, Options{}); err != nil {
			t.Fatal(err)
		}
		return variant.Hidden
	}
	for _, family := range []string{"llama", "mixtral"} {
		if !slices.Equal(run("F32", family, false), run("F32", family, true)) {
			t.Errorf("%s: inputs of F32 matrices are rounded", family)
		}
		a, b := run("Q8_0", family, false), run("Q8_0", family, true)
		var diff, sum float64
		for i, v := range a {
			d := float64(v) - float64(b[i])
			diff, sum = diff+d*d, sum+float64(v)*float64(v)
		}
		if rms := math.Sqrt(diff / sum); !(rms > 1e-3 && rms < 0.1) {
			t.Errorf("%s: rounded inputs of Q8_0 matrices move hidden states by %g", family, rms)
		}
	}
}
