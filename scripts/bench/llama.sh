#!/bin/sh
# Measures phaseconv against a build of llama.cpp on this machine: dot products,
# perplexity in float and with 1-bit keys, a conversion, and peak memory.
#
#   LLAMA_CPP_BIN=llama.cpp/build/bin scripts/bench/llama.sh GGUF CHECKPOINT CALIBRATION TEXT
#
# GGUF is the model in F32 or BF16, which llama-perplexity and phaseconv both run;
# CHECKPOINT is what is converted (a folder or the same file). CALIBRATION and TEXT
# are text files. The programs take turns ROUNDS times (2) on THREADS threads (all);
# the best of each counts. Prints a table; "cpu" is user and system seconds, which
# say more than wall time where other work runs, but count llama.cpp's waiting threads.
set -eu
if [ $# -ne 4 ] || [ -z "${LLAMA_CPP_BIN:-}" ]; then
	sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
	exit 2
fi
gguf=$1 source=$2 calibration=$3 text=$4
threads=${THREADS:-$(nproc)} rounds=${ROUNDS:-2} chunks=${CHUNKS:-16}
top=$(cd "$(dirname "$0")/../.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
command -v /usr/bin/time >/dev/null || { echo "needs GNU time at /usr/bin/time" >&2; exit 2; }

(cd "$top" && go build -o "$tmp/phaseconv" ./cmd/phaseconv && go build -C scripts -o "$tmp/forward" ./bench/forward)
cc -O2 -o "$tmp/ggml_dots" "$top/scripts/bench/ggml_dots.c" -ldl

echo "ns per key of 128 numbers, 8192 keys, best of 2 s"
LD_LIBRARY_PATH=$LLAMA_CPP_BIN "$tmp/ggml_dots" "$LLAMA_CPP_BIN/libggml-cpu.so" 8192 128 2 |
	sed 's/.*"format": "\([^"]*\)".*"ns_per_key": \([0-9.]*\).*/  ggml       \1  \2/'
"$tmp/phaseconv" bench --keys 8192 --seconds 2 2>/dev/null | awk '$1 == 8192 && NF == 8 { printf "  phaseconv  %s, %s heads  %s (%sx F16)\n", $3, $4, $5, $8 }'

# timed NAME COMMAND...: runs it, keeps "wall cpu MB" of the fastest run in $tmp/NAME.
timed() {
	name=$1
	shift
	if ! /usr/bin/time -o "$tmp/time" -f '%e %U %S %M' "$@" >"$tmp/out" 2>&1; then
		cat "$tmp/out" >&2
		exit 1
	fi
	tail -n 1 "$tmp/time" | awk '{ printf "%.2f %.2f %.0f\n", $1, $2 + $3, $4 / 1024 }' >>"$tmp/$name"
	sort -n "$tmp/$name" | head -n 1 >"$tmp/best" && mv "$tmp/best" "$tmp/$name"
}

perplexity() { # NAME TEXT CHUNKS
	LD_LIBRARY_PATH=$LLAMA_CPP_BIN timed "$1" "$LLAMA_CPP_BIN/llama-perplexity" -m "$gguf" -f "$2" -c 512 -b 512 --chunks "$3" -t "$threads"
}

# A conversion sees 6144 tokens of one text and 4 x 512 of another: 12 and 4 windows.
i=0
while [ $i -lt "$rounds" ]; do
	perplexity llama "$text" "$chunks"
	timed float "$tmp/forward" -model "$gguf" -text "$text" -chunks "$chunks" -threads "$threads"
	perplexity llama16 "$text" 16
	rm -rf "$tmp/artifact"
	timed convert "$tmp/phaseconv" convert "$source" -o "$tmp/artifact" --calib "$calibration" --calib-tokens 6144 --eval "$text" --threads "$threads"
	timed onebit "$tmp/forward" -artifact "$tmp/artifact" -text "$text" -chunks "$chunks" -threads "$threads"
	i=$((i + 1))
done

echo
echo "$chunks windows of 512 tokens, $threads threads, best of $rounds"
echo "program                        wall s    cpu s  peak MB  tokens/s   time / llama-perplexity"
row() { # LABEL NAME REFERENCE TOKENS
	awk -v label="$1" -v tokens="$4" 'NR == FNR { w = $1; c = $2; next }
		{ printf "%-30s %7.2f  %7.2f  %7d  %8.0f   %.2f (cpu %.2f)\n", label, $1, $2, $3, tokens / $1, $1 / w, $2 / c }' "$tmp/$3" "$tmp/$2"
}
row "llama-perplexity" llama llama $((chunks * 512))
row "phaseconv, float keys" float llama $((chunks * 512))
row "phaseconv, 1-bit keys" onebit llama $((chunks * 512))
row "phaseconv, 1-bit / float" onebit float $((chunks * 512))
row "llama-perplexity, 16 windows" llama16 llama16 8192
row "phaseconv convert" convert llama16 8192
