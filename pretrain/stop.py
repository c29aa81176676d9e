"""Ctrl-C and SIGTERM: a run that is told to end finishes its step, writes a checkpoint and ends, on all ranks together."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from vtr.errors import VtrError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(VtrError):
    """The user asked for the end, and it was an orderly one.

    Args:
        number: Of the signal.
        step: Steps done over all stages.
        path: The checkpoint to continue from, None where nothing was done yet.
    """

    def __init__(self, number: int, step: int, path: Path | None) -> None:
        self.exit_code = 128 + number
        kept = f"after step {step}, checkpoint {path}" if path else "before the first step of this call was done"
        super().__init__(f"stopped {kept}; --resume latest continues")


class Stop:
    """Hears Ctrl-C and SIGTERM while a loop listens.

    The first one is noted, and the loop ends at its next step. A second Ctrl-C ends at once, as one outside of a loop does.

    Attributes:
        number: Of the signal that came, 0 while none has.
    """

    def __init__(self) -> None:
        self.number = 0

    @property
    def asked(self) -> bool:
        """Whether the end was asked for."""
        return self.number != 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals are noted instead of raising KeyboardInterrupt or ending the process."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hears signals in the main thread alone
            return
        before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.number == 0 or number == signal.SIGTERM:  # a launcher may say it twice
            self.number = self.number or number
        else:
            raise KeyboardInterrupt


def ignore_interrupts() -> None:
    """For data workers: Ctrl-C reaches every process of a terminal's job; theirs to end them is the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
