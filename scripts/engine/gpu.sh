#!/usr/bin/env bash
# gpu.sh DIR [DEVICE]: tries the engine on a machine with a GPU, in at most 8 minutes.
# DIR holds libllama and libggml with a GPU backend: bins/linux-x64-cuda (or -vulkan) of the npm package
# @node-llama-cpp/linux-x64-cuda (or -vulkan), or build/bin of a llama.cpp that was built with CUDA.
# DEVICE is a name that "engine probe" prints, CUDA0 unless given. Go must be there, or the programs and the
# test binary in $BIN (phaseconv, phaseconv-llama, llama.test from "go test -c ./verify/engine/llama").
#
# 1. engine probe on all devices and on DEVICE: which library, its self-tests.
# 2. The property tests: taps, keys written back, doubled keys, folds in memory, on the GPU.
# 3. One conversion of the model in $MODEL (a GGUF file, such as SmolLM2-135M) for q4_0 keys.
# What it prints is for docs/engine.md; nothing is claimed for GPUs before.
set -euo pipefail
dir=$(cd "${1:?folder with libllama}" && pwd) device=${2:-CUDA0}
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin=${BIN:-$work}
if [ -z "${BIN:-}" ]; then
	CGO_ENABLED=0 go build -o "$bin" ./cmd/phaseconv ./cmd/phaseconv-llama
	CGO_ENABLED=0 go test -c -o "$bin/llama.test" ./verify/engine/llama
fi
export PHASECONV_LLAMA=$dir PHASECONV_LIBLLAMA=$dir PHASECONV_WORKER=$bin/phaseconv-llama PHASECONV_DEVICES=$device
step() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }

step "probe, all devices"
timeout 60 "$bin/phaseconv" engine probe || true
step "probe, $device"
timeout 60 "$bin/phaseconv" engine probe --devices "$device"
timeout 60 "$bin/phaseconv" engine probe --devices "$device" --json >"$work/probe.json"

step "property tests on $device"
# Taps are held against float32 sums: without these, CUDA and Vulkan multiply with shorter numbers.
(cd verify/engine/llama && NVIDIA_TF32_OVERRIDE=0 GGML_VK_DISABLE_F16=1 GGML_VK_DISABLE_COOPMAT=1 timeout 180 "$bin/llama.test" -test.v \
	-test.run 'TestTaps|TestSampleTaps|TestFused|TestSamples|TestFold' | grep -v '^=== ') || failed=1

if [ -n "${MODEL:-}" ]; then
	step "advise on $device"
	timeout 90 "$bin/phaseconv" advise "$MODEL" --engine llama --devices "$device" --ctx 512 --chunks 2 --pairs q8_0/q8_0,q4_0/f16
	step "a conversion on $device"
	timeout 240 "$bin/phaseconv" convert "$MODEL" -o "$work/out" --engine llama --devices "$device" --report=false --code srht \
		--alloc uniform --cache-type-k q4_0 --target-ctx 512 --cache-tokens 2048 --calib-tokens 1024 --chunks 2
fi
step "done"
[ -z "${failed:-}" ] || { echo "property tests FAILED on $device"; exit 1; }
