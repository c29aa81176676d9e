"""What a library keeps on disk: videos and segments in SQLite (the truth), vectors in one append-only file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from vtr.errors import VtrError

# Segment ids are never used twice (AUTOINCREMENT), so an id from an old index never means another moment.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, bytes INTEGER, modified REAL, sha256 TEXT,
    duration REAL, reason TEXT, crc INTEGER, meta TEXT, origin TEXT
);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, video INTEGER NOT NULL REFERENCES videos(id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, row INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS segments_of ON segments(video);
CREATE INDEX IF NOT EXISTS videos_by_content ON videos(sha256);
CREATE INDEX IF NOT EXISTS videos_by_origin ON videos(origin) WHERE origin IS NOT NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS columns (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS imports (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, modified REAL NOT NULL);
"""
_ROOM = 64 << 10  # bytes that SQLite needs for the locks beside a database
_LATER = {"crc": "INTEGER", "meta": "TEXT", "origin": "TEXT"}  # columns of `videos` that older libraries lack


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
        self._frozen = False  # opened as a file that nobody changes
        try:
            if os.access(folder, os.W_OK) and os.access(path if path.exists() else folder, os.W_OK):
                try:
                    self._open_writable()
                except sqlite3.OperationalError:
                    if create or self._pending() or shutil.disk_usage(folder).free >= _ROOM:
                        raise
                    self._open_read_only()  # a full disk: searching needs no room
            else:
                self._open_read_only()
            if lacking := self._lacking():
                raise VtrError(
                    f"{path} is of an older vtr (no column {', '.join(lacking)}): open it once where it can be written"
                )
        except sqlite3.DatabaseError as error:
            if shutil.disk_usage(folder).free < _ROOM:
                raise VtrError(
                    f"{path} cannot be opened ({error}): the disk is full, make room and call again"
                ) from error
            raise VtrError(f"{path} cannot be opened ({error}); restore it, or build the library anew") from error

    def _open_writable(self) -> None:
        self.db = sqlite3.connect(self.folder / "library.db", timeout=30)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA foreign_keys=ON")
        self._migrate()
        self.db.executescript(_SCHEMA)
        self._prepare()

    def _prepare(self) -> None:
        self.db.create_function("contains", 2, _contains, deterministic=True)
        self.db.execute("SELECT COUNT(*) FROM (SELECT 1 FROM videos LIMIT 1)").fetchone()

    def _open_read_only(self) -> None:
        """In a place where SQLite cannot make the lock files that it otherwise needs beside the database.

        Those of a writer, who may be at work under another name, serve; without one the database is a file like others.
        """
        uri = f"{(self.folder / 'library.db').resolve().as_uri()}?mode=ro"
        self._frozen = not self._pending()
        self.db = sqlite3.connect(uri + ("&immutable=1" if self._frozen else ""), timeout=30, uri=True)
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            if self._frozen or not self._pending():
                raise
            raise VtrError(
                f"{self.folder}: library.db-wal holds what a stopped writer left, which cannot be put into library.db "
                f"where nothing can be written ({error}): open the library once where it can be"
            ) from error

    def _pending(self) -> bool:
        """Whether the database's last changes stand in a file beside it."""
        try:
            return (self.folder / "library.db-wal").stat().st_size > 0
        except OSError:
            return False

    def _lacking(self) -> list[str]:
        known = {r[1] for r in self.db.execute("PRAGMA table_info(videos)")}
        return [name for name in _LATER if known and name not in known]

    def _migrate(self) -> None:
        for name in self._lacking():
            try:
                self.db.execute(f"ALTER TABLE videos ADD COLUMN {name} {_LATER[name]}")
            except sqlite3.OperationalError as error:
                if "duplicate column" not in str(error):  # another process has just added it
                    raise

    # -- transactions -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the library's writer lock; a second writer gets one clear line."""
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            try:
                held = lock.acquire()
            except Timeout as error:
                (self.folder / "lock").open("a").close()  # a folder that cannot be written looks the same
                words = f"{self.folder}: another process is writing to this library; wait for it to end"
                raise VtrError(words) from error
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            reason = getattr(error, "strerror", None) or str(error)
            raise VtrError(f"{self.folder}: the library cannot be written ({reason})") from error
        with held:
            try:
                self._tidy()
                yield
            except sqlite3.Error as error:
                raise VtrError(
                    f"{self.folder}/library.db cannot be written ({error}); what was committed is safe, "
                    "call again once that is mended"
                ) from error

    def _tidy(self) -> None:
        """Delete what killed writers left behind; called with the writer lock held."""
        current = self.vectors_file().name
        for stale in [*self.folder.glob("embeddings*.f32"), *self.folder.glob("*.tmp")]:
            if stale.name != current and (stale.suffix == ".f32" or stale.name.startswith(("index.", "library."))):
                with contextlib.suppress(OSError):
                    stale.unlink()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """One transaction. What it commits counts as a new generation, so that readers notice it."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self._count("generation", self.generation() + 1)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """One view of the database, whatever is committed meanwhile. May be nested."""
        if self.db.in_transaction:
            yield
            return
        if self._frozen and self._pending():  # a writer has come
            self.db.close()
            self._open_read_only()
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.rollback()

    def _count(self, name: str, value: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def _counter(self, name: str) -> int | None:
        try:
            found = self.db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        except sqlite3.OperationalError as error:  # a read-only library of before there were counters
            if "no such table" not in str(error):
                raise
            found = None
        return int(found[0]) if found else None

    # -- what is there ------------------------------------------------------------------------------------------------

    def generation(self) -> int:
        """Grows with every committed change."""
        return self._counter("generation") or 0

    def segments(self) -> int:
        """Number of live segments."""
        return int(self.db.execute("SELECT COUNT(*) FROM segments").fetchone()[0])

    def empty(self) -> bool:
        """Whether there is no segment."""
        return self.db.execute("SELECT 1 FROM segments LIMIT 1").fetchone() is None

    def pairs(self, after: int = 0, condition: str = "", values: Sequence[object] = ()) -> np.ndarray:
        """Ids and rows (n, 2) int64 of segments with ids above `after`, by id.

        Args:
            after: 0 gives all.
            condition, values: An SQL condition over `segments` and `videos`, and its parameters.
        """
        if condition:
            sql = "SELECT segments.id, row FROM segments JOIN videos ON videos.id = segments.video"
            cursor = self.db.execute(f"{sql} WHERE segments.id > ? AND {condition}", (after, *values))
        else:
            cursor = self.db.execute("SELECT id, row FROM segments WHERE id > ? ORDER BY id", (after,))
        # Streamed: ten million pairs are 160 MB, ten million Python tuples well over 1 GB.
        out = np.fromiter(cursor, dtype=np.dtype((np.int64, 2)))
        return out[np.argsort(out[:, 0], kind="stable")] if condition else out

    def details(self, ids: Sequence[int]) -> dict[int, tuple[int, str, float, float, float, str | None]]:
        """(id, path, start, end, duration, metadata) of those segments that exist, by id."""
        out: dict[int, tuple[int, str, float, float, float, str | None]] = {}
        for start in range(0, len(ids), 500):
            part = [int(i) for i in ids[start : start + 500]]
            marks = ",".join("?" * len(part))
            rows = self.db.execute(
                "SELECT segments.id, videos.path, segments.start, segments.end, videos.duration, videos.meta "
                f"FROM segments JOIN videos ON videos.id = segments.video WHERE segments.id IN ({marks})",
                part,
            )
            out.update((r[0], r) for r in rows)
        return out

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Row of each segment, -1 where it does not exist (any more)."""
        rows: dict[int, int] = {}
        for start in range(0, len(ids), 500):
            part = [int(i) for i in ids[start : start + 500]]
            marks = ",".join("?" * len(part))
            rows.update(self.db.execute(f"SELECT id, row FROM segments WHERE id IN ({marks})", part).fetchall())
        return np.array([rows.get(int(i), -1) for i in ids], np.int64)

    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        try:
            return [r[0] for r in self.db.execute("SELECT name FROM columns ORDER BY name")]
        except sqlite3.OperationalError:
            return []

    def set_meta(self, video: int, values: Mapping[str, Any] | None) -> None:
        """Replace a video's metadata, within `change`."""
        text = json.dumps(dict(values), ensure_ascii=False, sort_keys=True) if values else None
        self.db.execute("UPDATE videos SET meta = ? WHERE id = ?", (text, video))
        self.db.executemany("INSERT OR IGNORE INTO columns VALUES (?)", [(n,) for n in values or ()])

    # -- vectors ------------------------------------------------------------------------------------------------------

    def part(self) -> int:
        """Number of the file of vectors: it changes when the library is compacted."""
        return self._counter("part") or 0

    def vectors_file(self) -> Path:
        """The file of vectors that the database speaks of."""
        part = self.part()
        return self.folder / (f"embeddings.{part}.f32" if part else "embeddings.f32")

    def rows(self) -> int:
        """Vectors that were ever committed; shrinks only with a new part, so a reader's map of the file stays valid."""
        counted = self._counter("rows")
        if counted is not None:
            return counted
        return int(self.db.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM segments").fetchone()[0])

    def append(self, vectors: np.ndarray) -> int:
        """Append (n, width) float32 vectors durably, within `change`, and return the row of the first.

        Vectors are on disk before the database names them: what a killed process left behind the last committed row
        is overwritten.
        """
        first = self.rows()
        data = np.ascontiguousarray(vectors, dtype=np.float32)
        if data.ndim != 2 or data.shape[1] != self.width:
            raise VtrError(f"vectors of shape {data.shape} do not fit a library of width {self.width}")
        path = self.vectors_file()
        try:
            new = not path.exists()
            with path.open("w+b" if new else "r+b") as file:
                if os.fstat(file.fileno()).st_size < first * self.width * 4:
                    raise VtrError(f"{path} is shorter than library.db says; restore it or build anew")
                file.seek(first * self.width * 4)
                file.truncate()
                file.write(data.data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self.folder)
        except OSError as error:
            raise VtrError(f"{path} cannot be written ({error.strerror}); what was committed is safe") from error
        self._count("rows", first + len(data))
        return first

    def vectors(self) -> np.ndarray:
        """All vectors (rows, width), memory-mapped."""
        count = self.rows()
        if count == 0:
            return np.zeros((0, self.width), np.float32)
        path = self.vectors_file()
        try:
            if path.stat().st_size < count * self.width * 4:
                raise VtrError(f"{path} is shorter than library.db says; restore it or build anew")
            return np.memmap(path, np.float32, "r", shape=(count, self.width))
        except FileNotFoundError as error:
            raise MissingVectors(f"{path} is missing; restore it or build anew") from error
        except OSError as error:
            raise VtrError(f"{path} cannot be read ({error.strerror})") from error

    def compact(self) -> int:
        """Leave out vectors that no segment has; returns how many bytes that saved. Called with the writer lock held.

        The new file is complete before one transaction names it; readers keep the old one until they look again.
        """
        old_file, old_size = self.vectors_file(), 0
        with contextlib.suppress(OSError):
            old_size = old_file.stat().st_size
        pairs = self.pairs()
        pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        if len(pairs) == self.rows() and old_size == len(pairs) * self.width * 4:
            self.db.execute("VACUUM")
            return 0
        vectors = self.vectors()
        part = self.part() + 1
        new_file = self.folder / f"embeddings.{part}.f32"
        step = max(1, (64 << 20) // (self.width * 4))
        try:
            with new_file.open("wb") as file:
                for start in range(0, len(pairs), step):
                    file.write(np.ascontiguousarray(vectors[pairs[start : start + step, 1]]).data)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.folder)
        except OSError as error:
            new_file.unlink(missing_ok=True)
            raise VtrError(f"{new_file} cannot be written ({error.strerror}); the library is as before") from error
        with self.change():
            self.db.executemany(
                "UPDATE segments SET row = ? WHERE id = ?", ((n, int(i)) for n, i in enumerate(pairs[:, 0]))
            )
            self._count("rows", len(pairs))
            self._count("part", part)
        del vectors
        old_file.unlink(missing_ok=True)
        self.db.execute("VACUUM")
        return old_size - len(pairs) * self.width * 4


class MissingVectors(VtrError):
    """The file of vectors is not there: lost, or replaced by a compaction that has just been committed."""


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(vectors: np.ndarray) -> int:
    """CRC-32 of float32 vectors."""
    return zlib.crc32(np.ascontiguousarray(vectors, np.float32).data)


def day_of(modified: float | None) -> str | None:
    """Local date and time of a file's time stamp, ISO 8601."""
    return None if modified is None else datetime.datetime.fromtimestamp(modified).isoformat(timespec="seconds")


def folded(text: str) -> str:
    """Text as `~` compares it: whatever the case, composed."""
    return unicodedata.normalize("NFC", text).casefold()


def _contains(text: object, part: object) -> bool:
    return text is not None and folded(str(part)) in folded(str(text))
