#!/bin/sh
# Regenerates the committed amd64 assembly of the kernel packages. With -check it
# fails, and shows the difference, when a committed file is not what comes out.
set -eu
cd "$(dirname "$0")"
kernels=$(cd ../.. && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0
for pkg in gemm fmath linalg onebit halfdot measure; do
	# Generated into ./pkg of a fresh folder, so that the command line in the
	# header of the files is the same on every machine.
	mkdir "$out/$pkg"
	go build -o "$out/gen" "./$pkg"
	(cd "$out/$pkg" && "$out/gen" -out "${pkg}_amd64.s" -stubs "stubs_amd64.go" -pkg "$pkg")
	gofmt -w "$out/$pkg/stubs_amd64.go"
	for f in "${pkg}_amd64.s" stubs_amd64.go; do
		if [ "${1-}" = -check ]; then
			diff -u "$kernels/$pkg/$f" "$out/$pkg/$f" || status=1
		else
			cp "$out/$pkg/$f" "$kernels/$pkg/$f"
		fi
	done
done
exit $status
