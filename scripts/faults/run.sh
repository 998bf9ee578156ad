#!/usr/bin/env bash
# run.sh [KILLS]: kills that many conversions (200) with SIGKILL at random moments,
# resumes them and compares the results with undisturbed runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
PHASECONV_KILLS=${1:-200} CGO_ENABLED=0 go test ./cmd/phaseconv -run '^TestKills$' -count=1 -timeout 3h -v
