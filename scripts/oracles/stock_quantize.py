#!/usr/bin/env python3
"""Quantises a GGUF file as llama-quantize does, with llama_model_quantize of a prebuilt libllama.

    stock_quantize.py LIBRARIES IN.gguf OUT.gguf TYPE    # TYPE as llama-quantize takes it: Q3_K_M

LIBRARIES is a folder with libggml-base, libggml and libllama. Standard library only. The struct is
that of the release that scripts/ci/libllama.sh fetches.
"""
import ctypes
import glob
import os
import sys

TYPES = {"Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41}


class Params(ctypes.Structure):
    _fields_ = ([(n, ctypes.c_int32) for n in ("threads", "ftype", "output_type", "embedding_type")]
                + [(n, ctypes.c_bool) for n in ("requantize", "quantize_output", "copy", "pure", "split", "dry_run")]
                + [(n, ctypes.c_void_p) for n in "abcdefgh"])  # more than the struct has


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
    folder, source, target, name = sys.argv[1:]
    lib = load(folder)
    lib.llama_model_quantize_default_params.restype = Params
    p = lib.llama_model_quantize_default_params()
    p.threads, p.ftype = 1, TYPES[name]
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(p)):
        raise SystemExit(f"{source} cannot be quantised to {name}")


if __name__ == "__main__":
    main()
