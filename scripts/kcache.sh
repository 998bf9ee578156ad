#!/usr/bin/env bash
# kcache.sh SRC TEXT [CHUNKS] [CTX]: what the folded identities do for the 4-bit and
# 8-bit key caches of stock llama.cpp. Converts SRC (a Hugging Face folder or a GGUF
# file) without and with the K/Q pair balance, everything else alike, and prints
# perplexity and divergence of both with F16, Q8_0 and Q4_0 keys, measured by stock
# llama-perplexity against the unbalanced file with F16 keys.
#   LLAMA_CPP_BIN  folder with llama-perplexity
#   CONVERT_FLAGS  more options of phaseconv convert
set -euo pipefail
src=${1:?source} text=${2:?held-out text} chunks=${3:-4} ctx=${4:-512}
bin=${LLAMA_CPP_BIN:?name the folder with llama-perplexity}/llama-perplexity
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$here" && go build -o "$work/phaseconv" ./cmd/phaseconv)
for b in false true; do
	"$work/phaseconv" convert "$src" -o "$work/$b" --balance=$b --code frame --chunks 1 ${CONVERT_FLAGS:-} >"$work/$b.txt" ||
		{ cat "$work/$b.txt"; exit 1; }
done
run() { "$bin" -f "$text" -c "$ctx" --chunks "$chunks" --no-warmup "$@" 2>&1; }
run -m "$work/false/model.gguf" --save-all-logits "$work/base" >"$work/base.txt" || { tail -5 "$work/base.txt"; exit 1; }
printf '%-10s %-6s %12s %22s %18s\n' model keys 'PPL ratio' 'KLD' 'same top'
for b in false true; do
	for t in f16 q8_0 q4_0; do
		run -m "$work/$b/model.gguf" -ctk $t --kl-divergence-base "$work/base" --kl-divergence >"$work/out" || { tail -5 "$work/out"; exit 1; }
		awk -v m=$([ $b = true ] && echo balanced || echo as-is) -v t=$t '
			/^Mean PPL\(Q\)\/PPL\(base\)/ {r = $3} /^Mean +KLD/ {k = $3 " " $4 " " $5} /^Same top p/ {s = $4 " " $5 " " $6 " %"}
			END {printf "%-10s %-6s %12s %22s %18s\n", m, t, r, k, s}' "$work/out"
	done
done
