#!/usr/bin/env bash
# Build the wheel, install it in a clean environment, and start it from outside the checkout.
# Usage: scripts/smoke_wheel.sh PYTHON   (a Python with the package `build`)
set -euo pipefail
python=$(realpath --no-symlinks "${1:?a Python with the package build}")
cd "$(dirname "$0")/.."
constraints=$PWD/constraints.txt
unset PYTHONPATH  # pip would take a checkout on it for the installed package
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel is built from the source archive, so that both are tested and nothing left in build/ gets in.
"$python" -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet --constraint "$constraints" "$work"/dist/*.whl

cd "$work"
apd=$work/venv/bin/apd
"$apd" --version
"$apd" --help >/dev/null
"$apd" list models --json >/dev/null
"$apd" demo --quick --output "$work/demo"
test -s "$work/demo/summary.json"
echo "The wheel works in a clean environment."
