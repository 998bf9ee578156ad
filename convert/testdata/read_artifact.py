"""Reads an artifact of both containers with the packages gguf and safetensors and
compares it with its source, a Hugging Face folder. Prints one JSON object.

    read_artifact.py SOURCE ARTIFACT
"""
import glob
import json
import os
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

source, artifact = sys.argv[1:]


def load(folder):
    """Every tensor of a folder's model shards: name -> (shard, element type, shape, numbers)."""
    out = {}
    for path in sorted(glob.glob(os.path.join(folder, "model*.safetensors"))):
        with open(path, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        with safe_open(path, framework="np") as f:
            for name in f.keys():
                h = header[name]
                try:
                    x = f.get_tensor(name)
                except TypeError:  # numpy has no bfloat16
                    x = None
                if x is None or h["dtype"] == "BF16":
                    at = 8 + int.from_bytes(open(path, "rb").read(8), "little")
                    lo, hi = h["data_offsets"]
                    raw = np.fromfile(path, dtype=np.uint16, count=(hi - lo) // 2, offset=at + lo)
                    x = (raw.astype(np.uint32) << 16).view(np.float32).reshape(h["shape"])
                out[name] = (os.path.basename(path), h["dtype"], h["shape"], np.asarray(x, dtype=np.float32))
    return out


before, after = load(source), load(artifact)
assert list(before) == list(after), "names or shards differ"
changed = []
for name, (shard, dtype, shape, x) in before.items():
    s, d, sh, y = after[name]
    assert (s, d, sh) == (shard, dtype, shape), (name, (s, d, sh), (shard, dtype, shape))
    if not np.array_equal(x, y):
        changed.append(name)

config = json.load(open(os.path.join(source, "config.json")))
written = json.load(open(os.path.join(artifact, "config.json")))
assert written.pop("phaseconv")["version"] == 1
assert written == config, "config.json differs in more than its phaseconv object"

reader = GGUFReader(os.path.join(artifact, "model.gguf"))
tensors = {t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)]) for t in reader.tensors}
name = config["model_type"]
layers, heads, kv = config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]
d = config.get("head_dim") or config["hidden_size"] // heads


def interleave(x, heads):
    """Rows of a projection from the half to the interleaved pair layout."""
    return x.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(x.shape)


worst = 0.0
for l in range(layers):
    for hf, gg, n in (("q_proj", "attn_q", heads), ("k_proj", "attn_k", kv), ("v_proj", "attn_v", 0), ("o_proj", "attn_output", 0)):
        want = after[f"model.layers.{l}.self_attn.{hf}.weight"][3]
        if n and name in ("llama", "mistral", "mixtral"):
            want = interleave(want, n)
        got = tensors[f"blk.{l}.{gg}.weight"]
        assert got.shape == want.shape, (gg, got.shape, want.shape)
        worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))

with safe_open(os.path.join(artifact, "phaseconv.sidecar"), framework="np") as f:
    side = {n: f.get_tensor(n) for n in f.keys()}
gside = {t.name: t.data for t in GGUFReader(os.path.join(artifact, "model.phase.gguf")).tensors}
assert set(side) == set(gside), "the two sidecars differ in names"
for n in side:
    assert side[n].shape == gside[n].shape, n
print(json.dumps({"changed": changed, "worst": worst, "tensors": len(tensors), "sidecar": len(side), "dtype": before[next(iter(before))][1]}))
