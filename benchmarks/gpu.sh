#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: the tests marked "gpu", then the
# figures of engine_gpu.py.
#
#   bash benchmarks/gpu.sh [FOLDER]         results in FOLDER, else in $OUT, else in ./gpu-results
#   bash benchmarks/gpu.sh --dry [FOLDER]   the same on a CPU with tiny models: does it run? no figures
#
# Needs torch >= 2.10 with CUDA and the packages listed below; flash-attn is used where it is installed.
# No network: packages that are missing may lie as wheels in .whl/ (pip download -d .whl pydantic, for the
# Python of the GPU machine). PYTHON chooses the interpreter. Ends with 3 where there is no CUDA device
# or a package is missing, with 1 where a test or a figure failed.
set -u
cd "$(dirname "$0")/.."
dry=
if [ "${1:-}" = --dry ]; then
    dry=yes
    shift
fi
out=${1:-${OUT:-gpu-results}}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
    PYTHONPATH="$site:$PYTHONPATH"
fi

DRY=$dry "$python" - <<'PYTHON' || exit 3
import os
import sys
from importlib.util import find_spec

needed = (
    "torch", "transformers", "accelerate", "numpy", "scipy", "pandas", "psutil", "pydantic", "pytest",
    "hypothesis",
)
missing = [name for name in needed if find_spec(name) is None]
if missing:
    sys.exit(f"gpu.sh needs {', '.join(missing)}, which {sys.executable} does not have; "
             "install them, put their wheels in .whl/, or choose another interpreter: PYTHON=...")
import torch

if not os.environ["DRY"] and not torch.cuda.is_available():
    sys.exit(f"gpu.sh needs a CUDA device, and torch {torch.__version__} sees none here; "
             "gpu.sh --dry shows that it runs")
PYTHON

failed=0
# Only files that have such tests: others import packages that a bare GPU machine may lack.
mapfile -t files < <(grep -rlE 'mark\.gpu\b' tests --include='*.py')
echo "== tests marked gpu: ${files[*]}"
timeout 180 "$python" -m pytest -m gpu -q -p no:cacheprovider "${files[@]}" 2>&1 | tee "$out/gpu_tests.txt"
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1

echo "== figures"
timeout 390 "$python" benchmarks/engine_gpu.py ${dry:+--device cpu --quick} --out "$out" 2>&1 |
    tee "$out/engine_gpu.txt"
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
exit "$failed"
