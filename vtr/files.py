"""Where the project's own data files lie, installed or in a checkout; files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def manifest(kind: str, name: str = "") -> Path:
    """A file of `data_manifests/KIND`, or that folder itself."""
    return Path(str(resources.files(f"vtr.data_manifests.{kind}"))) / name


def manifest_names(kind: str) -> list[str]:
    """The names of the TOML files of `data_manifests/KIND`, sorted."""
    return sorted(path.stem for path in manifest(kind).glob("*.toml"))


def read_manifest(kind: str, name: str) -> dict[str, Any]:
    """The content of `data_manifests/KIND/NAME.toml`."""
    return tomllib.loads(manifest(kind, f"{name}.toml").read_text(encoding="utf-8"))


def import_root() -> Path:
    """The folder that a child process needs on PYTHONPATH to import the same `vtr`."""
    return Path(str(resources.files("vtr"))).parent


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path`, durably, when the block ends well.

    Readers see the old file or the new one. A block that raises leaves the old one and nothing beside it; a killed
    process leaves a file `NAME.….tmp`. Errors (OSError) are the caller's to name.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield partial
        handle = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
