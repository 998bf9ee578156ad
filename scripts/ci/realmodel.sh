#!/usr/bin/env bash
# realmodel.sh WORK: converts and verifies SmolLM2-135M from its real checkpoint,
# and fails when the numbers are not what they have been.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?work folder}
model=$(scripts/model.sh smollm2-135m "$work/models")
go build -o "$work/phaseconv" ./cmd/phaseconv
# keys: 1-bit keys cost a few tenths of perplexity on this model; 2.0 means that a code broke.
# joint: keys and values of 1.5 bits behind 64 recent tokens, through the kernels, cost next to nothing.
for code in frame joint; do
	kernels=
	[ $code = frame ] || kernels=--kernels
	"$work/phaseconv" convert "$model" -o "$work/$code" --code $code --format gguf --calib-tokens 6144 --chunks 2
	# shellcheck disable=SC2086 # a word or nothing
	"$work/phaseconv" verify "$work/$code" --source "$model" --chunks 2 $kernels --json >"$work/$code.json"
done
python3 - "$work" <<'P'
import json, sys
for code, low, high, kld in ("frame", 1.0, 2.0, 0.6), ("joint", 0.9, 1.1, 0.06):
    v = json.load(open(f"{sys.argv[1]}/{code}.json"))
    print(code, "ok", v["ok"], "ratio", v["ppl"]["ratio"], "kld", v["kld"]["mean"], "max|dlogit|", v["function"]["max_abs_dlogit"])
    assert v["ok"] and all(c["ok"] for c in v["contract"]), v["contract"]
    assert low < v["ppl"]["ratio"] < high and v["kld"]["mean"] < kld, v["ppl"]
    assert v["function"]["kld_mean"] < 10 * v["function"]["floor_kld_mean"], v["function"]
P
