"""Visual tokens of re-ranked moments, kept so that the next query need not decode and encode them again."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from vtr.files import write_atomically

_IN_MEMORY = 256 << 20  # bytes of tokens that a process keeps


class TokenCache:
    """Tokens (Lv, D) of segments, in memory and, up to a size, as float16 files.

    A segment's id is never used twice, so what is kept never grows stale.

    Args:
        folder: Where files go, one a segment; made when first needed. Nothing else may be in it.
        limit: Bytes on disk; 0: memory only, and the folder is not looked at.
    """

    def __init__(self, folder: Path | None = None, limit: int = 0) -> None:
        if limit and folder is None:
            raise ValueError("tokens on disk need a folder")
        self.folder, self.limit = folder, limit
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, segment: int) -> np.ndarray | None:
        """The tokens of a segment, float16, or None."""
        with self._lock:
            if segment in self._kept:
                self._kept.move_to_end(segment)
                return self._kept[segment]
        if self.folder is None or not self.limit:
            return None
        try:
            tokens = np.load(self.folder / f"{segment}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or damaged: it is encoded again
            return None
        if tokens.ndim != 2 or tokens.dtype != np.float16:
            return None
        self._remember(segment, tokens)
        return tokens

    def put(self, segment: int, tokens: np.ndarray) -> None:
        """Keep the tokens of a segment; a place that cannot be written is no error."""
        tokens = np.ascontiguousarray(tokens, np.float16)
        self._remember(segment, tokens)
        if self.folder is None or not self.limit:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            with write_atomically(self.folder / f"{segment}.npy") as partial, partial.open("wb") as file:
                np.save(file, tokens, allow_pickle=False)
        except OSError:
            pass

    def trim(self) -> None:
        """Delete the oldest files of tokens until the rest is no larger than the limit."""
        if self.folder is None or not self.limit:
            return
        files = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if not re.fullmatch(r"\d+\.npy(\..*\.tmp)?|\d+\.\d+\.tmp", entry.name):
                    continue  # not one of ours
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    files.append((facts.st_mtime, facts.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size

    def _remember(self, segment: int, tokens: np.ndarray) -> None:
        with self._lock:
            if segment in self._kept or tokens.nbytes > _IN_MEMORY:
                return
            self._kept[segment] = tokens
            self._bytes += tokens.nbytes
            while self._bytes > _IN_MEMORY:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
