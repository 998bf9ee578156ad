package llama_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// constantKeys writes a sample whose keys have large constants: those of the norm in front, times ten.
func constantKeys(t *testing.T, name string) string {
	t.Helper()
	plain := sampleText(t, name)
	f, err := gguf.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), name+".gguf")
	rewrite(t, f, path, f.KVs, func(x *gguf.Tensor) (gguf.Type, []byte) {
		if !strings.HasSuffix(x.Name, "attn_norm.bias") {
			return x.Type, nil
		}
		row := make([]float32, x.RowLen())
		if err := f.ReadRows(x, 0, 1, row); err != nil {
			t.Fatal(err)
		}
		for i := range row {
			row[i] *= 10
		}
		return x.Type, dtype.AppendF32(nil, row)
	})
	return path
}

// TestKeyBias: of an architecture that the table of families lacks the library says whether it takes a key
// bias that the file does not have. Where it does, one is written, alone or in that of a fused product, and
// takes the constants of keys away; where it does not, no such edit is tried.
func TestKeyBias(t *testing.T) {
	w := start(t, llama.Start{})
	for name, bias := range map[string]string{"starcoder2": "attn_k.bias", "starcoder2-fused": "attn_qkv.bias", "falcon": ""} {
		t.Run(name, func(t *testing.T) {
			src, dir := constantKeys(t, name), t.TempDir()
			o := unknownOptions(src, filepath.Join(dir, "out"),
				&llama.Engines{Worker: w, Place: llama.Place{Threads: 1}, KeyBias: true})
			o.Cache, o.TargetCtx, o.CacheTokens = &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeF16,
				Rotation: true}, 128, 1024
			r, err := convert.Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			tried := 0
			for _, x := range r.Manifest.Fusion.Tried {
				if strings.Contains(x.Name, "bias shift") {
					tried++
				}
				t.Logf("%-50s KLD %.5f ± %.5f", x.Name, x.KLD, x.KLDErr)
			}
			f, err := gguf.Open(filepath.Join(o.Out, "model.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if bias == "" {
				if tried > 0 || !strings.Contains(r.Manifest.Fusion.Refused, transform.ErrNoKeyBias.Error()) {
					t.Errorf("%d shifts were tried; refused: %q", tried, r.Manifest.Fusion.Refused)
				}
				return
			}
			x, ok := f.Tensor("blk.1." + bias)
			if !ok || !r.Verify.OK {
				t.Fatalf("chosen: %s; a tensor blk.1.%s: %v; verified: %+v", r.Manifest.Fusion.Chosen, bias, ok, r.Verify.Contract)
			}
			row := make([]float32, x.RowLen())
			if err := f.ReadRows(x, 0, 1, row); err != nil {
				t.Fatal(err)
			}
			from, n := 0, 2*32 // two KV heads
			if bias == "attn_qkv.bias" {
				from = 4 * 32
			}
			for i, v := range row {
				if in := i >= from && i < from+n; !in && v != 0 {
					t.Errorf("the bias is %g at %d, which is no key", v, i)
				}
			}
			var before, after float64
			for _, m := range r.Manifest.Fusion.Measured {
				if m.KType == "q4_0" && m.Converted {
					after = m.KLD
				} else if m.KType == "q4_0" {
					before = m.KLD
				}
			}
			t.Logf("chosen %q; q4_0 keys: KLD %.5f as published, %.5f converted", r.Manifest.Fusion.Chosen, before, after)
			if after <= 0 || after > 0.8*before {
				t.Errorf("q4_0 keys lose %g as published, %g converted", before, after)
			}
			again(t, w, src, o.Out)
			// The fold makes the same file of the base model, biases of zeros included.
			if _, err := convert.Export(t.Context(), o.Out, filepath.Join(dir, "fold"), nil, nil); err != nil {
				t.Fatal(err)
			}
			if _, _, err := convert.Apply(t.Context(), convert.ApplyOptions{Dir: filepath.Join(dir, "fold"), Base: src,
				Out: filepath.Join(dir, "applied"), Tool: "test"}); err != nil {
				t.Error(err)
			}
		})
	}
}
