#!/usr/bin/env bash
# libllama.sh WORK: fetches llama.cpp's prebuilt libraries from the npm registry and
# compares our files, our forward pass and our emulation of its key caches with them.
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
go vet -mod=mod ./...
go test -mod=mod -count=1 -v ./... | tee "$work/libllama/log" | grep -v '^=== '
# The tests skip themselves without a library; here they must have run.
if grep -q -- '--- SKIP: Test\(AustenMoE\|CacheTypes\|Cells\|RoundedInputs\|Refused\|Families\|Golden \)' "$work/libllama/log"; then
	echo "a test was skipped"
	exit 1
fi
