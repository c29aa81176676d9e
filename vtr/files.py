"""Where the project's own data files lie, installed or in a checkout."""

from __future__ import annotations

import sys
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
