#!/usr/bin/env bash
# scaleout.sh: runs the job files in docs/scaleout as local processes, three units
# at a time, and compares what they make with a conversion in one process.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 go build -o "$work/bin/phaseconv" ./cmd/phaseconv
export PATH="$work/bin:$PATH" SRC="$PWD/testdata/austen-moe"
options="--calib-tokens 192 --ctx 64 --chunks 1"
mkdir "$work/plain" "$work/slurm" "$work/k8s"
# shellcheck disable=SC2086 # options are words
phaseconv convert "$SRC" -o "$work/plain/out" $options >/dev/null 2>&1

pids=
for i in 1 2 3; do
	SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=3 OUT="$work/slurm/out" OPTIONS="$options" \
		bash docs/scaleout/fit.sbatch >/dev/null 2>"$work/$i.log" & pids+=" $!"
done
for p in $pids; do wait "$p" || { cat "$work"/*.log; exit 1; }; done
OUT="$work/slurm/out" OPTIONS="$options" bash docs/scaleout/merge.sbatch >/dev/null 2>&1
diff -r "$work/plain/out" "$work/slurm/out"

# The command of a job file, with the options that make it short.
job() { sed -n 's/^ *- \(exec phaseconv .*\)/\1/p' "docs/scaleout/$1" | sed "s/\$/ $options/"; }
pids=
for i in 0 1 2; do
	JOB_COMPLETION_INDEX=$i UNITS=3 OUT="$work/k8s/out" sh -c "$(job fit.yaml)" >/dev/null 2>"$work/$i.log" & pids+=" $!"
done
for p in $pids; do wait "$p" || { cat "$work"/*.log; exit 1; }; done
OUT="$work/k8s/out" sh -c "$(job merge.yaml)" >/dev/null 2>&1
diff -r "$work/plain/out" "$work/k8s/out"
echo "the files in docs/scaleout make the same artifact as one process"
