"""How a training joins its ranks: precision and trackers, checked before anything is spent."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vtr.errors import UsageError, unknown_name
from vtr.ranks import Ranks

PRECISIONS = ("auto", "bf16", "fp32")


def check_precision(name: str) -> None:
    """Refuse a precision that does not exist."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)


def join(precision: str, report_to: Sequence[str], out: Path) -> Ranks:
    """Join the ranks that the launcher started.

    Raises:
        UsageError: No such precision or tracker, or a tracker that is not installed.
    """
    check_precision(precision)
    cuda = torch.cuda.is_available()
    _warn_missing_ranks(cuda)
    wanted = {"auto": "bf16" if cuda else "no", "bf16": "bf16", "fp32": "no"}[precision]
    if report_to:
        installed = [str(getattr(t, "value", t)) for t in get_available_trackers()]
        for name in report_to:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise unknown_name("tracker", name, list(LOGGER_TYPE_TO_CLASS))
            if name not in installed:  # accelerate would go on without it
                raise UsageError(f"--report-to {name}: not installed; run: pip install {name}")
    try:
        return Ranks.join(wanted, trackers=report_to, tracked_in=str(out) if report_to else None)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--report-to {' '.join(report_to)}: {str(error).splitlines()[0]}") from error


def trackers_begin(ranks: Ranks) -> None:
    """Start the trackers."""
    if ranks.accelerator is not None:
        ranks.accelerator.init_trackers("vtr", config=None)


def _warn_missing_ranks(cuda: bool) -> None:
    """`accelerate launch --num_processes N` starts one process on a machine without a GPU: say so."""
    if cuda or "WORLD_SIZE" in os.environ:
        return
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return
    for i, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--num_processes", "--num-processes"):
            value = value or (words[i + 1] if i + 1 < len(words) else "1")
            if value.isdigit() and int(value) > 1:
                print(
                    f"note: {value} ranks were asked for, but accelerate launch starts a single process on a machine "
                    f"without a GPU; for {value} ranks on a CPU: torchrun --nproc_per_node {value} pretrain/run.py …",
                    file=sys.stderr,
                )
