#!/usr/bin/env python3
"""Writes kernels/rope/testdata/golden.json: RoPE frequencies and magnitudes as
Hugging Face transformers computes them (in float32), for many parameters.

    venv/bin/python scripts/oracles/rope_golden.py > kernels/rope/testdata/golden.json
"""
import json
import random

import torch
from transformers import LlamaConfig
from transformers.utils import logging
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def cases():
    rnd = random.Random(1)
    for dim, theta in [(64, 10000.0), (128, 500000.0), (80, 1000000.0), (6, 10000.0), (256, 1000000.0)]:
        yield dim, theta, 8192, dict(rope_type="default")
        yield dim, theta, 8192, dict(rope_type="linear", factor=4.0)
        for low, high, old, factor in [(1.0, 4.0, 8192, 8.0), (1.0, 4.0, 8192, 32.0), (0.5, 2.0, 256, 3.0), (2.0, 64.0, 512, 1.0)]:
            yield dim, theta, 131072, dict(rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
                                           original_max_position_embeddings=old)
        for factor, old, more in [(4.0, 32768, {}), (40.0, 4096, {}), (1.0, 4096, {}), (2.5, 64, dict(beta_fast=16.0, beta_slow=2.0)),
                                  (8.0, 4096, dict(beta_fast=1.0, beta_slow=32.0)),  # the wrong way round
                                  (8.0, 4, {})]:  # no pair turns once
            yield dim, theta, 131072, dict(rope_type="yarn", factor=factor, original_max_position_embeddings=old, **more)
    for _ in range(20):
        dim, theta = 2 * rnd.randint(1, 100), round(10 ** rnd.uniform(1, 8), 1)
        yield dim, theta, 4096, dict(rope_type="yarn", factor=round(rnd.uniform(1, 64), 2),
                                     original_max_position_embeddings=rnd.randint(16, 65536),
                                     beta_fast=round(rnd.uniform(4, 64), 1), beta_slow=round(rnd.uniform(0.5, 4), 1))


def main():
    logging.set_verbosity_error()  # it warns of unusual parameters, which is what they are for
    out = []
    for dim, theta, context, params in cases():
        cfg = LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=context,
                          rope_parameters=dict(params, rope_theta=theta))
        if params["rope_type"] == "default":
            freq = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
            magnitude = 1.0
        else:
            freq, magnitude = ROPE_INIT_FUNCTIONS[params["rope_type"]](cfg, "cpu")
        out.append(dict(dim=dim, theta=theta, params=params, magnitude=magnitude, freq=[float(f"{x:.9g}") for x in freq.tolist()]))
    print("[\n" + ",\n".join(json.dumps(x) for x in out) + "\n]")


if __name__ == "__main__":
    main()
