"""Makes the golden files of this folder with the PyPI package safetensors 0.8.0
(and numpy). Running it again gives the same bytes.

    python gen.py            writes kinds.safetensors, kinds.json, verdicts.json
    python gen.py read FILE  prints what safetensors finds in FILE, as JSON
"""

import base64
import ctypes
import hashlib
import json
import os
import struct
import sys

import numpy as np
import safetensors
from safetensors import TensorSpec, deserialize, serialize

HERE = os.path.dirname(os.path.abspath(__file__))

# Name in serialize(), bits per element. Every element type of the package.
TYPES = [
    ("bool", 8), ("float4_e2m1fn_x2", 4), ("uint8", 8), ("int8", 8), ("float8_e5m2", 8), ("float8_e4m3fn", 8),
    ("float8_e8m0fnu", 8), ("float8_e4m3fnuz", 8), ("float8_e5m2fnuz", 8),
    ("int16", 16), ("uint16", 16), ("float16", 16), ("bfloat16", 16), ("int32", 32), ("uint32", 32),
    ("float32", 32), ("float64", 64), ("int64", 64), ("uint64", 64), ("complex64", 64),
]


def describe(raw):
    """What safetensors sees: name, type, shape and bytes of every tensor, by name."""
    out = []
    for name, t in sorted(deserialize(raw)):
        data = bytes(t["data"])
        out.append({"name": name, "dtype": t["dtype"], "shape": t["shape"], "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest()})
    return out


def kinds():
    rng = np.random.default_rng(7)
    tensors, keep = {}, []

    def add(name, dtype, shape, data):
        buf = ctypes.create_string_buffer(data, len(data)) if data else ctypes.create_string_buffer(1)
        keep.append(buf)
        tensors[name] = TensorSpec(dtype=dtype, shape=shape, data_ptr=ctypes.addressof(buf), data_len=len(data))

    for name, bits in TYPES:
        elements = 6
        data = rng.integers(0, 2, elements, dtype=np.uint8).tobytes() if name == "bool" else rng.bytes(elements * bits // 8)
        # A packed pair of 4-bit numbers counts as one element for serialize.
        add("all." + name, name, [3] if bits == 4 else [2, 3], data)
    x = np.concatenate([np.array([0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8, 3e38, np.inf, -np.inf], dtype=np.float32),
                        rng.standard_normal(15, dtype=np.float32)]).reshape(4, 6)
    add("x.f32", "float32", [4, 6], x.tobytes())
    with np.errstate(over="ignore"):
        add("x.f16", "float16", [4, 6], x.astype(np.float16).tobytes())
    # BF16 by round to nearest even on the bits; no NaN among the values.
    u = x.view(np.uint32)
    add("x.bf16", "bfloat16", [4, 6], (((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)).tobytes())
    add("scalar", "float32", [], struct.pack("<f", 1.5))
    add("empty", "float16", [0], b"")
    add("empty.rows", "bfloat16", [3, 0, 2], b"")
    add("cube", "float32", [2, 3, 4], rng.standard_normal(24, dtype=np.float32).tobytes())
    add("na\u00efve \"quoted\" \\ \u4e2d\U0001f600\n", "uint8", [3], b"abc")
    raw = bytes(serialize(tensors, {"format": "pt", "note": "line\nbreak \u00e9"}))
    with open(os.path.join(HERE, "kinds.safetensors"), "wb") as f:
        f.write(raw)
    values = {n: [float(v) if np.isfinite(v) else repr(float(v)) for v in a.astype(np.float32).ravel()]
              for n, a in [("x.f32", x)]}
    with np.errstate(over="ignore"):
        values["x.f16"] = [float(v) if np.isfinite(v) else repr(float(v)) for v in x.astype(np.float16).astype(np.float32).ravel()]
    b = (((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint32) << 16).view(np.float32)
    values["x.bf16"] = [float(v) if np.isfinite(v) else repr(float(v)) for v in b.ravel()]
    dump("kinds.json", {"tensors": describe(raw), "values": values, "metadata": {"format": "pt", "note": "line\nbreak \u00e9"}})


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}, separators=(",", ":"))


def cases():
    """Headers, most of them wrong, with the number of data bytes behind them."""
    one = '{"a":' + entry() + "}"
    yield "plain", one, 4
    yield "empty header", "", 0
    yield "no tensors", "{}", 0
    yield "no tensors, one byte", "{}", 1
    yield "leading space", " " + one, 4
    yield "trailing spaces", one + "   ", 4
    yield "trailing white space", one + "\n\t ", 4
    yield "trailing NUL", one + "\0", 4
    yield "trailing brace", one + "}", 4
    yield "second object", one + one, 4
    for text in ["null", "[]", "1", '"a"', "true", "{", "}", '{"a"', '{"a":', '{"a":{', "{,}", '{"a":1}', '{"a":null}', '{"a":[]}', "{1:2}",
                 "\ufeff" + one, "{'a':1}", '{"a":{}}', "NaN", "Infinity"]:
        yield "json " + text[:12], text, 4
    for cut in range(1, len(one)):
        yield "cut at %d" % cut, one[:cut], 4
    yield "trailing comma", one[:-1] + ",}", 4
    yield "entry as a list", '{"a":["F32",[1],[0,4]]}', 4
    for key in ["dtype", "shape", "data_offsets"]:
        e = json.loads(entry())
        v = e.pop(key)
        yield "no " + key, json.dumps({"a": e}), 4
        yield "null " + key, json.dumps({"a": {**e, key: None}}), 4
        yield "text " + key, json.dumps({"a": {**e, key: "x"}}), 4
        yield "object " + key, json.dumps({"a": {**e, key: {}}}), 4
        yield "number " + key, json.dumps({"a": {**e, key: 1}}), 4
        yield "twice " + key, '{"a":' + entry()[:-1] + ',"%s":%s}}' % (key, json.dumps(v)), 4
        yield "other case " + key, '{"a":' + entry()[:-1] + ',"%s":%s}}' % (key.upper(), '"F16"' if key == "dtype" else "[9,9]"), 4
    for x in ["-1", "-0", "1.0", "1e0", "1e3", "01", "NaN", "Infinity", "-Infinity", "null", '"1"', "true", "[1]", "{}", "9223372036854775807", "9223372036854775808",
              "18446744073709551615", "18446744073709551616", "1" + "0" * 400, "4294967296", "2147483648"]:
        yield "dimension " + x[:24], '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % x, 4
        yield "begin " + x[:24], '{"a":{"dtype":"F32","shape":[1],"data_offsets":[%s,4]}}' % x, 4
        yield "end " + x[:24], '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}' % x, 4
    for offsets in [(), (0,), (0, 4, 8), (4, 0), (0, 3), (0, 5), (1, 5), (4, 8), (4, 4)]:
        yield "offsets %s" % (offsets,), '{"a":%s}' % entry(offsets=offsets), 4
    for shape in [(), (0,), (2,), (1, 1, 1), (1,) * 16, (1,) * 17, (0, 3), (3, 0)]:
        yield "shape of %d: %s" % (len(shape), shape[:4]), '{"a":%s}' % entry(shape=shape), 4
    for dtype, shape in [("I64", (1 << 29, 1 << 29)), ("F64", (1 << 29, 1 << 29)), ("F32", (1 << 30, 1 << 30)), ("U8", (1 << 31, 1 << 31, 4)),
                         ("F32", (1 << 20, 1 << 20, 1 << 20, 16)), ("I64", (0, 1 << 30, 1 << 30, 1 << 30)), ("F32", ((1 << 31) - 1, 0))]:
        yield "overflow %s %s" % (dtype, shape), '{"a":%s}' % entry(dtype, shape, (0, 0)), 0
    for dtype, shape, n in [("F4", (4,), 2), ("F4", (3,), 2), ("F4", (3,), 1), ("F6_E2M3", (4,), 3), ("F6_E3M2", (4,), 3), ("F6_E3M2", (3,), 3),
                            ("F8_E4M3", (3,), 3), ("F8_E5M2", (3,), 3), ("F8_E8M0", (3,), 3), ("F8_E4M3FNUZ", (3,), 3), ("F8_E5M2FNUZ", (3,), 3),
                            ("BOOL", (3,), 3), ("C64", (1,), 8), ("F64", (1,), 8), ("U64", (1,), 8), ("I64", (1,), 8), ("U32", (1,), 4), ("I32", (1,), 4),
                            ("U16", (2,), 4), ("I16", (2,), 4), ("F16", (2,), 4), ("BF16", (2,), 4), ("U8", (4,), 4), ("I8", (4,), 4),
                            ("F128", (1,), 16), ("f32", (1,), 4), ("", (1,), 4), ("I4", (8,), 4)]:
        yield "type %s %s %d" % (dtype, shape, n), '{"a":%s}' % entry(dtype, shape, (0, n)), n
    yield "two tensors", '{"a":%s,"b":%s}' % (entry(), entry(offsets=(4, 8))), 8
    yield "two tensors, other order", '{"a":%s,"b":%s}' % (entry(offsets=(4, 8)), entry()), 8
    yield "hole", '{"a":%s,"b":%s}' % (entry(), entry(offsets=(8, 12))), 12
    yield "hole at the start", '{"a":%s}' % entry(offsets=(4, 8)), 8
    yield "rest at the end", one, 8
    yield "same bytes twice", '{"a":%s,"b":%s}' % (entry(), entry()), 4
    yield "overlap", '{"a":%s,"b":%s}' % (entry(shape=(2,), offsets=(0, 8)), entry(shape=(2,), offsets=(4, 12))), 12
    yield "empty between", '{"a":%s,"e":%s,"b":%s}' % (entry(), entry(shape=(0,), offsets=(4, 4)), entry(offsets=(4, 8))), 8
    yield "empty in the middle of another", '{"a":%s,"e":%s}' % (entry(shape=(2,), offsets=(0, 8)), entry(shape=(0,), offsets=(4, 4))), 8
    yield "empty beyond the end", '{"a":%s,"e":%s}' % (entry(), entry(shape=(0,), offsets=(8, 8))), 4
    yield "data cut", one, 3
    yield "no data", one, 0
    yield "name twice, same", '{"a":%s,"a":%s}' % (entry(), entry()), 4
    yield "name twice, both data", '{"a":%s,"a":%s}' % (entry(), entry(offsets=(4, 8))), 8
    yield "name twice by an escape", '{"a":%s,"\\u0061":%s}' % (entry(), entry(offsets=(4, 8))), 8
    yield "empty name", '{"":%s}' % entry(), 4
    yield "name with a line break", '{"a\\nb":%s}' % entry(), 4
    yield "name with a raw line break", '{"a\nb":%s}' % entry(), 4
    yield "name with half a surrogate pair", '{"\\ud800":%s}' % entry(), 4
    yield "name with a surrogate pair", '{"\\ud83d\\ude00":%s}' % entry(), 4
    yield "name with the replacement character", '{"\ufffd":%s}' % entry(), 4
    yield "name not UTF-8", b'{"\xff":%s}' % entry().encode(), 4
    yield "name with a bad escape", '{"\\x":%s}' % entry(), 4
    m = lambda text: ('{"__metadata__":%s,"a":%s}' % (text, entry()), 4)
    for text in ["{}", "null", "[]", '""', "1", '{"k":"v"}', '{"k":null}', '{"k":1}', '{"k":true}', '{"k":{}}', '{"k":["v"]}', '{"k":"v","k":"w"}', '{"k":"\\ud800"}',
                 '{"k":"\ufffd"}', entry()]:
        yield ("metadata " + text[:24],) + m(text)
    yield "metadata last", '{"a":%s,"__metadata__":{"k":"v"}}' % entry(), 4
    yield "metadata twice", '{"__metadata__":{},"__metadata__":{},"a":%s}' % entry(), 4
    yield "metadata twice, null", '{"__metadata__":null,"__metadata__":{},"a":%s}' % entry(), 4
    yield "unknown key", '{"a":' + entry()[:-1] + ',"foo":{"x":[1,"y",null]}}}', 4
    yield "unknown key twice", '{"a":' + entry()[:-1] + ',"foo":1,"foo":2}}', 4
    yield "unknown key, deep", '{"a":' + entry()[:-1] + ',"foo":' + "[" * 20000 + "]" * 20000 + "}}", 4
    yield "shape, deep", '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":' + "[" * 20000 + "]" * 20000 + "}}", 4
    yield "unknown key, broken", '{"a":' + entry()[:-1] + ',"foo":[1,}}}', 4
    yield "metadata, deep", m('{"k":' * 20000 + '"v"' + "}" * 20000)[0], 4


def verdicts():
    out = []
    for name, header, n in cases():
        header = header.encode() if isinstance(header, str) else header
        raw = struct.pack("<Q", len(header)) + header + bytes(range(n))
        case = {"name": name, "header": base64.b64encode(header).decode(), "data": n}
        if len(header) > 4096:  # written as a recipe: a long run of one text
            case["header"], case["runs"] = "", runs(header)
        try:
            case["tensors"] = describe(raw)
            case["ok"] = True
        except safetensors.SafetensorError:
            case["ok"] = False
        out.append(case)
    for name, raw in [("length 0 bytes", b""), ("length 7 bytes", b"\0" * 7), ("length 2^64-1", b"\xff" * 8 + b"{}"), ("length beyond the file", struct.pack("<Q", 3) + b"{}"),
                      ("length over the limit", struct.pack("<Q", 100_000_001) + b"{}"), ("length 2^63", struct.pack("<Q", 1 << 63) + b"{}")]:
        case = {"name": name, "file": base64.b64encode(raw).decode()}
        try:
            case["tensors"] = describe(raw)
            case["ok"] = True
        except safetensors.SafetensorError:
            case["ok"] = False
        out.append(case)
    dump("verdicts.json", out)


def runs(header):
    """Splits a header into [text, times] so that deep nesting stays small on disk."""
    out, i, plain = [], 0, b""
    while i < len(header):
        for unit in [b'{"k":', b"[", b"]", b"}"]:
            k = 0
            while header.startswith(unit, i + k * len(unit)):
                k += 1
            if k >= 1000:
                out += [[plain.decode(), 1], [unit.decode(), k]]
                plain = b""
                i += k * len(unit)
                break
        else:
            plain += header[i:i + 1]
            i += 1
    return out + [[plain.decode(), 1]]


def dump(name, obj):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(obj, f, ensure_ascii=True, indent=0, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        with open(sys.argv[2], "rb") as f:
            tensors = describe(f.read())
        with safetensors.safe_open(sys.argv[2], "np") as f:
            json.dump({"tensors": tensors, "metadata": f.metadata()}, sys.stdout)
    else:
        kinds()
        verdicts()
