"""Builds mamba-ssm's selective scan and causal-conv1d from their released sources, for the benchmark to compare with.

Only what a bimamba block in bfloat16 uses is compiled, for the GPU at hand, with the machine's nvcc; nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tarfile
import types
from pathlib import Path

import torch

from vtr.errors import UsageError

# What selective_scan.cpp refers to and is not compiled here.
_ABSENT = """// Instances that the benchmark does not use.
#include <ATen/ATen.h>
#include <c10/util/complex.h>
#include <cuda_runtime.h>
#include "selective_scan.h"
template <typename I, typename W> void selective_scan_fwd_cuda(SSMParamsBase &, cudaStream_t) { TORCH_CHECK(false, "not built"); }
template <typename I, typename W> void selective_scan_bwd_cuda(SSMParamsBwd &, cudaStream_t) { TORCH_CHECK(false, "not built"); }
#define BOTH(I, W) template void selective_scan_fwd_cuda<I, W>(SSMParamsBase &, cudaStream_t); \\
    template void selective_scan_bwd_cuda<I, W>(SSMParamsBwd &, cudaStream_t);
BOTH(float, float) BOTH(float, c10::complex<float>) BOTH(at::Half, float) BOTH(at::Half, c10::complex<float>)
BOTH(at::BFloat16, c10::complex<float>)
"""
_FLAGS = [
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(
        f"-U__CUDA_NO_{name}__"
        for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS")
    ),
    *(f"-U__CUDA_NO_{name}__" for name in ("BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")),
]


def _unpack(folder: Path, name: str, into: Path) -> Path:
    found = sorted(folder.glob(f"{name}-*.tar.gz"))
    if not found:
        raise UsageError(
            f"no {name}-*.tar.gz in {folder}: download it with"
            f" `pip download --no-deps --no-build-isolation --no-binary :all: {name.replace('_', '-')}` or from its PyPI page"
        )
    with tarfile.open(found[-1]) as archive:
        archive.extractall(into, filter="data")
    return next(path for path in into.iterdir() if path.name.startswith(name) and path.is_dir())


def _build(name: str, sources: list[Path], build: Path) -> None:
    from torch.utils.cpp_extension import load

    build.mkdir(parents=True, exist_ok=True)
    load(
        name=name,
        sources=[str(source) for source in sources],
        extra_include_paths=[str(sources[0].parent)],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=["-std=c++17", *_FLAGS],
        build_directory=str(build),
        is_python_module=False,
        with_cuda=True,
    )
    spec = importlib.util.spec_from_file_location(name, build / f"{name}.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


def install(folder: Path, build: Path) -> str:
    """Builds both packages and makes them importable in this process.

    Args:
        folder: Holds mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz as released on PyPI.
        build: Scratch folder; a second call there reuses what is built.

    Returns:
        Their names and versions.

    Raises:
        UsageError: a source archive or nvcc is missing.
    """
    if shutil.which("nvcc") is None:
        raise UsageError("mamba-ssm cannot be built for comparison: no nvcc on the PATH")
    major, minor = torch.cuda.get_device_capability()
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    sources = build / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    conv = _unpack(folder, "causal_conv1d", sources)
    mamba = _unpack(folder, "mamba_ssm", sources)
    scan = mamba / "csrc" / "selective_scan"
    forward = scan / "selective_scan_fwd_bf16.cu"
    # without the complex instance: half the compile time
    lines = [line for line in forward.read_text().splitlines() if "complex_t>" not in line]
    forward.write_text("\n".join(lines) + "\n")
    (scan / "absent.cpp").write_text(_ABSENT)
    names = ["selective_scan.cpp", "absent.cpp", "selective_scan_fwd_bf16.cu", "selective_scan_bwd_bf16_real.cu"]
    _build("selective_scan_cuda", [scan / name for name in names], build / "scan")
    names = ["causal_conv1d.cpp", "causal_conv1d_fwd.cu", "causal_conv1d_bwd.cu", "causal_conv1d_update.cu"]
    _build("causal_conv1d_cuda", [conv / "csrc" / name for name in names], build / "conv")
    # The packages' own __init__ files import much that is not needed (Mamba-2, generation, transformers).
    for name, root in (("mamba_ssm", mamba / "mamba_ssm"), ("causal_conv1d", conv / "causal_conv1d")):
        package = types.ModuleType(name)
        package.__path__ = [str(root)]
        sys.modules[name] = package
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn

    sys.modules["causal_conv1d"].causal_conv1d_fn = causal_conv1d_fn  # type: ignore[attr-defined]
    return f"{mamba.name}, {conv.name}"
