#!/usr/bin/env bash
# race.sh: the race detector where goroutines meet. Packages whose own code starts some
# run their short tests; of the others, the tests named Concurrent or Threads. Of the
# fits only those too: under the detector they take minutes, and share nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CGO_ENABLED=1
cc=$(go env CC)
command -v "${cc%% *}" >/dev/null || { echo "$cc is not here: NOTHING WAS CHECKED for races"; exit 1; }
where() { # where ARGS: folders of Go files that grep finds
	grep -rlE --include='*.go' "$@" | grep -v -e '^scripts/' -e /internal/asm/ -e /internal/libllama/ | xargs -n1 dirname |
		sort -u | sed 's|^|./|'
}
own=$(where '^\s*go func|\.Go\(' --exclude='*_test.go' kernels format verify convert cmd)
named=$(where '^func Test\w*(Concurrent|Threads)' kernels format rotations verify convert | grep -vxF "$own")
own="$own ./verify/refmodel" # the forward pass, which hands its work to kernels/parallel
[ -n "$own" ] && [ -n "$named" ] || { echo "no package starts goroutines"; exit 1; }
# shellcheck disable=SC2086 # lists
{
	go test -race -short -shuffle=on $own
	# Choosing edits twice, with different threads, is long even without the detector.
	go test -race -short -run 'Concurrent|Threads' -skip '^TestChooseThreads$' $named
}
