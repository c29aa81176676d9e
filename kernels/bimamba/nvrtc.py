"""Compiles scan.cu for the GPU at hand with NVRTC, keeps the machine code in the user's cache, loads and launches it.

Needs the NVIDIA driver, and NVRTC, cuda-core and cuda-bindings, which are packages; no CUDA toolkit and no compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vtr.kernels.bimamba.build import BuildError, cache_folder

SOURCE = Path(__file__).with_name("scan.cu")
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
OLDEST = (8, 0)  # mma.m16n8k16 with bfloat16

# Threads of a block, by kernel.
THREADS = {
    "conv_forward_4": 64,
    "conv_forward_1": 64,
    "conv_backward_4": 64,
    "conv_backward_1": 64,
    "scan_plain_1": 64,
    "scan_gated_1": 64,
    "scan_plain_4": 64,
    "scan_ends_4": 64,
    "scan_adjoint_4": 64,
    "scan_edges": 64,
    "gate_sum": 256,
    "scan_backward": 128,
    "sum_bc": 256,
    "sum_parts": 64,
}

_lock = threading.Lock()
_functions: dict[tuple[int, int, int], dict[str, Any]] = {}
_failures: dict[tuple[int, int, int], str] = {}


def compile_cubin(architecture: str, storage: int, taps: int) -> bytes:
    """Machine code of every kernel, from the cache where it is there. Needs neither GPU nor driver.

    Args:
        architecture: Such as "sm_90".
        storage: 0 float32, 1 bfloat16, 2 float16.
        taps: Taps of the convolution.

    Raises:
        BuildError: NVRTC is missing or fails, or the cache folder cannot be written.
    """
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise BuildError(f"cuda-core is not installed ({error})") from error
    source = SOURCE.read_text()
    try:
        code, *version = nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise RuntimeError or their own errors where the library is missing
        raise BuildError(f"NVRTC cannot be loaded: {error}") from error
    key = "\0".join((source, architecture, str(storage), str(taps), ".".join(map(str, version))))
    path = cache_folder() / f"bimamba-{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cubin"
    if path.is_file():
        return path.read_bytes()
    options = ProgramOptions(
        arch=architecture, std="c++17", define_macro=[("STORAGE", str(storage)), ("TAPS", str(taps))]
    )
    try:
        # not PTX: asking for that needs a driver, and the driver would compile it again in every process
        binary = bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "error" in line] or str(error).splitlines()
        raise BuildError(f"NVRTC failed for {architecture}: {lines[0] if lines else type(error).__name__}") from error
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
        warnings.warn(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error}): every process compiles them",
            RuntimeWarning,
            stacklevel=2,
        )
    return binary


@lru_cache(maxsize=64)
def unsupported(device: int) -> str | None:
    """Why this GPU cannot run the kernels, or None."""
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


def _check(result: tuple[Any, ...], what: str) -> Any:
    code, *rest = result
    if int(code) != 0:
        raise BuildError(f"{what}: {getattr(code, 'name', code)}")
    return rest[0] if rest else None


def kernels(device: int, dtype: torch.dtype, taps: int) -> dict[str, Any]:
    """The loaded kernels by name, for one GPU, storage type and number of taps; compiled and loaded once a process,
    tried once.

    Raises:
        BuildError: they can't be had.
    """
    key = (device, STORAGE[dtype], taps)
    with _lock:
        if key in _failures:
            raise BuildError(_failures[key])
        if key not in _functions:
            try:
                _functions[key] = _load(device, _machine_code(device, *key[1:]))
            except BuildError as error:
                _failures[key] = str(error)
                raise
        return _functions[key]


def _machine_code(device: int, storage: int, taps: int) -> bytes:
    if reason := unsupported(device):
        raise BuildError(reason)
    major, minor = torch.cuda.get_device_capability(device)
    return compile_cubin(f"sm_{major}{minor}", storage, taps)


def _load(device: int, binary: bytes) -> dict[str, Any]:
    from cuda.bindings import driver

    torch.cuda.init()
    with torch.cuda.device(device):
        _check(driver.cuInit(0), "cuInit")
        context = _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(device), "cuDeviceGet")), "context")
        _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        module = _check(driver.cuModuleLoadData(binary), "loading the kernels")
        functions = {
            name: _check(driver.cuModuleGetFunction(module, name.encode()), f"kernel {name}") for name in THREADS
        }
    return {"": context, **functions}


def launch(loaded: dict[str, Any], name: str, grid: tuple[int, int], job: ctypes.Structure, stream: int) -> None:
    """Puts one kernel on a stream; the job is copied by the call.

    Raises:
        RuntimeError: the driver refused; errors of the kernel itself come later, as torch's do.
    """
    from cuda.bindings import driver

    # A thread that has called nothing of CUDA yet (autograd's, a server's) has no context.
    code, current = driver.cuCtxGetCurrent()
    if int(code) != 0 or int(current) != int(loaded[""]):
        driver.cuCtxSetCurrent(loaded[""])
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(job))
    (code,) = driver.cuLaunchKernel(
        loaded[name], grid[0], grid[1], 1, THREADS[name], 1, 1, 0, stream, ctypes.addressof(parameters), 0
    )
    if int(code) != 0:
        raise RuntimeError(f"bimamba: launching {name} with grid {grid}: {getattr(code, 'name', code)}")
