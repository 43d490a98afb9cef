#!/usr/bin/env bash
# The Triton kernels in the interpreter of triton 3.6 (torch 2.11's), which needs numpy < 2.4; at most two minutes.
# TORCH=2.11.0 takes that torch, too: PyPI has it for CUDA only (give PIP_OPTIONS an index of CPU wheels, or a GPU).
# PYTHON: an interpreter that has pytest, safetensors and, without TORCH, torch. Nothing is installed into it.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
# shellcheck disable=SC2086 # options are words
"$PYTHON" -m pip install --quiet --disable-pip-version-check ${PIP_OPTIONS:-} --no-deps --target "$old" \
  "triton==3.6.0" "numpy<2.4" ${TORCH:+"torch==$TORCH"}
export PYTHONPATH="$old:$PWD:$PWD/kernels" TRITON_INTERPRET=1 PYTHONDONTWRITEBYTECODE=1
"$PYTHON" -c 'import numpy, torch, triton
print("torch", torch.__version__, "triton", triton.__version__, "numpy", numpy.__version__)
assert triton.__version__ == "3.6.0"'
"$PYTHON" -m pytest -q -c /dev/null --rootdir . --noconftest --import-mode=importlib -p no:cacheprovider \
  tests/kernels/test_losses.py tests/kernels/test_attention.py ${TORCH:+tests/kernels/test_operators.py} \
  -k "${TESTS:-triton}"
