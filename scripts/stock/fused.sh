#!/usr/bin/env bash
# fused.sh CALIB TEXT "CTX ..." MODEL...: what a conversion for stock cache types
# brings, measured by stock llama-perplexity. For each model (GGUF, or a Hugging Face
# folder) and context it converts with q4_0 for K and V and --target-ctx CTX, and prints
# a page with a table row per cache pair: divergence from the published model with F16
# caches, of the published file and of the converted one.
#   LLAMA_CPP_BIN  folder with llama-perplexity
#   CHUNK_TOKENS   tokens to measure on, in windows of CTX (2048), at least one window
#   OUTTYPE        element type of what is written: f32, f16, bf16, q8_0 (phaseconv's default)
#   PAIRS          cache pairs K:V (f16:f16 q8_0:f16 q4_0:f16 q4_0:q4_0)
#   WORK           keep models and results here, and go on from what is there
#   KEPT           if set, run nothing and print rows of what is there, "–" for what is not
# The page is docs/fused.md:
#   OUTTYPE=f32 WORK=... scripts/stock/fused.sh wikitext-2-valid.txt wikitext-2-test.txt "512 8192" MODEL... >docs/fused.md
set -euo pipefail
calib=${1:?calibration text} text=${2:?held-out text} contexts=${3:?contexts}
shift 3
bin=${LLAMA_CPP_BIN:?name the folder with llama-perplexity}/llama-perplexity
here=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
[ -n "${KEPT:-}" ] || (cd "$here" && go build -o "$work/phaseconv" ./cmd/phaseconv)

convert() { # convert MODEL OUT OPTIONS...
	local model=$1 out=$2
	shift 2
	[ -f "$out/phaseconv.json" ] || [ -n "${KEPT:-}" ] ||
		"$work/phaseconv" convert "$model" -o "$out" ${OUTTYPE:+--outtype "$OUTTYPE"} --code raw --calib-tokens 512 --report=false --chunks 1 "$@" >"$out.log" 2>&1 ||
		{ tail -5 "$out.log" >&2; return 1; }
}
perplexity() { # perplexity MODEL OPTIONS...: its output is in $work/log
	local model=$1
	shift
	"$bin" -m "$model" -f "$text" --no-warmup "$@" >"$work/log" 2>&1 || { tail -5 "$work/log" >&2; return 1; }
}
cell() { # cell FILE MODEL K V CTX CHUNKS PUBLISHED: "KLD ± error, PPL ratio", from FILE if it is there
	local base=$work/$name.$5.base
	if [ ! -f "$1" ] && [ -n "${KEPT:-}" ]; then
		echo –
		return
	fi
	if [ ! -f "$1" ]; then
		[ -f "$base" ] || { perplexity "$7" -c "$5" --chunks "$6" --save-all-logits "$base.part" && mv "$base.part" "$base"; }
		perplexity "$2" -c "$5" --chunks "$6" -ctk "$3" -ctv "$4" --kl-divergence-base "$base" --kl-divergence
		awk '/^Mean PPL\(Q\)\/PPL\(base\)/ {r = $4} /^Mean +KLD/ {k = $3; e = $5} END {if (k == "") exit 1; printf "%.4f ± %.4f, %.3f\n", k, e, r}' "$work/log" >"$1.part"
		mv "$1.part" "$1"
	fi
	cat "$1"
}

cat <<EOF2
# Conversions for stock 4-bit caches, measured by llama.cpp

Written by \`scripts/stock/fused.sh\`: \`convert MODEL --cache-type-k q4_0 --cache-type-v q4_0 --target-ctx CTX\`${OUTTYPE:+, written as $OUTTYPE}, fitted to $(basename "$calib"),
measured by llama-perplexity on $(basename "$text"), ${CHUNK_TOKENS:-2048} tokens or one window. KLD in nats per token ± its standard error and PPL ratio, from the
published model with F16 caches. How the changes are found and chosen: [slowmean.md](slowmean.md).

| model | target context | K | V | as published | converted |
|---|---|---|---|---|---|
EOF2
chosen=
for model in "$@"; do
	name=$(basename "${model%.gguf}")
	published=$model
	if [ -d "$model" ]; then
		convert "$model" "$work/$name.published" --weight-edits none
		published=$work/$name.published/model.gguf
	fi
	for ctx in $contexts; do
		chunks=$((${CHUNK_TOKENS:-2048} / ctx))
		[ $chunks -gt 0 ] || chunks=1
		out=$work/$name.$ctx
		convert "$model" "$out" --cache-type-k q4_0 --cache-type-v q4_0 --target-ctx "$ctx" --calib "$calib" --eval "$text"
		for pair in ${PAIRS:-f16:f16 q8_0:f16 q4_0:f16 q4_0:q4_0}; do
			k=${pair%:*} v=${pair#*:}
			was=$(cell "$out.published.$k.$v" "$published" "$k" "$v" "$ctx" $chunks "$published")
			now=$(cell "$out.converted.$k.$v" "$out/model.gguf" "$k" "$v" "$ctx" $chunks "$published")
			[ "$was$now" = –– ] || echo "| $name | $ctx | $k | $v | $was | $now |"
		done
		[ -n "${KEPT:-}" ] || rm -f "$work/$name.$ctx.base"
		if [ -f "$out/phaseconv.json" ]; then
			chosen+="| $name | $ctx | $(sed -n 's/^ *"chosen": "\(.*\)",\{0,1\}$/\1/p' "$out/phaseconv.json") |"$'\n'
		fi
	done
done
printf '\n| model | target context | chosen |\n|---|---|---|\n%s' "$chosen"
