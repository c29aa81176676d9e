"""Run state on disk: atomic checkpoints, the last few kept, `latest` found again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from vtr.errors import VtrError

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` so that a crash or a full disk never harms an earlier checkpoint; keep the last `keep`.

    Args:
        folder: The run's checkpoint folder.
        step: Steps done over all stages.
        state: Tensors and plain values only, so that it loads with `weights_only=True`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise VtrError(
            f"checkpoint {path} cannot be written: {error.strerror}; earlier checkpoints are untouched"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    for stale in folder.glob("step-*.tmp"):
        stale.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, which: str) -> dict[str, Any] | None:
    """Load `latest` (None when there is none) or a checkpoint by its path.

    Raises:
        VtrError: The named file is missing or damaged.
    """
    if which == "latest":
        for path in reversed(checkpoints(folder)):
            return _load(path)
        return None
    if not Path(which).is_file():
        raise VtrError(f"--resume {which}: no such file; expected `latest` or a checkpoint from {folder}")
    return _load(Path(which))


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise VtrError(
            f"checkpoint {path} is damaged ({str(error).splitlines()[0]}): remove it to use the one before"
        ) from error
