package checkpoint_test

import (
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// withKeys copies a GGUF file with keys set, or removed where the value is nil.
func withKeys(t *testing.T, from, to string, changes map[string]any) {
	t.Helper()
	f, err := gguf.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kvs := slices.DeleteFunc(slices.Clone(f.KVs), func(kv gguf.KV) bool { _, ok := changes[kv.Key]; return ok })
	for k, v := range changes {
		switch v := v.(type) {
		case nil:
		case string:
			kvs = append(kvs, gguf.Value(k, v))
		case bool:
			kvs = append(kvs, gguf.Value(k, v))
		case int:
			kvs = append(kvs, gguf.Value(k, uint32(v)))
		case float64:
			kvs = append(kvs, gguf.Value(k, float32(v)))
		case []bool:
			kvs = append(kvs, gguf.Array(k, v))
		default:
			t.Fatalf("key %s: a value of type %T", k, v)
		}
	}
	var specs []gguf.TensorSpec
	for i := range f.Tensors {
		x := &f.Tensors[i]
		dims := slices.Clone(x.Shape())
		slices.Reverse(dims)
		specs = append(specs, gguf.TensorSpec{Name: x.Name, Type: x.Type, Dims: dims})
	}
	w, err := gguf.Create(to, kvs, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range f.Tensors {
		err := w.WriteTensor(f.Tensors[i].Name,
			func(o io.Writer) error { _, err := io.Copy(o, f.Reader(&f.Tensors[i])); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// GGUF keys mean what stock readers of the architecture take them for. Facts from
// the source of llama.cpp; scripts/oracles/stock_gguf.py compares the logits.
func TestGGUFKeys(t *testing.T) {
	t.Parallel()
	type keys = map[string]any
	plain := func(c *family.Config) any { return full(c).Scaling }
	for _, x := range []struct {
		name, family string
		changes      keys
		get          func(c *family.Config) any
		want         any
		fails        string // the key that the error names, for files that are refused
	}{
		{"theta's default", "llama", keys{"llama.rope.freq_base": nil}, func(c *family.Config) any { return full(c).Theta },
			1e4, ""},
		{"a factor alone is linear", "qwen2", keys{"qwen2.rope.scaling.factor": 4.0},
			func(c *family.Config) any { return full(c).Scaling }, rope.Linear, ""},
		{"its older name", "qwen2", keys{"qwen2.rope.scale_linear": 4.0},
			func(c *family.Config) any { return full(c).Factor },
			4.0, ""},
		{"none with a factor", "llama", keys{"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, plain,
			rope.None, ""},
		{"yarn", "llama", keys{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
			"llama.rope.scaling.original_context_length": 64},
			func(c *family.Config) any { return full(c) },
			rope.Params{Theta: 1e4, Dim: 16, Scaling: rope.YaRN, Factor: 4, OriginalContext: 64, BetaFast: 32, BetaSlow: 1}, ""},
		{"yarn's original context by default", "llama",
			keys{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
			func(c *family.Config) any { return full(c).OriginalContext }, 256, ""},
		{"yarn without a factor", "llama", keys{"llama.rope.scaling.type": "yarn"}, plain, rope.None, ""},
		{"longrope", "llama", keys{"llama.rope.scaling.type": "longrope"}, nil, nil, "rope.scaling.type"},
		{"yarn's ramp", "llama", keys{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
			"llama.rope.scaling.yarn_beta_fast": 8.0}, nil, nil, "yarn_beta_fast"},
		{"yarn's usual ramp", "llama", keys{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
			"llama.rope.scaling.yarn_beta_fast": 32.0}, plain, rope.YaRN, ""},
		{"a magnitude", "llama", keys{"llama.rope.scaling.attn_factor": 1.5}, nil, nil, "rope.scaling.attn_factor"},
		{"partial rotary", "qwen2", keys{"qwen2.rope.dimension_count": 8}, nil, nil, "rope.dimension_count"},
		{"not causal", "llama", keys{"llama.attention.causal": false}, nil, nil, "attention.causal"},
		{"causal", "llama", keys{"llama.attention.causal": true}, plain, rope.None, ""},
		{"other value length", "llama", keys{"llama.attention.value_length": 8}, nil, nil, "value_length"},
		{"a window that llama's readers ignore", "llama", keys{"llama.attention.sliding_window": 10},
			func(c *family.Config) any { return window(c) }, 0, ""},
		{"gemma's pattern by default", "gemma3_text", keys{"gemma3.attention.sliding_window_pattern": nil},
			func(c *family.Config) any { return sliding(c) }, []bool{true, true, true, true, true, false, true}, ""},
		{"a period", "gemma3_text", keys{"gemma3.attention.sliding_window_pattern": 3},
			func(c *family.Config) any { return sliding(c) }, []bool{true, true, false, true, true, false, true}, ""},
		{"flags", "gemma3_text", keys{"gemma3.attention.sliding_window_pattern": []bool{true, false, false, false, false,
			false, true}},
			func(c *family.Config) any { return sliding(c) }, []bool{true, false, false, false, false, false, true}, ""},
		{"too few flags", "gemma3_text", keys{"gemma3.attention.sliding_window_pattern": []bool{true}}, nil, nil,
			"sliding_window_pattern"},
		{"no window, one base", "gemma3_text", keys{"gemma3.attention.sliding_window": nil},
			func(c *family.Config) any { return c.Layers[0].Rope.Theta }, 1e6, ""},
		{"the base of sliding layers", "gemma3_text", keys{"gemma3.rope.freq_base_swa": nil},
			func(c *family.Config) any { return c.Layers[0].Rope.Theta }, 1e4, ""},
		{"scaling is for full layers", "gemma3_text", keys{"gemma3.attention.sliding_window_pattern": 2,
			"gemma3.rope.scaling.factor": 8.0},
			func(c *family.Config) any { return [2]rope.Scaling{c.Layers[0].Rope.Scaling, c.Layers[1].Rope.Scaling} },
			[2]rope.Scaling{rope.None, rope.Linear}, ""},
		{"soft cap", "gemma3_text", keys{"gemma3.final_logit_softcapping": 30.0},
			func(c *family.Config) any { return c.LogitSoftcap }, 30.0, ""},
		{"a soft cap that llama's readers ignore", "llama", keys{"llama.final_logit_softcapping": 30.0},
			func(c *family.Config) any { return c.LogitSoftcap }, 0.0, ""},
		{"expert size by default", "qwen3_moe", keys{"qwen3moe.expert_feed_forward_length": nil,
			"qwen3moe.feed_forward_length": 192},
			func(c *family.Config) any { return [2]int{c.Layers[0].FFN.Size, c.DenseFFN} }, [2]int{96, 192}, ""},
	} {
		dir := t.TempDir()
		layers := 2
		if x.family == "gemma3_text" {
			layers = 7
		}
		from, to := filepath.Join(dir, "a.gguf"), filepath.Join(dir, "b.gguf")
		tiny.New(t, x.family, tiny.Options{Layers: layers}).GGUF(t, from)
		withKeys(t, from, to, x.changes)
		if x.fails != "" {
			fails(t, to, x.fails)
			continue
		}
		c, err := checkpoint.Open(to)
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		if got := x.get(c.Config); !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: %v, expected %v", x.name, got, x.want)
		}
		c.Close()
	}
}

// TestWithoutTokenTypes: a GGUF file that states no types of tokens, or none that can
// be read as such, has normal tokens only, as stock readers take it.
func TestWithoutTokenTypes(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a.gguf"), filepath.Join(dir, "b.gguf")
	tiny.New(t, "qwen2", tiny.Options{}).GGUF(t, from)
	want, err := open(t, from).Vocab()
	if err != nil || len(want.Types) == 0 {
		t.Fatalf("types %v, %v", want.Types, err)
	}
	for _, value := range []any{nil, "all normal"} {
		withKeys(t, from, to, map[string]any{"tokenizer.ggml.token_type": value})
		v, err := open(t, to).Vocab()
		if err != nil || v.Types != nil || !slices.Equal(v.Tokens, want.Tokens) {
			t.Errorf("%v: types %v, %v", value, v, err)
		}
	}
}

// full and local are the RoPE parameters of layers without a window and with one.
func full(c *family.Config) rope.Params { r, _ := c.Ropes(); return r }

func window(c *family.Config) int     { w, _ := c.Window(); return w }
func sliding(c *family.Config) []bool { _, s := c.Window(); return s }
