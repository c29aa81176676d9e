"""Runs the CUDA kernels of bimamba on CPU threads: builds cuda_shim.cpp and gives `cuda.forward` a launcher."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from vtr.kernels.bimamba import cuda, nvrtc

SHIM = Path(__file__).with_name("cuda_shim.cpp")
COMPILER = shutil.which("g++")
needs_gxx = pytest.mark.skipif(COMPILER is None, reason="no g++ here: the CUDA kernels cannot be emulated")


def build(path: Path, storage: int, taps: int, *flags: str) -> Path:
    """Compiles the shim with the kernels into `path`."""
    defines = [f"-DSTORAGE={storage}", f"-DTAPS={taps}", f'-DSOURCE="{nvrtc.SOURCE}"']
    command = [COMPILER, "-std=c++20", "-O2", "-w", "-pthread", *defines, *flags, "-o", str(path), str(SHIM)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return path


@lru_cache(maxsize=None)
def library(storage: int, taps: int) -> ctypes.CDLL:
    """The emulated kernels, built once per state of their sources."""
    text = nvrtc.SOURCE.read_bytes() + SHIM.read_bytes()
    folder = Path(tempfile.gettempdir()) / "vtr-cuda-emulation"
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}-{storage}-{taps}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            build(Path(scratch) / "shim.so", storage, taps, "-shared", "-fPIC").rename(path)
    loaded = ctypes.CDLL(str(path))
    loaded.shim_job_size.restype = ctypes.c_long
    assert loaded.shim_job_size() == ctypes.sizeof(cuda.Job), "scan.cu and cuda.py disagree about the job's layout"
    return loaded


class Emulator:
    """A launcher; remembers the names of the kernels it ran."""

    def __init__(self, dtype: torch.dtype, taps: int) -> None:
        self.library = library(nvrtc.STORAGE[dtype], taps)
        self.ran: list[str] = []

    def __call__(self, name: str, grid: tuple[int, int], job: cuda.Job) -> None:
        self.ran.append(name)
        x, y = (ctypes.c_long(n) for n in grid)
        self.library.shim_launch(getattr(self.library, name), nvrtc.THREADS[name], x, y, ctypes.byref(job))
