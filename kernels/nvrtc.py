"""Compiles CUDA sources for the GPU at hand with NVRTC, keeps the machine code in the user's cache, loads, launches.

Needs the NVIDIA driver, and NVRTC, cuda-core and cuda-bindings, which are packages; no CUDA toolkit and no compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import SupportsInt, TextIO

import torch

from vtr.files import package_file
from vtr.kernels.build import BuildError, cached

COMMON = package_file("vtr.kernels", "common.cuh")
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # -DSTORAGE
OLDEST = (8, 0)  # mma.m16n8k16 with bfloat16

Loaded = dict[str, SupportsInt]  # the driver's handles of the kernels by name, and under "" of their context
# Puts a kernel on a stream: its name, the grid (x, y), its argument.
Launch = Callable[[str, tuple[int, int], ctypes.Structure], None]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A CUDA source and the kernels in it; each takes one structure by value."""

    source: Path
    threads: Mapping[str, int]  # of a block, by kernel

    def text(self) -> str:
        """All that goes into the machine code."""
        return COMMON.read_text() + self.source.read_text()


_lock = threading.Lock()
_loaded: dict[tuple[object, ...], Loaded] = {}
_failures: dict[tuple[object, ...], str] = {}


def compile_cubin(unit: Unit, architecture: str, defines: Mapping[str, int], log: TextIO | None = None) -> bytes:
    """Machine code of every kernel, from the cache where it is there. Needs neither GPU nor driver.

    Args:
        unit: What to compile.
        architecture: Such as "sm_90".
        defines: Macros.
        log: A text stream that gets the compiler's messages, with registers and spills; nothing is cached then.

    Raises:
        BuildError: NVRTC is missing or fails.
    """
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise BuildError(f"cuda-core is not installed ({error})") from error
    try:
        _, *version = nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise errors of several kinds where the library is missing
        raise BuildError(f"NVRTC cannot be loaded: {error}") from error
    macros = [(name, str(value)) for name, value in sorted(defines.items())]
    key = "\0".join((unit.text(), architecture, repr(macros), ".".join(map(str, version))))
    name = f"{unit.source.stem}-{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cubin"
    path = cached(name)
    if log is None and path.is_file():
        return path.read_bytes()
    options = ProgramOptions(
        arch=architecture,
        std="c++17",
        define_macro=macros,
        include_path=[str(COMMON.parent)],
        **({"ptxas_options": ["-v"]} if log is not None else {}),
    )
    try:
        # not PTX: asking for that needs a driver, and the driver would compile it again in every process
        program = Program(unit.source.read_text(), "c++", options)
        binary = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "error" in line] or str(error).splitlines()
        raise BuildError(f"NVRTC failed for {architecture}: {lines[0] if lines else type(error).__name__}") from error
    if log is None:
        _store(path, binary)
    return binary


def _store(path: Path, binary: bytes) -> None:
    try:
        # many processes may do this at once: each writes a file of its own and moves it into place in one step
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(binary)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
    except OSError as error:
        reason = f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error})"
        warnings.warn(f"{reason}: every process compiles them", RuntimeWarning, stacklevel=3)


@lru_cache(maxsize=64)
def unsupported(device: int) -> str | None:
    """Why a GPU cannot run the kernels, or None."""
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}; sm_80 (Ampere) or newer is needed"
    return None


@lru_cache(maxsize=64)
def multiprocessors(device: int) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def index_of(device: torch.device) -> int:
    """The number of a CUDA device, of the current one where it has none."""
    return device.index if device.index is not None else torch.cuda.current_device()


def kernels(unit: Unit, device: torch.device, defines: Mapping[str, int]) -> Loaded:
    """The loaded kernels by name, for one GPU; compiled and loaded once a process, tried once.

    Raises:
        BuildError: they can't be had.
    """
    index = index_of(device)
    key = (unit.source.name, index, *sorted(defines.items()))
    if key in _loaded:
        return _loaded[key]
    with _lock:
        if key in _failures:
            raise BuildError(_failures[key])
        if key not in _loaded:
            try:
                if reason := unsupported(index):
                    raise BuildError(reason)
                major, minor = torch.cuda.get_device_capability(index)
                _loaded[key] = _load(unit, index, compile_cubin(unit, f"sm_{major}{minor}", defines))
            except BuildError as error:
                _failures[key] = str(error)
                raise
        return _loaded[key]


def _check(result: tuple[SupportsInt, ...], what: str) -> SupportsInt:
    code, *rest = result
    if int(code) != 0:
        raise BuildError(f"{what}: {getattr(code, 'name', code)}")
    return rest[0] if rest else 0


def _load(unit: Unit, index: int, binary: bytes) -> Loaded:
    from cuda.bindings import driver

    torch.cuda.init()
    with torch.cuda.device(index):
        _check(driver.cuInit(0), "cuInit")
        device = _check(driver.cuDeviceGet(index), "cuDeviceGet")
        context = _check(driver.cuDevicePrimaryCtxRetain(device), "cuDevicePrimaryCtxRetain")
        _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        module = _check(driver.cuModuleLoadData(binary), f"loading {unit.source.name}")
        functions = {
            name: _check(driver.cuModuleGetFunction(module, name.encode()), f"kernel {name}") for name in unit.threads
        }
    return {"": context, **functions}


def launcher(unit: Unit, device: torch.device, defines: Mapping[str, int]) -> Launch:
    """Launches kernels of a unit on the device's current stream; their argument is copied by the call.

    Raises:
        BuildError: the kernels can't be had. A launch that the driver refuses raises RuntimeError; errors inside a
            kernel come later, as torch's do.
    """
    from cuda.bindings import driver

    loaded = kernels(unit, device, defines)
    context, threads = loaded[""], unit.threads
    stream = torch.cuda.current_stream(device).cuda_stream

    def launch(name: str, grid: tuple[int, int], job: ctypes.Structure) -> None:
        # A thread that has called nothing of CUDA yet (autograd's, a server's) has no context.
        code, current = driver.cuCtxGetCurrent()
        if int(code) != 0 or int(current) != int(context):
            driver.cuCtxSetCurrent(context)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(job))
        (code,) = driver.cuLaunchKernel(
            loaded[name], grid[0], grid[1], 1, threads[name], 1, 1, 0, stream, ctypes.addressof(parameters), 0
        )
        if int(code) != 0:
            raise RuntimeError(f"launching {name} with grid {grid}: {getattr(code, 'name', code)}")

    return launch
