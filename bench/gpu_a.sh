#!/usr/bin/env bash
# A GPU for minutes, first half: tests, facts, sanitizer, the reference shape. Under 7 minutes; results as they come.
#   bash bench/gpu_a.sh OUT [WHEELS]     WHEELS: of bench/mamba_wheels.sh; REHEARSE=1 tries it all without a GPU
set -u
cd "$(dirname "$0")/.." || exit
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd); wheels=${2:-build/gpu/wheels}
python=${PYTHON:-python3} try=${REHEARSE:+--rehearse}
export PYTHONUNBUFFERED=1
step() { # SECONDS NAME COMMAND…: within its time, its words in log.txt; what is not there is skipped with a line
  local limit=$1 name=$2; shift 2
  command -v "$1" > /dev/null || { echo "== $name: skipped, no $1 here" | tee -a "$out/log.txt"; return; }
  timeout -k 5 "$limit" "$@" >> "$out/log.txt" 2>&1
  echo "== $name: exit $?, ${SECONDS} s so far" | tee -a "$out/log.txt"
}
if ls "$wheels"/*.whl > /dev/null 2>&1 && [ -z "$try" ]; then
  site=$(mktemp -d)
  step 20 wheels "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  export PYTHONPATH=$site
else
  echo "== wheels: skipped, none in $wheels or a rehearsal: nothing to compare with" | tee -a "$out/log.txt"
fi
step 30 doctor "$python" -c 'import json; from vtr.doctor import examine; print(json.dumps(examine(), indent=1, default=str))'
step 120 kernels "$python" -m bench.kernels_cuda $try --only reference --minutes 1.5 --out "$out"
step 60 sanitizer compute-sanitizer --error-exitcode 3 "$python" -m bench.kernels_cuda $try --once 1 99
step 130 tests "$python" -m pytest -m gpu ${REHEARSE:+--collect-only} -q tests/kernels tests/bench/test_kernels_cuda.py
