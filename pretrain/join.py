"""How a training joins its ranks: precision and trackers, checked before anything is spent."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Protocol

import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from vtr.errors import UsageError, unknown_name
from vtr.ranks import Ranks
from vtr.threads import Launcher, choose, cores, launcher

PRECISIONS = ("auto", "bf16", "fp32")
_SMALL = 3_000_000  # parameters


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
    ranks.precision_from = why
    return ranks


def say_how(ranks: Ranks, *more: str) -> None:
    """Say once how a training computes, and what became of the launcher's flags."""
    ranks.say(f"precision: {ranks.precision} ({ranks.precision_from})", *more)
    steps = ranks.accelerator.gradient_accumulation_steps if ranks.accelerator is not None else 1
    if steps > 1 and ranks.main:
        print(
            f"note: --gradient_accumulation_steps {steps} is not used: a step is the recipe's whole batch on any number "
            "of ranks; --micro-batch N encodes it in pieces of N",
            file=sys.stderr,
        )


def more_ranks(model: nn.Module, ranks: Ranks) -> str:
    """What trains a small model faster than threads, in words; "" where threads are right or all is done."""
    alone = ranks.size == 1 and ranks.device.type == "cpu" and ranks.threads is not None and ranks.threads.number > 1
    if not alone or sum(p.numel() for p in model.parameters()) > _SMALL:
        return ""
    count = cores()
    return (
        f"note: a model this small gains little from threads; one rank a core is faster: "
        f"torchrun --nproc_per_node {count} pretrain/run.py …"
    )


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


def trackers_begin(ranks: Ranks, settings: object, out: Path) -> None:
    """Start the trackers: with the run's settings and name, their files in its folder; a resumed run goes on in its own.

    Args:
        settings: A dataclass of flags, or a nested table.
        out: The run folder; run.json is there.
    """
    if ranks.accelerator is None or not ranks.accelerator.log_with:
        return
    first = 0.0
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        first = json.loads((out / "run.json").read_text())["calls"][0]["started"]
    # The same for all calls of a run, another for another run in a folder of the same name.
    own = hashlib.blake2b(f"{out.resolve()} {first}".encode(), digest_size=8).hexdigest()
    wandb = {"name": out.name, "dir": str(out), "id": own, "resume": "allow"}
    ranks.accelerator.init_trackers("vtr", config=flat(settings), init_kwargs={"wandb": wandb})


def flat(values: object, name: str = "") -> dict[str, int | float | str | bool]:
    """A nested table as one of plain values, as trackers take them."""
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = dataclasses.asdict(values)
    if isinstance(values, dict):
        return {
            k: v for key, inner in values.items() for k, v in flat(inner, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: values if isinstance(values, int | float | str | bool) else str(values)}


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
