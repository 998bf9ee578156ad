#!/usr/bin/env bash
# advise_time.sh MODEL.gguf TEXT [WINDOWS]: advise beside the runs that llama-perplexity would need for the same answer
# (one with F16 caches, one for each type), on as many threads; seconds of processor time in user mode, and wall.
#   LLAMA_CPP_SOURCE  llama.cpp's source tree, for its headers
#   LLAMA_CPP_BIN     folder of its libraries, of the same release
#   THREADS           2
set -euo pipefail
cd "$(dirname "$0")/../.."
threads=${THREADS:-2}
model=${1:?GGUF file} text=${2:?text} windows=${3:-4}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -march=native -ffast-math -o "$work/kld" scripts/stock/kld.c -I"$LLAMA_CPP_SOURCE/include" -I"$LLAMA_CPP_SOURCE/ggml/include" \
	-L"$LLAMA_CPP_BIN" -lllama -lggml -lggml-base -lm -Wl,-rpath,"$LLAMA_CPP_BIN"
CGO_ENABLED=0 go build -o "$work/phaseconv" ./cmd/phaseconv
TIMEFORMAT='%U s user, %R s wall'
echo "llama.cpp:"
time "$work/kld" "$model" "$windows" 512 "$threads" q8_0 q5_0 q4_1 q4_0 <"$text"
echo "advise:"
time "$work/phaseconv" advise "$model" --text "$text" --ctx 512 --chunks "$windows" --threads "$threads" \
	--max-kld 1000 --pairs q8_0/q8_0,q5_0/q5_0,q4_1/q4_1,q4_0/q4_0 2>/dev/null | sed -n '/^K /,/^$/p'
