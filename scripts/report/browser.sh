#!/bin/sh
# Checks the report page in a headless Chromium: probes are dragged, moved by keys
# and touched, and their numbers compared with Go's; tables are sorted; no page may
# be wider than its window.
#
#   scripts/report/browser.sh [SHOTS [PAGE...]]
#
# SHOTS is a folder for pictures at 1200, 800 and 400 px, light and dark, of the
# golden page or of the PAGEs. CHROMIUM names the browser.
set -eu
cd "$(dirname "$0")/../.."
if [ $# -gt 0 ]; then
	mkdir -p "$1"
	REPORT_SHOTS=$(cd "$1" && pwd)
	export REPORT_SHOTS
	shift
fi
for page in "$@"; do
	REPORT_PAGES=${REPORT_PAGES:+$REPORT_PAGES:}$page
done
export REPORT_PAGES="${REPORT_PAGES:-}"
exec go test -tags browser -count=1 -run 'Probes|Narrow|Tables|Screenshots' ./verify/report
