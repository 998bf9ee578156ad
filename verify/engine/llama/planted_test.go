package llama_test

import (
	"encoding/binary"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// TestPlanted: a model in which unequal scales of rotary pairs were planted by an exact identity, so that its
// function is that of a model which 4-bit keys hardly hurt, is converted, and stock llama.cpp measures the
// files: what was planted is found and undone.
func TestPlanted(t *testing.T) {
	w := start(t, llama.Start{})
	engines := &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}}
	dir := t.TempDir()
	const dim = 32
	// Powers of two from 1/8 to 8, so that nothing is rounded; the dimensions of a pair are half a head apart.
	plant := func(name string, x []float32) {
		sign := map[bool]float64{true: 1, false: -1}[strings.HasSuffix(name, "k_proj.weight")]
		if sign < 0 && !strings.HasSuffix(name, "q_proj.weight") {
			return
		}
		const hidden = 128
		for i := range x {
			pair := i / hidden % (dim / 2)
			x[i] *= float32(math.Exp2(sign * float64(5*pair%7-3)))
		}
	}
	o := tiny.Options{Seed: 5, Hidden: 128, HeadDim: dim, Context: 512}
	plain, hard := filepath.Join(dir, "plain.gguf"), filepath.Join(dir, "hard.gguf")
	tiny.New(t, "llama", o).GGUF(t, plain)
	o.Edit = plant
	tiny.New(t, "llama", o).GGUF(t, hard)
	as := keyDivergence(t, converted(t, plain, filepath.Join(dir, "a"), engines))
	got := keyDivergence(t, converted(t, hard, filepath.Join(dir, "b"), engines))
	t.Logf("q4_0 keys in llama.cpp: KLD %.5f of the model, %.5f with planted scales, %.5f of that converted", as[false], got[false],
		got[true])
	if got[false] < 3*as[false] {
		t.Errorf("planted scales cost nothing: KLD %g, of the model as it was %g", got[false], as[false])
	}
	if got[true] > 1.2*as[false] {
		t.Errorf("KLD %g is left of %g, the model as it was has %g", got[true], got[false], as[false])
	}
}

// keyDivergence returns what llama.cpp measured with q4_0 keys, by whether the model was converted.
func keyDivergence(t *testing.T, r *convert.Result) map[bool]float64 {
	t.Helper()
	if id := r.Manifest.Engine; id == nil || id.Engine != engine.Llama || !r.Verify.OK {
		t.Fatalf("engine %+v, contract %+v", id, r.Verify.Contract)
	}
	out := map[bool]float64{}
	for _, m := range r.Manifest.Fusion.Measured {
		if m.KType == "q4_0" {
			out[m.Converted] = m.KLD
		}
	}
	return out
}

// TestPlantedLate: the same where norms come behind RoPE, with a scale for each channel in their gains.
func TestPlantedLate(t *testing.T) {
	w := start(t, llama.Start{})
	engines := &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}}
	dir, plain := t.TempDir(), sampleText(t, "hunyuan")
	f, err := gguf.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hard := filepath.Join(dir, "hard.gguf")
	rewrite(t, f, hard, f.KVs, func(x *gguf.Tensor) (gguf.Type, []byte) {
		sign := 1.0
		switch {
		case strings.HasSuffix(x.Name, "attn_q_norm.weight"):
			sign = -1
		case !strings.HasSuffix(x.Name, "attn_k_norm.weight"):
			return x.Type, nil
		}
		raw, err := io.ReadAll(f.Reader(x))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(raw); i += 4 {
			v := math.Float32frombits(binary.LittleEndian.Uint32(raw[i:])) * float32(math.Exp2(sign*float64(5*(i/4)%7-3)))
			binary.LittleEndian.PutUint32(raw[i:], math.Float32bits(v))
		}
		return x.Type, raw
	})
	as := keyDivergence(t, converted(t, plain, filepath.Join(dir, "a"), engines))
	r := converted(t, hard, filepath.Join(dir, "b"), engines)
	got := keyDivergence(t, r)
	t.Logf("q4_0 keys in llama.cpp: KLD %.5f of the model, %.5f with planted scales, %.5f of that converted (%s)", as[false], got[false],
		got[true], r.Manifest.Fusion.Chosen)
	if got[false] < 3*as[false] || got[true] > 1.2*as[false] || !strings.Contains(r.Manifest.Fusion.Chosen, "behind RoPE") {
		t.Errorf("KLD %g with planted scales, %g of it converted (%s), the model as it was has %g", got[false], got[true],
			r.Manifest.Fusion.Chosen, as[false])
	}
}
