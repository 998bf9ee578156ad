#!/bin/sh
# Measures the points of docs/codes.md, bytes per key against divergence, and draws
# them. A run that was cut short goes on where it was.
#
#   scripts/codes/pareto.sh MODEL FIT TEXT OUT
#
# MODEL is a checkpoint, FIT and TEXT are different texts, OUT gets .tsv and .svg.
# THREADS (1) and POINTS may be set; a model of 135M parameters takes half an hour on a free core.
set -eu
scripts=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
model=$1 fit=$2 text=$3 out=$4
if [ -z "${POINTS:-}" ]; then
	POINTS="q8_0 q4_0 frame:1:uniform:0+0g+4+8+8g+16 frame:1:sensitivity:0+8 frame:1:angle:0
		cen:1:uniform:0 srht:1:uniform:0 learned:1:uniform:0"
	for bits in 0.5 0.75 1.25 1.5 2 3; do
		POINTS="$POINTS frame:$bits:uniform:0 frame:$bits:sensitivity:0 frame:$bits:angle:0"
	done
fi
go build -C "$scripts" -o "$tmp/" ./codes/pareto ./codes/plot
# shellcheck disable=SC2086 # POINTS is a list
"$tmp/pareto" -threads "${THREADS:-1}" -model "$model" -fit "$fit" -text "$text" -o "$out.tsv" $POINTS
"$tmp/plot" -o "$out.svg" -title "$(basename "$model" .gguf): keys on $(basename "$text" .txt)" "$out.tsv"
