#!/usr/bin/env bash
# fused.sh CALIB TEXT "CTX ..." MODEL...: what a conversion for stock cache types
# brings, measured by stock llama-perplexity. For each model (GGUF, or a Hugging Face
# folder) and context it converts with q4_0 for K and V and --target-ctx CTX and prints
# a table row per cache pair: divergence from the published model with F16 caches, of
# the published file and of the converted one.
#   LLAMA_CPP_BIN  folder with llama-perplexity
#   CHUNK_TOKENS   tokens to measure on, in windows of CTX (2048), at least one window
#   OUTTYPE        element type of what is written: f32, f16, bf16, q8_0 (phaseconv's default)
#   WORK           keep models and logits here and reuse them
set -euo pipefail
calib=${1:?calibration text} text=${2:?held-out text} contexts=${3:?contexts}
shift 3
bin=${LLAMA_CPP_BIN:?name the folder with llama-perplexity}/llama-perplexity
here=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
(cd "$here" && go build -o "$work/phaseconv" ./cmd/phaseconv)

kld() { # kld MODEL K V CTX CHUNKS BASE: "KLD ± error, PPL ratio"
	"$bin" -m "$1" -f "$text" -c "$4" --chunks "$5" --no-warmup -ctk "$2" -ctv "$3" --kl-divergence-base "$6" --kl-divergence >"$work/log" 2>&1 ||
		{ tail -5 "$work/log" >&2; return 1; }
	awk '/^Mean PPL\(Q\)\/PPL\(base\)/ {r = $4} /^Mean +KLD/ {k = $3; e = $5} END {printf "%.4f ± %.4f, %.3f", k, e, r}' "$work/log"
}

echo '| model | target context | K, V | as published: KLD, PPL ratio | converted |'
echo '|---|---|---|---|---|'
for model in "$@"; do
	name=$(basename "${model%.gguf}")
	published=$model
	if [ -d "$model" ]; then
		published=$work/$name.published/model.gguf
		[ -f "$published" ] || "$work/phaseconv" convert "$model" -o "$work/$name.published" --fuse none ${OUTTYPE:+--outtype "$OUTTYPE"} --code raw --calib-tokens 512 --report=false --chunks 1 >/dev/null
	fi
	for ctx in $contexts; do
		chunks=$((${CHUNK_TOKENS:-2048} / ctx))
		[ $chunks -gt 0 ] || chunks=1
		out=$work/$name.$ctx
		[ -f "$out/model.gguf" ] || "$work/phaseconv" convert "$model" -o "$out" --cache-type-k q4_0 --cache-type-v q4_0 --target-ctx "$ctx" --calib "$calib" --eval "$text" \
			${OUTTYPE:+--outtype "$OUTTYPE"} --code raw --calib-tokens 512 --report=false --chunks 1 >"$out.txt"
		base=$work/$name.$ctx.base
		"$bin" -m "$published" -f "$text" -c "$ctx" --chunks "$chunks" --no-warmup --save-all-logits "$base" >"$work/log" 2>&1
		for pair in f16:f16 q8_0:f16 q4_0:f16 q4_0:q4_0; do
			k=${pair%:*} v=${pair#*:}
			echo "| $name | $ctx | $k, $v | $(kld "$published" "$k" "$v" "$ctx" $chunks "$base") | $(kld "$out/model.gguf" "$k" "$v" "$ctx" $chunks "$base") |"
		done
		rm -f "$base"
	done
done
