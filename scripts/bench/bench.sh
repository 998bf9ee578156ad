#!/usr/bin/env bash
# bench.sh NAME [COUNT]: runs every benchmark COUNT times (6) and writes docs/bench/NAME.txt,
# which benchstat reads: make benchstat OLD=baseline NEW=NAME. Refuses on a machine that is
# busy, unless BUSY=1 says that the numbers are for nobody.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?name of the file to write, like baseline} count=${2:-6}
if [ -r /proc/loadavg ] && [ -z "${BUSY:-}" ]; then
	read -r load _ </proc/loadavg
	awk -v l="$load" 'BEGIN { exit !(l > 0.3) }' &&
		{ echo "load average $load: numbers of a busy machine compare with nothing (BUSY=1 to go on)"; exit 1; }
fi
packages=$(grep -rl --include='*_test.go' '^func Benchmark' . | grep -v /internal/libllama/ | xargs -n1 dirname | sort -u)
[ -n "$packages" ] || { echo "no benchmarks"; exit 1; }
file=docs/bench/$name.txt
mkdir -p docs/bench
{
	echo "commit: $(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD || echo ' and changes')"
	echo "go: $(go env GOVERSION)"
	# One package at a time: they would share the processors.
	# shellcheck disable=SC2086 # a list
	go test -p 1 -run '^$' -bench "${BENCH:-.}" -benchmem -count "$count" -timeout 4h $packages
} | grep -v -e '^ok ' -e '^PASS$' | tee "$file.tmp"
grep -q '^Benchmark' "$file.tmp" || { rm -f "$file.tmp"; echo "no benchmark ran"; exit 1; }
mv "$file.tmp" "$file"
