"""What a library keeps on disk: videos and segments in SQLite (the truth), vectors in one append-only file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from vtr.errors import VtrError

# Segment ids are never used twice (AUTOINCREMENT), so an id from an old index never means another moment.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, bytes INTEGER, modified REAL, sha256 TEXT,
    duration REAL, reason TEXT
);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, video INTEGER NOT NULL REFERENCES videos(id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, row INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS segments_of ON segments(video);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class Store:
    """The files of one library folder.

    Args:
        folder: The library.
        width: Length of a vector.
        create: Make the database; otherwise it must be there.
    """

    def __init__(self, folder: Path, width: int, *, create: bool = False) -> None:
        self.folder, self.width = folder, width
        path = folder / "library.db"
        if not create and not path.is_file():
            raise VtrError(f"{folder}: library.db is missing; restore it, or build the library in another folder")
        try:
            if os.access(folder, os.W_OK) and os.access(path if path.exists() else folder, os.W_OK):
                self.db = sqlite3.connect(path, timeout=30)
                self.db.execute("PRAGMA journal_mode=WAL")
                self.db.execute("PRAGMA foreign_keys=ON")
                self.db.executescript(_SCHEMA)
            else:
                # A read-only place: nobody writes there, so SQLite needs no lock files beside the database.
                self.db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
            self.db.execute("SELECT COUNT(*) FROM videos").fetchone()
        except sqlite3.DatabaseError as error:
            raise VtrError(f"{path} cannot be opened ({error}); restore it, or build the library anew") from error
        self.db.create_function("contains", 2, _contains, deterministic=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the library's writer lock; a second writer gets one clear line."""
        import fcntl

        try:
            file: IO[str] = (self.folder / "lock").open("w")
        except OSError as error:
            raise VtrError(f"{self.folder}: the library cannot be written ({error.strerror})") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise VtrError(
                    f"{self.folder}: another process is writing to this library; wait for it to end"
                ) from error
            try:
                yield
            except sqlite3.Error as error:
                raise VtrError(f"{self.folder}/library.db cannot be written ({error})") from error

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """One transaction. What it commits counts as a new generation, so that an older index is recognised."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self._count("generation", self.generation() + 1)

    def _count(self, name: str, value: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def _counter(self, name: str) -> int:
        try:
            found = self.db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        except sqlite3.OperationalError:  # a read-only library of before there were counters
            found = None
        return int(found[0]) if found else 0

    def generation(self) -> int:
        """Grows with every committed change."""
        return self._counter("generation")

    def segments(self) -> int:
        """Number of live segments."""
        return int(self.db.execute("SELECT COUNT(*) FROM segments").fetchone()[0])

    @property
    def _vectors(self) -> Path:
        return self.folder / "embeddings.f32"

    def rows(self) -> int:
        """Vectors that were ever committed; never shrinks, so a reader's map of the file stays valid."""
        last = int(self.db.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM segments").fetchone()[0])
        return max(last, self._counter("rows"))

    def append(self, vectors: np.ndarray) -> int:
        """Append (n, width) float32 vectors durably, within `change`, and return the row of the first.

        Vectors are on disk before the database names them: what a killed process left behind the last committed row
        is overwritten.
        """
        first = self.rows()
        data = np.ascontiguousarray(vectors, dtype=np.float32)
        if data.ndim != 2 or data.shape[1] != self.width:
            raise VtrError(f"vectors of shape {data.shape} do not fit a library of width {self.width}")
        try:
            with self._vectors.open("r+b" if self._vectors.exists() else "w+b") as file:
                if os.fstat(file.fileno()).st_size < first * self.width * 4:
                    raise VtrError(f"{self._vectors} is shorter than library.db says; restore it or build anew")
                file.seek(first * self.width * 4)
                file.truncate()
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise VtrError(f"{self._vectors} cannot be written ({error.strerror}); nothing is lost") from error
        self._count("rows", first + len(data))
        return first

    def vectors(self) -> np.ndarray:
        """All vectors (rows, width), memory-mapped."""
        count = self.rows()
        if count == 0:
            return np.zeros((0, self.width), np.float32)
        if not self._vectors.is_file() or self._vectors.stat().st_size < count * self.width * 4:
            raise VtrError(f"{self._vectors} is shorter than library.db says; restore it or build anew")
        return np.memmap(self._vectors, np.float32, "r", shape=(count, self.width))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _contains(text: object, part: object) -> bool:
    return _folded(str(part)) in _folded(str(text))
