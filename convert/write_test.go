package convert

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// quick converts with as little fitting as there can be.
func quick(src, out string, to checkpoint.Container, outtype string) (*Result, error) {
	return Convert(context.Background(), quickOptions(src, out, to, outtype))
}

func quickOptions(src, out string, to checkpoint.Container, outtype string) Options {
	return Options{
		Source: src, Out: out, Formats: []checkpoint.Container{to}, OutType: outtype, Code: "srht", Bits: 1, Balance: true,
		Policy:      kvcache.Policy{Sink: 1},
		Calibration: ppl.Text{Name: "calibration", Data: texts.Calibration}, CalibrationTokens: 32,
		Evaluation: ppl.Text{Name: "evaluation", Data: texts.Evaluation}, Ctx: 32, Chunks: 1, Seed: 1, Threads: 1,
		Tool: "test",
	}
}

// left lists what is in a folder.
func left(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestTooLarge: a fold that pushes a weight out of its element type's range is an
// error that names the tensor, not an infinity in the file.
func TestTooLarge(t *testing.T) {
	// One column of W_K is large and meets an activation of zero, so that it has no
	// part in the balance, which multiplies it by about 3: queries are 8 times larger.
	large := func(v float32) func(string, []float32) {
		return func(name string, x []float32) {
			switch name {
			case "model.layers.1.input_layernorm.weight":
				x[5] = 0
			case "model.layers.1.self_attn.q_proj.weight":
				for i := range x {
					x[i] *= 8
				}
			case "model.layers.1.self_attn.k_proj.weight":
				x[7*64+5] = v
			}
		}
	}
	for _, x := range []struct {
		dtype   string
		value   float32
		to      checkpoint.Container
		outtype string
		good    bool
		says    string
	}{
		{"F16", 60000, checkpoint.Safetensors, "f16", false, "F16 cannot hold"},
		{"F16", 60000, checkpoint.GGUF, "f16", true, ""}, // as F32
		{"F16", 60000, checkpoint.GGUF, "bf16", true, ""},
		{"F16", 60000, checkpoint.GGUF, "q8_0", true, ""},
		{"BF16", 60000, checkpoint.Safetensors, "f16", true, ""},
		{"BF16", 7e6, checkpoint.GGUF, "q8_0", true, ""}, // as BF16
		{"F32", 7e6, checkpoint.GGUF, "f32", true, ""},
		{"F32", 3e38, checkpoint.GGUF, "f32", false, "F32 cannot hold"},
	} {
		dir := t.TempDir()
		tiny.HF(t, filepath.Join(dir, "src"), "llama", tiny.Options{Seed: 1, DType: x.dtype, Edit: large(x.value)})
		_, err := quick(filepath.Join(dir, "src"), filepath.Join(dir, "out"), x.to, x.outtype)
		name := x.dtype + " to " + string(x.to) + " " + x.outtype
		if x.good {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		tensor := "model.layers.1.self_attn.k_proj.weight"
		if x.to == checkpoint.GGUF {
			tensor = "blk.1.attn_k.weight"
		}
		if err == nil || !strings.Contains(err.Error(), "src: tensor "+tensor+": value at row ") ||
			!strings.Contains(err.Error(), x.says) || !strings.Contains(err.Error(), "; use --") {
			t.Errorf("%s: %v", name, err)
		}
		if n := left(t, dir); len(n) != 1 {
			t.Errorf("%s: left behind: %v", name, n)
		}
	}
}

// TestNaNInCopies: tensors that are copied byte for byte are looked at too, the
// rows of tokens that no text has included.
func TestNaNInCopies(t *testing.T) {
	for _, name := range []string{"model.embed_tokens.weight", "lm_head.weight",
		"model.layers.1.mlp.experts.2.up_proj.weight"} {
		dir := t.TempDir()
		o := tiny.Options{Seed: 1, Untied: true, KVHeads: 4, Edit: func(n string, x []float32) {
			if n == name {
				x[len(x)-1] = float32(math.Inf(-1))
			}
		}}
		m := tiny.HF(t, filepath.Join(dir, "src"), "qwen3_moe", o)
		m.GGUF(t, filepath.Join(dir, "src.gguf"))
		canonical := m.Find(name).GGUF
		for _, x := range []struct {
			src string
			to  checkpoint.Container
		}{{"src", checkpoint.Safetensors}, {"src", checkpoint.GGUF}, {"src.gguf", checkpoint.GGUF}} {
			_, err := quick(filepath.Join(dir, x.src), filepath.Join(dir, "out"), x.to, "f32")
			tensor := name
			if x.src == "src.gguf" {
				tensor = canonical
			}
			if err == nil || !strings.Contains(err.Error(),
				x.src+": tensor "+tensor+": value at row ") || !strings.Contains(err.Error(), "-Inf") {
				t.Errorf("%s in %s: %v", name, x.src, err)
			}
			if n := left(t, dir); len(n) != 2 {
				t.Errorf("left behind: %v", n)
			}
		}
	}
}

// TestLinks: the files beside the weights are copied when they are links, as in
// the download cache of the Hugging Face tools; dangling ones and folders are not.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	src, links := filepath.Join(dir, "src"), filepath.Join(dir, "links")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Shards: 2})
	if err := os.Mkdir(links, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, n := range left(t, src) {
		if err := os.Symlink(filepath.Join(src, n), filepath.Join(links, n)); err != nil {
			t.Skipf("no links here: %v", err)
		}
	}
	os.Symlink(filepath.Join(src, "nothing"), filepath.Join(links, "dangling.json"))
	os.Mkdir(filepath.Join(links, "folder.json"), 0o777)
	if _, err := quick(links, filepath.Join(dir, "out"), checkpoint.Safetensors, "f32"); err != nil {
		t.Fatal(err)
	}
	want := append(left(t, src), spec.ManifestName, spec.SafetensorsSidecarName, spec.FoldName)
	got := left(t, filepath.Join(dir, "out"))
	if len(got) != len(want) {
		t.Errorf("%v, want %v in any order", got, want)
	}
	for _, n := range got {
		if st, err := os.Lstat(filepath.Join(dir, "out", n)); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", n, st.Mode(), err)
		}
	}
}
