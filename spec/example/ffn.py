"""Reads a file with rotations of FFN inputs, rotates inputs and rows, and codes rows as signs, with numpy alone. After spec/ffn-rotations.md; see test_decode.py."""
import json
import re

import numpy as np

import decode


class FFNRotations:
    """Rotations of FFN inputs, spec/ffn-rotations.md. layers[l] = (ffn_input, ffn_neurons), each [experts, blocks, n, n]."""

    def __init__(self, path):
        meta, tensors = decode.read_model(path)
        keys = {k[len("phaseconv."):]: v for k, v in meta.items() if k.startswith("phaseconv.")}
        limits = {"ffn.version": (1, 1), "ffn.layers": (1, 4096), "ffn.block": (1, 4096), "ffn.rows": (2, 2**30)}
        texts = ["ffn.basis", "ffn.seed", "ffn.measured", "source.sha256", "tool"]
        if set(keys) != set(limits) | set(texts) or not all(isinstance(keys[k], str) for k in texts) or meta.get("general.architecture", "phaseconv") != "phaseconv":
            raise ValueError(f"keys {set(keys) ^ (set(limits) | set(texts))}, or not texts")
        for k, (low, high) in limits.items():
            if not re.fullmatch("[0-9]+", str(keys[k])) or not low <= int(keys[k]) <= high:
                raise ValueError(f"key phaseconv.{k} is {keys[k]}")
            keys[k] = int(keys[k])
        if keys["ffn.basis"] not in ("own", "shared") or not re.fullmatch("[0-9a-f]{64}", keys["source.sha256"]):
            raise ValueError("key phaseconv.ffn.basis or phaseconv.source.sha256")
        self.keys, self.measured, self.layers, used = keys, json.loads(keys["ffn.measured"]), {}, 0
        for l in range(keys["ffn.layers"]):
            names = [f"blk.{l}.{x}.rotation" for x in ("ffn_input", "ffn_neurons")]
            if not any(n in tensors for n in names):
                continue
            both = [np.frombuffer(tensors[n][2], "<f4").reshape(tensors[n][1]) for n in names]
            for n, r in zip(names, both):
                if tensors[n][0] != "F32" or r.ndim != 4 or r.shape[2] != r.shape[3] or r.shape[2] > keys["ffn.block"] or not np.isfinite(r).all() or \
                        len(r) != len(both[0]) or keys["ffn.basis"] == "shared" and len(r) != 1 or \
                        abs(r.astype("f8") @ np.swapaxes(r, -1, -2).astype("f8") - np.eye(r.shape[2])).max() > 1e-5:
                    raise ValueError(f"tensor {n}")
            self.layers[l], used = both, used + 2
        if not used or used != len(tensors):
            raise ValueError(f"{len(tensors)} tensors, {used} of them rotations")


def rotate(blocks, x):
    """R x of rows x, [n, d], with one expert's rotation [blocks, n, n]."""
    return np.einsum("irc,nic->nir", blocks, x.reshape(len(x), len(blocks), -1)).reshape(x.shape)


def encode_rows(blocks, rows):
    """Rows of a matrix as signs, [n, d], and scales."""
    z = rotate(blocks.astype(np.float64), rows)
    return np.where(z < 0, -1, 1), np.minimum(abs(z).mean(1), 65504).astype(np.float16)
