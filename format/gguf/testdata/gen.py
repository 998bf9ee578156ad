#!/usr/bin/env python3
"""Makes the golden files of this folder from gguf-py and llama.cpp's libggml.

    python gen.py FOLDER_WITH_LIBGGML [OUTPUT_FOLDER [EXTRA_ROWS]]

EXTRA_ROWS adds random rows to quant.gguf; the committed file has none.

Needs the Python packages gguf (0.19 was used) and numpy, and a build of llama.cpp
for x86-64: libggml-base.so (built without -march, so without FMA) and
libggml-cpu.so. Where gguf-py and libggml both can do something, they must agree.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

here = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
base = ctypes.CDLL(str(Path(sys.argv[1]) / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
cpu = ctypes.CDLL(str(Path(sys.argv[1]) / "libggml-cpu.so"))
base.ggml_type_size.restype = ctypes.c_size_t
base.ggml_blck_size.restype = ctypes.c_int64
base.ggml_type_name.restype = ctypes.c_char_p
rng = np.random.default_rng(20240601)

# Every id that libggml knows, with its block, for TestTypeTable.
with open(here / "types.txt", "w") as f:
    for t in range(43):
        if base.ggml_blck_size(t):
            name = base.ggml_type_name(t).decode()
            f.write(f"{t} {name} {base.ggml_blck_size(t)} {base.ggml_type_size(t)}\n")


def ptr(a):
    return ctypes.c_void_p(a.ctypes.data)


def to_float(c_name, raw, n):
    out = np.empty(n, np.float32)
    getattr(base, "dequantize_row_" + c_name)(ptr(raw), ptr(out), ctypes.c_int64(n))
    return out


def from_float(lib, symbol, x, t):
    n = x.size // base.ggml_blck_size(t) * base.ggml_type_size(t)
    out = np.zeros(n, np.uint8)
    getattr(lib, symbol)(ptr(x), ptr(out), ctypes.c_int64(x.size))
    return out


def new_writer(name):
    return gguf.GGUFWriter(str(here / name), "golden")


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---- dequantisation: random blocks in, numbers out. Bytes are stored as I8.

F16_SCALES = {  # byte positions of F16 scales in a block
    "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2],
    "q2_K": [80, 82], "q3_K": [108], "q4_K": [0, 2], "q5_K": [0, 2], "q6_K": [208],
    "iq4_nl": [0], "iq4_xs": [0], "tq1_0": [52], "tq2_0": [64], "q1_0": [0], "q2_0": [0],
    "q8_K": [], "mxfp4": [], "nvfp4": [],
}
IDS = {
    "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q2_K": 10, "q3_K": 11, "q4_K": 12,
    "q5_K": 13, "q6_K": 14, "q8_K": 15, "iq4_nl": 20, "iq4_xs": 23, "tq1_0": 34, "tq2_0": 35,
    "mxfp4": 39, "nvfp4": 40, "q1_0": 41, "q2_0": 42,
}

w = new_writer("dequant.gguf")
for name, positions in F16_SCALES.items():
    t = IDS[name]
    block, size = base.ggml_blck_size(t), base.ggml_type_size(t)
    blocks = rng.integers(0, 256, (1024 // block, size), dtype=np.uint8)
    for p in positions:
        # Ordinary scales, some subnormal, zero or huge ones, one infinity.
        s = (rng.standard_normal(len(blocks)) * 10.0 ** rng.integers(-4, 3, len(blocks))).astype(np.float16)
        s[0] = np.float16(6.1e-5) / 3
        s[1] = np.float16(-0.0)
        s[2] = np.float16(65504)
        s[-1] = np.inf
        blocks[:, p : p + 2] = s.reshape(-1, 1).view(np.uint8)
    if name == "q8_K":
        blocks[:, :4] = rng.standard_normal((len(blocks), 1)).astype(np.float32).view(np.uint8)
    if name == "mxfp4":
        blocks[:5, 0] = [0, 1, 2, 254, 255]
    if name == "nvfp4":
        blocks[:2, :4] = [[0, 0x7F, 1, 7], [8, 0x7E, 0x80, 0xFF]]
    raw = np.ascontiguousarray(blocks).reshape(-1)
    with np.errstate(all="ignore"):
        out = to_float(name, raw, 1024)
        if name not in ("q8_K", "q1_0", "q2_0"):  # which gguf-py lacks
            other = gguf.quants.dequantize(raw, Q(t)).reshape(-1)
            same = (out.view(np.uint32) == other.view(np.uint32)) | (np.isnan(out) & np.isnan(other))
            assert same.all(), (name, np.flatnonzero(~same)[:5], out[~same][:5], other[~same][:5])
    w.add_tensor(f"{name}.in", raw.view(np.int8))
    w.add_tensor(f"{name}.out", out)
finish(w)

# ---- the IQ types with tables: the tables themselves, for the package, and blocks as above

iq = np.random.default_rng(20261130)  # of its own: the numbers of other files stay
tables = b""
for name, width in (("IQ2_XXS", 2), ("IQ2_XS", 2), ("IQ2_S", 2), ("IQ1_S", 2), ("IQ3_XXS", 4), ("IQ3_S", 4)):
    kind = getattr(gguf.quants, name)
    kind.init_grid()
    index = np.searchsorted(kind.grid_map, np.asarray(kind.grid, np.int64).reshape(-1, 8 // width))
    assert (np.asarray(kind.grid_map)[index.reshape(-1)] == np.asarray(kind.grid).reshape(-1)).all()
    tables += (index << np.arange(0, 8, width)).sum(1).astype(np.uint8).tobytes()
(here.parent / "grids.bin" if len(sys.argv) < 3 else here / "grids.bin").write_bytes(tables)

w = new_writer("dequant_iq.gguf")
for name, t in (("iq2_xxs", 16), ("iq2_xs", 17), ("iq3_xxs", 18), ("iq1_s", 19), ("iq3_s", 21), ("iq2_s", 22), ("iq1_m", 29)):
    block, size = base.ggml_blck_size(t), base.ggml_type_size(t)
    blocks = iq.integers(0, 256, (5, size), dtype=np.uint8)
    s = (iq.standard_normal(5) * 10.0 ** iq.integers(-4, 2, 5)).astype(np.float16)
    s[:3] = [np.float16(6.1e-5) / 3, np.float16(-0.0), np.float16(65504)]
    if name == "iq1_m":  # four bits of the scale at the top of each of four words
        for k in range(4):
            blocks[:, 49 + 2 * k] = blocks[:, 49 + 2 * k] & 15 | (s.view(np.uint16) >> (4 * k) & 15).astype(np.uint8) << 4
    else:
        blocks[:, :2] = s.reshape(-1, 1).view(np.uint8)
    raw = np.ascontiguousarray(blocks).reshape(-1)
    with np.errstate(all="ignore"):
        out = to_float(name, raw, 5 * block)
        other = gguf.quants.dequantize(raw, Q(t)).reshape(-1)
    assert (out.view(np.uint32) == other.view(np.uint32)).all(), name
    w.add_tensor(f"{name}.in", raw.view(np.int8))
    w.add_tensor(f"{name}.out", out)
finish(w)

# ---- quantisation

ROW = 256
rows = []


def row(x):
    x = np.asarray(x, np.float32)
    rows.append(np.resize(x, ROW))


row([0.0])
row([-0.0])
row([1.0])
row([-1.0])
row([0.1])
row(np.concatenate([[127.0], np.arange(31) + 0.5, [-127.0], -np.arange(31) - 0.5, [127], np.arange(31) - 63.5]))  # Q8_0 ties
row(np.concatenate([[-8.0], np.arange(31) * 0.5 - 7.5, [8.0], np.arange(31) * 0.5 - 8]))  # Q4_0 ties
row(np.concatenate([[-16.0], np.arange(31) * 0.5 - 7.5, [16.0], np.arange(31) - 15.5]))  # Q5_0 ties
row(np.concatenate([[0.0, 15.0], np.arange(30) * 0.5, [-7, 8], np.arange(30) * 0.5 - 7]))  # Q4_1 ties
row(np.concatenate([[0.0, 31.0], np.arange(30) + 0.5, [-3, 28], np.arange(30) - 2.5]))  # Q5_1 ties
levels = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
row(np.concatenate([[-127.0], (levels[1:] + levels[:-1]) / 2, levels, [127], -(levels[1:] + levels[:-1]) / 2, -levels]))
row(np.concatenate([[3.0, -3.0], np.zeros(30), [-3.0, 3.0], np.zeros(30)]))  # the first extreme decides
row(np.concatenate([[0.0] * 17, [5.0], [0.0] * 14]))
row(rng.standard_normal(ROW) * 1e-15)  # about IQ4_NL's idea of zero
row(rng.standard_normal(ROW) * 1e-36)
row(rng.standard_normal(ROW) * 1e-38)
row(rng.standard_normal(ROW) * 1e-41)
row(rng.integers(-3, 4, ROW) * 1.401298464324817e-45)
row(rng.standard_normal(ROW) * 1e6)  # scales that F16 cannot hold
row(rng.standard_normal(ROW) * 1e18)
row(rng.uniform(-1, 1, ROW) * 3.4e38)  # max - min overflows
for e in np.linspace(-7, 4, 12):
    row(rng.standard_normal(ROW) * 10**e)
for _ in range(4):
    row(rng.uniform(-1, 1, ROW))
    row(rng.standard_t(2, ROW))
    row(np.round(rng.standard_normal(ROW) * 8) / 8)  # many ties
    row(rng.standard_normal(ROW) * 0.02 + rng.standard_normal())

# Rows whose scale, as F16, shows in which order sums and products were rounded.
f32 = np.float32


def iq4_scale(x, right):  # IQ4_NL's least squares: (x*x)*q, or x*(x*q) if not right
    codes = levels[np.abs(levels[None, :] - (x * (f32(1) / (x[np.abs(x).argmax()] / f32(-127))))[:, None]).argmin(1)].astype(f32)
    num = den = f32(0)
    for v, q in zip(x, codes):
        wq = (v * v) * q if right else v * (v * q)
        num, den = num + wq * v, den + wq * q
    return np.float16(num / den)


def in_order(x):
    total = f32(0)
    for v in x:
        total += v
    return total


def search(n, width, differs):
    found = []
    while len(found) < n:
        x = rng.standard_normal(width).astype(f32)
        if differs(x):
            found.append(x)
    return np.concatenate(found)


row(search(8, 32, lambda x: iq4_scale(x, True) != iq4_scale(x, False)))
row(search(2, 128, lambda x: np.float16(in_order(np.abs(x)) / f32(128)) != np.float16(np.abs(x).sum() / f32(128))))

extra = int(sys.argv[3]) if len(sys.argv) > 3 else 0
for _ in range(extra):
    row(rng.standard_normal(ROW) * np.exp(rng.uniform(-6, 6)))
x = np.stack(rows)

w = new_writer("quant.gguf")
w.add_tensor("src", x)
cases = [(name, base, f"quantize_row_{name}_ref", name) for name in
         ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q1_0")]
cases += [(name.lower(), base, f"quantize_row_{name}_ref", name) for name in
          ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q2_0", "mxfp4")]
cases.append(("q8_0.cache", cpu, "quantize_row_q8_0", "q8_0"))
for label, lib, symbol, name in cases:
    t = IDS[name]
    out = from_float(lib, symbol, x, t)
    if name == "iq4_nl":
        # libggml leaves the codes of a block below 1e-15 undefined; take zero's.
        blocks = out.reshape(-1, 18)
        dead = np.abs(x.reshape(-1, 32)).max(1) < np.float32(1e-15)
        assert not blocks[dead, :2].any()
        blocks[dead, 2:] = 0x88
    if label in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        with np.errstate(all="ignore"):
            other = gguf.quants.quantize(x, Q(t)).reshape(len(x), -1)
        differ = np.flatnonzero((other != out.reshape(len(x), -1)).any(1))
        print(f"{label}: gguf-py differs from libggml in rows {differ.tolist()}")
        assert set(differ.tolist()) <= {1}  # the sign of the scale of a block of -0
    w.add_tensor(label, out.view(np.int8))
# F16 and BF16 of numbers about every rounding decision, NaN left out.
bits = rng.integers(0, 1 << 32, 4096, dtype=np.uint64).astype(np.uint32)
bits[::2] = (bits[::2] & 0x80FFF000) | (rng.integers(100, 145, len(bits[::2])).astype(np.uint32) << 23) | rng.choice(
    np.array([0, 0x0FFF, 0x1000, 0x1001], np.uint32), len(bits[::2]))
f = bits.view(np.float32)
f = f[~np.isnan(f)]
w.add_tensor("halves.src", f)
with np.errstate(all="ignore"):
    w.add_tensor("f16", f.astype(np.float16).view(np.int8))
w.add_tensor("bf16", gguf.quants.quantize(f, Q.BF16).view(np.int8))
finish(w)

# ---- metadata of every kind and tensors of several types; TestGoldenKinds has the values

w = new_writer("kinds.gguf")
w.add_custom_alignment(64)
V = gguf.GGUFValueType
for name, value in [("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4000000000),
                    ("int32", -2000000000), ("uint64", 18000000000000000000), ("int64", -9000000000000000000),
                    ("float32", 0.1), ("float64", 0.1), ("bool", True), ("string", "grüße\n")]:
    w.add_key_value("golden." + name, value, V[name.upper()])
for name, value in [("uint8", [0, 255]), ("int8", [-128, 127]), ("uint16", [1, 65535]), ("int16", [-32768, 5]),
                    ("uint32", [7, 4294967295]), ("int32", [-5, 6]), ("uint64", [1, 18446744073709551615]),
                    ("int64", [-9223372036854775808, 3]), ("float32", [1.5, -0.1]), ("float64", [1e300, -0.1]),
                    ("bool", [True, False, True]), ("string", ["a", "", "ü", "x" * 300])]:
    w.add_key_value("golden.array." + name, value, V.ARRAY, sub_type=V[name.upper()])
a = np.arange(6 * 64, dtype=np.float32).reshape(2, 3, 64) / 8 - 20
w.add_tensor("f32", a)
w.add_tensor("f16", a[0].astype(np.float16))
w.add_tensor("f64", a[1].astype(np.float64))
w.add_tensor("bf16", gguf.quants.quantize(a, Q.BF16), raw_dtype=Q.BF16)
w.add_tensor("q8_0", gguf.quants.quantize(a, Q.Q8_0), raw_dtype=Q.Q8_0)
w.add_tensor("q4_0", gguf.quants.quantize(a[0, 0], Q.Q4_0), raw_dtype=Q.Q4_0)
w.add_tensor("i32", np.arange(5, dtype=np.int32))
w.add_tensor("scalar", np.array(2.5, dtype=np.float32))
finish(w)

# ---- a split of three files

w = gguf.GGUFWriter(str(here / "split.gguf"), "golden", split_max_tensors=2)
w.add_string("general.name", "split")
for i in range(5):
    w.add_tensor(f"blk.{i}.weight", np.full((2, 8), i, np.float32))
finish(w)
