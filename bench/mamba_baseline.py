"""Builds wheels of mamba-ssm's selective scan and causal-conv1d from their released sources, to compare bimamba with.

python -m bench.mamba_baseline --sources build/gpu/sources --out build/gpu/wheels             # for the GPU at hand
python -m bench.mamba_baseline --sources build/gpu/sources --out build/gpu/wheels --arch 9.0  # without one, for an H100

Only what a bimamba block in bfloat16 uses is compiled, by nvcc, for this Python and this torch; the wheels say so in their
versions (+bf16) and install with pip --no-deps. bench/mamba_wheels.sh makes the environment and fetches the sources.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.command import flags_of
from vtr.errors import UsageError, VtrError, reports_errors

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


def unpack(folder: Path, name: str, into: Path) -> tuple[Path, str]:
    """The newest source archive of a package in `folder`, unpacked: its folder and its version.

    Raises:
        UsageError: there is none.
    """
    found = sorted(folder.glob(f"{name}-*.tar.gz"))
    if not found:
        raise UsageError(
            f"no {name}-*.tar.gz in {folder}: download it with"
            f" `pip download --no-deps --no-build-isolation --no-binary :all: {name.replace('_', '-')}` or from its PyPI page"
        )
    with tarfile.open(found[-1]) as archive:
        archive.extractall(into, filter="data")
    root = next(path for path in into.iterdir() if path.name.startswith(name) and path.is_dir())
    return root, root.name.partition("-")[2]


def compile_extension(name: str, sources: list[Path], scratch: Path) -> Path:
    """One extension module of CUDA sources; the file."""
    from torch.utils.cpp_extension import load

    folder = scratch / f"build-{name}"
    folder.mkdir()
    load(
        name=name,
        sources=[str(source) for source in sources],
        extra_include_paths=[str(sources[0].parent)],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=["-std=c++17", *_FLAGS],
        build_directory=str(folder),
        is_python_module=False,
        with_cuda=True,
    )
    return folder / f"{name}.so"


def pack(wheel: Path, name: str, version: str, package: Path, extension: Path) -> None:
    """A wheel of a package's Python files and one extension beside it.

    The package's own __init__ imports much that is not needed here (Mamba-2, generation): an empty one takes its place.
    """
    tag = wheel.stem.split("-", 2)[2]
    about = f"{name}-{version}.dist-info"
    face = "from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn\n" if name == "causal_conv1d" else ""
    files = {p.relative_to(package.parent).as_posix(): p.read_bytes() for p in sorted(package.rglob("*.py"))}
    files |= {f"{name}/__init__.py": face.encode(), extension.name: extension.read_bytes()}
    files[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for path, content in files.items():
            out.writestr(path, content)


def build(sources: Path, out: Path) -> list[Path]:
    """Both wheels, for the architecture in TORCH_CUDA_ARCH_LIST.

    Args:
        sources: Holds mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz as released on PyPI.
        out: Gets the wheels.

    Raises:
        UsageError: a source archive or nvcc is missing.
        VtrError: nvcc fails.
    """
    if shutil.which("nvcc") is None:
        raise UsageError("mamba-ssm cannot be built for comparison: no nvcc on the PATH")
    with tempfile.TemporaryDirectory(prefix="vtr-mamba-") as folder:
        scratch = Path(folder)
        conv, conv_version = unpack(sources, "causal_conv1d", scratch)
        mamba, mamba_version = unpack(sources, "mamba_ssm", scratch)
        scan = mamba / "csrc" / "selective_scan"
        forward = scan / "selective_scan_fwd_bf16.cu"
        # without the complex instance: half the compile time
        lines = [line for line in forward.read_text().splitlines() if "complex_t>" not in line]
        forward.write_text("\n".join(lines) + "\n")
        (scan / "absent.cpp").write_text(_ABSENT)
        names = ["selective_scan.cpp", "absent.cpp", "selective_scan_fwd_bf16.cu", "selective_scan_bwd_bf16_real.cu"]
        try:
            scan_file = compile_extension("selective_scan_cuda", [scan / name for name in names], scratch)
            names = ["causal_conv1d.cpp", "causal_conv1d_fwd.cu", "causal_conv1d_bwd.cu", "causal_conv1d_update.cu"]
            conv_file = compile_extension("causal_conv1d_cuda", [conv / "csrc" / name for name in names], scratch)
        except RuntimeError as error:
            raise VtrError(f"the sources did not compile; nvcc's words are above ({error})") from error
        out.mkdir(parents=True, exist_ok=True)
        python, platform = f"cp{sys.version_info.major}{sys.version_info.minor}", sysconfig.get_platform()
        tag = f"{python}-{python}-{platform.replace('-', '_')}"
        made = []
        for name, version, root, extension in (
            ("mamba_ssm", mamba_version, mamba, scan_file),
            ("causal_conv1d", conv_version, conv, conv_file),
        ):
            version += "+bf16"
            made.append(out / f"{name}-{version}-{tag}.whl")
            pack(made[-1], name, version, root / name, extension)
        return made


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--arch", help="compute capability, 9.0 for an H100 (default: that of the GPU here)")
    options = parser.parse_args(argv)
    if options.arch is None:
        if not torch.cuda.is_available():
            raise UsageError("no GPU here to ask for its architecture: --arch 9.0 for an H100, 8.0 for an A100")
        options.arch = "{}.{}".format(*torch.cuda.get_device_capability())
    os.environ["TORCH_CUDA_ARCH_LIST"] = options.arch
    for wheel in build(options.sources, options.out):
        print(
            f"{wheel}  {wheel.stat().st_size / 2**20:.1f} MiB, sm_{options.arch.replace('.', '')}, torch {torch.__version__}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
