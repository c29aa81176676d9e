"""Runs CUDA kernels on the CPU: builds cuda_shim.cpp with their source and gives the code that launches them a launcher."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from vtr.kernels import nvrtc

SHIM = Path(__file__).with_name("cuda_shim.cpp")
COMPILER = shutil.which("g++")
needs_gxx = pytest.mark.skipif(COMPILER is None, reason="no g++ here: the CUDA kernels cannot be emulated")


def build(path: Path, unit: nvrtc.Unit, defines: Mapping[str, int], *flags: str) -> Path:
    """Compiles the shim with a unit's kernels into `path`."""
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    include = f"-I{nvrtc.COMMON.parent}"
    command = [COMPILER, "-std=c++20", "-O2", "-w", "-pthread", include, *macros, f'-DSOURCE="{unit.source}"', *flags]
    done = subprocess.run([*command, "-o", str(path), str(SHIM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return path


@cache
def _library(source: Path, text: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    digest = hashlib.sha256((text + SHIM.read_text() + repr(defines)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "vtr-cuda-emulation"
    folder.mkdir(exist_ok=True)
    path = folder / f"{source.stem}-{digest}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unit = nvrtc.Unit(source=source, threads={})
            build(Path(scratch) / "shim.so", unit, dict(defines), "-shared", "-fPIC").rename(path)
    loaded = ctypes.CDLL(str(path))
    loaded.shim_job_size.restype = ctypes.c_long
    return loaded


class Emulator:
    """A launcher for tensors on the CPU; remembers the names of the kernels it ran."""

    def __init__(self, unit: nvrtc.Unit, defines: Mapping[str, int], job: type[ctypes.Structure]) -> None:
        self.unit, self.ran = unit, []
        self.library = _library(unit.source, unit.text(), tuple(sorted(defines.items())))
        assert self.library.shim_job_size() == ctypes.sizeof(job), f"{unit.source.name}: the job's layout differs"

    def __call__(self, name: str, grid: tuple[int, int], job: ctypes.Structure) -> None:
        self.ran.append(name)
        x, y = (ctypes.c_long(n) for n in grid)
        self.library.shim_launch(getattr(self.library, name), self.unit.threads[name], x, y, ctypes.byref(job))
