#!/usr/bin/env bash
# The comparison's wheels, mamba-ssm and causal-conv1d, built where there is a CUDA toolkit and no GPU; minutes of CPU.
#
#   bench/mamba_wheels.sh                             # into build/gpu/wheels, for an H100, Python 3.12 and torch 2.11
#   ARCH=8.0 TORCH=2.9.1 PYTHON=python3.11 bench/mamba_wheels.sh
#   VENV=/some/folder JOBS=1 bench/mamba_wheels.sh    # VENV: 5 GB are installed there, and kept for the next call
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.12} torch=${TORCH:-2.11.0} venv=${VENV:-build/gpu/venv} arch=${ARCH:-9.0}
for tool in "$python" nvcc; do
  command -v "$tool" > /dev/null || { echo "mamba_wheels.sh: no $tool on the PATH" >&2; exit 1; }
done
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet "torch==$torch" setuptools wheel ninja packaging einops numpy
mkdir -p build/gpu/sources
for package in 'mamba-ssm==2.3.*' 'causal-conv1d==1.7.*'; do
  ls build/gpu/sources/"$(tr - _ <<< "${package%%=*}")"-*.tar.gz > /dev/null 2>&1 ||
    "$venv/bin/pip" download --quiet --no-deps --no-build-isolation --no-binary :all: -d build/gpu/sources "$package"
done
# nvcc on the PATH may be a wrapper, and the toolkit may lack headers that torch's packages bring.
nvcc_home=$(nvcc -v --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -1)
export CUDA_HOME=${CUDA_HOME:-$(realpath "${nvcc_home:-/usr/local/cuda}")}
CPATH=$(echo "$(realpath "$venv")"/lib/python3*/site-packages/nvidia/*/include | tr ' ' ':')${CPATH:+:$CPATH}
export CPATH
export MAX_JOBS=${JOBS:-2} PATH="$(realpath "$venv")/bin:$PATH"
python -m bench.mamba_baseline --sources build/gpu/sources --out build/gpu/wheels --arch "$arch"
# What pretraining and indexing need beside torch and transformers, for a machine without a network.
pip download --quiet --no-deps --only-binary :all: -d build/gpu/wheels \
  av tyro docstring-parser shtab typeguard braceexpand webdataset open_clip_torch ftfy wcwidth
du -ch build/gpu/wheels/*.whl | tail -1
