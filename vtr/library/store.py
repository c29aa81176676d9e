"""What a library keeps on disk: videos and segments in SQLite (the truth), vectors in one append-only file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vtr.errors import VtrError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, bytes INTEGER, modified REAL, sha256 TEXT,
    duration REAL, reason TEXT
);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, video INTEGER NOT NULL REFERENCES videos(id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, row INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS segments_of ON segments(video);
"""


class Store:
    """The files of one library folder.

    Args:
        folder: The library.
        width: Length of a vector.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        try:
            self.db = sqlite3.connect(folder / "library.db", timeout=30)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA foreign_keys=ON")
            self.db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise VtrError(f"{folder}/library.db cannot be opened ({error})") from error
        self._lock: int | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the library's writer lock; a second writer gets one clear line."""
        import fcntl

        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise VtrError(
                    f"{self.folder}: another process is writing to this library; wait for it to end"
                ) from error
            yield

    @property
    def _vectors(self) -> Path:
        return self.folder / "embeddings.f32"

    def rows(self) -> int:
        """Vectors that the database knows to be complete."""
        return int(self.db.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM segments").fetchone()[0])

    def append(self, vectors: np.ndarray) -> int:
        """Append (n, width) float32 vectors durably and return the row of the first.

        Vectors are written before the database names them: what a killed process left behind the last committed
        segment is overwritten.
        """
        first = self.rows()
        data = np.ascontiguousarray(vectors, dtype=np.float32)
        if data.ndim != 2 or data.shape[1] != self.width:
            raise VtrError(f"vectors of shape {data.shape} do not fit a library of width {self.width}")
        with self._vectors.open("r+b" if self._vectors.exists() else "w+b") as file:
            file.seek(first * self.width * 4)
            file.truncate()
            file.write(data.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return first

    def vectors(self) -> np.ndarray:
        """All vectors (rows, width), memory-mapped."""
        count = self.rows()
        if count == 0:
            return np.zeros((0, self.width), np.float32)
        if self._vectors.stat().st_size < count * self.width * 4:
            raise VtrError(f"{self._vectors} is shorter than library.db says; rebuild the library")
        return np.memmap(self._vectors, np.float32, "r", shape=(count, self.width))
