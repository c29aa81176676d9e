"""Run state on disk: atomic checkpoints, the last few and the best kept, `latest` found again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from vtr.errors import VtrError

_NAME = re.compile(r"step-(\d{8})\.pt")
BEST = "best.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def checkpoint_step(path: Path) -> int:
    """Steps done over all stages, from a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise VtrError(f"{path}: not a checkpoint's name; expected step-NNNNNNNN.pt")
    return int(found.group(1))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` so that a crash or a full disk never harms an earlier checkpoint; keep the last `keep`.

    Args:
        folder: The run's checkpoint folder.
        step: Steps done over all stages.
        state: Tensors and plain values only, so that it loads with `weights_only=True`.
        keep: Older ones are removed after the new one is safe; 0 = keep all.
    """
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("step-*.tmp"):  # of a run that was killed while it wrote
            stale.unlink(missing_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        cause = getattr(error, "strerror", None) or "the file could not be written to its end, the disk may be full"
        raise VtrError(
            f"checkpoint {path} cannot be written: {cause}{_free(folder)}; earlier checkpoints are untouched"
        ) from error
    for old in checkpoints(folder)[:-keep] if keep else []:
        old.unlink(missing_ok=True)
    return path


def _free(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 2**30:.2f} GiB free there)"
    return ""


def mark_best(folder: Path, path: Path) -> None:
    """Make `best.pt` a second name of a checkpoint, which outlives its removal."""
    partial = folder / f"{BEST}.{os.getpid()}.tmp"
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, partial)
        os.replace(partial, folder / BEST)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise VtrError(f"{folder / BEST} cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def find_checkpoint(folder: Path, which: str) -> Path | None:
    """The file that `latest` (None when there is none), `best` or a path names.

    Raises:
        VtrError: It is missing.
    """
    if which == "latest":
        found = checkpoints(folder)
        return found[-1] if found else None
    path = folder / BEST if which == "best" else Path(which)
    if not path.is_file():
        raise VtrError(f"--resume {which}: no such file; expected `latest`, `best` or a checkpoint from {folder}")
    return path


def load_checkpoint(folder: Path, which: str) -> dict[str, Any] | None:
    """Load `latest` (None when there is none), `best`, or a checkpoint by its path.

    Raises:
        VtrError: The named file is missing or damaged.
    """
    path = find_checkpoint(folder, which)
    return None if path is None else read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load one checkpoint file onto the CPU.

    Raises:
        VtrError: It is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise VtrError(
            f"checkpoint {path} is damaged ({str(error).splitlines()[0]}): remove it to use the one before"
        ) from error
