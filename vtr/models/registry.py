"""The official checkpoints as data: names, files, what each holds and is known to reach."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vtr.errors import unknown_name
from vtr.files import read_manifest

OPEN_CLIP = "open_clip:"
"""What the names of open_clip's models begin with."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One official file: where it is, what it holds, what it is known to reach."""

    name: str
    repository: str
    file: str
    task: str  # image | video | masked | retrieval
    data: str
    size: str  # tiny | small | middle | base
    image_size: int
    frames: int
    classes: int = 0
    init: str = ""
    top1: float | None = None
    views: str = ""
    defects: tuple[str, ...] = ()


@cache
def table() -> dict[str, Any]:
    """The registry as it stands in its file: `repository`, `defects` and `checkpoint`."""
    return read_manifest("checkpoints", "videomamba")


def registry() -> dict[str, Checkpoint]:
    """Every official checkpoint by its name `model.tag`."""
    rows = table()
    return {
        name: Checkpoint(name=name, repository=rows["repository"], **{**row, "defects": tuple(row.get("defects", ()))})
        for name, row in rows["checkpoint"].items()
    }


def is_registered(name: str) -> bool:
    """Whether a model's name is that of an official checkpoint, or looks like a misspelt one."""
    return name.startswith("videomamba_") and "/" not in name


def find(name: str) -> Checkpoint:
    """The checkpoint of this name.

    Raises:
        UsageError: There is none; the nearest is named.
    """
    known = registry()
    if name not in known:
        raise unknown_name("model", name, known)
    return known[name]


def cache_folder() -> Path:
    """Where converted models lie, and files put there by hand: `$VTR_CACHE`, else ~/.cache/vtr/models."""
    return Path(os.environ.get("VTR_CACHE", "~/.cache/vtr/models")).expanduser()


def source_of(folder: Path) -> dict[str, Any] | None:
    """What a finished conversion was made of."""
    try:
        source = json.loads((folder / "source.json").read_text())
        return source if (folder / "model.safetensors").is_file() and "sha256" in source else None
    except (OSError, json.JSONDecodeError):
        return None
