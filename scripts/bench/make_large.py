#!/usr/bin/env python3
"""Writes a checkpoint of the size of a 26B mixture that takes little room on disk: a sparse file. For
measuring peak memory, not quality.

    [LAYERS=30] python scripts/bench/make_large.py OUT [gemma4]

30 layers, hidden 2816, 128 experts of 704 of which 8 are used, 16 heads of 256, 8 KV heads, 262144
tokens: 24 billion numbers, 13 GB, as gpt_oss with experts in MXFP4. With gemma4 it has the shape of
Gemma 4 26B-A4B: every 6th layer is full with heads of 512 of which there are 2 for keys, values are
keys there, a plain FFN of 2112 stands beside the experts, and all is BF16, 51 GB. Norm gains are 1,
routers, the keys of gemma4 and the first 4096 embeddings random, so that all experts get tokens;
everything else is zero. The tokenizer is austen-moe's.
"""
import json
import os
import shutil
import struct
import sys

import numpy as np

L, H, E, F, HEADS, KV, D, V = int(os.environ.get("LAYERS", "30")), 2816, 128, 704, 16, 8, 256, 262144


rng = np.random.default_rng(1)


def bf16(x):
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


ONES = bf16(np.ones(H))


def gpt_oss():
    """Returns tensors, each name with (dtype, shape, data or None for zeros), and the configuration."""
    tensors = {"model.norm.weight": ("BF16", [H], ONES), "lm_head.weight": ("BF16", [V, H], None)}
    for l in range(L):
        p = f"model.layers.{l}."
        tensors[p + "input_layernorm.weight"] = tensors[p + "post_attention_layernorm.weight"] = ("BF16", [H], ONES)
        for n, rows, cols in (("q", HEADS * D, H), ("k", KV * D, H), ("v", KV * D, H), ("o", H, HEADS * D)):
            tensors[p + f"self_attn.{n}_proj.weight"] = ("BF16", [rows, cols], None)
            tensors[p + f"self_attn.{n}_proj.bias"] = ("BF16", [rows], bf16(rng.standard_normal(rows)))
        tensors[p + "self_attn.sinks"] = ("BF16", [HEADS], None)
        tensors[p + "mlp.router.weight"] = ("BF16", [E, H], bf16(rng.standard_normal((E, H)) * 0.02))
        tensors[p + "mlp.router.bias"] = ("BF16", [E], None)
        x = p + "mlp.experts."
        for n, rows, cols in (("gate_up_proj", 2 * F, H), ("down_proj", H, F)):
            tensors[x + n + "_blocks"] = ("U8", [E, rows, cols // 32, 16], None)
            tensors[x + n + "_scales"] = ("U8", [E, rows, cols // 32], None)
            tensors[x + n + "_bias"] = ("BF16", [E, rows], None)
    return tensors, dict(architectures=["GptOssForCausalLM"], model_type="gpt_oss", head_dim=D, num_key_value_heads=KV,
                         intermediate_size=F, num_local_experts=E, num_experts_per_tok=8, max_position_embeddings=131072,
                         sliding_window=1024, rope_parameters=dict(rope_type="default", rope_theta=150000.0),
                         quantization_config=dict(quant_method="mxfp4"))


def gemma4():
    plain = 2112
    tensors = {"model.norm.weight": ("BF16", [H], ONES)}
    kinds = ["full_attention" if l % 6 == 5 else "sliding_attention" for l in range(L)]
    for l in range(L):
        p = f"model.layers.{l}."
        d, kv = (512, 2) if kinds[l] == "full_attention" else (D, KV)
        for n in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "pre_feedforward_layernorm_2",
                  "post_feedforward_layernorm", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"):
            tensors[p + n + ".weight"] = ("BF16", [H], ONES)
        tensors[p + "router.scale"] = ("BF16", [H], ONES)
        tensors[p + "router.per_expert_scale"] = ("BF16", [E], bf16(np.ones(E)))
        tensors[p + "router.proj.weight"] = ("BF16", [E, H], bf16(rng.standard_normal((E, H)) * 0.02))
        tensors[p + "layer_scalar"] = ("BF16", [1], bf16(np.ones(1)))
        for n, rows, cols in (("q", HEADS * d, H), ("k", kv * d, H), ("v", kv * d, H), ("o", H, HEADS * d)):
            if n != "v" or d == D:
                data = bf16(rng.standard_normal((rows, cols), np.float32) * 0.02) if n == "k" else None
                tensors[p + f"self_attn.{n}_proj.weight"] = ("BF16", [rows, cols], data)
        tensors[p + "self_attn.q_norm.weight"] = tensors[p + "self_attn.k_norm.weight"] = ("BF16", [d], bf16(np.ones(d)))
        for n, rows, cols in (("gate", plain, H), ("up", plain, H), ("down", H, plain)):
            tensors[p + f"mlp.{n}_proj.weight"] = ("BF16", [rows, cols], None)
        tensors[p + "experts.gate_up_proj"] = ("BF16", [E, 2 * F, H], None)
        tensors[p + "experts.down_proj"] = ("BF16", [E, H, F], None)
    return tensors, dict(architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", head_dim=D, global_head_dim=512,
                         num_key_value_heads=KV, num_global_key_value_heads=2, attention_k_eq_v=True, layer_types=kinds,
                         intermediate_size=plain, enable_moe_block=True, num_experts=E, top_k_experts=8, moe_intermediate_size=F,
                         max_position_embeddings=262144, sliding_window=1024, num_kv_shared_layers=0, hidden_size_per_layer_input=0,
                         vocab_size_per_layer_input=V, hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=30.0,
                         tie_word_embeddings=True, rope_parameters={
                             "full_attention": dict(partial_rotary_factor=0.25, rope_theta=1000000.0, rope_type="proportional"),
                             "sliding_attention": dict(rope_theta=10000.0, rope_type="default")})


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    tensors, config = gemma4() if "gemma4" in sys.argv[2:] else gpt_oss()
    tensors["model.embed_tokens.weight"] = ("BF16", [V, H], bf16(rng.standard_normal((4096, H)) * 0.1))
    header, at = {}, 0
    for n, (dtype, shape, _) in tensors.items():
        size = int(np.prod(shape)) * (1 if dtype == "U8" else 2)
        header[n] = dict(dtype=dtype, shape=shape, data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for n, (_, _, data) in tensors.items():
            if data is not None:
                f.seek(8 + len(text) + header[n]["data_offsets"][0])
                f.write(data)
        f.truncate(8 + len(text) + at)
    with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as f:
        json.dump(dict(config, hidden_size=H, num_hidden_layers=L, num_attention_heads=HEADS, vocab_size=V, rms_norm_eps=1e-6,
                       bos_token_id=0, eos_token_id=0), f, indent=1)
    for n in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(os.path.dirname(__file__), "..", "..", "testdata", "austen-moe", n), out)
    print(f"{at / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
