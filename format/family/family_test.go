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
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// tiny lists the folders of tiny checkpoints that transformers wrote
// (scripts/oracles/make_tiny.py): the names and shapes in them are the oracle.
func models(t *testing.T) []string {
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
	for _, dir := range models(t) {
		dir := tiny.Folder(t, dir)
		c, err := hf.ReadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		families[c.Family.Name] = true
		if c.Wrapped {
			continue // under a prefix: package checkpoint looks at names
		}
		set, err := safetensors.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		owner, stacked := map[string]string{}, map[string]family.Stack{}
		for l := range c.Layers {
			for _, s := range c.Family.HFStacks(l) {
				for _, p := range s.Parts {
					stacked[p] = s
				}
			}
		}
		shapes := map[string][]int{}
		for _, x := range c.Tensors() {
			shapes[x.Name] = x.Shape
		}
		for _, x := range c.Tensors() {
			if s, ok := stacked[x.Name]; ok {
				rows := 0
				for _, p := range s.Parts {
					rows += shapes[p][0]
				}
				owner[s.Name] = x.Name
				if r, ok := set.Find(s.Name); !ok || !slices.Equal(r.Tensor.Shape, append([]int{rows}, x.Shape[1:]...)) {
					t.Errorf("%s: %s should be in %s, of %d rows", dir, x.Name, s.Name, rows)
				}
				continue
			}
			names, ok := c.Family.HFNames(x.Name, c.Experts())
			if stored, _, _, packed := c.Family.HFPacked(x.Name); packed {
				for _, n := range []string{stored, stored + "_blocks", stored + "_scales"} {
					owner[n] = x.Name
				}
				if len(names) != 1 || names[0] != stored {
					t.Errorf("%s: %s is %s in one place and %v in another", dir, x.Name, stored, names)
				}
				continue // package checkpoint looks at shapes
			}
			if !ok || len(names) == 0 {
				t.Errorf("%s: %s has no name", dir, x.Name)
				continue
			}
			shape := x.Shape
			if fused, _, _, ok := c.Family.HFFused(x.Name); ok {
				if _, there := set.Find(fused); there && fused != names[0] {
					owner[fused] = x.Name
					continue // package checkpoint looks at shapes
				}
			}
			if strings.HasSuffix(x.Name, "_exps.weight") {
				if len(names) != c.Experts() || shape[0] != c.Experts() {
					t.Errorf("%s: %s of %v has %d sources for %d experts", dir, x.Name, shape, len(names), c.Experts())
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
				if ok && !slices.Equal(r.Tensor.Shape, shape) && !slices.Equal(r.Tensor.Shape, append([]int{1}, shape...)) {
					t.Errorf("%s: %s is %v, the configuration implies %v", dir, n, r.Tensor.Shape, shape)
				}
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
	none := func(string) bool { return false }
	for _, n := range family.Names() {
		f, err := family.ByModelType(n, "")
		if err != nil || f.Name != n {
			t.Errorf("ByModelType(%s) = %v, %v", n, f, err)
			continue
		}
		if len(f.Classes) == 0 {
			continue // only inside another
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
		g, err := family.ByGGUFArch(f.GGUFArch, experts, func(key string) bool { return key == f.GGUFArch+"."+f.GGUFKey })
		if err != nil || (g.Experts != nil) != (f.Experts != nil) || g.GGUFArch != f.GGUFArch || g.GGUFPairs != f.GGUFPairs {
			t.Errorf("ByGGUFArch(%s, %d) = %v, %v", f.GGUFArch, experts, g, err)
		}
		for _, x := range []string{"blk.0.attn_q.scale", "blk.x.attn_q.weight", "blk.attn_q.weight", "output", ""} {
			if names, ok := f.HFNames(x, 8); ok {
				t.Errorf("%s: %q is a canonical name, of %v", n, x, names)
			}
		}
	}
	if f, err := family.ByGGUFArch("llama", 0, none); err != nil || f.Name != "llama" {
		t.Errorf("a dense llama file is %v, %v", f, err)
	}
	if f, err := family.ByGGUFArch("llama", 8, none); err != nil || f.Name != "mixtral" {
		t.Errorf("a llama file with experts is %v, %v", f, err)
	}
	for _, c := range []struct {
		arch    string
		experts int
	}{{"qwen2", 8}, {"qwen3moe", 0}, {"mamba", 0}, {"", 0}} {
		if f, err := family.ByGGUFArch(c.arch, c.experts, none); err == nil ||
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
	if good.Layers[0].Group() != 2 {
		t.Errorf("%d query heads per KV head", good.Layers[0].Group())
	}
	full, local := good.Ropes()
	window, flags := good.Window()
	for l, sliding := range []bool{true, true, true, true, true, false, true} {
		y, want, w := good.Layers[l], full, 0
		if sliding {
			want, w = local, window
		}
		if y.Window != w || flags[l] != sliding || !reflect.DeepEqual(y.Rope, want) {
			t.Errorf("layer %d: window %d, RoPE %+v", l, y.Window, y.Rope)
		}
	}
	if window < 1 || full.Theta == local.Theta {
		t.Errorf("window %d, theta %g and %g: the test needs two kinds of layers", window, full.Theta, local.Theta)
	}
	moe, err := hf.ReadConfig("../../verify/refmodel/testdata/olmoe")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of   *family.Config
		make func(c *family.Config, y *family.Layer) // y is each layer
		want string
	}{
		{good, func(c *family.Config, y *family.Layer) { c.Layers = nil }, "num_hidden_layers"},
		{good, func(c *family.Config, y *family.Layer) { c.Hidden = family.MaxHidden + 1 }, "hidden_size"},
		{good, func(c *family.Config, y *family.Layer) { y.Heads = -1 }, "num_attention_heads"},
		{good, func(c *family.Config, y *family.Layer) { y.KVHeads = 3 }, "num_key_value_heads"},
		{good, func(c *family.Config, y *family.Layer) { y.HeadDim = 15 }, "head_dim"},
		{good, func(c *family.Config, y *family.Layer) { y.FFN.Size = 0 }, "intermediate_size"},
		{good, func(c *family.Config, y *family.Layer) { c.Vocab = family.MaxVocab + 1 }, "vocab_size"},
		{good, func(c *family.Config, y *family.Layer) { c.Context = 0 }, "max_position_embeddings"},
		{good, func(c *family.Config, y *family.Layer) { c.NormEps = math.NaN() }, "rms_norm_eps"},
		{good, func(c *family.Config, y *family.Layer) { y.Scale = math.Inf(1) }, "scale"},
		{good, func(c *family.Config, y *family.Layer) { c.LogitSoftcap = math.NaN() }, "softcapping"},
		{good, func(c *family.Config, y *family.Layer) { y.FFN.Experts, y.FFN.Used = 4, 2 }, "experts"},
		{good, func(c *family.Config, y *family.Layer) { y.Window = -1 }, "window"},
		{good, func(c *family.Config, y *family.Layer) { y.Owner = 7 }, "layer 7"},
		{good, func(c *family.Config, y *family.Layer) { y.ValueDim = 0 }, "values"},
		{good, func(c *family.Config, y *family.Layer) { y.Rope.Dim = 18 }, "RoPE turns 18"},
		{good, func(c *family.Config, y *family.Layer) { y.Rope.Theta = 0 }, "theta"},
		{good, func(c *family.Config, y *family.Layer) { y.Rope.Scaling = rope.Linear }, "factor"},
		{moe, func(c *family.Config, y *family.Layer) { y.FFN.Experts = 0 }, "experts"},
		{moe, func(c *family.Config, y *family.Layer) { y.FFN.Experts = family.MaxExperts + 1 }, "experts"},
		{moe, func(c *family.Config, y *family.Layer) { y.FFN.Used = 7 }, "experts"},
		{moe, func(c *family.Config, y *family.Layer) { y.FFN.Used = 0 }, "experts"},
	} {
		bad := c.of.Clone()
		for l := range c.of.Layers {
			if l < len(bad.Layers) {
				c.make(bad, &bad.Layers[l])
			}
		}
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v should name %s", err, c.want)
		}
	}
}

// TestResolve: one window flag per layer, and no layers without a number of them.
func TestResolve(t *testing.T) {
	c, err := hf.ReadConfig("../../verify/refmodel/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	y := c.Layers[0]
	good := family.Params{Layers: 3, Heads: y.Heads, KVHeads: y.KVHeads, HeadDim: y.HeadDim, AttnScale: y.Scale,
		Rope: y.Rope, FFN: y.FFN}
	if err := c.Resolve(good); err != nil || len(c.Layers) != 3 || c.Layers[2].Owner != 2 || c.EmbeddingScale != 1 {
		t.Errorf("%v, %d layers", err, len(c.Layers))
	}
	for want, change := range map[string]func(p *family.Params){
		"sliding-window flags for 2 of 3": func(p *family.Params) { p.SlidingWindow, p.Sliding = 4, make([]bool, 2) },
		"num_hidden_layers is -1":         func(p *family.Params) { p.Layers = -1 },
		"num_hidden_layers is 4097":       func(p *family.Params) { p.Layers = family.MaxLayers + 1 },
	} {
		p := good
		change(&p)
		if err := c.Resolve(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v should say %s", err, want)
		}
	}
}

// TestLayersOfTheirOwn: what a layer's description says decides which tensors it
// has, and how large. No family here has such layers yet; those of Gemma 4, MiMo and
// GLM-4.5 have.
func TestLayersOfTheirOwn(t *testing.T) {
	c, err := hf.ReadConfig("../../verify/refmodel/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	c.Layers = c.Clone().Layers[:2]
	c.Layers[0].HeadShape = family.HeadShape{Heads: 4, KVHeads: 2, HeadDim: 24, ValueDim: 16}
	c.Layers[1].HeadShape = family.HeadShape{Heads: 6, KVHeads: 2, HeadDim: 24, ValueDim: 16}
	c.Layers[1].Owner, c.Layers[1].FFN.Size = 0, 100
	c.Layers[1].Biases.K = true // of no use to a layer without keys
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	got := map[string][]int{}
	for _, x := range c.Tensors() {
		got[x.Name] = x.Shape
	}
	for name, want := range map[string][]int{
		"blk.0.attn_q.weight": {96, c.Hidden}, "blk.0.attn_k.weight": {48, c.Hidden}, "blk.0.attn_v.weight": {32, c.Hidden},
		"blk.0.attn_output.weight": {c.Hidden, 64}, "blk.1.attn_q.weight": {144, c.Hidden},
		"blk.1.attn_output.weight": {c.Hidden, 96},
		"blk.1.attn_k.weight":      nil, "blk.1.attn_v.weight": nil, "blk.1.attn_k.bias": nil,
		"blk.1.ffn_down.weight": {c.Hidden, 100},
	} {
		if !slices.Equal(got[name], want) {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if _, err := c.Uniform(); err == nil || !strings.Contains(err.Error(), "layer 1 has 6 and 2 of 24") {
		t.Error(err)
	}
	c.Layers[1].HeadShape = c.Layers[0].HeadShape
	if s, err := c.Uniform(); err != nil || s.Heads != 4 {
		t.Error(s, err)
	}
	// A leading dense layer of a mixture.
	if c, err = hf.ReadConfig("../../verify/refmodel/testdata/mixtral"); err != nil {
		t.Fatal(err)
	}
	c.Layers[0].FFN.Experts = 0
	for _, x := range c.Tensors() {
		if x.Layer == 0 && strings.Contains(x.Name, "exps") {
			t.Errorf("a dense layer has %s", x.Name)
		}
	}
	if c.Check() != nil || c.Experts() == 0 {
		t.Error(c.Check(), c.Experts())
	}
}

// TestRequire: each feature is seen, and refused by name unless it is among those
// that can be handled.
func TestRequire(t *testing.T) {
	c, err := hf.ReadConfig("../../verify/refmodel/testdata/mixtral")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Require("nobody", 0); err != nil {
		t.Errorf("a plain model is refused: %v", err)
	}
	for feature, change := range map[family.Features]func(y *family.Layer){
		family.LatentKV:       func(y *family.Layer) { y.Kind = family.Latent },
		family.RecurrentBlock: func(y *family.Layer) { y.Kind = family.Recurrent },
		family.SharedKV:       func(y *family.Layer) { y.Owner = 0 },
		family.NoRoPE:         func(y *family.Layer) { y.Rope = rope.Params{} },
		family.PartialRoPE:    func(y *family.Layer) { y.Rope.Dim /= 2 },
		family.ValueLength:    func(y *family.Layer) { y.ValueDim *= 2 },
		family.LateNorm:       func(y *family.Layer) { y.NormAfterRoPE = true },
		family.NormedValues:   func(y *family.Layer) { y.ValueNorm = true },
		family.NoPreNorms:     func(y *family.Layer) { y.BareInputs = true },
		family.AttentionSinks: func(y *family.Layer) { y.Sinks = true },
		family.OutputGate:     func(y *family.Layer) { y.Gate = family.GateHead },
		family.UngatedFFN:     func(y *family.Layer) { y.FFN.Kind = family.Ungated },
		family.OtherRouter:    func(y *family.Layer) { y.FFN.Router = family.TopKSoftmax },
		family.SharedExperts:  func(y *family.Layer) { y.FFN.Shared, y.FFN.SharedSize = 1, 8 },
		family.CappedScores:   func(y *family.Layer) { y.SoftCap = 30 },
		family.OtherExperts:   func(y *family.Layer) { y.FFN.Biases = true },
	} {
		d := c.Clone()
		change(&d.Layers[1])
		if err := d.Check(); err != nil {
			t.Errorf("%v: %v", feature, err)
		}
		err := d.Require("the test", ^feature)
		if want := "layer 1 of this mixtral model has " + feature.String() + ", which the test does not support"; err == nil || err.Error() != want || feature.String() == "" {
			t.Errorf("error %v, want %s", err, want)
		}
		if err := d.Require("the test", feature); err != nil {
			t.Errorf("%v: %v", feature, err)
		}
	}
}
