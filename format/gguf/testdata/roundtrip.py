"""Prints as JSON what gguf-py reads in a GGUF file: metadata, and per tensor its
type, dimensions and the SHA-256 of its stored bytes and of its dequantised
float32 values (NaN made equal)."""

import hashlib
import json
import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize

reader = GGUFReader(sys.argv[1])
stride = int(sys.argv[2]) if len(sys.argv) > 2 else 1  # dequantise every stride-th tensor


def plain(v):
    if isinstance(v, list):
        return [plain(x) for x in v]
    # Floats as bits, integers as text: JSON numbers of Go and Python differ.
    if isinstance(v, bool):
        return v
    if isinstance(v, float):
        return np.float64(v).tobytes()[::-1].hex()
    return str(v)


out = {"alignment": int(reader.alignment), "kv": {}, "tensors": []}
for name, field in reader.fields.items():
    if name.startswith("GGUF."):
        continue
    kinds = [t.name for t in field.types]
    out["kv"][name] = {"kinds": kinds, "value": plain(field.contents()) if field.data else []}
for i, t in enumerate(reader.tensors):
    item = {
        "name": t.name,
        "type": t.tensor_type.name,
        "dims": [int(d) for d in t.shape],
        "offset": t.data_offset,
        "sha256": hashlib.sha256(t.data.tobytes()).hexdigest(),
    }
    if i % stride == 0:
        try:
            x = dequantize(t.data, t.tensor_type).astype(np.float32)
            x[np.isnan(x)] = np.nan
            item["float32"] = hashlib.sha256(x.tobytes()).hexdigest()
        except (NotImplementedError, AttributeError):
            pass
    out["tensors"].append(item)
json.dump(out, sys.stdout)
