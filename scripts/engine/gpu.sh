#!/usr/bin/env bash
# gpu.sh DIR [DEVICE]: tries the engine on a machine with a GPU, in at most 8 minutes.
# DIR holds libllama and libggml with a GPU backend: bins/linux-x64-cuda (or -vulkan) of the npm package
# @node-llama-cpp/linux-x64-cuda (or -vulkan), or build/bin of a llama.cpp that was built with CUDA.
# DEVICE is a name that "engine probe" prints, CUDA0 unless given. Go must be there, or the programs and the
# test binary in $BIN (phaseconv, phaseconv-llama, llama.test from "go test -c ./verify/engine/llama").
#   MODEL   a GGUF file such as SmolLM2-135M; without it steps 3 and 4 are left out
#   OUT     a folder that keeps what each step printed, and the probe's JSON
#   LIMIT   480, seconds for all steps
#
# 1. engine probe on all devices and on DEVICE: which library, its self-tests.
# 2. The property tests on DEVICE: keys and values written back, doubled, taps, folds in memory, sums in the worker.
# 3. advise with the model.
# 4. One conversion of it for q4_0 keys, and with joint codes.
# Every step runs, whatever became of the others, with the time that is left; the last lines say which passed. What it prints is
# for docs/engine.md; nothing is claimed for GPUs before.
set -uo pipefail
dir=$(cd "${1:?folder with libllama}" && pwd) && device=${2:-CUDA0} || exit 2
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${OUT:-$work/out} bin=${BIN:-$work} limit=${LIMIT:-480}
mkdir -p "$out" && out=$(cd "$out" && pwd) && bin=$(cd "$bin" && pwd) || exit 2
if [ -z "${BIN:-}" ]; then
	(cd "$here" && CGO_ENABLED=0 go build -o "$bin" ./cmd/phaseconv ./cmd/phaseconv-llama &&
		CGO_ENABLED=0 go test -c -o "$bin/llama.test" ./verify/engine/llama) || exit 2
fi
export PHASECONV_LLAMA=$dir PHASECONV_LIBLLAMA=$dir PHASECONV_WORKER=$bin/phaseconv-llama PHASECONV_DEVICES=$device
results=()
# step NAME MOST COMMAND...: at most MOST seconds, and what is left of the limit.
step() {
	local name=$1 most=$2 left=$((limit - SECONDS)) begin=$SECONDS rc
	shift 2
	printf '\n=== %s (at %s s)\n' "$name" "$SECONDS"
	if [ "$left" -lt 5 ]; then
		results+=("not run, the time is over: $name")
		return
	fi
	timeout "$((most < left ? most : left))" "$@" 2>&1 | tee "$out/${name//[^A-Za-z0-9]/_}.log" | grep -v '^=== '
	rc=${PIPESTATUS[0]}
	case $rc in
	0) results+=("passed in $((SECONDS - begin)) s: $name") ;;
	124) results+=("STOPPED after $((SECONDS - begin)) s: $name") ;;
	*) results+=("FAILED with $rc: $name") ;;
	esac
}
nvidia-smi -L 2>/dev/null
step "probe all devices" 60 "$bin/phaseconv" engine probe
step "probe" 60 "$bin/phaseconv" engine probe --devices "$device"
timeout 60 "$bin/phaseconv" engine probe --devices "$device" --json >"$out/probe.json" 2>/dev/null
cd "$here/verify/engine/llama" || exit 2
# Taps are held against float32 sums: without these, CUDA and Vulkan multiply with shorter numbers.
step "property tests" 200 env NVIDIA_TF32_OVERRIDE=0 GGML_VK_DISABLE_F16=1 GGML_VK_DISABLE_COOPMAT=1 "$bin/llama.test" -test.v \
	-test.run '^Test(Samples|Taps|SampleTaps|Fused|Fold|Sums)$'
cd "$here" || exit 2
if [ -n "${MODEL:-}" ]; then
	step "advise" 90 "$bin/phaseconv" advise "$MODEL" --engine llama --devices "$device" --ctx 512 --chunks 2 --pairs q8_0/q8_0,q4_0/f16 --max-kld 1000
	step "conversion for q4_0 keys" 200 "$bin/phaseconv" convert "$MODEL" -o "$work/q4" --engine llama --devices "$device" \
		--report=false --code srht --alloc uniform --cache-type-k q4_0 --target-ctx 512 --cache-tokens 2048 --calib-tokens 1024 --chunks 2
	step "conversion with joint codes" 200 "$bin/phaseconv" convert "$MODEL" -o "$work/joint" --engine llama --devices "$device" \
		--report=false --recent 0 --calib-tokens 3072 --chunks 2
else
	results+=("not run, MODEL names no file: advise, conversions")
fi
printf '\n=== %s after %s s\n' "$device" "$SECONDS"
printf '%s\n' "${results[@]}"
! printf '%s\n' "${results[@]}" | grep -q '^FAILED\|^STOPPED\|time is over'
