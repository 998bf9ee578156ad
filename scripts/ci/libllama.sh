#!/usr/bin/env bash
# libllama.sh WORK: fetches llama.cpp's prebuilt libraries from the npm registry,
# compares our files, our forward pass and our emulation of its key caches with them, and
# tests the engine that computes through them.
# PHASECONV_MODEL may name a real model to convert and compare too.
set -euo pipefail
work=$(cd "${1:?work folder}" && pwd)
cd "$(dirname "$0")/../../verify/internal/libllama"
case $(uname -sm) in
"Linux x86_64") arch=x64 ;;
"Linux aarch64") arch=arm64 ;;
*) echo "no prebuilt llama.cpp for $(uname -sm)"; exit 1 ;;
esac
# The release whose structs params.go describes.
package=@node-llama-cpp/linux-$arch version=3.22.1
mkdir -p "$work/libllama"
file=$(cd "$work/libllama" && npm pack --silent "$package@$version" | tail -1) && [ -s "$work/libllama/$file" ] ||
	{ echo "$package@$version cannot be fetched: NOTHING WAS COMPARED with llama.cpp"; exit 1; }
tar -xzf "$work/libllama/$file" -C "$work/libllama"
export PHASECONV_LIBLLAMA="$work/libllama/package/bins/linux-$arch"
# Our files of the models that transformers made.
export PHASECONV_TINY_GGUF="$work/tiny"
mkdir -p "$PHASECONV_TINY_GGUF"
(cd ../../.. && PHASECONV_KEEP_GGUF=$PHASECONV_TINY_GGUF go test -count=1 -run '^TestGGUFOracle$' ./convert/write)
go vet -mod=mod ./...
go test -mod=mod -count=1 -v ./... | tee "$work/libllama/log" | grep -v '^=== '
# The tests skip themselves without a library; here they must have run.
if grep -q -- '--- SKIP: Test\(TinyFiles\|AustenMoE\|CacheTypes\|Cells\|CellsOfFamilies\|RoundedInputs\|Refused\|Families\)' "$work/libllama/log"; then
	echo "a test was skipped"
	exit 1
fi
# The engine: taps, keys written back and doubled, folds in memory, stock types, conversions, in a dozen
# small random models. RPC needs a build of llama.cpp with GGML_RPC, which the package is not: PHASECONV_RPC may name
# the folder of one, with its rpc-server.
cd ../../..
# Emulated weight types: what llama-quantize gives each matrix, and its bytes.
go test -count=1 -v -run '^TestStockQuantize$' ./verify/quantweights | tee "$work/libllama/quantize.log" | grep -E '^(---|    ---|FAIL|ok|panic)' || true
grep -q '^--- PASS: TestStockQuantize' "$work/libllama/quantize.log" || { cat "$work/libllama/quantize.log"; exit 1; }
# Its bytes with an importance matrix, row by row.
go test -count=1 -v -run '^TestStockChunk$' ./format/gguf | tee "$work/libllama/chunk.log" | grep -E '^(---|FAIL|ok|panic)' || true
grep -q '^--- PASS: TestStockChunk' "$work/libllama/chunk.log" || { cat "$work/libllama/chunk.log"; exit 1; }
# With PHASECONV_LONG the worker of a conversion is killed at 50 random moments instead of 4.
PHASECONV_LONG=1 go test -count=1 -v -timeout 20m ./verify/engine/... | tee "$work/libllama/engine.log" | grep -E '^(---|    ---|FAIL|ok|panic)' || true
grep -q '^ok .*verify/engine/llama' "$work/libllama/engine.log" || { cat "$work/libllama/engine.log"; exit 1; }
if grep -q -- '--- SKIP: Test\(Taps\|Samples\|Fused\|Fold\|Abort\|Convert\|Unknown\|KeyBias\|Audit\|Types\|Split\|Kills\|Planted\|JointVerify\|JointConvert\|Sums\|Report\)' "$work/libllama/engine.log"; then
	echo "a test of the engine was skipped"
	exit 1
fi
if [ -n "${PHASECONV_RPC:-}" ]; then
	PHASECONV_LIBLLAMA=$PHASECONV_RPC PHASECONV_LONG=1 go test -count=1 -v -run '^Test(RPC|ServerKills)$' ./verify/engine/llama |
		tee "$work/libllama/rpc.log" | grep -E '^(---|FAIL|ok|panic)' || true
	grep -q '^--- PASS: TestRPC' "$work/libllama/rpc.log" && grep -q '^--- PASS: TestServerKills' "$work/libllama/rpc.log" ||
		{ cat "$work/libllama/rpc.log"; exit 1; }
else
	echo "PHASECONV_RPC names no build with an rpc-server: RPC SERVERS WERE NOT TESTED"
fi
go build -o "$work/libllama/phaseconv" ./cmd/phaseconv
go build -o "$work/libllama/phaseconv-llama" ./cmd/phaseconv-llama
PHASECONV_LLAMA=$PHASECONV_LIBLLAMA "$work/libllama/phaseconv" engine probe
