#!/usr/bin/env python3
"""Writes the configurations that transformers' classes have by default, as it saves them.

    python scripts/oracles/config_defaults.py format/hf/testdata/defaults.json MODEL_TYPE...

Each is read by format/hf: a key of one of them that is not known there would be refused.
"""
import json
import sys

from transformers import CONFIG_MAPPING

out = {}
for name in sys.argv[2:]:
    config = CONFIG_MAPPING[name]()
    for use_diff in (False, True):  # with all keys, and as save_pretrained does
        text = json.loads(config.to_json_string(use_diff=use_diff))
        for part in (text, *(v for v in text.values() if isinstance(v, dict))):
            for key in ("id2label", "label2id"):
                part.pop(key, None)
        out[f"{name}{'' if use_diff else ', all keys'}"] = text
with open(sys.argv[1], "w", encoding="utf-8") as f:
    f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(out.items())) + "\n}\n")
