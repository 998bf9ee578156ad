#!/usr/bin/env python3
"""Quantises rows with importances, each with its own, by ggml_quantize_chunk of a prebuilt libggml.

    stock_chunk.py LIBRARIES TYPE COLUMNS ROWS IMPORTANCES OUT

TYPE is the number that GGUF has for it; ROWS and IMPORTANCES are files of little-endian float32, as many rows
in either; OUT gets the rows as they are stored. Standard library only.
"""
import ctypes
import os
import sys


def main():
    folder, kind, columns, rows, importances, out = sys.argv[1:]
    kind, columns = int(kind), int(columns)
    ggml = ctypes.CDLL(os.path.join(folder, "libggml-base.so"))
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    size = ggml.ggml_row_size(kind, columns)
    with open(rows, "rb") as a, open(importances, "rb") as b, open(out, "wb") as o:
        while x := a.read(4 * columns):
            y = b.read(4 * columns)
            to = ctypes.create_string_buffer(size)
            if ggml.ggml_quantize_chunk(kind, x, to, 0, 1, columns, y) != size:
                raise SystemExit(f"type {kind} cannot be quantised")
            o.write(to.raw)


if __name__ == "__main__":
    main()
