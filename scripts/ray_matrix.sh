#!/usr/bin/env bash
# Runs the fast tests with the newest patch of each supported Ray, and writes a table of the results.
#
#     scripts/ray_matrix.sh [--only VERSION,VERSION] [--torch VERSION] [--envs DIR] [--out DIR] [-- PYTEST ARGUMENTS]
#     scripts/ray_matrix.sh --only 2.58,2.60 -- -x tests/test_rollouts.py
#
# Each version has a virtual environment of its own in --envs (default: .venv-ray; about 2 GB each), which is kept and
# used again. --out (default: --envs) gets ray_matrix.json, ray_matrix.md, and for each version the logs of pip and
# pytest. Exits with 1 if a version could not be installed or a test failed with it.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=2.56,2.57,2.58,2.59,2.60 torch=2.13.0 envs=.venv-ray out=""
while [ $# -gt 0 ]; do
    case $1 in
        --only) versions=$2; shift 2 ;;
        --torch) torch=$2; shift 2 ;;
        --envs) envs=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --) shift; break ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
mkdir -p "$envs" "${out:=$envs}"
envs=$(realpath "$envs") out=$(realpath "$out")
python=${PYTHON:-python3}
released=$("$python" -m pip index versions ray 2>/dev/null | sed -n 's/^Available versions: //p')
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTEST_ADDOPTS=--assert=plain

# Prints the newest patch of a minor version; a full version is taken as it is.
newest() {
    case $1 in *.*.*) echo "$1"; return ;; esac
    tr -d ' ' <<<"$released" | tr , '\n' | grep -E "^${1//./\\.}\.[0-9]+$" | sort -V | tail -1
}

rows=()
for minor in ${versions//,/ }; do
    ray=$(newest "$minor") || { echo "There is no Ray $minor; pip knows: $released" >&2; exit 2; }
    env=$envs/ray-$ray log=$out/ray-$ray
    echo "Ray $ray: installing into $env"
    [ -x "$env/bin/python" ] || "$python" -m venv "$env"
    # torch first: it would otherwise be the newest, with CUDA
    if "$env/bin/pip" install "torch==$torch" >"$log-pip.log" 2>&1 &&
        "$env/bin/pip" install "ray[rllib,tune]==$ray" -e '.[test]' >>"$log-pip.log" 2>&1; then
        echo "Ray $ray: testing"
        PATH=$env/bin:$PATH PYTHONPATH=$PWD "$env/bin/python" -m pytest -q --junitxml="$log.xml" "$@" \
            >"$log-pytest.log" 2>&1 || true
        grep . "$log-pytest.log" | tail -1
    else
        rm -f "$log.xml"
        echo "Ray $ray: not installed, see $log-pip.log" >&2
    fi
    rows+=("$env" "$log.xml")
done
"$python" scripts/ray_matrix_table.py --out "$out" --arguments="$*" "${rows[@]}"
