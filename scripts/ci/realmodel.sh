#!/usr/bin/env bash
# realmodel.sh WORK: converts and verifies SmolLM2-135M from its real checkpoint,
# and fails when the numbers are not what they have been.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?work folder}
model=$(scripts/model.sh smollm2-135m "$work/models")
go build -o "$work/phaseconv" ./cmd/phaseconv
"$work/phaseconv" convert "$model" -o "$work/smol" --format gguf --calib-tokens 6144 --chunks 2
"$work/phaseconv" verify "$work/smol" --source "$model" --chunks 2 --json >"$work/verify.json"
python3 - "$work/verify.json" <<'P'
import json, sys
v = json.load(open(sys.argv[1]))
print("ok", v["ok"], "ratio", v["ppl"]["ratio"], "kld", v["kld"]["mean"], "max|dlogit|", v["function"]["max_abs_dlogit"])
assert v["ok"] and all(c["ok"] for c in v["contract"]), v["contract"]
# 1-bit keys cost a few tenths of perplexity on this model; 2.0 means that a code broke.
assert 1.0 < v["ppl"]["ratio"] < 2.0, v["ppl"]
assert v["function"]["kld_mean"] < 10 * v["function"]["floor_kld_mean"], v["function"]
P
