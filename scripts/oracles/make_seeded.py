#!/usr/bin/env python3
"""Makes tiny models whose weights are not stored: golden logits of transformers for weights that
both sides compute from the tensors' names.

    python scripts/oracles/make_seeded.py verify/refmodel/testdata [NAME...]

As make_tiny.py, which see, but a folder has weights.json in place of the safetensors files:
for each stored tensor its element type, shape, mean and half width. internal/tiny (Seeded)
makes the same numbers:

    h = FNV-1a 64 of "MODEL/TENSOR"; number i is splitmix64 of h + (i+1) * 0x9e3779b97f4a7c15;
    its top 24 bits over 2^24 are u; the value is mean + width * (2 u - 1), computed in float64,
    rounded to float32 and then to the tensor's type. For U8 it is mean + (u * width), truncated.

Made with torch 2.15.0 and transformers 5.24.0.
"""
import json
import math
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import make_tiny
from make_tiny import BASE, dump, family, load, run, tokens, without

qwen2_moe = family("qwen2_moe", "Qwen2MoeForCausalLM", hidden_act="silu", hidden_size=64, use_sliding_window=False, sliding_window=16,
                   num_hidden_layers=3, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
                   shared_expert_intermediate_size=28, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=False)

glm4_moe = family("glm4_moe", "Glm4MoeForCausalLM", hidden_act="silu", head_dim=16, attention_bias=True, partial_rotary_factor=0.5,
                  num_hidden_layers=3, moe_intermediate_size=20, n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=1,
                  first_k_dense_replace=1, routed_scaling_factor=1.5, n_group=1, topk_group=1, norm_topk_prob=True, use_qk_norm=False,
                  num_nextn_predict_layers=0)
ernie_moe = family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", hidden_act="silu", hidden_size=64, num_hidden_layers=3, moe_num_experts=5,
                   moe_k=2, intermediate_size=80, moe_intermediate_size=20, moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=-1,
                   moe_layer_interval=1, use_bias=False, tie_word_embeddings=True)
hunyuan_moe = family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", hidden_act="silu", head_dim=16, num_experts=5, moe_topk=[2, 2],
                     num_shared_expert=[1, 1], moe_intermediate_size=[32, 32], attention_bias=False)

gpt_oss = family("gpt_oss", "GptOssForCausalLM", hidden_act="silu", hidden_size=64, head_dim=16, num_hidden_layers=3, intermediate_size=32,
                 num_local_experts=5, num_experts_per_tok=2, sliding_window=10, rope_theta=150000.0, attention_bias=True,
                 layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                 rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                   original_max_position_embeddings=32))

# name -> (config, element type of matrices)
MODELS = {
    "qwen2moe": (qwen2_moe(), "bfloat16"),
    # Layers that are no mixtures, and weights that are renormalised: stock GGUF runtimes know neither.
    "qwen2moe-steps": (qwen2_moe(decoder_sparse_step=2, mlp_only_layers=[3], num_hidden_layers=5, norm_topk_prob=True,
                                 num_key_value_heads=4), "bfloat16"),
    "glm4moe": (glm4_moe(), "bfloat16"),
    # The large ones have QK-norm and no biases; nobody publishes groups, which stock runtimes know.
    "glm4moe-norm": (glm4_moe(attention_bias=False, use_qk_norm=True, n_group=3, topk_group=2, norm_topk_prob=False, n_shared_experts=2,
                              first_k_dense_replace=2), "bfloat16"),
    "ernie45moe": (ernie_moe(), "bfloat16"),
    "ernie45moe-range": (ernie_moe(num_hidden_layers=5, moe_layer_interval=2, moe_layer_end_index=3, moe_num_shared_experts=0,
                                   tie_word_embeddings=False, rope_theta=10000.0), "bfloat16"),
    "gptoss": (gpt_oss(), "bfloat16"),
    # As published: experts in MXFP4.
    "gptoss-mxfp4": (without(gpt_oss(num_hidden_layers=2, quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=[
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]),
        rope_scaling=dict(rope_type="yarn", factor=32.0, original_max_position_embeddings=512)), "layer_types"), "bfloat16"),
    "gemma4-moe": (without(make_tiny.gemma4(num_hidden_layers=4, hidden_size_per_layer_input=0, num_kv_shared_layers=0, enable_moe_block=True,
                                            num_experts=5, top_k_experts=2, moe_intermediate_size=12, attention_k_eq_v=True, num_key_value_heads=2,
                                            num_global_key_value_heads=1, num_attention_heads=4,
                                            layer_types=["sliding_attention", "full_attention"] * 2), "rope_theta"), "bfloat16"),
    "hunyuanmoe": (hunyuan_moe(), "bfloat16"),
}


def fnv(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(text, n):
    z = np.uint64(fnv(text)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def spread(name, shape, cfg):
    """Mean and half width of a tensor's numbers: as make_tiny.fill, every gain and bias matters."""
    root3 = math.sqrt(3)
    if "_blocks" in name:
        return 0, 256
    if "_scales" in name:
        return 121, 3  # 2^-6 to 2^-4
    if name.endswith(("norm.weight", "_layernorm.weight")):
        return (1.5 if any(k in name for k in ("q_norm", "k_norm", "query_layer", "key_layer")) else 1.0), 0.5
    if name.endswith("e_score_correction_bias"):
        return 0.0, 0.3
    if name.endswith("sinks"):
        return 0.5, 2.0
    if name.endswith(("layer_scalar", "per_expert_scale")):
        return 1.0, 0.4
    if name.endswith("router.scale"):
        return 4.0, 2.0
    if "norm" in name and name.endswith(".weight"):
        return 1.0, 0.5
    if name.endswith(("bias", "_bias")):
        return 0.0, 1.2
    if "embed_tokens" in name:
        return 0.0, 0.4 * root3
    fan = shape[-2] if name.endswith(("experts.gate_up_proj", "experts.down_proj")) and cfg["model_type"] == "gpt_oss" else shape[-1]
    gain = 1.2
    if "q_proj" in name or "k_proj" in name:
        gain = 1.6
    elif "lm_head" in name or "mlp.gate." in name or "router" in name or "expert_gate" in name:
        gain = 2.0
    return 0.0, round(gain * root3 / math.sqrt(fan), 6)


DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}


def make(root, name):
    cfg, dtype = MODELS[name]
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    dump(folder, "config.json", cfg)
    with tempfile.TemporaryDirectory() as tmp:
        config = AutoConfig.from_pretrained(folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(tmp)
        with open(os.path.join(tmp, "config.json"), encoding="utf-8") as f:
            dump(folder, "config.resaved.json", json.load(f))
        spec, values = {}, {}
        with safe_open(os.path.join(tmp, "model.safetensors"), "pt") as f:
            stored = {n: (list(f.get_tensor(n).shape), f.get_tensor(n).dtype) for n in sorted(f.keys())}
        stored = reshape(stored, cfg)
        for n, (shape, dt) in stored.items():
            mean, width = spread(n, shape, cfg)
            u = uniform(f"{name}/{n}", math.prod(shape))
            if dt == torch.uint8:
                x = torch.from_numpy((mean + np.floor(u * width)).astype(np.uint8))
            else:
                x = torch.from_numpy((mean + width * (2 * u - 1)).astype(np.float32)).to(dt)
            values[n] = x.reshape(shape)
            spec[n] = [DTYPES[dt], shape, mean, width]
        save_file(values, os.path.join(tmp, "model.safetensors"), {"format": "pt"})
        shutil.copyfile(os.path.join(folder, "config.json"), os.path.join(tmp, "config.json"))
        dump(folder, "weights.json", spec, indent=None)
        ids = tokens(name)
        logits, attn = run(load(tmp, torch.float32), ids)
        exact, _ = run(load(tmp, torch.float64), ids)
    logits.astype("<f4").tofile(os.path.join(folder, "golden.f32"))
    top = float(np.mean([a[..., make_tiny.T // 2:, :].max(-1).values.mean().item() for a in attn]))
    stats = dict(std=float(logits.std()), max=float(np.abs(logits).max()), top_attention=top,
                 rounding=float(np.abs(logits - exact).max()))
    dump(folder, "golden.json", dict(made_with=dict(transformers=transformers.__version__, torch=torch.__version__.split("+")[0]),
                                     tokens=ids.tolist(), stats={k: round(v, 9) for k, v in stats.items()}), indent=None)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:20} {size:8d} bytes  std {stats['std']:.3f}  largest {stats['max']:.2f}  attention {top:.3f}  float32 - float64 {stats['rounding']:.2e}", flush=True)
    return size


def reshape(stored, cfg):
    """What published checkpoints store otherwise than transformers."""
    if "quantization_config" not in cfg:
        return stored
    out = {}
    for n, (shape, dt) in stored.items():
        if n.endswith(("experts.gate_up_proj", "experts.down_proj")):  # stored transposed otherwise
            e, cols, rows = shape
            out[n + "_blocks"] = ([e, rows, cols // 32, 16], torch.uint8)
            out[n + "_scales"] = ([e, rows, cols // 32], torch.uint8)
        else:
            out[n] = (shape, dt)
    return dict(sorted(out.items()))


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(sum(make(sys.argv[1], n) for n in (sys.argv[2:] or MODELS)), "bytes")


if __name__ == "__main__":
    main()
