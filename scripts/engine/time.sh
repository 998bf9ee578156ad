#!/usr/bin/env bash
# time.sh MODEL.gguf TEXT [WINDOWS]: what the engine on llama.cpp costs beside the forward passes alone, as ratios within
# one run (bars: 1.3 and 1.2). Run it on idle cores.
#   LLAMA_CPP_SOURCE  llama.cpp's source tree, for its headers
#   LLAMA_CPP_BIN     folder of its libraries, of the same release
#   THREADS           2
# 1. advise --engine llama against scripts/stock/kld.c, which stands for llama-perplexity --kl-divergence: the same library, tokens,
#    types and threads, F16 caches and then each type, with softmaxes and comparisons; both load the model once. (llama-perplexity loads
#    it for every type and writes the logits of the first run into a file, which kld.c spares itself: the bar is the harder one.)
# 2. Four candidates patched into the weights and measured, against the forward passes in it (TestLoop), in CPU time.
set -euo pipefail
cd "$(dirname "$0")/../.."
threads=${THREADS:-2}
model=$(realpath "${1:?GGUF file}") text=$(realpath "${2:?text}") windows=${3:-4}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -march=native -ffast-math -o "$work/kld" scripts/stock/kld.c -I"$LLAMA_CPP_SOURCE/include" -I"$LLAMA_CPP_SOURCE/ggml/include" \
	-L"$LLAMA_CPP_BIN" -lllama -lggml -lggml-base -lm -Wl,-rpath,"$LLAMA_CPP_BIN"
CGO_ENABLED=0 go build -o "$work" ./cmd/phaseconv ./cmd/phaseconv-llama
export PHASECONV_LLAMA=$LLAMA_CPP_BIN
TIMEFORMAT='%U %R'
passes=$({ time "$work/kld" "$model" "$windows" 512 "$threads" q8_0 q5_0 q4_1 q4_0 <"$text" >&2; } 2>&1 | tee "$work/kld.log" | tail -1)
grep -v '^[0-9.]* [0-9.]*$' "$work/kld.log"
advise=$({ time "$work/phaseconv" advise "$model" --engine llama --text "$text" --ctx 512 --chunks "$windows" --threads "$threads" \
	--max-kld 1000 --pairs q8_0/q8_0,q5_0/q5_0,q4_1/q4_1,q4_0/q4_0 >"$work/advise.log" 2>&1; } 2>&1 | tail -1)
sed -n '/^K /,/^$/p' "$work/advise.log"
echo "$passes $advise" | awk '{printf "advise: %.1f CPU s, %.1f s wall; llama.cpp alone: %.1f CPU s, %.1f s: %.2f and %.2f times (bar 1.3)\n",
	$3, $4, $1, $2, $3/$1, $4/$2}'
PHASECONV_MODEL=$model PHASECONV_LIBLLAMA=$LLAMA_CPP_BIN PHASECONV_WORKER=$work/phaseconv-llama \
	go test -count=1 -v -run '^TestLoop$' ./verify/engine/llama | grep -E 'times the passes|^(---|FAIL|ok)'
