#!/usr/bin/env python3
"""Makes the tiny models of verify/refmodel/testdata and their golden logits.

The oracle is Hugging Face transformers: each model is built from the config.json
that the Go side will read, filled with random weights, saved by
save_pretrained, loaded again in float32 and run on a fixed token sequence.

    python -m venv venv && venv/bin/pip install torch transformers safetensors numpy
    venv/bin/python scripts/oracles/make_tiny.py verify/refmodel/testdata

Made with torch 2.15.0 and transformers 5.23.0. Weights, tokens and configs
depend on the seeds alone; golden logits may move by a rounding error with
another torch or CPU.

A folder holds
  config.json           in the spelling of transformers 4 or 5, see SPELLING
  config.resaved.json   the same model as transformers writes it back
  model*.safetensors    weights
  tokenizer.json, tokenizer_config.json   104 tokens: printable ASCII, a few merges
  golden.json           the tokens, and what the run was like
  golden.f32            logits [windows, T, vocab], little-endian float32
"""
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

WINDOWS, T = 2, 36
LONG, LONG_T = ("llama", "mistral-window", "gemma3"), 80  # longer than the blocks of 64 queries in the Go code
VOCAB = 104
FIRST_TOKEN = 3  # below are <unk>, <s> and </s>

BASE = dict(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)


def family(model_type, cls, **defaults):
    return lambda **kw: {"architectures": [cls], "model_type": model_type, **BASE, **defaults, **kw}


llama = family("llama", "LlamaForCausalLM", hidden_act="silu")
mistral = family("mistral", "MistralForCausalLM", hidden_act="silu", sliding_window=None)
mixtral = family("mixtral", "MixtralForCausalLM", hidden_act="silu", sliding_window=None,
                 head_dim=16, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2)
qwen2 = family("qwen2", "Qwen2ForCausalLM", hidden_act="silu", hidden_size=64, use_sliding_window=False, sliding_window=16)
qwen3 = family("qwen3", "Qwen3ForCausalLM", hidden_act="silu", attention_bias=False, head_dim=16)
qwen3_moe = family("qwen3_moe", "Qwen3MoeForCausalLM", hidden_act="silu", head_dim=16, num_experts=6,
                   num_experts_per_tok=3, moe_intermediate_size=20, decoder_sparse_step=1, mlp_only_layers=[])
olmoe = family("olmoe", "OlmoeForCausalLM", hidden_act="silu", hidden_size=64, intermediate_size=16, num_experts=6,
               num_experts_per_tok=3, clip_qkv=None, num_key_value_heads=4)
gemma3 = family("gemma3_text", "Gemma3ForCausalLM", hidden_activation="gelu_pytorch_tanh", hidden_size=40,
                head_dim=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=7, sliding_window=12, intermediate_size=28,
                query_pre_attn_scalar=16, rope_theta=1000000.0, rope_local_base_freq=10000.0,
                tie_word_embeddings=True, rms_norm_eps=1e-6)


small = dict(hidden_act="silu", pad_token_id=0, hidden_size=32, intermediate_size=24, num_hidden_layers=3, max_position_embeddings=96)
seed_oss = family("seed_oss", "SeedOssForCausalLM", **small, head_dim=12, attention_bias=True, attention_out_bias=False)
smollm3 = family("smollm3", "SmolLM3ForCausalLM", **{**small, "num_hidden_layers": 5}, tie_word_embeddings=True)
granite = family("granite", "GraniteForCausalLM", **small, embedding_multiplier=3.0, residual_multiplier=0.4,
                 attention_multiplier=0.2, logits_scaling=0.7)
ministral3 = family("ministral3", "Ministral3ForCausalLM", **small, head_dim=12, sliding_window=None)
olmo2 = family("olmo2", "Olmo2ForCausalLM", **small, num_key_value_heads=4)
olmo3 = family("olmo3", "Olmo3ForCausalLM", **{**small, "num_hidden_layers": 5}, sliding_window=9)
ernie4_5 = family("ernie4_5", "Ernie4_5ForCausalLM", **small, head_dim=12, use_bias=False)
cohere2 = family("cohere2", "Cohere2ForCausalLM", rotary_pct=1.0, **{**small, "num_hidden_layers": 5}, sliding_window=9, layer_norm_eps=1e-5,
                 logit_scale=0.5, tie_word_embeddings=True)
exaone4 = family("exaone4", "Exaone4ForCausalLM", **{**small, "num_hidden_layers": 5}, head_dim=12, sliding_window=9,
                 sliding_window_pattern=4)
hunyuan = family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", **small, head_dim=12)
phi3 = family("phi3", "Phi3ForCausalLM", **small, original_max_position_embeddings=24)
glm4 = family("glm4", "Glm4ForCausalLM", **small, head_dim=12, attention_bias=True, partial_rotary_factor=0.5)


gemma2 = family("gemma2", "Gemma2ForCausalLM", hidden_activation="gelu_pytorch_tanh", hidden_size=40, head_dim=16,
                num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, sliding_window=9, intermediate_size=28,
                query_pre_attn_scalar=16, attn_logit_softcapping=3.0, final_logit_softcapping=5.0, tie_word_embeddings=True,
                rms_norm_eps=1e-6, attention_bias=False)


gemma4 = family("gemma4_text", "Gemma4ForCausalLM", hidden_activation="gelu_pytorch_tanh", hidden_size=24, intermediate_size=20,
                head_dim=8, global_head_dim=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=7, sliding_window=9,
                layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention",
                             "sliding_attention", "sliding_attention", "full_attention"],
                max_position_embeddings=96, rms_norm_eps=1e-6, tie_word_embeddings=True, final_logit_softcapping=6.0,
                vocab_size_per_layer_input=VOCAB, pad_token_id=0,
                rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                                     full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1000000.0)))


def without(cfg, *keys):
    return {k: v for k, v in cfg.items() if k not in keys}


def wrapped(model_type, cls, text, **beside):
    """A multimodal checkpoint around a language model."""
    return dict(architectures=[cls], model_type=model_type, text_config=without(text, "architectures"),
                tie_word_embeddings=text["tie_word_embeddings"], bos_token_id=1, eos_token_id=2, **beside)


VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=8)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)

# name -> (config, weights' dtype, bytes per shard or None). Where the config has
# rope_parameters it is the spelling of transformers 5, otherwise that of 4.
MODELS = {
    "llama": (llama(), "bfloat16", None),
    # The oldest configs name neither rope_theta nor num_key_value_heads.
    "llama-old": (without(llama(), "rope_theta", "num_key_value_heads"), "float16", None),
    "llama-linear": (without(llama(num_key_value_heads=4, tie_word_embeddings=True,
                                   rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)), "rope_theta"), "bfloat16", None),
    "llama-llama3": (llama(head_dim=16, rope_theta=500000.0,
                           rope_scaling=dict(LLAMA3, original_max_position_embeddings=64)), "bfloat16", None),
    "llama-yarn": (llama(head_dim=16, rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32)), "bfloat16", None),
    # Without original_max_position_embeddings: max_position_embeddings stands in.
    "llama-yarn-context": (llama(head_dim=16, rope_scaling=dict(rope_type="yarn", factor=2.0, beta_fast=4.0, beta_slow=0.25)), "bfloat16", None),
    # A top-level original_max_position_embeddings wins over that of the scaling.
    "llama-yarn-top": (without(llama(head_dim=16, max_position_embeddings=256, original_max_position_embeddings=32,
                                     rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=64)), "rope_theta"), "bfloat16", None),
    "llama-bias": (llama(attention_bias=True, head_dim=20, num_key_value_heads=1), "bfloat16", 24_000),
    "llama-hd80": (llama(hidden_size=40, head_dim=80, num_attention_heads=2, num_key_value_heads=1, intermediate_size=36,
                         num_hidden_layers=1), "float32", None),
    "mistral": (mistral(head_dim=16), "bfloat16", None),
    "mistral-window": (mistral(sliding_window=10, num_key_value_heads=4), "bfloat16", None),
    "mixtral": (mixtral(), "bfloat16", None),
    "mixtral-window": (mixtral(sliding_window=10, num_hidden_layers=1, head_dim=8), "bfloat16", None),
    "qwen2": (qwen2(tie_word_embeddings=True, num_key_value_heads=1), "bfloat16", None),
    "qwen2-yarn": (without(qwen2(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1000000.0,
                                                      original_max_position_embeddings=32)), "rope_theta"), "bfloat16", None),
    "qwen2-window": (qwen2(use_sliding_window=True, max_window_layers=1, sliding_window=10), "bfloat16", None),
    "qwen2-headdim": (qwen2(hidden_size=48, head_dim=16, num_hidden_layers=1), "bfloat16", None),
    "qwen3": (qwen3(hidden_size=40, head_dim=32, tie_word_embeddings=True), "bfloat16", None),
    "qwen3-window": (without(qwen3(use_sliding_window=True, sliding_window=10, max_window_layers=0, num_hidden_layers=3,
                                   layer_types=["full_attention", "sliding_attention", "full_attention"],
                                   rope_parameters=dict(rope_type="default", rope_theta=10000.0)), "rope_theta"), "bfloat16", None),
    "qwen3moe": (qwen3_moe(norm_topk_prob=True), "bfloat16", None),
    "qwen3moe-raw": (qwen3_moe(norm_topk_prob=False, num_hidden_layers=1), "bfloat16", None),
    # This family slides in every layer, whatever max_window_layers says.
    "qwen3moe-window": (qwen3_moe(norm_topk_prob=True, use_sliding_window=True, sliding_window=10, max_window_layers=1), "bfloat16", None),
    "olmoe": (olmoe(norm_topk_prob=False), "bfloat16", None),
    "olmoe-tied": (olmoe(norm_topk_prob=False, tie_word_embeddings=True, num_hidden_layers=1), "bfloat16", None),
    "olmoe-gqa": (olmoe(norm_topk_prob=True, num_key_value_heads=2, num_hidden_layers=1), "bfloat16", None),
    "gemma3": (gemma3(sliding_window_pattern=6), "bfloat16", None),
    "gemma3-linear": (without(gemma3(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                                     layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                     rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                                                          sliding_attention=dict(rope_type="default", rope_theta=10000.0))),
                              "rope_theta", "rope_local_base_freq"), "bfloat16", None),
    # Nothing but what has no default: bases, scale and period are the reference's.
    "gemma3-defaults": (without(gemma3(rope_scaling=dict(rope_type="linear", factor=8.0)), "rope_theta", "rope_local_base_freq",
                                "query_pre_attn_scalar", "tie_word_embeddings"), "bfloat16", None),
    "gemma3-scale": (gemma3(num_hidden_layers=2, sliding_window_pattern=2, query_pre_attn_scalar=24,
                            final_logit_softcapping=5.0, tie_word_embeddings=False), "bfloat16", None),
    "seed-oss": (seed_oss(), "bfloat16", None),
    "seed-oss-out": (seed_oss(attention_bias=False, attention_out_bias=True, num_hidden_layers=1), "bfloat16", None),
    "smollm3": (smollm3(), "bfloat16", None),
    "smollm3-list": (smollm3(num_hidden_layers=3, no_rope_layers=[0, 1, 1], attention_bias=False, use_sliding_window=True,
                             sliding_window=9), "bfloat16", None),
    "granite": (granite(), "bfloat16", None),
    # A scaling with all its numbers, and queries that grow within the text.
    "ministral3": (without(ministral3(rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=16.0, original_max_position_embeddings=16, beta_fast=0.9, beta_slow=0.1,
        mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3)), "rope_theta"), "bfloat16", None),
    "olmo2": (olmo2(), "bfloat16", None),
    "olmo2-gqa": (olmo2(num_key_value_heads=2, num_hidden_layers=1), "bfloat16", None),
    "olmo3": (without(olmo3(max_position_embeddings=200, rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=100, beta_fast=32.0,
                                              beta_slow=1.0, attention_factor=1.3)), "rope_theta"), "bfloat16", None),
    # Two bases, which stock GGUF runtimes do not know.
    "olmo3-base": (olmo3(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]), "bfloat16", None),
    "ernie4_5": (ernie4_5(), "bfloat16", None),
    "cohere2": (cohere2(), "bfloat16", None),
    "exaone4": (exaone4(head_dim=8), "bfloat16", None),
    "exaone4-full": (exaone4(num_hidden_layers=2, head_dim=8, sliding_window=None, layer_types=["full_attention"] * 2), "bfloat16", None),
    "hunyuan": (without(hunyuan(max_position_embeddings=32768, rope_scaling=dict(type="dynamic", alpha=1000.0, factor=1.0)), "rope_theta"), "bfloat16", None),
    "phi3": (phi3(original_max_position_embeddings=96), "bfloat16", None),
    # Longer than the original context: the divisors of long contexts, on three quarters of each head.
    "phi3-long": (phi3(partial_rotary_factor=0.75, rope_scaling=dict(
        type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.0, 5.0])), "bfloat16", None),
    "phi3-short": (phi3(num_hidden_layers=1, max_position_embeddings=900, original_max_position_embeddings=300, rope_scaling=dict(
        type="longrope", short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.2, 2.0, 5.0, 9.0])), "bfloat16", None),
    "glm4": (glm4(), "bfloat16", None),
    # Three layers that read the keys and values of layers 2 and 3, and FFNs twice as wide there.
    "gemma4": (without(gemma4(hidden_size_per_layer_input=6, num_kv_shared_layers=3, use_double_wide_mlp=True), "rope_theta"),
               "bfloat16", None),
    # Values that are keys, and another number of heads in full layers.
    "gemma4-kv": (without(gemma4(num_hidden_layers=4, hidden_size_per_layer_input=0, num_kv_shared_layers=0, attention_k_eq_v=True,
                                 num_key_value_heads=2, num_global_key_value_heads=1, num_attention_heads=4,
                                 layer_types=["sliding_attention", "full_attention"] * 2), "rope_theta"), "bfloat16", None),
    # Scores above their cap; the older spelling of windows, every second layer.
    "gemma2": (gemma2(), "bfloat16", None),
    # Language models inside multimodal checkpoints.
    "gemma4-mm": (wrapped("gemma4", "Gemma4ForConditionalGeneration", without(
        gemma4(num_hidden_layers=5, hidden_size_per_layer_input=4, num_kv_shared_layers=1, use_double_wide_mlp=False,
               layer_types=["sliding_attention", "full_attention"] * 2 + ["full_attention"]), "rope_theta"),
        vision_config=dict(model_type="gemma4_vision", num_key_value_heads=2, head_dim=4, position_embedding_size=16, **VISION)),
        "bfloat16", None),
    "gemma4-unified": (wrapped("gemma4_unified", "Gemma4UnifiedForConditionalGeneration", dict(without(
        gemma4(num_hidden_layers=4, num_kv_shared_layers=0, attention_k_eq_v=True, num_key_value_heads=2, num_global_key_value_heads=1,
               num_attention_heads=4, layer_types=["sliding_attention", "full_attention"] * 2),
        "rope_theta", "vocab_size_per_layer_input"), model_type="gemma4_unified_text"),
        vision_config=dict(model_type="gemma4_unified_vision", patch_size=2, pooling_kernel_size=1, mm_embed_dim=8, mm_posemb_size=4,
                           output_proj_dims=24), audio_config=dict(model_type="gemma4_unified_audio", audio_embed_dim=8)),
        "bfloat16", None),
    "gemma3-mm": (wrapped("gemma3", "Gemma3ForConditionalGeneration", gemma3(sliding_window_pattern=2, num_hidden_layers=3),
                          vision_config=dict(model_type="siglip_vision_model", **VISION), mm_tokens_per_image=4), "bfloat16", None),
    "mistral3-mm": (wrapped("mistral3", "Mistral3ForConditionalGeneration", mistral(num_hidden_layers=2),
                            vision_config=dict(model_type="pixtral", head_dim=4, **VISION)), "bfloat16", None),
    # 62 layers: stock GGUF runtimes take 1/sqrt(hidden/heads) for the scale.
    "gemma3-62": (gemma3(num_hidden_layers=62, hidden_size=16, intermediate_size=8, head_dim=4, query_pre_attn_scalar=8,
                         sliding_window_pattern=6), "bfloat16", None),
}


def seed(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def fill(model, name):
    """Random weights under which attention and logits are far from uniform, and
    every gain and bias matters."""
    rng = np.random.default_rng(seed(name))
    config = model.config.get_text_config()
    gemma = config.model_type in ("gemma2", "gemma3_text")
    late = config.model_type in ("olmo2", "olmo3", "exaone4")  # nothing is normed before attention and FFN
    with torch.no_grad():
        for n, p in model.named_parameters():
            x = rng.standard_normal(p.shape)
            if n.endswith("norm.weight"):
                # Gains of queries and keys set how sharp attention is.
                mean = 1.5 if n.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
                if config.model_type in ("gemma4_text", "gemma4_unified_text"):
                    mean = 0.5  # scores are not scaled
                # In a deep sandwich small steps keep rounding errors from growing layer by layer.
                if gemma and ".post_" in n:
                    mean = min(1.0, 7 / config.num_hidden_layers)
                x = mean + 0.3 * x - (1.0 if gemma else 0.0)
            elif n.endswith("layernorm.weight"):
                x = (1.5 if "query_" in n or "key_" in n else 1.0) + 0.3 * x
            elif n.endswith(".bias"):
                x = 0.7 * x
            elif "embed_tokens" in n:
                x = 0.4 * x
            elif "lm_head" in n:
                x = 2.0 * x / math.sqrt(p.shape[-1])
            else:
                gain = 1.6 if ("q_proj" in n or "k_proj" in n) else 1.2
                if "mlp.gate.weight" in n:  # the router
                    gain = 2.0
                x = gain * x / math.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(x))
        for n, p in model.named_buffers():
            if n.endswith("layer_scalar"):
                p.copy_(torch.from_numpy(1 + 0.2 * rng.standard_normal(p.shape)))


def tokens(name):
    rng = np.random.default_rng(seed("tokens " + name))
    t = rng.integers(FIRST_TOKEN, VOCAB - 1, size=(WINDOWS, LONG_T if name in LONG else T))
    t[0, 0] = 1
    t[1, 7:14] = t[1, 27:34]  # a repetition: distinct positions must still tell it apart
    return t


def byte_chars():
    """The printable stand-ins for bytes of byte-level BPE."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {b: chr(b) if b in keep else chr(0x100 + [c for c in range(256) if c not in keep].index(b)) for b in range(256)}


def write_tokenizer(folder):
    chars = byte_chars()
    special = ["<unk>", "<s>", "</s>"]
    merges = [("t", "h"), ("h", "e"), ("i", "n"), ("a", "n")]
    words = special + [chars[b] for b in [0x0A, *range(0x20, 0x7F)]] + ["".join(m) for m in merges] + ["<pad>"]
    assert len(words) == VOCAB, len(words)
    added = [dict(id=words.index(s), content=s, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for s in special + ["<pad>"]]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    doc = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=level,
               post_processor=None, decoder=level,
               model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                          fuse_unk=False, byte_fallback=False, ignore_merges=False,
                          vocab={w: i for i, w in enumerate(words)}, merges=[list(m) for m in merges]))
    dump(folder, "tokenizer.json", doc, indent=None)
    dump(folder, "tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
                                               unk_token="<unk>", pad_token="<pad>", add_bos_token=False))


def dump(folder, name, doc, indent=1):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(doc, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def auto(cfg):
    return AutoModelForImageTextToText if "text_config" in cfg else AutoModelForCausalLM


def load(folder, dtype):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        cls = auto(json.load(f))
    return cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()


def run(model, ids):
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids), use_cache=False, output_attentions=True)
    return out.logits.double().numpy(), out.attentions


def make(root, name):
    cfg, dtype, shard = MODELS[name]
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    dump(folder, "config.json", cfg)
    model = auto(cfg).from_config(AutoConfig.from_pretrained(folder))
    fill(model, name)
    with tempfile.TemporaryDirectory() as tmp:
        model.to(getattr(torch, dtype)).save_pretrained(tmp, **({"max_shard_size": shard} if shard else {}))
        for f in sorted(os.listdir(tmp)):
            if f.startswith("model"):
                shutil.copyfile(os.path.join(tmp, f), os.path.join(folder, f))
        with open(os.path.join(tmp, "config.json"), encoding="utf-8") as f:
            dump(folder, "config.resaved.json", json.load(f))
    write_tokenizer(folder)
    # Everything below comes from the files, as the Go side sees them.
    ids = tokens(name)
    logits, attn = run(load(folder, torch.float32), ids)
    exact, _ = run(load(folder, torch.float64), ids)
    logits.astype("<f4").tofile(os.path.join(folder, "golden.f32"))
    # How sharp attention is: the largest weight of a late query, below 0.05 when uniform.
    top = float(np.mean([a[:, :, T // 2:, :].max(-1).values.mean().item() for a in attn]))
    stats = dict(std=float(logits.std()), max=float(np.abs(logits).max()), top_attention=top,
                 rounding=float(np.abs(logits - exact).max()))
    dump(folder, "golden.json", dict(made_with=dict(transformers=transformers.__version__, torch=torch.__version__.split("+")[0]),
                                     tokens=ids.tolist(), stats={k: round(v, 9) for k, v in stats.items()}), indent=None)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:20} {size:8d} bytes  std {stats['std']:.3f}  largest {stats['max']:.2f}  attention {top:.3f}  float32 - float64 {stats['rounding']:.2e}", flush=True)
    return size


def main():
    root = sys.argv[1]
    torch.set_num_threads(1)  # the order of sums, and so the golden bits
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(sum(make(root, n) for n in (sys.argv[2:] or MODELS)), "bytes")


if __name__ == "__main__":
    main()
