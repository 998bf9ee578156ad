package checkpoint_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestLayouts: experts fused as transformers 5 has them in memory, and names without
// "model." as the base class saves them, are the same model as the usual layout.
func TestLayouts(t *testing.T) {
	for _, x := range []struct {
		family string
		o      tiny.Options
	}{
		{"qwen3_moe", tiny.Options{Fused: true}},
		{"mixtral", tiny.Options{Fused: true, DType: "BF16", Shards: 2}},
		{"olmoe", tiny.Options{Fused: true, Bare: true}},
		{"llama", tiny.Options{Bare: true}},
		{"gemma3_text", tiny.Options{Bare: true, DType: "BF16", Shards: 2}},
		{"qwen2", tiny.Options{Bare: true}},
		{"mixtral", tiny.Options{Bare: true}},
		// Gate and up as wide as the model: the shape does not tell which is which.
		{"qwen3_moe", tiny.Options{Fused: true, FFN: 32}},
	} {
		dir := t.TempDir()
		m := tiny.HF(t, dir, x.family, x.o)
		c := open(t, dir)
		if c.BaseNames() != x.o.Bare {
			t.Errorf("%s: bare names: %v", x.family, c.BaseNames())
		}
		if len(c.Unknown) > 0 {
			t.Errorf("%s: unknown %v", x.family, c.Unknown)
		}
		for _, tensor := range c.Tensors() {
			want := expected(m, tensor.Name, false)
			got, err := c.ReadAll(tensor)
			if err != nil || !sameBits(got, want) {
				t.Errorf("%s: %s differs (%v)", x.family, tensor.Name, err)
			}
			readParts(t, c, tensor, want)
			var raw []byte
			for _, s := range tensor.Sources {
				r, err := c.Raw(s)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				raw = append(raw, b...)
			}
			stored := make([]byte, len(raw))
			for i := range want {
				want[i] -= tensor.Add
			}
			if safetensors.Encode(tensor.Type, stored, want); !bytes.Equal(raw, stored) {
				t.Errorf("%s: the bytes of %s differ", x.family, tensor.Name)
			}
		}
	}
}

// TestLayoutErrors: what is not read is named.
func TestLayoutErrors(t *testing.T) {
	dir := t.TempDir()
	tiny.HF(t, dir, "qwen3_moe", tiny.Options{Fused: true})
	rewrite(t, dir, func(x safetensors.Tensor) []safetensors.Tensor {
		if strings.HasSuffix(x.Name, "1.mlp.experts.gate_up_proj") { // [experts, hidden, 2*ffn]
			x.Shape[1], x.Shape[2] = x.Shape[2], x.Shape[1]
		}
		return []safetensors.Tensor{x}
	})
	fails(t, dir, "model.layers.1.mlp.experts.gate_up_proj", "[4 64 192]", "[4 192 64]")

	dir = t.TempDir()
	tiny.HF(t, dir, "gemma3_text", tiny.Options{})
	rewrite(t, dir, func(x safetensors.Tensor) []safetensors.Tensor {
		x.Name = "language_model." + x.Name
		return []safetensors.Tensor{x}
	})
	fails(t, dir, `prefix "language_model."`)

	// An unknown tensor is as suspicious without the prefix.
	dir = t.TempDir()
	tiny.HF(t, dir, "llama", tiny.Options{Bare: true})
	if c := open(t, dir); c.HFName("blk.1.attn_k.bias") != "layers.1.self_attn.k_proj.bias" {
		t.Errorf("%s", c.HFName("blk.1.attn_k.bias"))
	}
}

// TestFileOfFolder: the path of one file of a folder is answered with the folder's.
func TestFileOfFolder(t *testing.T) {
	dir := t.TempDir()
	tiny.HF(t, dir, "llama", tiny.Options{Shards: 2})
	for _, n := range []string{"model-00001-of-00002.safetensors", safetensors.IndexName, "config.json",
		"pytorch_model.bin"} {
		path := filepath.Join(dir, n)
		if n == "pytorch_model.bin" {
			if err := os.WriteFile(path, []byte("PK\x03\x04"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		fails(t, path, "name its folder, "+dir+",")
	}
	// A GGUF file may be called anything.
	path := filepath.Join(dir, "ggml-model.bin")
	tiny.GGUF(t, path, "llama", tiny.Options{})
	open(t, path)
}

// TestPointerFiles: a Git LFS pointer in place of any file of a model is called that.
func TestPointerFiles(t *testing.T) {
	pointer := fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12\n", 0)
	put := func(path string) {
		if err := os.WriteFile(path, []byte(pointer), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"config.json", safetensors.IndexName, "model-00002-of-00002.safetensors"} {
		dir := t.TempDir()
		tiny.HF(t, dir, "llama", tiny.Options{Shards: 2})
		put(filepath.Join(dir, n))
		fails(t, dir, n, "Git LFS pointer")
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	put(path)
	fails(t, path, "Git LFS pointer")
	for _, n := range []string{"tokenizer.json", "tokenizer_config.json", "generation_config.json"} {
		dir := t.TempDir()
		tiny.HF(t, dir, "llama", tiny.Options{})
		put(filepath.Join(dir, n))
		c := open(t, dir)
		if _, err := c.Vocab(); err == nil || !strings.Contains(err.Error(), n) || !strings.Contains(err.Error(),
			"Git LFS pointer") {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// A stored tensor of a GGUF file, of float32 numbers.
type stored struct {
	dims []int // in ggml's order
	data []byte
}

// regguf writes a GGUF file of F32 tensors again, with what edit makes of them.
func regguf(t *testing.T, path string, edit func(x map[string]*stored)) string {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string]*stored{}
	for i := range f.Tensors {
		x := &f.Tensors[i]
		b, err := io.ReadAll(f.Reader(x))
		if err != nil || x.Type != gguf.TypeF32 {
			t.Fatal(x.Name, x.Type, err)
		}
		all[x.Name] = &stored{x.Dims, b}
	}
	edit(all)
	var specs []gguf.TensorSpec
	for _, n := range slices.Sorted(maps.Keys(all)) {
		specs = append(specs, gguf.TensorSpec{Name: n, Type: gguf.TypeF32, Dims: all[n].dims})
	}
	out := filepath.Join(t.TempDir(), "edited.gguf")
	w, err := gguf.Create(out, f.KVs, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, s := range specs {
		err := w.WriteTensor(s.Name, func(w io.Writer) error { _, err := w.Write(all[s.Name].data); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return out
}

// join replaces tensors by one with their rows, of each of so many matrices, one after the other.
func join(x map[string]*stored, matrices int, name string, parts ...string) {
	all := &stored{dims: slices.Clone(x[parts[0]].dims)}
	rows := len(all.dims) - 1 // which of the dimensions counts rows
	if matrices > 1 {
		rows--
	}
	all.dims[rows] = 0
	for _, p := range parts {
		all.dims[rows] += x[p].dims[rows]
	}
	for m := range matrices {
		for _, p := range parts {
			n := len(x[p].data) / matrices
			all.data = append(all.data, x[p].data[m*n:(m+1)*n]...)
		}
	}
	for _, p := range parts {
		delete(x, p)
	}
	x[name] = all
}

// rows makes a tensor's rows more, of zeros, or fewer.
func rows(x *stored, n int) {
	per := len(x.data) / x.dims[1]
	x.dims = []int{x.dims[0], x.dims[1] + n}
	x.data = append(x.data, make([]byte, max(0, n*per))...)[:x.dims[1]*per]
}

// TestGGUFLayouts: files of a known architecture with tensors of another layout are the same model, or
// are refused with the tensor's name.
func TestGGUFLayouts(t *testing.T) {
	for _, x := range []struct {
		what, family string
		o            tiny.Options
		edit         func(x map[string]*stored)
		says         []string // nil: it is read, and is the same
	}{
		{"q, k and v as one", "llama", tiny.Options{Bias: true}, func(x map[string]*stored) {
			for _, s := range []string{"weight", "bias"} {
				join(x, 1, "blk.1.attn_qkv."+s, "blk.1.attn_q."+s, "blk.1.attn_k."+s, "blk.1.attn_v."+s)
			}
		}, nil},
		{"gate and up of experts as one", "qwen3_moe", tiny.Options{}, func(x map[string]*stored) {
			join(x, 4, "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
		}, nil},
		{"gate and up as one", "llama", tiny.Options{}, func(x map[string]*stored) {
			join(x, 1, "blk.0.ffn_gate_up.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")
		}, []string{"blk.0.ffn_gate.weight"}},
		{"q and k as one", "llama", tiny.Options{}, func(x map[string]*stored) {
			join(x, 1, "blk.0.attn_qkv.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight")
		}, []string{"blk.0.attn_qkv.weight"}},
		{"experts as one with another size", "qwen3_moe", tiny.Options{}, func(x map[string]*stored) {
			join(x, 1, "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
		}, []string{"blk.0.ffn_gate_up_exps.weight"}},
		{"padded vocabulary", "llama", tiny.Options{Untied: true}, func(x map[string]*stored) {
			rows(x["token_embd.weight"], 5)
			rows(x["output.weight"], 5)
		}, nil},
		{"an embedding longer than the head", "llama", tiny.Options{Untied: true}, func(x map[string]*stored) {
			rows(x["token_embd.weight"], 5)
		}, []string{"output.weight"}},
		{"fewer rows than tokens", "llama", tiny.Options{Untied: true}, func(x map[string]*stored) {
			rows(x["token_embd.weight"], -1)
			rows(x["output.weight"], -1)
		}, []string{"token_embd.weight", "tokenizer.ggml.tokens"}},
		{"a gate on the output of attention", "qwen3", tiny.Options{}, func(x map[string]*stored) {
			x["blk.0.attn_gate.weight"] = x["blk.0.attn_q.weight"]
		}, []string{"blk.0.attn_gate.weight", "not part of the qwen3 graph"}},
		{"a vision tower in the same file", "llama", tiny.Options{}, func(x map[string]*stored) {
			x["v.blk.0.attn_q.weight"] = x["blk.0.attn_q.weight"]
		}, []string{"v.blk.0.attn_q.weight", "not part of the llama graph", "language model alone"}},
		{"a layer that block_count does not count", "llama", tiny.Options{}, func(x map[string]*stored) {
			x["blk.2.attn_q.weight"] = x["blk.0.attn_q.weight"]
		}, []string{"blk.2.attn_q.weight", "llama.block_count counts 2 layers"}},
		{"the gate's rows behind those of q", "qwen3", tiny.Options{}, func(x map[string]*stored) {
			rows(x["blk.0.attn_q.weight"], x["blk.0.attn_q.weight"].dims[1])
		}, []string{"blk.0.attn_q.weight", "shape"}},
		{"no norm of keys", "qwen3", tiny.Options{}, func(x map[string]*stored) {
			delete(x, "blk.1.attn_k_norm.weight")
		}, []string{"blk.1.attn_k_norm.weight"}},
	} {
		path := filepath.Join(t.TempDir(), "m.gguf")
		m := tiny.GGUF(t, path, x.family, x.o)
		path = regguf(t, path, x.edit)
		if x.says != nil {
			fails(t, path, x.says...)
			continue
		}
		c := open(t, path)
		if len(c.Unknown) > 0 {
			t.Errorf("%s: unknown %v", x.what, c.Unknown)
		}
		for _, tensor := range c.Tensors() {
			want := expected(m, tensor.Name, true)
			got, err := c.ReadAll(tensor)
			if err != nil || len(got) < len(want) || !sameBits(got[:len(want)], want) {
				t.Errorf("%s: %s differs (%v)", x.what, tensor.Name, err)
			}
		}
	}
}
