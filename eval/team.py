"""The ranks of an evaluation: who does which part, and how a failure on one of them ends all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from vtr.errors import VtrError

R = TypeVar("R")


class Team:
    """One rank's view of the processes that evaluate together; alone without an accelerator."""

    def __init__(self, accelerator: Any | None = None) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index if accelerator else 0
        self.size: int = accelerator.num_processes if accelerator else 1

    @classmethod
    def start(cls) -> Team:
        """Join the ranks that `accelerate launch` or `torchrun` started."""
        from accelerate import Accelerator

        # Without cpu=True, Accelerator ignores torchrun's ranks on a machine without a GPU.
        return cls(Accelerator(cpu=not torch.cuda.is_available()))

    @property
    def main(self) -> bool:
        """Whether this rank prints and writes the results."""
        return self.rank == 0

    def end(self) -> None:
        """Leave the others."""
        if self._accelerator is not None and self.size > 1:
            self._accelerator.end_training()

    def together(self, work: Callable[[], R]) -> R:
        """Run `work` on every rank and wait for all; where it fails on one, it fails on all instead of hanging.

        A failure of all ranks is the first one's to report.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        failed = self._count(error is not None)
        if error is not None and (self.main or failed < self.size):
            raise error
        if failed:
            raise OtherRankFailed(
                f"rank {self.rank} stops: {failed} of {self.size} ranks failed, their messages say why"
            )
        return result  # type: ignore[return-value]

    def _count(self, flag: bool) -> int:
        if self._accelerator is None or self.size == 1:
            return int(flag)
        value = torch.tensor(float(flag), device=self._accelerator.device)
        return int(self._accelerator.reduce(value, reduction="sum").item())


class OtherRankFailed(VtrError):
    """This rank has nothing to say: another one failed."""
