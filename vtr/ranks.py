"""The ranks of a job: who is who, what all of them know, and one rule: an error on one of them is an error on all."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vtr.errors import COMMAND_LINE, VtrError
from vtr.threads import Threads, use

if TYPE_CHECKING:
    from accelerate import Accelerator

R = TypeVar("R")


class OtherRankFailed(VtrError):
    """This rank has nothing to say for itself: another one failed.

    Args:
        said: What each rank said, None where it did not fail.
    """

    def __init__(self, said: Sequence[str | None], exit_code: int = 1) -> None:
        self.exit_code = exit_code
        self.failed = [rank for rank, text in enumerate(said) if text is not None]
        lines = list(dict.fromkeys(f"rank {rank}: {said[rank]}" for rank in self.failed))
        super().__init__("; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else ""))


def world_size() -> int:
    """Number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_rows(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate equal-sized tensors (B, …) of all ranks (of a process group) in rank order; without a gradient."""
    if world_size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts)


class Ranks:
    """One rank's view of the processes that work together; alone without an accelerator.

    Attributes:
        rank, size: This process among how many.
        device: Where this rank computes.
        threads: What it computes with, where that was chosen.
        precision, precision_from: bf16 or fp32, and who said so.
    """

    threads: Threads | None = None
    precision_from: str = "default"

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index if accelerator else 0
        self.size: int = accelerator.num_processes if accelerator else 1
        self.device: torch.device = accelerator.device if accelerator else torch.device("cpu")
        self.precision = "bf16" if accelerator is not None and accelerator.mixed_precision == "bf16" else "fp32"

    @classmethod
    def join(cls, mixed_precision: str = "no", *, trackers: Sequence[str] = (), tracked_in: str | None = None) -> Ranks:
        """Join the ranks that `accelerate launch` or `torchrun` started.

        Args:
            mixed_precision: no or bf16.
            trackers: Names of accelerate's trackers.
            tracked_in: The folder of what they write.
        """
        from accelerate import Accelerator

        return cls(
            Accelerator(
                # Without cpu=True, Accelerator ignores torchrun's ranks on a machine without a GPU.
                cpu=not torch.cuda.is_available(),
                mixed_precision=mixed_precision,
                log_with=list(trackers) or None,
                project_dir=tracked_in,
            )
        )

    @property
    def main(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward passes in the job's precision."""
        return self.accelerator.autocast() if self.accelerator else contextlib.nullcontext()

    @property
    def sharding_asked_for(self) -> bool:
        """Whether the launcher's configuration asks for weights shared among the ranks (FSDP)."""
        return self.accelerator is not None and str(self.accelerator.distributed_type).endswith("FSDP")

    @property
    def reshard(self) -> bool:
        """What its FSDP plugin says of gathered weights between the two passes; True without one."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None) if self.accelerator else None
        return getattr(plugin, "reshard_after_forward", True) is not False

    def compute_with(self, threads: Threads) -> None:
        """Compute with so many threads on this rank."""
        self.threads = threads
        use(threads)

    def say(self, *lines: str) -> None:
        """Say how this job computes, once: its threads, then what else is known."""
        if self.main:
            if self.threads is not None:
                lines = (f"threads: {self.threads.number} a rank ({self.threads.why})", *lines)
            print("; ".join(lines), file=sys.stderr)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def gathered(self, value: R) -> list[R]:
        """A value of every rank, in rank order."""
        if self.size == 1:
            return [value]
        parts: list[R | None] = [None] * self.size
        dist.all_gather_object(parts, value)
        return parts  # type: ignore[return-value]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def settle(self, error: Exception | None, values: Sequence[float] = ()) -> list[float]:
        """Exchange whether something failed: a failure of any rank ends all of them, together.

        Args:
            error: What failed here, or None.
            values: Numbers whose sums over the ranks are returned.

        Raises:
            Exception: `error` itself; of a failure of all ranks, the first one's alone.
            OtherRankFailed: Another rank's failure.
        """
        failed, *sums = self.sums([float(error is not None), *values])
        if not failed:
            return sums
        if self.size == 1:
            raise error or VtrError("failed")
        said = self.gathered(None if error is None else _words(error))
        if error is not None and (self.main or failed < self.size):
            raise error
        raise OtherRankFailed(said, error.exit_code if isinstance(error, VtrError) else 1)

    def together(self, work: Callable[[], R]) -> R:
        """Run `work` on every rank and wait for all; where it fails on one, it fails on all instead of hanging."""
        error = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        self.settle(error)
        return result

    def main_only(self, work: Callable[[], object]) -> None:
        """Do something on the main process; if it fails there, it fails everywhere."""
        self.together(lambda: work() if self.main else None)

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Give figures to the trackers, on the main process."""
        if self.accelerator is not None:
            self.accelerator.log(dict(values), step=step)

    def end(self) -> None:
        """Leave the others."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def _words(error: Exception) -> str:
    text = " ".join((error.said(COMMAND_LINE) if isinstance(error, VtrError) else str(error)).split())
    return text if isinstance(error, VtrError) else f"{type(error).__name__}: {text}"


def report(error: VtrError) -> int:
    """Say an error once a machine, on the ranks it belongs to; returns the exit code.

    The rank that failed speaks; another one only where the failure is on another machine. Wrong flags are the same on all
    ranks, before they have joined: the first of each machine says so.
    """
    mine, local = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    silent = False
    if isinstance(error, OtherRankFailed):
        silent = mine != 0 or any(other // local == rank // local for other in error.failed)
    elif error.exit_code == 2:
        silent = mine != 0
    if silent:
        time.sleep(2)  # torchrun ends all ranks when one ends: the one with the message speaks first
    else:
        where = f"rank {rank} stops: " if isinstance(error, OtherRankFailed) else ""
        print(f"vtr: {where}{' '.join(error.said(COMMAND_LINE).split())}", file=sys.stderr, flush=True)
    return error.exit_code
