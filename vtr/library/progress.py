"""How far an indexing is: files, hours of video, hours of video an hour, time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from vtr.library.pipeline import Pipeline

_BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {postfix} [{elapsed}, {remaining} left]"


class Progress:
    """A line on stderr: often on a terminal, every half minute in a log. A context.

    Args:
        files: What is gone through; how far it is goes by their bytes.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        often = 0.1 if sys.stderr.isatty() else 30.0
        self._count, self._files = len(files), 0
        self._passed = self._bytes = self._hours = 0.0
        self._begun = time.monotonic()
        total = sum(size_of(file) for file in files)
        self._bar = tqdm(total=total or 1, desc="index", file=sys.stderr, mininterval=often, bar_format=_BAR)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        self._bar.close()

    def file(self) -> None:
        """One more file is done."""
        self._files += 1
        self._show()

    def passed(self, size: int) -> None:
        """A file of so many bytes needed no embedding."""
        self._passed += size

    def tick(self, pipeline: Pipeline) -> None:
        """Take over how far a pipeline is."""
        self._bytes, self._hours = pipeline.done, pipeline.seconds / 3600
        self._show()

    def _show(self) -> None:
        rate = self._hours / max(time.monotonic() - self._begun, 1e-9) * 3600
        said = f"{self._files}/{self._count} files, {self._hours:.2f} h of video, {rate:.0f} h an hour"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update(max(0.0, min(self._passed + self._bytes, self._bar.total) - self._bar.n))


def size_of(file: Path) -> int:
    """Bytes of a file; 0 where it cannot be looked at."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0
