#!/usr/bin/env bash
# A GPU for minutes, second half: whole encoders, all shapes, ncu, pretraining, indexing. Under 7 minutes.
#   bash bench/gpu_b.sh OUT [WHEELS]     WHEELS: of bench/mamba_wheels.sh; REHEARSE=1 tries it all without a GPU
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
fi
step 120 encoders "$python" -m bench.encoders_cuda $try --minutes 1.6 --out "$out"
step 80 kernels "$python" -m bench.kernels_cuda $try --minutes 1.1 --out "$out"
step 50 ncu ncu --set basic -k regex:scan_ "$python" -m bench.kernels_cuda $try --once 32 1569
few="--clips 2000 --images 400 --steps 20 40 40 --batch-size 128 --workers 12"
step 90 pretrain "$python" -m bench.pretrain ${REHEARSE:+--help} $few --out "$out/run" --data-root "$out/data" --report "$out/pretrain.md"
rm -rf "$out/run" "$out/data" # large; pretrain.md has what counts
step 60 indexing "$python" -m bench.indexing_cuda $try --videos 4 --out "$out"
