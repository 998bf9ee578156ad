#!/usr/bin/env bash
# fuzz.sh TIME [JOBS]: runs every fuzz target of the readers for TIME each, like 30s.
# JOBS targets run at a time (default: one per processor) with one worker each, so it
# takes targets * TIME / JOBS and the builds. Prints what each target did, and fails
# with the whole output of one that found something.
set -euo pipefail
cd "$(dirname "$0")/../.."
export FUZZ_TIME=${1:?time per target, like 30s}
jobs=${2:-$(nproc)}

# only_deadline LOG: the target failed with nothing but the end of its own time. Before
# Go 1.27 the coordinator sometimes takes that end for a failure (golang/go#75804). A
# finding has more to say: a message, a stack, or the file that its input was written to.
only_deadline() {
	local said
	grep -q 'Failing input written\|panic:\|hung or terminated' "$1" && return 1
	said=$(sed -n '/^--- FAIL: /,/^FAIL$/p' "$1" | sed '1d;$d' | sed 's/^ *//')
	[ "$said" = "context deadline exceeded" ]
}
export -f only_deadline

fuzz() { # fuzz FOLDER TARGET
	local log summary
	log=$(mktemp)
	# One processor for the coordinator and its worker: JOBS of them share the machine.
	if ! GOMAXPROCS=1 go test "./$1" -run '^$' -fuzz "^$2\$" -fuzztime "$FUZZ_TIME" -fuzzminimizetime 10x -parallel 1 >"$log" 2>&1 &&
		! only_deadline "$log"; then
		echo "FAIL $1 $2"
		cat "$log"
		rm -f "$log"
		return 1
	fi
	summary=$(grep -o 'execs: [0-9]*.*' "$log" | tail -1)
	rm -f "$log"
	# A target that ran nothing has not passed.
	[ -n "$summary" ] || { echo "FAIL $1 $2: nothing was run"; return 1; }
	echo "ok   $1 $2: $summary"
}
export -f fuzz

targets=$(grep -rl --include=*_test.go '^func Fuzz' format rotations spec verify | sort | while read -r file; do
	sed -n "s|^func \(Fuzz[A-Za-z0-9_]*\).*|$(dirname "$file") \1|p" "$file"
done)
[ -n "$targets" ] || { echo "no fuzz targets"; exit 1; }
printf '%s\n' "$targets" | xargs -P "$jobs" -L 1 bash -c 'fuzz "$@"' fuzz
