package hf

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// testdata holds tiny models of every family, made with transformers by
// scripts/oracles/make_tiny.py.
const testdata = "../../verify/refmodel/testdata"

func tinyConfigs(t testing.TB, name string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(testdata, "*", name))
	if err != nil || len(paths) < 30 {
		t.Fatalf("%d files %s under %s (%v)", len(paths), name, testdata, err)
	}
	return paths
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Transformers reads each config.json, in the spelling of release 4 or 5, and
// writes it back in that of release 5 with all defaults spelt out. Both must
// mean the same to us, or one of them is misread.
func TestBothSpellings(t *testing.T) {
	for _, path := range tinyConfigs(t, ConfigName) {
		dir := filepath.Dir(path)
		a, err := ReadConfig(dir)
		if err != nil {
			t.Error(err)
			continue
		}
		b, err := ParseConfig(read(t, filepath.Join(dir, "config.resaved.json")))
		if err != nil {
			t.Errorf("%s: as transformers writes it: %v", dir, err)
			continue
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: config.json gives\n%+v\nconfig.resaved.json\n%+v", dir, a, b)
		}
	}
}

// edit returns a tiny model's config.json with keys set, or removed by remove.
func edit(t testing.TB, model string, changes map[string]any) []byte {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal(read(t, filepath.Join(testdata, model, ConfigName)), &m); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if v == remove {
			delete(m, k)
			continue
		}
		m[k] = v
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type removal struct{}

var remove any = removal{}

type keys = map[string]any

func types(list ...string) []any {
	var out []any
	for _, s := range list {
		out = append(out, map[string]string{"s": "sliding_attention", "f": "full_attention"}[s])
	}
	return out
}

// Each refusal names the key.
func TestRefusals(t *testing.T) {
	yarn := func(more keys) keys {
		s := keys{"rope_type": "yarn", "factor": 4.0}
		maps.Copy(s, more)
		return keys{"rope_scaling": s}
	}
	for _, c := range []struct {
		model   string
		changes keys
		want    string
	}{
		{"llama", keys{"model_type": "mamba"}, `model_type "mamba"`},
		{"llama", keys{"model_type": remove}, `model_type ""`},
		{"llama", keys{"architectures": []string{"LlamaForSequenceClassification"}}, "architectures"},
		{"llama", keys{"hidden_size": remove}, "hidden_size"},
		{"llama", keys{"hidden_size": 1 << 30}, "hidden_size"},
		{"llama", keys{"num_hidden_layers": 0}, "num_hidden_layers"},
		{"llama", keys{"num_hidden_layers": -1}, "num_hidden_layers"},
		{"llama", keys{"num_hidden_layers": 1 << 40}, "num_hidden_layers"},
		{"llama", keys{"num_attention_heads": 0}, "num_attention_heads"},
		{"llama", keys{"num_key_value_heads": 3}, "num_key_value_heads"},
		{"llama", keys{"num_key_value_heads": 0}, "num_key_value_heads"},
		{"llama", keys{"head_dim": 15}, "head_dim"},
		{"llama", keys{"head_dim": -16}, "head_dim"},
		{"llama", keys{"intermediate_size": -1}, "intermediate_size"},
		{"llama", keys{"vocab_size": 0}, "vocab_size"},
		{"llama", keys{"max_position_embeddings": remove}, "max_position_embeddings"},
		{"llama", keys{"rms_norm_eps": nil}, "rms_norm_eps"},
		{"llama", keys{"rms_norm_eps": 0}, "rms_norm_eps"},
		{"llama", keys{"rms_norm_eps": -1e-5}, "rms_norm_eps"},
		{"llama", keys{"hidden_act": "gelu"}, "activation"},
		{"gemma3", keys{"hidden_activation": "gelu"}, "activation"},
		{"llama", keys{"quantization_config": keys{"bits": 4}}, "quantization_config"},
		{"llama", keys{"partial_rotary_factor": 0.5}, "partial_rotary_factor"},
		{"gemma3", keys{"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"},
		{"gemma3", keys{"use_bidirectional_attention": true}, "use_bidirectional_attention"},
		{"gemma3", keys{"query_pre_attn_scalar": -1}, "attention scale"},
		{"gemma3", keys{"query_pre_attn_scalar": 0}, "attention scale"},
		{"gemma3", keys{"final_logit_softcapping": -30.0}, "final_logit_softcapping"},
		{"gemma2", keys{"attn_logit_softcapping": -50.0}, "attn_logit_softcapping"},
		{"llama", keys{"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"},
		{"llama", keys{"final_logit_softcapping": 30.0}, "final_logit_softcapping"},
		{"qwen3", keys{"is_causal": false}, "is_causal"},
		{"olmoe", keys{"clip_qkv": 8.0}, "clip_qkv"},
		{"llama", keys{"mlp_bias": true}, "mlp_bias"},
		{"qwen3", keys{"attention_bias": true}, "attention_bias"},
		{"olmoe", keys{"attention_bias": true}, "attention_bias"},
		{"gemma3", keys{"attention_bias": true}, "attention_bias"},
		{"qwen3moe", keys{"mlp_only_layers": []int{0}}, "mlp_only_layers"},
		{"qwen3moe", keys{"decoder_sparse_step": 2}, "decoder_sparse_step"},
		{"qwen3moe", keys{"num_experts": 0}, "experts"},
		{"qwen3moe", keys{"num_experts_per_tok": 7}, "experts"},
		{"qwen3moe", keys{"num_experts_per_tok": remove}, "experts"},
		{"mixtral", keys{"num_local_experts": 1 << 20}, "experts"},
		{"qwen3moe", keys{"moe_intermediate_size": remove}, "moe_intermediate_size"},

		{"llama", keys{"rope_theta": -1.0}, "theta"},
		{"llama", keys{"rope_theta": "10000"}, "rope_theta"},
		{"llama", keys{"rope_scaling": keys{"type": "dynamic", "factor": 2.0}}, `"dynamic"`},
		{"llama", keys{"rope_scaling": keys{"type": "longrope", "factor": 2.0}}, "longrope"},
		{"llama", keys{"rope_scaling": keys{"type": "su", "factor": 2.0, "original_max_position_embeddings": 16,
			"short_factor": []float64{1}, "long_factor": []float64{1}}}, "divisors"},
		{"llama", yarn(keys{"attention_factor": -1.0}), "attention_factor"},
		{"llama", yarn(keys{"llama_4_scaling_beta": 0.1}), "llama_4_scaling_beta"},
		{"llama", keys{"residual_multiplier": 0.5}, "residual_multiplier"},
		{"llama", keys{"no_rope_layers": []int{1, 0}}, "no_rope_layers"},
		{"llama", keys{"attn_output_gate": true}, "attn_output_gate is true"},
		{"llama", keys{"kv_lora_rank": 64, "q_lora_rank": 32}, "kv_lora_rank is 64"},
		{"llama", keys{"scale_depth": 1.4}, "scale_depth"},
		{"llama", keys{"norm_type": "layernorm"}, "norm_type"},
		{"llama", keys{"rotary_pct": 0.25}, "rotary_pct"},
		{"llama", keys{"rope_parameters": keys{"rope_type": "default", "mrope_section": []int{2, 2, 2}}}, "mrope_section"},
		{"hunyuan", keys{"use_cla": true}, "use_cla"},
		{"llama", keys{"global_head_dim": 64}, "global_head_dim"},
		{"llama", keys{"num_kv_shared_layers": 1}, "num_kv_shared_layers"},
		{"gemma4", keys{"use_bidirectional_attention": "all"}, "use_bidirectional_attention"},
		{"gemma4", keys{"num_kv_shared_layers": 7}, "num_kv_shared_layers"},
		{"gemma4", keys{"per_layer_config": keys{"1": keys{"head_dim": 16, "num_experts": 3}}}, "num_experts for layer 1"},
		{"gemma4", keys{"per_layer_config": keys{"1": keys{"head_dim": 16}}}, "per_layer_config of layer"},
		{"gemma4", keys{"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input"},
		{"smollm3", keys{"no_rope_layers": []int{1}}, "no_rope_layers"},
		{"smollm3", keys{"no_rope_layer_interval": 0}, "no_rope_layer_interval"},
		{"smollm3", keys{"attention_bias": true, "hidden_act": "relu"}, "activation"},
		{"exaone4", keys{"sliding_window_pattern": "LXG"}, "sliding_window_pattern"},
		{"phi3-long", keys{"partial_rotary_factor": 2.0}, "partial_rotary_factor"},
		{"cohere2", keys{"layer_norm_eps": -1.0}, "rms_norm_eps"},
		{"ministral3", keys{"rope_parameters": keys{"rope_type": "ntk", "factor": 2.0}}, `"ntk"`},
		{"llama", keys{"rope_scaling": keys{"rope_type": "linear"}}, "factor"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "linear", "factor": 0.0}}, "factor"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "linear", "factor": "x"}}, "rope_scaling"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
			"partial_rotary_factor"},
		{"llama", keys{"rope_scaling": []int{1}}, "rope_scaling"},
		{"llama", keys{"rope_parameters": []int{1}}, "rope_parameters"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
			"high_freq_factor": 4.0}}, "low_freq_factor"},
		{"llama", yarn(keys{"extrapolation_factor": 2.0}), "extrapolation_factor"},
		{"llama", yarn(keys{"beta_fast": -1.0}), "beta_fast"},
		{"llama", yarn(keys{"original_max_position_embeddings": 0}), "original_max_position_embeddings"},
		{"llama", keys{"rope_parameters": keys{"full_attention": keys{"rope_theta": 1e4}}}, "rope_parameters"},
		{"gemma3", keys{"rope_parameters": keys{"rope_theta": 1e4, "rope_type": "default"}}, "rope_parameters"},

		{"mistral", keys{"sliding_window": 0}, "sliding_window"},
		{"mistral", keys{"sliding_window": -1}, "sliding_window"},
		{"mistral", keys{"sliding_window": "x"}, "sliding_window"},
		{"gemma3", keys{"sliding_window": nil}, "sliding_window"},
		{"gemma3", keys{"sliding_window_pattern": 0}, "sliding_window_pattern"},
		{"gemma3", keys{"layer_types": types("s")}, "layer_types"},
		{"gemma3-scale", keys{"layer_types": []string{"full_attention", "linear_attention"}}, "layer_types[1]"},
		{"mistral-window", keys{"layer_types": types("s", "f")}, "layer_types[1]"},
		{"llama", keys{"layer_types": types("f", "s")}, "layer_types[1]"},
		{"qwen2", keys{"layer_types": types("f", "s")}, "sliding_window"},

		{"llama", keys{"bos_token_id": "x"}, "token id"},
		{"llama", keys{"hidden_size": 48.5}, "hidden_size"},
	} {
		got, err := ParseConfig(edit(t, c.model, c.changes))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %v: config %+v, error %v; the error should name %s", c.model, c.changes, got, err, c.want)
		}
	}
	for _, raw := range []string{"", "{", "[]", "null", "{}", `"llama"`} {
		if _, err := ParseConfig([]byte(raw)); err == nil {
			t.Errorf("%q is a configuration", raw)
		}
	}
}

// What is harmless is not refused, and means what the reference takes it for.
func TestMeaning(t *testing.T) {
	scaling := func(c *family.Config) rope.Params { return full(c) }
	for _, c := range []struct {
		name    string
		model   string
		changes keys
		get     func(c *family.Config) any
		want    any
	}{
		{"eps by default", "llama", keys{"rms_norm_eps": remove}, func(c *family.Config) any { return c.NormEps }, 1e-6},
		{"eps by default in mistral", "mistral", keys{"rms_norm_eps": remove},
			func(c *family.Config) any { return c.NormEps }, 1e-6},
		{"eps by default in qwen2", "qwen2", keys{"rms_norm_eps": remove}, func(c *family.Config) any { return c.NormEps },
			1e-6},
		{"eps by default in qwen3", "qwen3", keys{"rms_norm_eps": remove}, func(c *family.Config) any { return c.NormEps },
			1e-6},
		{"eps by default in gemma3", "gemma3", keys{"rms_norm_eps": remove},
			func(c *family.Config) any { return c.NormEps }, 1e-6},
		{"eps by default in qwen3_moe", "qwen3moe", keys{"rms_norm_eps": remove},
			func(c *family.Config) any { return c.NormEps }, 1e-6},
		{"eps by default in mixtral", "mixtral", keys{"rms_norm_eps": remove},
			func(c *family.Config) any { return c.NormEps }, 1e-5},
		{"eps by default in olmoe", "olmoe", keys{"rms_norm_eps": remove}, func(c *family.Config) any { return c.NormEps },
			1e-5},
		{"theta's default", "llama", keys{"rope_theta": remove}, func(c *family.Config) any { return full(c).Theta }, 1e4},
		{"theta's default in mixtral", "mixtral", keys{"rope_theta": remove},
			func(c *family.Config) any { return full(c).Theta }, 1e6},
		{"theta of gemma's layers", "gemma3", keys{"rope_theta": remove, "rope_local_base_freq": remove},
			func(c *family.Config) any { return [2]float64{full(c).Theta, local(c).Theta} }, [2]float64{1e6, 1e4}},
		{"theta of gemma's layers where only one is in rope_parameters", "gemma3",
			keys{"rope_theta": 5e5, "rope_local_base_freq": 2e4,
				"rope_parameters": keys{"full_attention": keys{"rope_type": "default", "rope_theta": 3e5}}},
			func(c *family.Config) any { return [2]float64{full(c).Theta, local(c).Theta} }, [2]float64{3e5, 2e4}},
		{"gemma's scaling is for full layers", "gemma3", keys{"rope_scaling": keys{"rope_type": "linear", "factor": 8.0}},
			func(c *family.Config) any { return [2]rope.Scaling{full(c).Scaling, local(c).Scaling} },
			[2]rope.Scaling{rope.Linear, rope.None}},
		{"the older spelling wins", "llama", keys{"rope_scaling": keys{"rope_type": "linear", "factor": 2.0},
			"rope_parameters": keys{"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0}},
			func(c *family.Config) any { return [2]float64{full(c).Factor, full(c).Theta} }, [2]float64{2, 1e4}},
		{"an empty rope_scaling is none", "llama",
			keys{"rope_scaling": keys{}, "rope_parameters": keys{"rope_type": "linear", "factor": 3.0}},
			func(c *family.Config) any { return full(c).Factor }, 3.0},
		{"null rope_scaling", "llama", keys{"rope_scaling": nil}, func(c *family.Config) any { return full(c).Scaling },
			rope.None},
		{"rope_type wins over type", "llama",
			keys{"rope_scaling": keys{"rope_type": "default", "type": "linear", "factor": 3.0}},
			func(c *family.Config) any { return full(c).Scaling }, rope.None},
		{"yarn's defaults", "llama", keys{"rope_scaling": keys{"type": "yarn", "factor": 4.0}},
			func(c *family.Config) any { return scaling(c) },
			rope.Params{Theta: 1e4, Dim: 12, Scaling: rope.YaRN, Factor: 4, OriginalContext: 128, BetaFast: 32, BetaSlow: 1}},
		{"yarn's own attention_factor spelt out", "llama",
			keys{"rope_scaling": keys{"type": "yarn", "factor": 4.0, "attention_factor": 1.138629436112}},
			func(c *family.Config) any { return full(c).Factor }, 4.0},
		{"llama3 without original_max_position_embeddings", "llama-llama3",
			keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
			func(c *family.Config) any { return full(c).OriginalContext }, 128},

		{"mistral's window by default", "mistral", keys{"sliding_window": remove},
			func(c *family.Config) any { return window(c) }, 4096},
		{"mistral's window null", "mistral", keys{"sliding_window": nil},
			func(c *family.Config) any { return window(c) }, 0},
		{"mixtral's window by default", "mixtral", keys{"sliding_window": remove},
			func(c *family.Config) any { return window(c) }, 0},
		{"llama has no window", "llama", keys{"sliding_window": 10}, func(c *family.Config) any { return window(c) },
			0},
		{"qwen's window switched off", "qwen2", keys{"sliding_window": 10, "max_window_layers": 0},
			func(c *family.Config) any { return window(c) }, 0},
		{"qwen's window from layer 28 on by default", "qwen2-window",
			keys{"max_window_layers": remove, "num_hidden_layers": 30},
			func(c *family.Config) any {
				return [3]bool{c.Layers[27].Window > 0, c.Layers[28].Window > 0, c.Layers[29].Window > 0}
			},
			[3]bool{false, true, true}},
		{"layer_types win over max_window_layers", "qwen2-window",
			keys{"num_hidden_layers": 3, "layer_types": types("s", "f", "f")},
			func(c *family.Config) any { return sliding(c) }, []bool{true, false, false}},
		{"mistral's layer_types that say nothing new", "mistral-window", keys{"layer_types": types("s", "s")},
			func(c *family.Config) any { return sliding(c) }, []bool{true, true}},
		{"gemma's period by default", "gemma3", keys{"sliding_window_pattern": remove},
			func(c *family.Config) any { return sliding(c) }, []bool{true, true, true, true, true, false, true}},
		{"gemma's period", "gemma3", keys{"sliding_window_pattern": 3},
			func(c *family.Config) any { return sliding(c) }, []bool{true, true, false, true, true, false, true}},
		{"gemma without sliding layers", "gemma3", keys{"sliding_window_pattern": 1},
			func(c *family.Config) any { return window(c) }, 0},

		{"gemma's attention scale by default", "gemma3", keys{"query_pre_attn_scalar": remove},
			func(c *family.Config) any { return c.Layers[0].Scale }, 1.0 / 16},
		{"gemma's head_dim by default", "gemma3", keys{"head_dim": remove},
			func(c *family.Config) any { return c.Layers[0].HeadDim },
			256},
		{"qwen3's head_dim by default", "qwen3", keys{"head_dim": remove},
			func(c *family.Config) any { return c.Layers[0].HeadDim },
			128},
		{"llama's head_dim by default", "llama", keys{"head_dim": nil},
			func(c *family.Config) any { return c.Layers[0].HeadDim }, 12},
		{"as many KV heads as heads, absent", "llama", keys{"num_key_value_heads": remove},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 4},
		{"mistral's KV heads, null", "mistral", keys{"num_key_value_heads": nil},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 4},
		{"mistral's KV heads by default", "mistral", keys{"num_key_value_heads": remove, "num_attention_heads": 16,
			"head_dim": 4},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 8},
		{"mixtral's KV heads by default", "mixtral", keys{"num_key_value_heads": remove, "num_attention_heads": 16,
			"head_dim": 4},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 8},
		{"qwen2's KV heads by default", "qwen2", keys{"num_key_value_heads": remove, "num_attention_heads": 32,
			"head_dim": 2},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 32},
		{"qwen3's KV heads by default", "qwen3", keys{"num_key_value_heads": remove, "num_attention_heads": 32},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 32},
		{"gemma's KV heads by default", "gemma3", keys{"num_key_value_heads": remove, "num_attention_heads": 8},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 4},
		{"qwen3_moe's KV heads by default", "qwen3moe", keys{"num_key_value_heads": remove, "num_attention_heads": 8},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 4},
		{"olmoe's KV heads by default", "olmoe", keys{"num_key_value_heads": remove, "num_attention_heads": 16,
			"head_dim": 4},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 16},
		{"as many KV heads as heads", "llama", keys{"num_key_value_heads": nil},
			func(c *family.Config) any { return c.Layers[0].KVHeads }, 4},
		{"tied by default", "gemma3", keys{"tie_word_embeddings": remove},
			func(c *family.Config) any { return c.TiedEmbeddings }, true},
		{"untied by default", "llama", keys{"tie_word_embeddings": remove},
			func(c *family.Config) any { return c.TiedEmbeddings }, false},
		{"llama's biases", "llama", keys{"attention_bias": true}, func(c *family.Config) any { return c.Layers[0].Biases },
			family.Biases{Q: true, K: true, V: true, O: true}},
		{"llama's biases by default", "llama", keys{"attention_bias": remove},
			func(c *family.Config) any { return c.Layers[0].Biases }, family.Biases{}},
		{"qwen2's biases", "qwen2", nil, func(c *family.Config) any { return c.Layers[0].Biases },
			family.Biases{Q: true, K: true, V: true}},
		{"qwen2's biases, whatever the key says", "qwen2", keys{"attention_bias": true},
			func(c *family.Config) any { return c.Layers[0].Biases }, family.Biases{Q: true, K: true, V: true}},
		{"norm_topk_prob by default", "qwen3moe", keys{"norm_topk_prob": remove},
			func(c *family.Config) any { return c.Layers[0].FFN.Renorm }, false},
		{"mixtral always renormalises", "mixtral", keys{"norm_topk_prob": false},
			func(c *family.Config) any { return c.Layers[0].FFN.Renorm }, true},
		{"expert size", "qwen3moe", nil, func(c *family.Config) any { return [2]int{c.Layers[0].FFN.Size, c.DenseFFN} },
			[2]int{20, 32}},
		{"silu by another name", "llama", keys{"hidden_act": "swish"}, func(c *family.Config) any { return len(c.Layers) },
			2},
		{"token ids", "llama", keys{"bos_token_id": nil, "eos_token_id": []int{7, 8}},
			func(c *family.Config) any { return [2]int{c.BOS, c.EOS} }, [2]int{-1, 7}},
		{"quantization_config null", "llama", keys{"quantization_config": nil},
			func(c *family.Config) any { return len(c.Layers) }, 2},
	} {
		cfg, err := ParseConfig(edit(t, c.model, c.changes))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := c.get(cfg); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, expected %v", c.name, got, c.want)
		}
	}
}

func TestReadConfigNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ConfigName)
	if _, err := ReadConfig(dir); err == nil {
		t.Error("a missing file is a configuration")
	}
	if err := os.WriteFile(path, []byte(`{"model_type": "rwkv"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
	if err := os.WriteFile(path, make([]byte, MaxConfig+1), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(dir); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a file over the limit: %v", err)
	}
}

// Whatever the bytes, a configuration that is not refused is one that can be computed.
func FuzzParseConfig(f *testing.F) {
	for _, name := range []string{ConfigName, "config.resaved.json"} {
		for _, path := range tinyConfigs(f, name) {
			f.Add(read(f, path))
		}
	}
	f.Add(edit(f, "llama", keys{"num_hidden_layers": -5, "layer_types": types("s")}))
	f.Add(edit(f, "gemma3", keys{"rope_scaling": keys{"rope_type": "yarn", "factor": 1e308}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err != nil {
			if c != nil {
				t.Errorf("both a configuration and error %v", err)
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Fatalf("accepted, but %v", err)
		}
		if c.Layers[0].HeadDim > 1024 {
			return
		}
		for l := range min(len(c.Layers), 64) {
			p := c.Layers[l].Rope
			for i, w := range p.InvFreq() {
				if !(w >= 0) || math.IsInf(w, 0) {
					t.Fatalf("layer %d: frequency %d of %+v is %g", l, i, p, w)
				}
			}
			if m := p.Magnitude(); !(m > 0) || math.IsInf(m, 0) {
				t.Fatalf("layer %d: magnitude of %+v is %g", l, p, m)
			}
		}
	})
}

// full and local are the RoPE parameters of layers without a window and with one.
func full(c *family.Config) rope.Params  { r, _ := c.Ropes(); return r }
func local(c *family.Config) rope.Params { _, r := c.Ropes(); return r }

func window(c *family.Config) int     { w, _ := c.Window(); return w }
func sliding(c *family.Config) []bool { _, s := c.Window(); return s }
