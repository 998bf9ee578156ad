#!/bin/sh
# What anchors do at contexts longer than the one that codes were fitted at, and on
# text of another kind: fits frames at context 512 with several block lengths and
# measures them at contexts that follow. Prints rows of a table in Markdown.
#
#   scripts/codes/anchors.sh MODEL FIT TEXT OTHER OUT "ANCHOR..." "CTX:WINDOWS..."
#
# OTHER is text of another domain. OUT keeps artifacts and results between runs.
set -eu
model=$1 fit=$2 text=$3 other=$4 out=$5 anchors=$6 contexts=$7
top=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
(cd "$top" && go build -o "$out/phaseconv" ./cmd/phaseconv)
echo '| anchor | text | context, windows | PPL ratio | KLD | same top |'
echo '|---|---|---|---|---|---|'
for a in $anchors; do
	art=$out/anchor$a
	[ -d "$art" ] || "$out/phaseconv" convert "$model" -o "$art" --calib "$fit" --code frame --calib-tokens 6144 --eval "$text" --chunks 1 --anchor "$a" --report=false >"$art.txt"
	for x in $contexts "other:512:8"; do
		file=$text
		case $x in other:*) file=$other x=${x#other:} ;; esac
		got=$out/$a.$(basename "$file").$x.json
		[ -s "$got" ] || "$out/phaseconv" verify "$art" --text "$file" --ctx "${x%:*}" --chunks "${x#*:}" --json >"$got"
		python3 - "$a" "$(basename "$file" .txt)" "$x" "$got" <<'P'
import json, sys
anchor, text, x, got = sys.argv[1:]
v = json.load(open(got))
k, p = v["kld"], v["ppl"]
print(f"| {anchor} | {text} | {x.replace(':', ', ')} | {p['ratio']:.3f} ± {p['ratio_err']:.3f} | {k['mean']:.3f} ± {k['mean_err']:.3f} | {100 * k['same_top']:.1f} % |", flush=True)
P
	done
done
