package hf

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/jsonx"
)

// graphKeys are keys of config.json with which the reference, or the code that came with a model,
// computes another graph than any family here has, with the values that change nothing; null
// never does.
var graphKeys = map[string][]string{
	// Norms.
	"qk_layernorm": {"false"}, "qk_norm": {"false"}, "use_layernorm": {"false"},
	"norm_type": {`"rmsnorm"`, `"rms_norm"`, `"RMSNorm"`, `"rms"`}, "layernorm_type": {`"rmsnorm"`, `"rms_norm"`, `"RMSNorm"`},
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
	// Of some families, with the value that is built in where their reference reads none.
	"full_attn_mod": {"1"}, "interpolate_factor": {"1"}, "lm_head_bias": {"false"}, "moe_norm_min": {"1e-12"},
	"compression_ratio": {"1", "1.0"}, "order_of_interleaved_layers": {`"local_attn_first"`}, "use_gated_activation": {"true"},
	"use_mla": {"false"}, "use_rotary_pos_emb": {"true"}, "position_embedding_xdrope": {"false"}, "rope_interleaved": {"false"},
	"use_mixed_mlp_moe": {"false"}, "moe_layer_num_skipped": {"0"}, "group_limited_greedy": {"false"}, "moe_gate": {`"topk"`},
	"moe_use_aux_free": {"true"}, "moe_gate_act": {`"softmax"`}, "moe_layer_freq": {"1"}, "scoring_func": {`"sigmoid"`},
	"topk_method": {`"noaux_tc"`}, "activation": {`"swiglu"`, `"silu"`}, "use_rmsnorm": {"true"}, "is_causal": {"true"},
	"qkv_bias": {"false"}, "bias": {"false"}, "add_bias_linear": {"false"}, "use_moe": {"false"}, "moe_every2": {"false"},
	"attention_type": {`"full"`}, "use_dual_chunk_attention": {"false"},
	// Whether a model is one that predicts the next token from those before.
	"bidirectional": {"false"}, "use_prefix_lm": {"false"}, "block_diffusion": {"false"}, "mask_token_for_diffusion": nil,
}

// idleKeys are keys that change nothing in the graph: names and versions, tokens, settings of training
// and of how text is generated, sizes and tokens of what stands beside a language model, and
// what a key of config says too.
var idleKeys = words(`
	_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _experts_implementation
	_flash_attn_2_enabled _name_or_path _sliding_window_pattern attn_implementation auto_map cache_implementation custom_pipelines
	dtype finetuning_task gradient_checkpointing id2label is_decoder is_llama_config keys_to_ignore_at_inference label2id
	language license max_seq_len max_seq_length model_max_length model_name n_ctx n_positions num_labels org_vocab_size
	output_attentions output_hidden_states output_router_logits output_scores prefix problem_type pruned_heads return_dict
	return_dict_in_generate seq_length task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class
	tokenizer_model_max_length torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed unsloth_version
	use_bfloat16 use_cache use_flash_attention use_flash_attn use_fused_rms_norm use_fused_rope fuse_rope quantization
	pad_token_id sep_token_id decoder_start_token_id mask_token_id unk_token_id eod_token_id pad_id im_end_id im_newline_id im_start_id
	text_end_id text_start_id image_token_id image_token_index video_token_id audio_token_id mask_init_id boi_token_id eoi_token_id
	boa_token_id eoa_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens begin_suppress_tokens
	attention_dropout attention_probs_dropout_prob classifier_dropout dropout embd_pdrop embedding_dropout ffn_dropout
	hidden_dropout hidden_dropout_prob resid_pdrop residual_dropout initializer_cutoff_factor initializer_factor initializer_range
	router_aux_loss_coef router_jitter_noise router_z_loss_coef router_bias_update_rate aux_loss_alpha seq_aux moe_aux_loss_lambda
	moe_capacity moe_drop_tokens moe_random_routing_dropped_token multi_token_pred_lambda ep_size chunk_size_feed_forward
	max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
	repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
	remove_invalid_values exponential_decay_length_penalty cross_attention_hidden_size
	add_classification_head class_num pool_type dense_list enable_lm_head_fp32 skip_cls_token
	experts_per_token initial_context_length attention_head_dim layer_switch use_embedding_sharing use_parallel_embedding
	mamba_unused dual_chunk_attention_config pretraining_tp phaseconv`)

func words(text string) map[string]bool {
	out := map[string]bool{}
	for w := range strings.FieldsSeq(text) {
		out[w] = true
	}
	return out
}

// readKeys are those of config.
var readKeys = func() map[string]bool {
	out := map[string]bool{}
	for i := range reflect.TypeFor[config]().NumField() {
		out[reflect.TypeFor[config]().Field(i).Tag.Get("json")] = true
	}
	return out
}()

// refuseGraphKeys names the first key of a configuration, in the order of the alphabet, that
// changes the graph in a way that is not understood, or of which that is not known: only null
// says nothing.
func refuseGraphKeys(raw []byte, f *family.Family) error {
	var all map[string]json.RawMessage
	if err := jsonx.Unmarshal(raw, &all); err != nil {
		return err
	}
	var changes, unknown []string
	for k, v := range all {
		value := strings.TrimSpace(string(v))
		neutral, known := graphKeys[k]
		switch {
		// A key that is read, in capitals, is another key, and nothing reads it.
		case value == "null" || readKeys[strings.ToLower(k)] || idleKeys[k] || slices.Contains(f.Unused, k) ||
			slices.Contains(neutral, value):
		case known:
			changes = append(changes, k)
		default:
			unknown = append(unknown, k)
		}
	}
	switch {
	case len(changes) > 0:
		k := slices.Min(changes)
		return format.Unsupportedf("%s is %s, which changes the graph in a way that phaseconv does not know for %s", k,
			clip(all[k]), f.Name)
	case len(unknown) > 0:
		k := slices.Min(unknown)
		return format.Unsupportedf("key %.60q is %s, and phaseconv does not know whether it changes the graph of %s; if the model's "+
			"code does not read it, take it out of config.json", k, clip(all[k]), f.Name)
	}
	return nil
}
