#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most eight minutes: the tests marked gpu (recorded steps give the same
# numbers as plain ones, among others), speeds, and the device's own matmul rate beside them.
#
#     scripts/gpu_check.sh [--cpu] [--out FILE]
#
# Needs a Python with the package and its test extra. Writes one JSON file (default: gpu_check.json), after each part
# anew. --cpu runs every part on the CPU, to try the script itself. Exits with 1 if a part failed.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
