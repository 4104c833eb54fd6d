#!/usr/bin/env bash
# The tests that compare with open_clip itself. It goes to a folder of its own: it needs torchvision, which the package index has
# for CUDA only, and which transformers would try to use in all other tests.
# Usage: scripts/test_open_clip.sh PYTHON   (a Python with the extra `dev`)
set -euo pipefail
python=$(realpath --no-symlinks "${1:?a Python with the extra dev}")
cd "$(dirname "$0")/.."
folder=$PWD/build/open-clip
rm -rf "$folder"
"$python" -m pip install --quiet --quiet --no-deps --constraint constraints.txt --target "$folder" open_clip_torch timm torchvision ftfy
PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest -p tests.torchvision_cpu -m "not slow" -rs \
    tests/test_open_clip_itself.py tests/test_export_forms.py tests/test_export_carried.py -k "open_clip or itself"
