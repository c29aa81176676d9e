"""A run on disk: checkpoints (atomic, the last few and the best kept), what a call continues from, run.json, log.jsonl."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from vtr.errors import VtrError
from vtr.ranks import Ranks

State = dict[str, Any]  # what a checkpoint holds: tensors and plain values
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


def save_checkpoint(folder: Path, step: int, state: State, keep: int = 2) -> Path:
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


def load_checkpoint(folder: Path, which: str) -> State | None:
    """Load `latest` (None when there is none), `best`, or a checkpoint by its path.

    Raises:
        VtrError: The named file is missing or damaged.
    """
    path = find_checkpoint(folder, which)
    return None if path is None else read_checkpoint(path)


def read_checkpoint(path: Path) -> State:
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


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What a run carries along beside weights and positions."""

    seen: int = 0  # samples read, over all ranks and stages
    bad: int = 0  # of them dropped
    judged_seen: int = 0  # the same two since this call began: a run whose shards were repaired goes on
    judged_bad: int = 0
    best: float = -1.0  # of the validation
    bad_lines: list[str] = dataclasses.field(default_factory=list)  # this process's latest, for messages

    def add(self, seen: float, bad: float, lines: list[str]) -> None:
        """What all ranks have read for a step, and what this one has dropped."""
        self.seen += round(seen)
        self.bad += round(bad)
        self.judged_seen += round(seen)
        self.judged_bad += round(bad)
        self.bad_lines = (self.bad_lines + lines)[-3:]


class RunLog:
    """`log.jsonl`: one object a line, appended by the main process; a resumed run cuts it to where it continues."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, **row: object) -> None:
        """Append a row."""
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise VtrError(f"{self.path} cannot be written: {error.strerror}") from error

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else 0

    def cut(self, size: int) -> None:
        """Forget what was written after `size` bytes: those steps are done again."""
        if self.path is not None and self.path.is_file() and self.path.stat().st_size > size:
            os.truncate(self.path, size)


def check_out(out: Path) -> None:
    """Make the run folder.

    Raises:
        VtrError: It cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(
            f"--out {out}: cannot be created ({error.strerror}); choose a folder you can write to"
        ) from error
    if not os.access(out, os.W_OK):
        raise VtrError(f"--out {out}: not writable; choose a folder you can write to")


def to_continue(out: Path, which: str | None, ranks: Ranks) -> tuple[Path, State] | None:
    """The checkpoint that a call continues from, the same one on all ranks; None: from the beginning.

    Args:
        which: `latest`, `best`, a file, or None: a new run.

    Raises:
        VtrError: A new run is asked for where there is one, or the file is missing or damaged.
    """
    folder = out / "checkpoints"
    if which is None:
        # All ranks look before the first checkpoint can be written.
        words = f"{out} holds a run with checkpoints: continue it with --resume latest, or choose another --out"
        ranks.settle(VtrError(words) if checkpoints(folder) else None)
        return None
    # The main process decides which file is meant: others might see a later listing of a shared folder.
    path = ranks.gathered(find_checkpoint(folder, which))[0]
    if path is None:
        if ranks.main:
            print(f"--resume latest: no checkpoint in {folder}, starting from the beginning", file=sys.stderr)
        return None
    if not path.is_file():
        raise VtrError(f"{path}: rank 0 sees it, this rank does not; --out must be a folder that all nodes share")
    return path, read_checkpoint(path)


def check_same_run(
    path: Path, state: State, identity: State, defaults: State, ranks: Ranks, *, accept_changes: bool
) -> None:
    """Refuse a checkpoint of other settings; say what it is.

    Args:
        defaults: What a run does that says nothing: a checkpoint of an earlier version lacks the keys that came since.

    Raises:
        VtrError: Recipe, data or model are not the checkpoint's, and `accept_changes` is off.
    """
    found = changes(state["identity"], identity, defaults)
    if found and not accept_changes:
        raise VtrError(
            f"{path} is of another run: {'; '.join(found[:5])}; give the same settings, or --accept-changes to go on"
        )
    if ranks.main:
        for line in found:
            print(f"resume: {line}", file=sys.stderr)
        written = (
            f", written by {state['world_size']} rank(s), continues on {ranks.size}" if "world_size" in state else ""
        )
        print(f"resume: {path}{written}", file=sys.stderr)


def changes(old: object, new: object, defaults: object = None, name: str = "") -> list[str]:
    """Where two nested tables differ, as lines; a key that `old` lacks has its default there."""
    if isinstance(old, dict) and isinstance(new, dict):
        plain = defaults if isinstance(defaults, dict) else {}
        pairs = {k: (old.get(k, plain.get(k)), new.get(k)) for k in dict.fromkeys([*old, *new])}
        return [
            c for k, (a, b) in pairs.items() for c in changes(a, b, plain.get(k), f"{name}.{k}" if name else str(k))
        ]
    same = list(old) == list(new) if isinstance(old, list | tuple) and isinstance(new, list | tuple) else old == new
    return [] if same else [f"{name} was {old}, is {new}"]


def write_record(out: Path, record: State, call: State, *, resumed: bool) -> None:
    """run.json: what the run is made of, and each call that worked on it.

    Args:
        call: What is of this call alone.
        resumed: Keep the earlier calls.
    """
    path = out / "run.json"
    calls: list[object] = []
    if path.is_file() and resumed:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            calls = json.loads(path.read_text()).get("calls", [])
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps({**record, "calls": [*calls, call]}, indent=1, default=str))
    os.replace(partial, path)
