#!/usr/bin/env bash
# compare.sh MODEL.gguf FIT.txt TEST.txt OUT [TOKENS [K/V [CHUNKS]]]: converts a model for caches of types K/V (q4_0/f16) at
# 512 tokens with the own pass and with the engine on llama.cpp, both fitted to FIT.txt, and measures both artifacts in
# CHUNKS (4) windows of TEST.txt in stock llama.cpp. PHASECONV_LLAMA names the folder with libllama. TOKENS are fitted to,
# 8192 unless given; half as many are compared on. An engine whose artifact is in OUT is not run again.
# On SmolLM2-135M in F32 2048 tokens take 2 minutes of CPU time with the own pass and 4 with llama.cpp.
set -euo pipefail
model=${1:?MODEL.gguf} fit=${2:?FIT.txt} test=${3:?TEST.txt} out=$(mkdir -p "${4:?OUT}" && cd "$4" && pwd) tokens=${5:-8192}
types=${6:-q4_0/f16} chunks=${7:-4}
top=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out/bin"
(cd "$top" && CGO_ENABLED=0 go build -o "$out/bin" ./cmd/phaseconv ./cmd/phaseconv-llama)
for engine in own llama; do
	[ -e "$out/$engine/phaseconv.json" ] ||
		"$out/bin/phaseconv" convert "$model" -o "$out/$engine" --engine "$engine" --outtype source --report=false --code srht \
			--alloc uniform --cache-type-k "${types%/*}" --cache-type-v "${types#*/}" --target-ctx 512 --cache-tokens "$tokens" \
			--calib "$fit" --calib-tokens 512 --eval "$test" --chunks 1
done
for engine in own llama; do
	"$out/bin/phaseconv" advise "$model" "$out/$engine/model.gguf" --engine llama --ctx 512 --chunks "$chunks" --pairs "$types" --text "$test" \
		--backend cpu --max-kld 1000 # only measured
done
# How far the edits and codes of the two are apart; it exits 1, for they differ in their last bits.
"$out/bin/phaseconv" rotations diff "$out/own" "$out/llama" || [ $? = 1 ]
