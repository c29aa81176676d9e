"""Where the project's own files lie and how it is installed; files written whole or not at all."""

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


DISTRIBUTION = "vtr-search"
"""What pip calls this project; `vtr` on the package index is somebody else's."""


def package_file(package: str, *names: str) -> Path:
    """A file that lies in a package of ours: to read, never to write beside.

    Args:
        package: A package by its dotted name; one without `__init__.py` is fine.
        names: The folders below it, then the file's name.
    """
    place = resources.files(package)
    for name in names:  # one by one: the places of a package without __init__.py take no more in Python 3.10
        place = place / name
    return Path(str(place))


def manifest(kind: str, name: str = "") -> Path:
    """A file of `data_manifests/KIND`, or that folder itself."""
    return package_file(f"vtr.data_manifests.{kind}") / name


def manifest_names(kind: str) -> list[str]:
    """The names of the TOML files of `data_manifests/KIND`, sorted."""
    return sorted(path.stem for path in manifest(kind).glob("*.toml"))


def read_manifest(kind: str, name: str) -> dict[str, Any]:
    """The content of `data_manifests/KIND/NAME.toml`."""
    return tomllib.loads(manifest(kind, f"{name}.toml").read_text(encoding="utf-8"))


def import_root() -> Path:
    """The folder that a child process needs on PYTHONPATH to import the same `vtr`."""
    return package_file("vtr").parent


def checkout() -> Path | None:
    """The repository this runs from, or None where it is installed like any package."""
    root = import_root()
    return root if (root / "pyproject.toml").is_file() and (root / "encoders").is_dir() else None


def install_command(extra: str = "") -> str:
    """What installs this project with one of its extras, from where it is now."""
    root = checkout()
    which = f"[{extra}]" if extra else ""
    if root is None:
        return f"pip install '{DISTRIBUTION}{which}'"
    return f"pip install -e '{'.' if Path.cwd() == root else root}{which}'"


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
