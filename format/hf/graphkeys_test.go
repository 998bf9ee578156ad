package hf

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestDefaultConfigs: what transformers' classes have by default is read, in full and as they are saved
// (scripts/oracles/config_defaults.py).
func TestDefaultConfigs(t *testing.T) {
	raw, err := os.ReadFile("testdata/defaults.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Errorf("%d configurations", len(all))
	}
	for name, text := range all {
		if strings.HasPrefix(name, "glm4_moe") { // half of 42 dimensions would turn, which is no number of pairs
			text = put(text, `"head_dim": 128`)
		}
		if _, err := ParseConfig(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPublishedKeys: keys that published checkpoints carry are known.
func TestPublishedKeys(t *testing.T) {
	for model, members := range map[string]string{
		"llama":  `"rope_interleaved": false, "is_llama_config": true, "activation": "swiglu", "_name_or_path": "x", "unsloth_fixed": true`,
		"phi3":   `"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false, "auto_map": {}, "resid_pdrop": 0.0`,
		"gptoss": `"experts_per_token": 4, "initial_context_length": 4096, "output_router_logits": false`,
		"gemma3": `"cache_implementation": "hybrid", "attn_logit_softcapping": null`,
		"cohere2": `"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj",
			"rotary_pct": 1.0, "use_embedding_sharing": true, "use_gated_activation": true, "use_parallel_block": true,
			"use_parallel_embedding": true, "use_qk_norm": false`,
		"hunyuan": `"norm_type": "rms", "use_cla": false, "cla_share_factor": 2, "attention_head_dim": 12, "dense_list": [48, 0],
			"q_lora_rank": 1536, "use_mla": false, "v_head_dim": 128, "use_rotary_pos_emb": true, "pool_type": "last", "use_qk_norm": true`,
	} {
		if _, err := ParseConfig(put(edit(t, model, nil), members)); err != nil {
			t.Errorf("%s: %v", model, err)
		}
	}
}

// TestUnknownKeys: a key of which it is not known that it changes nothing is refused by its name, as
// is one that is known to change the graph; null says nothing.
func TestUnknownKeys(t *testing.T) {
	for _, x := range []struct{ model, members, says string }{
		{"llama", `"brand_new_attention": true`, `"brand_new_attention" is true`},
		{"llama", `"brand_new_attention": 0`, "brand_new_attention"},
		{"llama", `"b": 1, "a": 2`, `"a" is 2`},
		{"llama", `"q_lora_rank": 64`, "q_lora_rank is 64"},
		{"llama", `"position_embedding_type": "rope_gptj"`, "position_embedding_type"},
		{"llama", `"brand_new_attention": null`, ""},
		// Gates on the output of attention: no family of the table has one.
		{"qwen3", `"attn_output_gate": true`, "attn_output_gate is true"},
		{"qwen3moe", `"use_attention_gate": true`, `"use_attention_gate" is true`},
		{"glm4", `"gated_attention": true`, `"gated_attention" is true`},
		{"hunyuan", `"head_wise_attn_gate": true`, "head_wise_attn_gate is true"},
	} {
		_, err := ParseConfig(put(edit(t, x.model, nil), x.members))
		if (err == nil) != (x.says == "") || err != nil && !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", x.members, err, x.says)
		}
	}
}
