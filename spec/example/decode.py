"""Reads a phaseconv sidecar, decodes and scores 1-bit keys, sums 1-bit values, with numpy alone. After spec/code.md and spec/sidecar.md; see test_decode.py."""
import json
import re
import struct

import numpy as np

LIMITS = {"anchor": (0, 1 << 20), "sink": (0, 1 << 20), "recent": (0, 1 << 20), **{"calibration." + k: (0, 2**31 - 1) for k in ("tokens", "context")}}
LIMITS1 = {"layers": (1, 4096), "head_count": (1, 4096), "head_dim": (2, 4096), "exceptions": (0, 128)}  # of version 1 alone
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
        if kind == 9:
            elem, n = take("<I"), take("<Q")
            return [value(elem) for _ in range(n)]
        return text() if kind == 8 else take(scalars[kind])

    if take("<I") != 3:
        raise ValueError("not GGUF version 3")
    n_tensors, n_keys, meta, tensors = take("<Q"), take("<Q"), {}, {}
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
    """keys holds the metadata without "phaseconv.". Version 1 has codes[layer][head] = (mean, decode, encode, gain), None for what is absent;
    version 2 has layers, the key groups with each list of parts replaced by (parts, starts, mean, decode, encode, gain, part_gain)."""

    def __init__(self, path):
        meta, self.tensors = read_model(path)
        keys = {k[len("phaseconv."):]: v for k, v in meta.items() if k.startswith("phaseconv.")}
        version = str(keys.get("version"))
        if version not in ("1", "2") or meta.get("general.architecture", "phaseconv") != "phaseconv":
            raise ValueError(f"key phaseconv.version is {version}, or this is no sidecar")
        limits, texts = {**LIMITS, **(LIMITS1 if version == "1" else {})}, TEXTS + (["groups"] if version == "2" else [])
        for k, (low, high) in limits.items():
            if not re.fullmatch("[0-9]+", str(keys.get(k))) or not low <= int(keys[k]) <= high:
                raise ValueError(f"key phaseconv.{k} is {keys.get(k)}")
            keys[k] = int(keys[k])
        for k in texts:
            if not isinstance(keys.get(k), str) or k.endswith("sha256") and not re.fullmatch("[0-9a-f]{64}", keys[k]):
                raise ValueError(f"key phaseconv.{k} is {keys.get(k)}")
        if keys["basis"] != "post_rope" or keys["pair_layout"] not in ("half", "interleaved"):
            raise ValueError("basis or pair_layout")
        self.keys, self.used, unknown = keys, 0, set(keys) - set(limits) - set(texts) - {"version"}
        self.read_codes() if version == "1" else self.read_groups()
        if unknown or self.used != len(self.tensors):
            raise ValueError(f"keys {unknown} or tensors that version {version} does not define")

    def tensor(self, name, *shape, optional=False):
        if optional and name not in self.tensors:
            return None
        label, got, data = self.tensors[name]
        x = np.frombuffer(data, "<f4").reshape(got)
        if label != "F32" or len(got) != len(shape) or any(n not in (m, None) for m, n in zip(got, shape)) or not np.isfinite(x).all():
            raise ValueError(f"tensor {name}")
        self.used += 1
        return x

    def code(self, name, d):
        mean, decode = self.tensor(name + "mean", d), self.tensor(name + "decode", None, d)
        b = len(decode)
        encode, gain = self.tensor(name + "encode", b, d, optional=True), self.tensor(name + "gain", 1, optional=True)
        if b % 8 or not 8 <= b <= min(2048, 8 * d) or gain is not None and not 1 / 16 <= gain <= 16:
            raise ValueError(f"{name}: {b} signs, gain {gain}")
        if encode is None and (b != d or abs(decode.astype("f8") @ decode.T.astype("f8") - np.eye(d)).max() > 1e-5):
            raise ValueError(f"{name}: decode rows are not orthonormal and there is no encode")
        return mean, decode, encode, gain

    def read_codes(self):
        d = self.keys["head_dim"]
        if d % 2 or self.keys["exceptions"] > (d // 2 if d <= 256 else 0):
            raise ValueError("head_dim or exceptions")
        self.codes = [[self.code(f"blk.{l}.k_code.{h}.", d) for h in range(self.keys["head_count"])] for l in range(self.keys["layers"])]

    def read_groups(self):
        self.below = {}  # by layer and group: x_hat of decode has alpha' * signs(words', b') @ below more
        self.layers = json.loads(self.keys["groups"], object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else {})
        if len(self.keys["groups"]) > 1 << 20 or not 1 <= len(self.layers) <= 4096 or not any(y["groups"] for y in self.layers):
            raise ValueError("key phaseconv.groups")
        for l, y in enumerate(self.layers):
            n, k, v = heads = [y[x] for x in ("heads", "head_dim", "value_dim")]
            if len(y) != 4 or any(type(x) is not int or not 1 <= x <= 4096 for x in heads) or k % 2:
                raise ValueError(f"key phaseconv.groups: layer {l}: {heads}")
            seen = []
            for i, parts in enumerate(y["groups"]):
                order = [(p[0], int(p[1:])) for p in parts if re.fullmatch("[kv](0|[1-9][0-9]{0,3})", p)]
                starts = np.cumsum([0] + [k if kind == "k" else v for kind, _ in order]).tolist()
                if not parts or len(order) != len(parts) or order != sorted(set(order)) or starts[-1] > 2048:
                    raise ValueError(f"key phaseconv.groups: layer {l}: {parts}")
                seen += order
                name = f"blk.{l}.kv_code.{i}."
                h = self.tensor(name + "part_gain", len(parts), optional=True)
                y["groups"][i] = (parts, starts, *self.code(name, starts[-1]), h)
                below, lower = self.tensor(name + "below", None, starts[-1], optional=True), self.layers[l - 1] if l else {"groups": []}
                if below is not None:
                    given = dict(enumerate(lower["groups"])).get(i)
                    if not given or (given[0], given[1], len(given[3])) != (parts, starts, len(below)) or (l - 1, i) in self.below:
                        raise ValueError(f"tensor {name}below: no such group in the layer below")
                    self.below[l, i] = below
                if h is not None and not ((h >= 1 / 16) & (h <= 16)).all() or not np.isfinite(fold(y["groups"][i])).all():
                    raise ValueError(f"tensor {name}part_gain, or decode times it")
            for kind in "kv":
                if sorted(h for x, h in seen if x == kind) not in ([], list(range(n))):
                    raise ValueError(f"key phaseconv.groups: layer {l}: not all heads, or one twice")


def fold(group):
    """The decode matrix of a group with the gains of its parts, [b, D]."""
    _, starts, _, decode, _, _, part_gain = group
    return decode if part_gain is None else decode * np.repeat(part_gain, np.diff(starts))


def signs(words, b):
    """words, uint32 [n, W], to signs -1 and +1, [n, b]."""
    i = np.arange(b)
    return (words[:, i // 32] >> (i % 32).astype(np.uint32) & 1).astype(np.float32) * 2 - 1


def turn_back(x, cos, sin, layout):
    """RoPE(-n0) of rows x, [n, d], for cos and sin of n0 per turned pair, in float32."""
    p = np.arange(cos.shape[-1])
    i, j = (p, p + len(p)) if layout == "half" else (2 * p, 2 * p + 1)
    out = x.copy()
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


def sums(weights, words, alpha, mean, matrix):
    """Sums over the decoded values of n tokens with weights [heads, n]: the columns of one part of mean and fold(group). [heads, d]"""
    w = weights.astype(np.float64)
    return w.sum(1)[:, None] * mean + (w * alpha) @ signs(words, len(matrix)) @ matrix


def transposed(words, b):
    """words [n, W] of signs as blocks of 32 tokens: word i of a block has sign i, its bit j is token j. [n/32 rounded up, 32 W]"""
    n, w = words.shape
    bits = np.zeros(((n + 31) // 32, 32, 32 * w), np.uint32)
    bits.reshape(-1, 32 * w)[:n, :b] = signs(words, b) > 0
    return (bits << np.arange(32, dtype=np.uint32)[:, None]).sum(1, dtype=np.uint32)
