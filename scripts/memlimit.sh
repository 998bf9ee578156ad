#!/usr/bin/env bash
# memlimit.sh MIB SRC [convert options]: converts SRC in a process that cannot have
# more than MIB of memory of its own, and prints the peak that was resident. It
# fails if SRC is not larger than that.
#
# The limit is RLIMIT_DATA (ulimit -d): all private writable mappings, from which
# the heap comes. It needs no rights, unlike a cgroup, and, unlike RLIMIT_AS, does
# not count address space that the Go runtime only reserves. GOMEMLIMIT tells the
# garbage collector about it.
set -euo pipefail
mib=${1:?limit in MiB} src=${2:?source}
shift 2
src=$(realpath "$src")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
size=$(du -Lcm --apparent-size "$src" | tail -1 | cut -f1)
[ "$size" -gt "$mib" ] || { echo "$src has $size MiB, which is not more than $mib" >&2; exit 2; }
CGO_ENABLED=0 go build -o "$work/phaseconv" ./cmd/phaseconv
(
	ulimit -d $((mib * 1024))
	export GOMEMLIMIT=$((mib * 9 / 10))MiB
	"$work/phaseconv" convert "$src" -o "$work/out" --report=false "$@" >"$work/log" &
	pid=$!
	# The peak as the system counts it, which ends with the process: looked at often.
	while peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$pid/status" 2>/dev/null) && [ -n "$peak" ]; do
		echo "$peak" >"$work/peak"
		sleep 0.2
	done
	wait $pid || { echo "failed within $mib MiB" >&2; exit 1; }
)
grep -E "Mean PPL|FAILED" "$work/log" || true
echo "a model of $size MiB was converted within $mib MiB; at most $(($(cat "$work/peak") / 1024)) MiB were resident"
