"""What a process takes of its machine: the threads of a rank (its share of the cores, unless the user has said it), and
memory that it hands back.

Launchers set OMP_NUM_THREADS=1 for the processes they start (`accelerate launch` always, `torchrun` for several ranks)
where the user has not set it: that is their default and not the user's wish, and would leave all cores but one idle.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# gRPC reads it when it is imported; unless it is "0", threads of gRPC break processes that are forked beside it.
GRPC_FORKS = "GRPC_ENABLE_FORK_SUPPORT"

_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "vtr")  # by their scripts
_MODULES = ("accelerate.commands.launch", "accelerate", "torch.distributed.run", "torch.distributed.launch", "vtr.cli")
_FLAG = "--num_cpu_threads_per_process"


class Threads(NamedTuple):
    """A number of threads, and where it comes from, in words."""

    number: int
    why: str


class Launcher(NamedTuple):
    """The process that started this one, as it was started itself."""

    words: Sequence[str]
    environment: Mapping[str, str]


def cores() -> int:
    """Cores that this process may use: its affinity, less what a container's quota allows."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"))
    return max(1, min(own, math.ceil(quota)) if quota else own)


def _quota(root: Path) -> float | None:
    """Cores that the control group allows, None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = (root / "cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        most_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if most_us < 0 else most_us / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    return None


def ranks_here() -> int:
    """Ranks on this machine, as the launcher counts them."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def choose(asked: int = 0, workers: int = 0) -> Threads:
    """The threads of a rank.

    Args:
        asked: By --threads; 0 = not.
        workers: Data worker processes of the rank. They get up to a quarter of its cores: decoding waits more than it
            works, and on few cores the model needs them more.
    """
    if asked:
        return Threads(asked, "--threads")
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if value.isdigit() and int(value) and not _launchers_own(int(value), launcher()):
        return Threads(int(value), "OMP_NUM_THREADS")
    own, ranks = cores(), ranks_here()
    share = max(1, own // ranks)
    spared = min(workers, share // 4)
    words = f"{own} core{'s' * (own > 1)}, {ranks} rank{'s' * (ranks > 1)} on this machine"
    return Threads(share - spared, words + (f", {spared} left to the data workers" if spared else ""))


def launcher() -> Launcher | None:
    """What started this process; None where that can't be told, or is no launcher of ranks."""
    import psutil

    try:
        parent = psutil.Process().parent()
        if parent is None:
            return None
        words = parent.cmdline()
        if not {Path(word).name for word in words[:5]} & {*_LAUNCHERS, *_MODULES}:
            return None
        return Launcher(words, parent.environ())  # as it was when it began: what it has set since is not in it
    except (psutil.Error, OSError):
        return None


def _launchers_own(value: int, started: Launcher | None) -> bool:
    """Whether OMP_NUM_THREADS is a launcher's default rather than the user's."""
    if started is None:
        # Its parent can't be seen: what all launchers set is 1, and they leave marks of their own.
        return value == 1 and any(k.startswith(("TORCHELASTIC_", "ACCELERATE_")) for k in os.environ)
    asked = any(word.replace("-", "_").lstrip("_").partition("=")[0] == _FLAG[2:] for word in started.words)
    return not asked and "OMP_NUM_THREADS" not in started.environment


def wait_asleep() -> None:
    """Let threads that wait for each other sleep instead of spin; before torch is loaded, or it has no effect.

    Spinning wins microseconds where nobody else computes. Where somebody does, data workers among them, a thread that
    spins keeps the one it waits for from its core: two threads on two busy cores were measured at a tenth of the speed
    of one, asleep at the same speed or better. What the user has set of OpenMP's waiting stays.
    """
    if "GOMP_SPINCOUNT" not in os.environ and "KMP_BLOCKTIME" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use(threads: Threads) -> None:
    """Compute with so many threads from now on: torch's operators, MKL, and the kernels, which follow torch."""
    import torch

    torch.set_num_threads(threads.number)


def give_back() -> None:
    """Hand freed memory back to the system: glibc keeps it in scattered pieces, more of them the longer a process works."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
