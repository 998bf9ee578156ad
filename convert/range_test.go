package convert

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// set returns an edit that puts one value into a tensor.
func set(tensor string, at int, v float32) func(string, []float32) {
	return func(name string, x []float32) {
		if name == tensor {
			x[at] = v
		}
	}
}

// TestWider: a number that the asked-for type cannot hold is written in a type that
// can, for that tensor alone, and the function stays; the plan says so.
func TestWider(t *testing.T) {
	for _, x := range []struct {
		dtype, outtype, tensor string
		v                      float32
		name, want             string // of the GGUF tensor
	}{
		{"BF16", "f16", "model.layers.0.mlp.down_proj.weight", 1e5, "blk.0.ffn_down.weight", "BF16"},
		{"F32", "f16", "model.layers.0.mlp.down_proj.weight", 1e5, "blk.0.ffn_down.weight", "F32"},
		{"BF16", "f16", "model.layers.0.mlp.down_proj.weight", 6e4, "blk.0.ffn_down.weight", "F16"},
		{"BF16", "q8_0", "model.layers.1.mlp.down_proj.weight", -1e3, "blk.1.ffn_down.weight", "BF16"},
		{"BF16", "f16", "model.layers.0.self_attn.k_proj.weight", 1e5, "blk.0.attn_k.weight", ""},
		// edited: whatever it is, it holds
		{"F32", "bf16", "model.layers.0.mlp.gate_proj.weight", math.MaxFloat32, "blk.0.ffn_gate.weight", "F32"},
		// A row of the embedding that no text of ours has, and the head made of it.
		{"BF16", "f16", "model.embed_tokens.weight", 1e5, "token_embd.weight", "BF16"},
	} {
		dir := t.TempDir()
		src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
		at := 7
		if x.name == "token_embd.weight" {
			at = 64*270 + 3
		}
		tiny.HF(t, src, "llama", tiny.Options{Seed: 1, DType: x.dtype, Untied: true, Edit: set(x.tensor, at, x.v)})
		if x.v == math.MaxFloat32 { // no model to be measured, but one to be written
			c, err := checkpoint.Open(src)
			if err != nil {
				t.Fatal(err)
			}
			ranges, err := c.Ranges(context.Background(), 2, nil)
			if c.Close(); err != nil || ranges[x.name] != x.v {
				t.Errorf("%s: range %g, %v", x.tensor, ranges[x.name], err)
			}
			continue
		}
		res, err := quick(src, out, checkpoint.GGUF, x.outtype)
		if err != nil {
			t.Errorf("%s %g as %s: %v", x.tensor, x.v, x.outtype, err)
			continue
		}
		if !res.Verify.OK {
			t.Errorf("%s %g as %s: %+v", x.tensor, x.v, x.outtype, res.Verify.Contract)
		}
		f, err := gguf.Open(filepath.Join(out, spec.GGUFModelName))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := f.Tensor(x.name)
		if x.want != "" && got.Type.String() != x.want {
			t.Errorf("%s %g as %s: %s is %s, want %s", x.tensor, x.v, x.outtype, x.name, got.Type, x.want)
		}
		other, _ := f.Tensor("blk.1.ffn_gate.weight")
		if want := strings.ToUpper(x.outtype); other.Type.String() != want {
			t.Errorf("as %s: another tensor is %s", x.outtype, other.Type)
		}
		said := strings.Contains(strings.Join(res.Plans[0].Warnings, "\n"), x.name)
		if x.want != "" && said != (x.want != strings.ToUpper(x.outtype)) {
			t.Errorf("%s: warnings %q", x.tensor, res.Plans[0].Warnings)
		}
		f.Close()
	}
}

// TestNotFiniteFirst: a number that is not finite is found before anything is fitted,
// under the name that it has in the source; no hidden folder is named.
func TestNotFiniteFirst(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Edit: set("model.embed_tokens.weight", 64*270, float32(math.NaN()))})
	o := quickOptions(src, filepath.Join(dir, "out"), checkpoint.GGUF, "f32")
	o.Progress = func(step string, _, _ int) {
		if step != "reading weights" {
			t.Errorf("%s before the weights were looked at", step)
		}
	}
	_, err := Convert(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "src: tensor model.embed_tokens.weight: value at row 270, column 0") {
		t.Errorf("%v", err)
	}
	o.Work = filepath.Join(dir, "work")
	if _, err := RunUnit(context.Background(), o, 1, 1); err == nil || !strings.Contains(err.Error(),
		"model.embed_tokens.weight") {
		t.Errorf("unit: %v", err)
	}

	// An overflow that only the fold makes is still found late: its message names OUT.
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, DType: "F32", Edit: func(name string, x []float32) {
		switch name {
		case "model.layers.1.input_layernorm.weight":
			x[5] = 0
		case "model.layers.1.self_attn.q_proj.weight":
			for i := range x {
				x[i] *= 8
			}
		case "model.layers.1.self_attn.k_proj.weight":
			x[7*64+5] = 3e38
		}
	}})
	_, err = quick(src, filepath.Join(dir, "out"), checkpoint.GGUF, "f32")
	if err == nil || strings.Contains(err.Error(), ".partial") || !strings.Contains(err.Error(), filepath.Join(dir, "out",
		spec.GGUFModelName)) {
		t.Errorf("%v", err)
	}
}

// TestDeadHeads: heads and layers of zeros, as pruning leaves them, fit in every code.
func TestDeadHeads(t *testing.T) {
	zero := func(layer string, parts ...string) func(string, []float32) {
		return func(name string, x []float32) {
			for _, p := range parts {
				if strings.Contains(name, layer) && strings.Contains(name, p) {
					if parts[0] == "q_proj" && len(parts) == 1 {
						x = x[:len(x)/2] // the queries of one KV head
					}
					clear(x)
				}
			}
		}
	}
	for name, edit := range map[string]func(string, []float32){
		"queries of a head": zero("layers.0.", "q_proj"),
		"keys":              zero("layers.0.", "k_proj", "k_proj"),
		"attention":         zero("layers.1.", "self_attn", "self_attn"),
		"the first layer":   zero("layers.0.", "", ""),
	} {
		dir := t.TempDir()
		src := filepath.Join(dir, "src")
		tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Edit: edit})
		for _, code := range codec.Kinds {
			o := quickOptions(src, filepath.Join(dir, string(code)), checkpoint.GGUF, "f16")
			o.Code = code
			res, err := Convert(context.Background(), o)
			if err != nil || !res.Verify.OK {
				t.Errorf("%s zero, %s: %v", name, code, err)
			}
		}
	}
}
