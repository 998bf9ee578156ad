#!/usr/bin/env bash
# nofused.sh: the compiler may fuse a product and a sum on arm64 and so round once where
# other machines round twice. Reads its assembly listing of the packages whose arithmetic
# must have the same bits everywhere and is not in assembly, and fails where it fused.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=${*:-./format/dtype ./format/gguf ./verify/ppl ./verify/kvcache ./verify/refmodel ./kernels/onebit ./kernels/coded ./verify/generate}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
# shellcheck disable=SC2086 # a list
GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -gcflags=-S $packages 2>"$list" || { cat "$list"; exit 1; }
# Without products in the listing nothing was looked at.
grep -qE 'FMUL[SD]' "$list" || { echo "no assembly listing"; exit 1; }
if grep -E $'\t(FN?M(ADD|SUB)[SD]?)\t' "$list" | grep -oE '[^ (]*\.go:[0-9]+\)?\s+FN?M(ADD|SUB)[SD]?' | sort -u; then
	echo "fused: write float64(x*y) + z, or float32(x*y) + z"
	exit 1
fi
echo "nothing is fused in $packages"
