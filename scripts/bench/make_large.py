#!/usr/bin/env python3
"""Writes a checkpoint of the size of a 26B mixture, with experts in MXFP4, that takes little room on
disk: a sparse file. For measuring peak memory, not quality.

    python scripts/bench/make_large.py OUT

30 layers, hidden 2816, 128 experts of 704 of which 8 are used, 16 heads of 256, 8 KV heads, 262144
tokens: 24 billion numbers, 13 GB. Norm gains are 1, routers and the first 4096 embeddings
random, so that all experts get tokens; everything else is zero. The tokenizer is austen-moe's.
"""
import json
import os
import shutil
import struct
import sys

import numpy as np

L, H, E, F, HEADS, KV, D, V = 30, 2816, 128, 704, 16, 8, 256, 262144


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    rng = np.random.default_rng(1)
    bf16 = lambda x: (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    tensors = {}  # name -> (dtype, shape, data or None)
    ones = bf16(np.ones(H))
    tensors["model.embed_tokens.weight"] = ("BF16", [V, H], bf16(rng.standard_normal((4096, H)) * 0.1))
    tensors["model.norm.weight"] = ("BF16", [H], ones)
    tensors["lm_head.weight"] = ("BF16", [V, H], None)
    for l in range(L):
        p = f"model.layers.{l}."
        tensors[p + "input_layernorm.weight"] = tensors[p + "post_attention_layernorm.weight"] = ("BF16", [H], ones)
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
        json.dump(dict(architectures=["GptOssForCausalLM"], model_type="gpt_oss", hidden_size=H, num_hidden_layers=L, head_dim=D,
                       num_attention_heads=HEADS, num_key_value_heads=KV, intermediate_size=F, num_local_experts=E, num_experts_per_tok=8,
                       vocab_size=V, max_position_embeddings=131072, sliding_window=1024, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=0,
                       rope_parameters=dict(rope_type="default", rope_theta=150000.0), quantization_config=dict(quant_method="mxfp4")), f, indent=1)
    for n in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(os.path.dirname(__file__), "..", "..", "testdata", "austen-moe", n), out)
    print(f"{at / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
