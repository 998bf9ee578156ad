package convert

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
)

// loaders are the patterns by which loaders find weights in a local folder that has
// no index, in the order in which they are tried: the first that matches counts.
var loaders = map[string][]string{
	"transformers": {"model.safetensors", "pytorch_model.bin"},
	"vLLM, SGLang": {"*.safetensors", "*.bin", "*.pt"}, // load format auto
	"Mistral":      {"consolidated*.safetensors"},
	"ollama":       {"*.safetensors", "pytorch_model-*-of-*.bin", "pytorch_model.bin", "consolidated.*.pth"},
	"mlx-lm":       {"model*.safetensors", "weight*.safetensors"},
	"convert_hf":   {"model*.safetensors", "pytorch_model*.bin"}, // convert_hf_to_gguf.py of llama.cpp
	"adapters":     {"adapter_model*", "adapters.safetensors"},
	"GGUF beside":  {"*.gguf"},
}

// TestLoadersFindOnlyTheModel: whatever loader looks into an artifact, it finds the
// model's weights and nothing of ours, also where no index says what belongs to it.
func TestLoadersFindOnlyTheModel(t *testing.T) {
	for _, shards := range []int{1, 2} {
		dir := t.TempDir()
		src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
		tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Shards: shards})
		if _, err := quick(src, out, checkpoint.Safetensors, "f32"); err != nil {
			t.Fatal(err)
		}
		set, err := safetensors.OpenDir(out)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, f := range set.Files {
			want = append(want, filepath.Base(f.Path))
		}
		set.Close()
		files := left(t, out)
		for _, n := range []string{spec.SafetensorsSidecarName, spec.FoldName} {
			if !slices.Contains(files, n) {
				t.Errorf("no %s in %v", n, files)
			}
		}
		for loader, patterns := range loaders {
			for _, p := range patterns {
				var found []string
				for _, n := range files {
					if ok, err := path.Match(p, n); err != nil {
						t.Fatal(err)
					} else if ok {
						found = append(found, n)
					}
				}
				for _, n := range found {
					if !slices.Contains(want, n) {
						t.Errorf("%s (%s) takes %s for weights", loader, p, n)
					}
				}
				if len(found) > 0 {
					break
				}
			}
		}
	}
}

// TestSourceLayouts: the artifact of a checkpoint in an unusual layout has the
// source's own layout, byte for byte where nothing is folded, and its function.
func TestSourceLayouts(t *testing.T) {
	for _, x := range []struct {
		family string
		o      tiny.Options
	}{
		{"qwen3_moe", tiny.Options{Fused: true, Shards: 2}},
		{"mixtral", tiny.Options{Fused: true, DType: "BF16"}},
		{"olmoe", tiny.Options{Fused: true, Bare: true, KVHeads: 4}},
		{"llama", tiny.Options{Bare: true, Bias: true}},
	} {
		dir := t.TempDir()
		src := filepath.Join(dir, "src")
		x.o.Seed = 1
		tiny.HF(t, src, x.family, x.o)
		for _, to := range []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors} {
			res, err := quick(src, filepath.Join(dir, string(to)), to, "f32")
			if err != nil {
				t.Fatalf("%s as %s: %v", x.family, to, err)
			}
			if !res.Verify.OK {
				t.Errorf("%s as %s: %+v", x.family, to, res.Verify.Contract)
			}
		}
		a, b := shapes(t, src), shapes(t, filepath.Join(dir, "safetensors"))
		if !slices.Equal(a, b) {
			t.Errorf("%s: tensors\n%v\nof the source\n%v", x.family, b, a)
		}
	}
}

// shapes lists name, type, shape and file of the tensors of a folder.
func shapes(t *testing.T, dir string) (out []string) {
	t.Helper()
	set, err := safetensors.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	for _, n := range set.Names() {
		r, _ := set.Find(n)
		out = append(out, fmt.Sprintf("%s %s %v %s", n, r.Tensor.DType, r.Tensor.Shape, filepath.Base(r.File.Path)))
	}
	return out
}

// TestShardsGetTheirIndex: shards without an index are written with the one that
// loaders need, and the plan says that it was missing.
func TestShardsGetTheirIndex(t *testing.T) {
	dir := t.TempDir()
	src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Shards: 2})
	if err := os.Remove(filepath.Join(src, safetensors.IndexName)); err != nil {
		t.Fatal(err)
	}
	res, err := quick(src, out, checkpoint.Safetensors, "f32")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Join(res.Manifest.Notes, "\n"); !strings.Contains(n, safetensors.IndexName+" is missing") {
		t.Errorf("notes %q", n)
	}
	if !res.Verify.OK || !slices.Contains(left(t, out), safetensors.IndexName) {
		t.Errorf("ok %v, files %v", res.Verify.OK, left(t, out))
	}
}

// TestAlignment: stock runtimes need tensor data at multiples of 32, whatever the
// source asks for.
func TestAlignment(t *testing.T) {
	for align, want := range map[uint32]int{1: 32, 8: 32, 16: 32, 32: 32, 64: 64, 4096: 4096} {
		dir := t.TempDir()
		src, out := filepath.Join(dir, "m.gguf"), filepath.Join(dir, "out")
		m := tiny.New(t, "llama", tiny.Options{Seed: 1, DType: "Q8_0"})
		m.KV = append(m.KV, gguf.Value(gguf.KeyAlignment, align))
		m.GGUF(t, src)
		if _, err := quick(src, out, checkpoint.GGUF, "f32"); err != nil {
			t.Fatalf("alignment %d: %v", align, err)
		}
		f, err := gguf.Open(filepath.Join(out, spec.GGUFModelName))
		if err != nil {
			t.Fatal(err)
		}
		if f.Alignment != want {
			t.Errorf("alignment %d becomes %d, want %d", align, f.Alignment, want)
		}
		for i := range f.Tensors {
			if x := &f.Tensors[i]; x.Offset%int64(want) != 0 {
				t.Errorf("alignment %d: %s lies at %d", align, x.Name, x.Offset)
			}
		}
		f.Close()
	}
}
