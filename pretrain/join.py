"""How a training joins its ranks: precision and trackers, checked before anything is spent."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Protocol

import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vtr.errors import UsageError, unknown_name
from vtr.ranks import Ranks
from vtr.threads import Launcher, choose, launcher

PRECISIONS = ("auto", "bf16", "fp32")


class Joining(Protocol):
    """What of the flags the joining of ranks needs; pretraining and fine-tuning have it."""

    @property
    def precision(self) -> str: ...
    @property
    def report_to(self) -> tuple[str, ...]: ...
    @property
    def threads(self) -> int: ...
    @property
    def workers(self) -> int: ...


def check_precision(name: str) -> None:
    """Refuse a precision that does not exist."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)


def check_joining(settings: Joining) -> None:
    """Refuse flags that mean nothing, before anything is loaded or joined.

    Raises:
        UsageError: No such precision or tracker, a tracker that is not installed, or a number out of range.
    """
    check_precision(settings.precision)
    if settings.threads < 0 or settings.workers < 0:
        raise UsageError(f"--threads {settings.threads} and --workers {settings.workers}: expected 0 or more")
    installed = [str(getattr(t, "value", t)) for t in get_available_trackers()]
    for name in settings.report_to:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown_name("tracker", name, list(LOGGER_TYPE_TO_CLASS))
        if name not in installed:  # accelerate would go on without it
            raise UsageError(f"--report-to {name}: not installed; run: pip install {name}")


def join(settings: Joining, out: Path) -> Ranks:
    """Join the ranks that the launcher started, and say how they compute.

    Raises:
        UsageError: A precision that we can't train in, or a tracker that can't be started.
    """
    check_joining(settings)
    cuda = torch.cuda.is_available()
    started = launcher()
    _warn_missing_ranks(cuda, started)
    wanted, why = choose_precision(settings.precision, cuda, started)
    try:
        ranks = Ranks.join(wanted, trackers=settings.report_to, tracked_in=str(out) if settings.report_to else None)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--report-to {' '.join(settings.report_to)}: {str(error).splitlines()[0]}") from error
    ranks.compute_with(choose(settings.threads, settings.workers))
    if ranks.main:
        print(f"precision: {ranks.precision} ({why})", file=sys.stderr)
        if ranks.accelerator is not None and ranks.accelerator.gradient_accumulation_steps > 1:
            print(
                f"note: --gradient_accumulation_steps {ranks.accelerator.gradient_accumulation_steps} is not used: a step "
                "is the recipe's whole batch on any number of ranks; --micro-batch N encodes it in pieces of N",
                file=sys.stderr,
            )
    return ranks


def choose_precision(asked: str, cuda: bool, started: Launcher | None) -> tuple[str, str]:
    """(accelerate's word for the precision, where it comes from).

    Args:
        asked: By --precision.
        started: The launcher, whose own word counts where the flag says auto.

    Raises:
        UsageError: The launcher asks for one that we don't train in.
    """
    if asked != "auto":
        return {"bf16": "bf16", "fp32": "no"}[asked], "--precision"
    word = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if word and _meant(started):
        if word not in ("no", "bf16"):
            raise UsageError(f"--mixed_precision {word}: expected bf16 or no; --precision bf16|fp32 decides here")
        return word, f"the launcher's mixed_precision {word}"
    return ("bf16", "auto: a GPU") if cuda else ("no", "auto: no GPU")


def _meant(started: Launcher | None) -> bool:
    """Whether the launcher's mixed_precision is the user's: `accelerate launch` says `no` where nobody said anything."""
    if started is None or any("mixed" in word and "precision" in word for word in started.words):
        return True
    if any("config" in word and "file" in word and word.startswith("--") for word in started.words):
        return True
    return Path(default_config_file).is_file()


def call_facts(ranks: Ranks) -> dict[str, object]:
    """What run.json keeps of a call: when, on how many ranks, and how they compute."""
    threads = ranks.threads
    return {
        "started": time.time(),
        "ranks": ranks.size,
        "threads": threads.number if threads else None,
        "threads_from": threads.why if threads else None,
        "precision": ranks.precision,
    }


def trackers_begin(ranks: Ranks) -> None:
    """Start the trackers."""
    if ranks.accelerator is not None:
        ranks.accelerator.init_trackers("vtr", config=None)


def _warn_missing_ranks(cuda: bool, started: Launcher | None) -> None:
    """`accelerate launch --num_processes N` starts one process on a machine without a GPU: say so."""
    if cuda or "WORLD_SIZE" in os.environ or started is None:
        return
    words = started.words
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
