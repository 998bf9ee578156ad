#!/usr/bin/env python3
"""Quantises a GGUF file as llama-quantize does, with llama_model_quantize of a prebuilt libllama.

    stock_quantize.py LIBRARIES IN.gguf OUT.gguf TYPE [IMATRIX.gguf]    # TYPE as llama-quantize takes it: Q3_K_M

LIBRARIES is a folder with libggml-base, libggml and libllama. Standard library only. The structs are
those of the release that scripts/ci/libllama.sh fetches.
"""
import ctypes
import glob
import os
import struct
import sys

TYPES = {"Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41}


class Params(ctypes.Structure):
    _fields_ = ([(n, ctypes.c_int32) for n in ("threads", "ftype", "output_type", "embedding_type")]
                + [(n, ctypes.c_bool) for n in ("requantize", "quantize_output", "copy", "pure", "split", "dry_run")]
                + [("imatrix", ctypes.c_void_p)] + [(n, ctypes.c_void_p) for n in "bcdefgh"])  # more than the struct has


class Entry(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def importances(path):
    """Means of squares by matrix: of the GGUF file that llama-imatrix writes, sums over counts, ones where nothing was counted."""
    raw = open(path, "rb").read()
    at = 4

    def take(form):
        nonlocal at
        x = struct.unpack_from("<" + form, raw, at)[0]
        at += struct.calcsize("<" + form)
        return x

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return raw[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            kind, n = take("I"), take("Q")
            return [value(kind) for _ in range(n)]
        return take("BbHhIif?__QqD"[kind] if kind < 10 else "Qqd"[kind - 10])

    assert take("I") == 3
    tensors, keys = take("Q"), take("Q")
    meta = {}
    for _ in range(keys):
        key = text()
        meta[key] = value(take("I"))
    infos = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(tensors)]
    align = meta.get("general.alignment", 32)
    start = (at + align - 1) // align * align
    found = {}
    for name, shape, kind, offset in infos:
        n = 1
        for d in shape:
            n *= d
        assert kind == 0, name
        found[name] = struct.unpack_from(f"<{n}f", raw, start + offset)
    out = {}
    for name, sums in found.items():
        if name.endswith(".in_sum2"):
            counts = found[name[:-len("in_sum2")] + "counts"]
            each = len(sums) // len(counts)
            f32 = ctypes.c_float * len(sums)
            # float32 over float32, rounded once: double holds the quotient well enough for that.
            out[name[:-len(".in_sum2")]] = f32(*(x / counts[i // each] if counts[i // each] > 0 else 1 for i, x in enumerate(sums)))
    return out


def load(folder):
    def first(stem):
        found = sorted(glob.glob(os.path.join(folder, stem + ".so")) + glob.glob(os.path.join(folder, stem + ".v*.so")))
        if not found:
            raise SystemExit(f"{folder}: no {stem}")
        return ctypes.CDLL(found[0], mode=ctypes.RTLD_GLOBAL)

    first("libggml-base")
    first("libggml")
    return first("libllama")


def main():
    folder, source, target, name = sys.argv[1:5]
    lib = load(folder)
    lib.llama_model_quantize_default_params.restype = Params
    p = lib.llama_model_quantize_default_params()
    p.threads, p.ftype = 1, TYPES[name]
    if len(sys.argv) > 5:
        data = importances(sys.argv[5])
        entries = (Entry * (len(data) + 1))(*((n.encode(), ctypes.addressof(x), len(x)) for n, x in data.items()))
        p.imatrix = ctypes.addressof(entries)
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(p)):
        raise SystemExit(f"{source} cannot be quantised to {name}")


if __name__ == "__main__":
    main()
