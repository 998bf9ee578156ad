#!/usr/bin/env bash
# interrupt.sh [N]: interrupts each command N times (8) with SIGINT, at moments spread over its
# run, also on a model of 32 layers, and holds it to end within 2 s of processor time.
set -euo pipefail
cd "$(dirname "$0")/../.."
PHASECONV_INTERRUPTS=${1:-8} CGO_ENABLED=0 go test ./cmd/phaseconv -run '^TestInterrupt$' -count=1 -timeout 1h -v
