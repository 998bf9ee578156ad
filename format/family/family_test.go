package family_test

import (
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// tiny lists the folders of tiny checkpoints that transformers wrote
// (scripts/oracles/make_tiny.py): the names and shapes in them are the oracle.
func tiny(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("../../verify/refmodel/testdata/*/config.json")
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d tiny models (%v)", len(dirs), err)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

// Every tensor that transformers saves has exactly one canonical name, in the
// shape that the configuration implies, and every canonical one has sources.
func TestNamesAndShapes(t *testing.T) {
	families := map[string]bool{}
	for _, dir := range tiny(t) {
		c, err := hf.ReadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		families[c.Family.Name] = true
		set, err := safetensors.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		owner := map[string]string{}
		for _, x := range c.Tensors() {
			names, ok := c.Family.HFNames(x.Name, c.Experts)
			if !ok || len(names) == 0 {
				t.Errorf("%s: %s has no name", dir, x.Name)
				continue
			}
			shape := x.Shape
			if strings.Contains(x.Name, "_exps.") {
				if len(names) != c.Experts || shape[0] != c.Experts {
					t.Errorf("%s: %s of %v has %d sources for %d experts", dir, x.Name, shape, len(names), c.Experts)
				}
				shape = shape[1:]
			} else if len(names) != 1 {
				t.Errorf("%s: %s has sources %v", dir, x.Name, names)
			}
			for _, n := range names {
				if owner[n] != "" {
					t.Errorf("%s: %s is both %s and %s", dir, n, owner[n], x.Name)
				}
				owner[n] = x.Name
				r, ok := set.Find(n)
				if !ok && !x.Optional {
					t.Errorf("%s: %s should be %s, which is not there", dir, x.Name, n)
				}
				if ok && !slices.Equal(r.Tensor.Shape, shape) {
					t.Errorf("%s: %s is %v, the configuration implies %v", dir, n, r.Tensor.Shape, shape)
				}
			}
			if l := family.Layer(x.Name); l != x.Layer {
				t.Errorf("Layer(%s) = %d, expected %d", x.Name, l, x.Layer)
			}
			if x.Layer >= 0 {
				rest := strings.SplitN(x.Name, ".", 3)[2]
				if family.Name(x.Layer, rest) != x.Name {
					t.Errorf("Name(%d, %s) = %s", x.Layer, rest, family.Name(x.Layer, rest))
				}
			}
			if family.IsNorm(x.Name) != strings.Contains(x.Name, "norm") {
				t.Errorf("IsNorm(%s) = %v", x.Name, family.IsNorm(x.Name))
			}
		}
		for _, n := range set.Names() {
			if owner[n] == "" {
				t.Errorf("%s: nothing is made of %s", dir, n)
			}
		}
		set.Close()
	}
	for _, n := range family.Names() {
		if !families[n] {
			t.Errorf("no tiny model of family %s", n)
		}
	}
}

// The names of GGUF files, by hand from files that stock converters wrote.
func TestCanonicalNames(t *testing.T) {
	for _, c := range []struct {
		model string
		layer []string // the tensors of layer 1
	}{
		{"llama", []string{"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
			"ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}},
		{"llama-bias", []string{"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
			"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "ffn_norm.weight", "ffn_gate.weight",
			"ffn_up.weight", "ffn_down.weight"}},
		{"qwen2", []string{"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
			"attn_q.bias", "attn_k.bias", "attn_v.bias", "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight",
			"ffn_down.weight"}},
		{"qwen3moe", []string{"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
			"attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight",
			"ffn_up_exps.weight", "ffn_down_exps.weight"}},
		{"gemma3", []string{"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
			"attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "ffn_gate.weight",
			"ffn_up.weight", "ffn_down.weight", "post_ffw_norm.weight"}},
	} {
		cfg, err := hf.ReadConfig("../../verify/refmodel/testdata/" + c.model)
		if err != nil {
			t.Fatal(err)
		}
		var global, layer []string
		for _, x := range cfg.Tensors() {
			switch x.Layer {
			case -1:
				global = append(global, x.Name)
			case 1:
				layer = append(layer, strings.TrimPrefix(x.Name, "blk.1."))
			}
		}
		slices.Sort(layer)
		slices.Sort(c.layer)
		if !slices.Equal(layer, c.layer) {
			t.Errorf("%s: layer tensors %v, expected %v", c.model, layer, c.layer)
		}
		if !slices.Equal(global, []string{"token_embd.weight", "output_norm.weight", "output.weight"}) {
			t.Errorf("%s: global tensors %v", c.model, global)
		}
	}
}

func TestLookup(t *testing.T) {
	for _, n := range family.Names() {
		f, err := family.ByModelType(n, "")
		if err != nil || f.Name != n {
			t.Errorf("ByModelType(%s) = %v, %v", n, f, err)
			continue
		}
		if g, err := family.ByModelType(n, f.Classes[0]); err != nil || g != f {
			t.Errorf("ByModelType(%s, %s) = %v, %v", n, f.Classes[0], g, err)
		}
		if _, err := family.ByModelType(n, "BertModel"); err == nil || !strings.Contains(err.Error(), "BertModel") {
			t.Errorf("class BertModel of %s: %v", n, err)
		}
		experts := 0
		if f.Experts != nil {
			experts = 8
		}
		g, err := family.ByGGUFArch(f.GGUFArch, experts)
		if err != nil || (g.Experts != nil) != (f.Experts != nil) || g.GGUFArch != f.GGUFArch || g.GGUFPairs != f.GGUFPairs {
			t.Errorf("ByGGUFArch(%s, %d) = %v, %v", f.GGUFArch, experts, g, err)
		}
		for _, x := range []string{"blk.0.attn_q.scale", "blk.x.attn_q.weight", "blk.attn_q.weight", "output", ""} {
			if names, ok := f.HFNames(x, 8); ok {
				t.Errorf("%s: %q is a canonical name, of %v", n, x, names)
			}
		}
	}
	if f, err := family.ByGGUFArch("llama", 0); err != nil || f.Name != "llama" {
		t.Errorf("a dense llama file is %v, %v", f, err)
	}
	if f, err := family.ByGGUFArch("llama", 8); err != nil || f.Name != "mixtral" {
		t.Errorf("a llama file with experts is %v, %v", f, err)
	}
	for _, c := range []struct {
		arch    string
		experts int
	}{{"qwen2", 8}, {"qwen3moe", 0}, {"mamba", 0}, {"", 0}} {
		if f, err := family.ByGGUFArch(c.arch, c.experts); err == nil ||
			!strings.Contains(err.Error(), fmt.Sprintf("%q", c.arch)) {
			t.Errorf("ByGGUFArch(%q, %d) = %v, %v", c.arch, c.experts, f, err)
		}
	}
	if _, err := family.ByModelType("mamba", ""); err == nil || !strings.Contains(err.Error(), "gemma3_text") {
		t.Errorf("an unknown model_type: %v; the error should list the known ones", err)
	}
}

func TestConfig(t *testing.T) {
	good, err := hf.ReadConfig("../../verify/refmodel/testdata/gemma3")
	if err != nil {
		t.Fatal(err)
	}
	if good.Group() != 2 {
		t.Errorf("%d query heads per KV head", good.Group())
	}
	for l, sliding := range []bool{true, true, true, true, true, false, true} {
		want := good.Rope
		if sliding {
			want = good.RopeLocal
		}
		if good.IsSliding(l) != sliding || !reflect.DeepEqual(good.RopeOf(l), want) {
			t.Errorf("layer %d slides: %v, RoPE %+v", l, good.IsSliding(l), good.RopeOf(l))
		}
	}
	if good.IsSliding(99) {
		t.Error("a layer that is not there slides")
	}
	moe, err := hf.ReadConfig("../../verify/refmodel/testdata/olmoe")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of   *family.Config
		make func(c *family.Config)
		want string
	}{
		{good, func(c *family.Config) { c.Layers = 0 }, "num_hidden_layers"},
		{good, func(c *family.Config) { c.Hidden = family.MaxHidden + 1 }, "hidden_size"},
		{good, func(c *family.Config) { c.Heads = -1 }, "num_attention_heads"},
		{good, func(c *family.Config) { c.KVHeads = 3 }, "num_key_value_heads"},
		{good, func(c *family.Config) { c.HeadDim = 15 }, "head_dim"},
		{good, func(c *family.Config) { c.FFN = 0 }, "intermediate_size"},
		{good, func(c *family.Config) { c.Vocab = family.MaxVocab + 1 }, "vocab_size"},
		{good, func(c *family.Config) { c.Context = 0 }, "max_position_embeddings"},
		{good, func(c *family.Config) { c.NormEps = math.NaN() }, "rms_norm_eps"},
		{good, func(c *family.Config) { c.AttnScale = math.Inf(1) }, "scale"},
		{good, func(c *family.Config) { c.LogitSoftcap = math.NaN() }, "softcapping"},
		{good, func(c *family.Config) { c.Experts, c.ExpertsUsed = 4, 2 }, "experts"},
		{good, func(c *family.Config) { c.Sliding = c.Sliding[1:] }, "sliding"},
		{good, func(c *family.Config) { c.Rope.Dim = 8 }, "partial"},
		{good, func(c *family.Config) { c.RopeLocal.Theta = 0 }, "theta"},
		{good, func(c *family.Config) { c.Rope.Scaling = rope.Linear }, "factor"},
		{moe, func(c *family.Config) { c.Experts = 0 }, "experts"},
		{moe, func(c *family.Config) { c.Experts = family.MaxExperts + 1 }, "experts"},
		{moe, func(c *family.Config) { c.ExpertsUsed = 7 }, "experts"},
		{moe, func(c *family.Config) { c.ExpertsUsed = 0 }, "experts"},
	} {
		bad := *c.of
		c.make(&bad)
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v should name %s", err, c.want)
		}
	}
}
