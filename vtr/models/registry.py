"""The official checkpoints as data: names, files, what each holds and is known to reach."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vtr.errors import unknown_name
from vtr.files import manifest_names, read_manifest

OPEN_CLIP = "open_clip:"
"""What the names of open_clip's models begin with."""
SENTENCE_TRANSFORMERS = "sentence-transformers:"
"""What the names of sentence-transformers' models begin with."""


@dataclass(frozen=True, kw_only=True)
class ReleaseProtocol:
    """How a release measured its figures, where that is not the benchmark's own way."""

    frames: int
    rerank: int  # candidates of each query that were scored again
    text_tokens: Mapping[str, int]  # by benchmark


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One official file: where it is, what it holds, what it is known to reach."""

    name: str
    model: str  # VideoMamba | UMT
    repository: str
    folders: tuple[str, ...] = ("",)  # of the repository, where the file may lie
    file: str
    task: str  # image | video | masked | retrieval | qa
    data: str
    size: str  # of vtr.encoders.registry
    image_size: int
    frames: int
    classes: int = 0
    init: str = ""
    top1: float | None = None
    views: str = ""
    protocol: ReleaseProtocol | None = None
    defects: tuple[str, ...] = ()


@cache
def _tables() -> tuple[dict[str, Any], ...]:
    """The files of the registry as they stand: `model`, `repository`, `folders`, `defects`, `protocol` and `checkpoint`."""
    return tuple(read_manifest("checkpoints", name) for name in sorted(manifest_names("checkpoints"), reverse=True))


def known_defect(checkpoint: Checkpoint, name: str) -> str:
    """A defect of a checkpoint in words."""
    return next(t["defects"][name] for t in _tables() if t["model"] == checkpoint.model)


@cache
def registry() -> Mapping[str, Checkpoint]:
    """Every official checkpoint by its name `model.tag`."""
    found = {}
    for table in _tables():
        protocols = {name: ReleaseProtocol(**values) for name, values in table.get("protocol", {}).items()}
        common = {"model": table["model"], "repository": table["repository"]}
        for name, row in table["checkpoint"].items():
            more = {
                "defects": tuple(row.get("defects", ())),
                "folders": tuple(table.get("folders", ("",))),
                "protocol": protocols[row["protocol"]] if "protocol" in row else None,
            }
            found[name] = Checkpoint(name=name, **common, **{**row, **more})
    return found


def release_protocol(name: str | None) -> ReleaseProtocol | None:
    """How the figures of a checkpoint were measured; None where as the benchmark says, and of all other models."""
    found = registry().get(name or "")
    return None if found is None else found.protocol


def is_registered(name: str) -> bool:
    """Whether a model's name is that of an official checkpoint, or looks like a misspelt one."""
    return name.startswith(("videomamba_", "umt_")) and "/" not in name


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
