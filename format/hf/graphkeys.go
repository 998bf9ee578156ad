package hf

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/jsonx"
)

// graphKeys are keys of config.json with which the reference, or the code that came with a model,
// computes another graph than any family here has, with the values that change nothing; null
// never does. Keys that are not here and not in config are taken for names, sizes of
// things outside the graph, and settings of training.
var graphKeys = map[string][]string{
	// Norms.
	"qk_layernorm": {"false"}, "qk_norm": {"false"}, "use_layernorm": {"false"},
	"norm_type": {`"rmsnorm"`, `"rms_norm"`, `"RMSNorm"`}, "layernorm_type": {`"rmsnorm"`, `"rms_norm"`, `"RMSNorm"`},
	"normalization": {`"rmsnorm"`, `"rms_norm"`, `"RMSNorm"`}, "layernorm_1p": {"false"}, "norm_after": {"false"},
	"clip_qkv": nil, "attention_layer_norm_with_affine": {"true"},
	// Attention.
	"alibi": {"false"}, "use_alibi": {"false"}, "position_embedding_type": {`"rope"`, `"rotary"`, `"absolute"`},
	"attn_temperature_tuning": {"false", "0"}, "attention_chunk_size": nil, "q_lora_rank": nil, "kv_lora_rank": nil,
	"qk_rope_head_dim": nil, "qk_nope_head_dim": nil, "v_head_dim": nil, "attn_output_gate": {"false"},
	"use_gated_attention": {"false"}, "attention_output_gate": {"false"}, "head_wise_attn_gate": {"false"},
	"use_cla": {"false"}, "cla_share_factor": {"1", "2"}, "add_cross_attention": {"false"}, "is_encoder_decoder": {"false"},
	"attention_sink": {"false"}, "add_swa_attention_sink_bias": {"false"}, "add_full_attention_sink_bias": {"false"},
	"linear_num_key_heads": nil, "full_attention_interval": nil, "attn_type_list": nil, "attention_multiplier_list": nil,
	"index_topk": nil, "use_sparse_attention": {"false"}, "differential_attention": {"false"}, "attention_k_norm": {"false"},
	"value_norm": {"false"}, "kv_sharing": {"false"}, "layers_block_type": nil, "block_types": nil, "hybrid_override_pattern": nil,
	// RoPE.
	"rotary_pct": {"1", "1.0"}, "rope_pct": {"1", "1.0"}, "rotary_dim": nil, "rotary_percent": {"1", "1.0"}, "use_mrope": {"false"},
	"mrope_section": nil, "rope_ratio": {"1", "1.0"}, "nope_layer_interval": nil, "rope_layers": nil, "use_dynamic_ntk": {"false"},
	"use_logn_attn": {"false"}, "xpos": {"false"},
	// The residual stream and the head.
	"parallel_residual": {"false"}, "use_parallel_residual": {"false"}, "parallel_attn": {"false"},
	"use_parallel_block": {"true"}, "scale_emb": {"1", "1.0"}, "scale_depth": {"1", "1.0"}, "dim_model_base": nil,
	"mup_enabled": {"false"}, "mup_multiplier": nil, "embedding_scale": {"1", "1.0"}, "residual_scale": {"1", "1.0"},
	"logits_scale": {"1", "1.0"}, "logit_softcapping": nil, "lm_head_multiplier": {"1", "1.0"}, "hc_mult": nil,
	"use_hyper_connections": {"false"}, "altup_num_inputs": nil, "laurel_rank": nil, "activation_sparsity_pattern": nil,
	"layer_scale_init_value": nil, "ngram_embedding": nil,
	// The FFN.
	"mlp_gate": nil, "use_gated_mlp": {"true"}, "ffn_hidden_sizes": nil, "block_configs": nil, "mlp_multipliers": nil,
	// Recurrent layers.
	"mamba_d_state": nil, "mamba_n_heads": nil, "ssm_state_size": nil, "conv_L_cache": nil, "rwkv": nil, "mixer_types": nil,
	// Whether a model is one that predicts the next token from those before.
	"bidirectional": {"false"}, "use_prefix_lm": {"false"}, "block_diffusion": {"false"}, "mask_token_for_diffusion": nil,
}

// refuseGraphKeys names the first key of a configuration, in the order of the alphabet, that
// changes the graph in a way that is not understood.
func refuseGraphKeys(raw []byte, f *family.Family) error {
	var all map[string]json.RawMessage
	if err := jsonx.Unmarshal(raw, &all); err != nil {
		return err
	}
	var found []string
	for k, v := range all {
		neutral, known := graphKeys[k]
		if value := strings.TrimSpace(string(v)); known && value != "null" && !slices.Contains(neutral, value) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil
	}
	k := slices.Min(found)
	return format.Unsupportedf("%s is %s, which changes the graph in a way that phaseconv does not know for %s", k, clip(all[k]),
		f.Name)
}
