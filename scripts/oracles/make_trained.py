#!/usr/bin/env python3
"""Trains tiny models whose keys need help, one per kind of attention, on one CPU in minutes.

    python scripts/oracles/make_trained.py OUT TEXT [NAME...]

TEXT is trained on; measure on another. The tokenizer is that of testdata/austen-moe. Each NAME
gives OUT/NAME, a Hugging Face folder as trained, and OUT/NAME-hard: the same function with large
biases and unequal scales planted by exact identities, so that the right answer is known. The
script prints how far the two logits are apart.

  gptoss-like  biases, learned sinks, every other layer slides, experts with biases
  glm4-like    biases, half of each head rotated, shared expert, a dense layer in front
  gemma4-like  QK-norm, two kinds of layers with heads of their own, shared keys and values, embeddings
               per layer, normed values
  hunyuan-like QK-norm after RoPE

Planted: scales of rotary pairs (powers of two from 1/8 to 8) in keys and, inverted, in queries;
in glm4-like also constants in the key bias on dimensions that RoPE does not turn, which
the softmax drops; in gemma4-like the scales stand in the gains of the norms, a number for each
channel where RoPE does not turn, and the layers that share keys have the inverse too; in hunyuan-like a
number for each channel of all. The key biases of gptoss-like start large in slow pairs before the training:
with sinks no constant can be planted exactly.
"""
import os
import shutil
import sys

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

AUSTEN = os.path.join(os.path.dirname(__file__), "..", "..", "testdata", "austen-moe")
STEPS, BATCH, T = int(os.environ.get("STEPS", "400")), 4, 96

COMMON = dict(vocab_size=1024, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
              max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
              attention_bias=True, hidden_act="silu", rope_theta=10000.0)
MODELS = {
    "gptoss-like": dict(COMMON, model_type="gpt_oss", architectures=["GptOssForCausalLM"], intermediate_size=128, num_local_experts=4,
                        num_experts_per_tok=2, sliding_window=64, rope_parameters=dict(rope_type="default", rope_theta=10000.0),
                        layer_types=["sliding_attention", "full_attention"] * 2),
    "glm4-like": dict(COMMON, model_type="glm4_moe", architectures=["Glm4MoeForCausalLM"], intermediate_size=256,
                      moe_intermediate_size=96, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
                      routed_scaling_factor=1.0, n_group=1, topk_group=1, norm_topk_prob=True, use_qk_norm=False,
                      partial_rotary_factor=0.5, num_nextn_predict_layers=0),
    "gemma4-like": dict({k: v for k, v in COMMON.items() if k not in ("hidden_act", "rope_theta", "attention_bias")},
                        model_type="gemma4_text", architectures=["Gemma4ForCausalLM"], num_hidden_layers=6, intermediate_size=256,
                        hidden_activation="gelu_pytorch_tanh", head_dim=64, global_head_dim=128, sliding_window=64,
                        layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=2, use_double_wide_mlp=False,
                        hidden_size_per_layer_input=16, vocab_size_per_layer_input=1024, tie_word_embeddings=True, pad_token_id=0,
                        final_logit_softcapping=30.0,
                        rope_parameters={"sliding_attention": dict(rope_type="default", rope_theta=10000.0),
                                         "full_attention": dict(rope_type="proportional", partial_rotary_factor=0.25,
                                                                rope_theta=1000000.0)}),
    "hunyuan-like": dict(COMMON, model_type="hunyuan_v1_dense", architectures=["HunYuanDenseV1ForCausalLM"], intermediate_size=256,
                         attention_bias=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
}


def build(name, folder):
    cfg = MODELS[name]
    config = AutoConfig.for_model(**cfg)
    config.architectures = cfg["architectures"]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.endswith("sinks") or n.endswith("bias"):
                p.zero_()
            elif p.ndim > 1:
                p.normal_(0, 0.02 if "embed" in n else p.shape[-1] ** -0.5 * 0.7)
        if name == "gptoss-like":
            for layer in model.model.layers:  # pairs (i, i + 32); those from 20 on turn by less than a radian in 300 tokens
                b = layer.self_attn.k_proj.bias.view(2, 64)
                b[:, 20:32], b[:, 52:64] = torch.randn(2, 12) * 6, torch.randn(2, 12) * 6
    return model


def train(model, ids):
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.95))
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, STEPS, pct_start=0.1)
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        at = rng.integers(0, len(ids) - T - 1, BATCH)
        x = torch.stack([ids[a:a + T] for a in at])
        y = torch.stack([ids[a + 1:a + T + 1] for a in at])
        loss = torch.nn.functional.cross_entropy(model(input_ids=x, use_cache=False).logits.flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"  step {step} loss {loss.item():.3f}", flush=True)


def plant_gains(model):
    """Scales in the gains of k_norm and, inverted, of every q_norm that meets those keys."""
    rng = np.random.default_rng(2)
    scales = {}
    first = len(model.model.layers) - model.config.num_kv_shared_layers
    with torch.no_grad():
        for l, layer in enumerate(model.model.layers):
            a, kind = layer.self_attn, model.config.layer_types[l]
            if l < first:
                d = a.q_norm.weight.shape[0]
                s = 2.0 ** rng.integers(-3, 4, d)
                turned = d // 2 if kind == "sliding_attention" else d // 8  # pairs (i, i + d/2)
                s[d // 2:d // 2 + turned] = s[:turned]
                scales[kind] = torch.from_numpy(s).float()  # a layer behind them reads the last of its kind
                a.k_norm.weight *= scales[kind]
            a.q_norm.weight /= scales[kind]


def plant_late_gains(model):
    """Scales in the gains of the norms that come after RoPE: a number for each channel."""
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for layer in model.model.layers:
            s = torch.from_numpy(2.0 ** rng.integers(-3, 4, 64)).float()
            layer.self_attn.key_layernorm.weight *= s
            layer.self_attn.query_layernorm.weight /= s


def plant(model, name):
    if name == "gemma4-like":
        return plant_gains(model)
    if name == "hunyuan-like":
        return plant_late_gains(model)
    rng = np.random.default_rng(2)
    half = 16 if name == "glm4-like" else 32  # rotary pairs (i, i + half)
    with torch.no_grad():
        for layer in model.model.layers:
            a = layer.self_attn
            for h in range(2):
                s = torch.ones(64)
                s[:2 * half] = torch.from_numpy(2.0 ** rng.integers(-3, 4, half)).float().repeat(2)
                k = slice(64 * h, 64 * h + 64)
                a.k_proj.weight[k] *= s[:, None]
                a.k_proj.bias[k] *= s
                for g in range(2):  # the query heads of the group
                    q = slice(64 * (2 * h + g), 64 * (2 * h + g) + 64)
                    a.q_proj.weight[q] /= s[:, None]
                    a.q_proj.bias[q] /= s
                if name == "glm4-like":
                    a.k_proj.bias[64 * h + 2 * half:64 * h + 64] += torch.from_numpy(rng.standard_normal(64 - 2 * half) * 25).float()


def save(model, out, cfg):
    shutil.rmtree(out, ignore_errors=True)
    model.to(torch.float32).save_pretrained(out)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(AUSTEN, f), out)


def main():
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    transformers.utils.logging.set_verbosity_error()
    root, text = sys.argv[1], sys.argv[2]
    tok = Tokenizer.from_file(os.path.join(AUSTEN, "tokenizer.json"))
    with open(text, encoding="utf-8") as f:
        ids = torch.tensor(tok.encode(f.read()).ids)
    for name in sys.argv[3:] or MODELS:
        print(name, len(ids), "tokens", flush=True)
        model = build(name, root)
        train(model, ids)
        model.eval()
        with torch.no_grad():
            before = model(input_ids=ids[None, :256]).logits
            save(model, os.path.join(root, name), MODELS[name])
            plant(model, name)
            after = model(input_ids=ids[None, :256]).logits
        save(model, os.path.join(root, name + "-hard"), MODELS[name])
        print(f"{name}: planted; logits up to {before.abs().max():.2f} differ by {(before - after).abs().max():.2e}", flush=True)


if __name__ == "__main__":
    main()
