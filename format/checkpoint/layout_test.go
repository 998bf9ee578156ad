package checkpoint_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
