"""Compiles scan.c once per machine with the C compiler that is there, into the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vtr.files import package_file

SOURCE = package_file("vtr.kernels", "bimamba", "scan.c")
# ISA variants, best first: name, flags, the torch CPU capabilities that promise the instructions.
VARIANTS = {
    "avx512": (("-march=x86-64-v4", "-mprefer-vector-width=512"), ("AVX512",)),
    "avx2": (("-march=x86-64-v3",), ("AVX512", "AVX2")),
    "portable": ((), ()),
}
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC", "-w")


class BuildError(Exception):
    """The kernels can't be compiled here; the text says why."""


def cache_folder() -> Path:
    """Where compiled kernels live: `$XDG_CACHE_HOME/vtr/kernels`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "vtr" / "kernels"


def cached(name: str) -> Path:
    """Where a compiled kernel of that name is, or is to be written."""
    path = cache_folder() / name
    return path if path.is_file() else _writable(path.parent) / name


@functools.cache
def _writable(folder: Path) -> Path:
    """That folder, or where it cannot be written one of this user's in the temporary folder; that is said once.

    Such a folder is used only where nobody else can write to it: what lies there is run.
    """
    reason = _refusal(folder)
    if reason is None:
        return folder
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    other = Path(tempfile.gettempdir()) / f"vtr-{user}"
    if _refusal(other) is not None or not _own(other):
        return folder  # writing there says why it fails
    print(
        f"note: {folder} cannot be written ({reason}): compiled kernels go to {other}; XDG_CACHE_HOME names another place",
        file=sys.stderr,
    )
    return other


def _refusal(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is made if need be; None: it can."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _own(folder: Path) -> bool:
    """Whether a folder is this user's, and not open to others."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def variants() -> list[str]:
    """The ISA variants this CPU runs, best first. `VTR_BIMAMBA_ISA` names the best one allowed."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        capability = torch.backends.cpu.get_cpu_capability()
        names = [name for name, (_, needs) in VARIANTS.items() if not needs or capability in needs]
    else:
        names = ["portable"]
    limit = os.environ.get("VTR_BIMAMBA_ISA")
    if limit in VARIANTS:
        order = list(VARIANTS)
        names = [name for name in names if order.index(name) >= order.index(limit)]
    return names


def compiler() -> list[str]:
    """The C compiler's command: `$CC`, else the first of cc, gcc, clang on the PATH."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise BuildError(f"no C compiler ({chosen[0] if chosen else 'cc, gcc or clang'}) on the PATH")


def library_path() -> tuple[Path, str]:
    """The compiled library for this CPU, compiled now if it isn't in the cache.

    Returns:
        The file and the name of its ISA variant.

    Raises:
        BuildError: no compiler, a failing one, or a cache folder that can't be written.
    """
    source = SOURCE.read_bytes()
    reason = "no variant to build"
    for name in variants():
        flags = (*FLAGS, *VARIANTS[name][0])
        key = "\0".join((name, *flags, platform.system(), platform.machine(), os.environ.get("CC", "")))
        digest = hashlib.sha256(source + key.encode()).hexdigest()[:16]
        path = cached(f"bimamba-{name}-{digest}.so")
        if path.is_file():
            return path, name
        try:
            _compile(compiler(), flags, path)
            return path, name
        except subprocess.CalledProcessError as error:
            # an old compiler may not know the newest ISA: the next variant may still do
            lines = (error.stderr or "").strip().splitlines()
            reason = f"{error.cmd[0]} failed: {lines[0] if lines else f'exit code {error.returncode}'}"
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{error.cmd[0]} took more than {error.timeout:.0f} s") from error
        except OSError as error:
            raise BuildError(f"cannot write {path.parent}: {error.strerror or error}") from error
    raise BuildError(reason)


def _compile(command: list[str], flags: tuple[str, ...], path: Path) -> None:
    # Many processes may do this at once: each writes a file of its own and moves it into place in one step.
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        subprocess.run(
            [*command, *flags, "-o", partial, str(SOURCE)], check=True, capture_output=True, text=True, timeout=120
        )
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
