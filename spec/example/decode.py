"""Reads a phaseconv sidecar and decodes and scores 1-bit keys, with numpy alone.

Written from spec/code.md and spec/sidecar.md, for use see test_decode.py.
"""
import json
import re
import struct

import numpy as np

LIMITS = {"layers": (1, 4096), "head_count": (1, 4096), "head_dim": (2, 4096), "anchor": (0, 1 << 20), "sink": (0, 1 << 20),
          "recent": (0, 1 << 20), "exceptions": (0, 128), "calibration.tokens": (0, 2**31 - 1), "calibration.context": (0, 2**31 - 1)}
TEXTS = ["code", "basis", "pair_layout", "rope", "source.sha256", "weights.sha256", "calibration.sha256", "tool"]


def read_safetensors(raw):
    """Returns metadata and tensors {name: (type, shape, bytes)} of a safetensors file."""
    body = raw[8 + struct.unpack_from("<Q", raw)[0]:]
    head = json.loads(raw[8:len(raw) - len(body)])
    meta = head.pop("__metadata__", {})
    return meta, {n: (t["dtype"], tuple(t["shape"]), body[slice(*t["data_offsets"])]) for n, t in head.items()}


def read_gguf(raw):
    """Returns the same of a GGUF file of version 3. Only scalars and texts are kept as metadata."""
    at = 4
    scalars = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
    types = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}  # name, numbers and bytes of a block

    def take(form):
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, raw, at - struct.calcsize(form))[0]

    def text():
        nonlocal at
        n = take("<Q")
        at += n
        return raw[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            elem, n = take("<I"), take("<Q")
            return [value(elem) for _ in range(n)]
        return take(scalars[kind])

    if take("<I") != 3:
        raise ValueError("not GGUF version 3")
    n_tensors, n_keys = take("<Q"), take("<Q")
    meta, tensors = {}, {}
    for _ in range(n_keys):
        key = text()
        if key in meta:
            raise ValueError(f"key {key} occurs twice")
        meta[key] = value(take("<I"))
    infos = [(text(), tuple(take("<Q") for _ in range(take("<I")))[::-1], take("<I"), take("<Q")) for _ in range(n_tensors)]
    align = meta.get("general.alignment", 32)
    start = (at + align - 1) // align * align
    for name, shape, kind, offset in infos:
        label, numbers, size = types[kind]
        n = int(np.prod(shape)) // numbers * size
        if name in tensors or len(raw) < start + offset + n:
            raise ValueError(f"tensor {name} occurs twice or lies beyond the end")
        tensors[name] = (label, shape, raw[start + offset:start + offset + n])
    return meta, tensors


def read_model(path):
    raw = np.fromfile(path, np.uint8).tobytes()
    return read_gguf(raw) if raw[:4] == b"GGUF" else read_safetensors(raw)


class Sidecar:
    """keys holds the metadata without "phaseconv."; codes[layer][head] = (mean, decode, encode, gain), None for what is absent."""

    def __init__(self, path):
        meta, tensors = read_model(path)
        keys = {k[len("phaseconv."):]: v for k, v in meta.items() if k.startswith("phaseconv.")}
        if str(keys.get("version")) != "1" or meta.get("general.architecture", "phaseconv") != "phaseconv":
            raise ValueError(f"key phaseconv.version is {keys.get('version')}, or this is no sidecar")
        for k, (low, high) in LIMITS.items():
            if not re.fullmatch("[0-9]+", str(keys.get(k))) or not low <= int(keys[k]) <= high:
                raise ValueError(f"key phaseconv.{k} is {keys.get(k)}")
            keys[k] = int(keys[k])
        for k in TEXTS:
            if not isinstance(keys.get(k), str) or k.endswith("sha256") and not re.fullmatch("[0-9a-f]{64}", keys[k]):
                raise ValueError(f"key phaseconv.{k} is {keys.get(k)}")
        most = keys["head_dim"] // 2 if keys["head_dim"] <= 256 else 0
        if keys["basis"] != "post_rope" or keys["pair_layout"] not in ("half", "interleaved") or keys["head_dim"] % 2 or keys["exceptions"] > most:
            raise ValueError("basis, pair_layout, head_dim or exceptions")
        if unknown := set(keys) - set(LIMITS) - set(TEXTS) - {"version"}:
            raise ValueError(f"keys {unknown} are not of version 1")
        d, self.keys, used = keys["head_dim"], keys, 0

        def tensor(layer, head, part):
            nonlocal used
            name = f"blk.{layer}.k_code.{head}.{part}"
            if part in ("encode", "gain") and name not in tensors:
                return None
            label, shape, data = tensors[name]
            x = np.frombuffer(data, "<f4").reshape(shape)
            if label != "F32" or shape != {"mean": (d,), "gain": (1,)}.get(part, (*shape[:1], d)) or not np.isfinite(x).all():
                raise ValueError(f"tensor {name}")
            used += 1
            return x

        self.codes = [[tuple(tensor(l, h, p) for p in ("mean", "decode", "encode", "gain")) for h in range(keys["head_count"])]
                      for l in range(keys["layers"])]
        if used != len(tensors):
            raise ValueError("tensors that version 1 does not define")
        for _, decode, encode, gain in sum(self.codes, []):
            b, same = len(decode), encode is None or encode.shape == decode.shape
            if b % 8 or not 8 <= b <= min(2048, 8 * d) or not same or gain is not None and not 1 / 16 <= gain <= 16:
                raise ValueError(f"{b} signs, gain {gain}")
            if encode is None and (b != d or abs(decode.astype("f8") @ decode.T.astype("f8") - np.eye(d)).max() > 1e-5):
                raise ValueError("decode rows are not orthonormal and there is no encode")


def signs(words, b):
    """words, uint32 [n, W], to signs -1 and +1, [n, b]."""
    i = np.arange(b)
    return (words[:, i // 32] >> (i % 32).astype(np.uint32) & 1).astype(np.float32) * 2 - 1


def turn_back(x, cos, sin, layout):
    """RoPE(-n0) of rows x, [n, d], for cos and sin of n0 per pair, in float32."""
    p = np.arange(x.shape[-1] // 2)
    i, j = (p, p + len(p)) if layout == "half" else (2 * p, 2 * p + 1)
    out = np.empty_like(x)
    out[:, i], out[:, j] = x[:, i] * cos + x[:, j] * sin, x[:, j] * cos - x[:, i] * sin
    return out


def decode(words, alpha, mean, matrix, at, values):
    """k_hat of keys, [n, d], in the frame of the code. matrix is the tensor decode; exceptions are coordinates at and values, [n, X]."""
    s, t = signs(words, len(matrix)), np.zeros((len(words), len(mean)), np.float32)
    for i, row in enumerate(matrix):
        t = t + s[:, i:i + 1] * row
    hat = mean + alpha.astype(np.float32)[:, None] * t
    hat[np.arange(len(hat))[:, None], at] += values.astype(np.float32)
    return hat


def score(q, words, alpha, mean, matrix, at, values):
    """Scores of queries q, [heads, d], for keys of one block, [heads, n]; q is turned back already."""
    q, s = q.astype(np.float64), signs(words, len(matrix)).astype(np.float64)
    return (q @ mean)[:, None] + alpha.astype(np.float64) * ((q @ matrix.T) @ s.T) + (q[:, at] * values.astype(np.float64)).sum(-1)
