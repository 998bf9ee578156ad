#!/usr/bin/env bash
# fuzz.sh TIME: runs every fuzz target of the readers for TIME each.
set -euo pipefail
cd "$(dirname "$0")/../.."
time=${1:?time per target, like 30s}
grep -rl --include=*_test.go '^func Fuzz' format rotations spec verify | sort | while read -r file; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$file"); do
		echo "$(dirname "$file") $target"
		go test "./$(dirname "$file")" -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x | tail -1
	done
done
