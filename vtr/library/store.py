"""What a library keeps on disk: videos and segments in SQLite (the truth), vectors in one append-only file."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
import shutil
import sqlite3
import threading
import time
import unicodedata
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from vtr.errors import VtrError
from vtr.library import words
from vtr.library.frame_vectors import read_rows, write_rows
from vtr.library.records import LATER, SCHEMA, Records

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ORPHANS = 10.0  # seconds that what a killed writer left running may take to end
_ROOM = 64 << 10  # bytes that SQLite needs for the locks beside a database


class MissingVectors(VtrError):
    """The file of vectors is not there: lost, or replaced by a compaction that has just been committed."""


class BeingWritten(VtrError):
    """Another process writes to the library."""


class Replaced(VtrError):
    """Another library has taken the place of the one that is open."""


_INHERITED: list[sqlite3.Connection] = []  # of the process that this one was forked from


class _Connection:
    """One thread's connection, closed with the thread or with the store."""

    def __init__(self, db: sqlite3.Connection, *, frozen: bool) -> None:
        self.db, self.frozen, self._process = db, frozen, os.getpid()

    def __del__(self) -> None:
        # A fork forgets its parent's other threads, and their connections come here. SQLite may have been locked by one of them
        # at that moment, for ever: nothing of theirs may be closed or freed.
        if os.getpid() == self._process:
            self.db.close()
        else:
            _INHERITED.append(self.db)


class Store(Records, words.Words):
    """The files of one library folder. Each thread has a connection of its own; one thread at a time writes.

    Args:
        folder: The library.
        width: Length of a vector.
        create: Make the database; otherwise it must be there.
    """

    def __init__(self, folder: Path, width: int, *, create: bool = False) -> None:
        self.folder, self.width, self._create = folder, width, create
        self._own = threading.local()
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._writer = threading.RLock()
        self.closed = False
        if not create and not self._file.is_file():
            raise VtrError(f"{folder}: library.db is missing; restore it, or build the library in another folder")
        self._connection()
        self._create = False
        self.identity = _inode(self._file) or (0, 0)  # device and inode of the database

    @property
    def _file(self) -> Path:
        return self.folder / "library.db"

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        return self._connection().db

    def close(self) -> None:
        """Let go of all connections, those of other threads too; the store cannot be used afterwards."""
        self.closed = True
        for connection in list(self._all):
            connection.db.close()

    def check_place(self) -> None:
        """Replaced where the folder holds another database than the one that is open."""
        now = _inode(self._file)
        if now is None:
            raise Replaced(
                f"{self.folder}: library.db is no longer there (moved, removed, or made anew at this moment)"
            )
        if now != self.identity:
            raise Replaced(f"{self.folder} was replaced by another library since it was opened: open it again")

    # -- connections --------------------------------------------------------------------------------------------------

    def _connection(self) -> _Connection:
        if self.closed:
            raise VtrError(f"{self.folder}: the library was closed: open it again")
        found: _Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = self._own.connection = self._opened()
            self._all.add(found)
        return found

    def _opened(self) -> _Connection:
        try:
            if os.access(self.folder, os.W_OK) and os.access(
                self._file if self._file.exists() else self.folder, os.W_OK
            ):
                try:
                    opened = self._open_writable()
                except sqlite3.OperationalError:
                    if self._create or self._pending() or shutil.disk_usage(self.folder).free >= _ROOM:
                        raise
                    opened = self._open_read_only()  # a full disk: searching needs no room
            else:
                opened = self._open_read_only()
            if lacking := _lacking(opened.db):
                raise VtrError(
                    f"{self._file} is of an older vtr (no column {', '.join(lacking)}): open it once where it can be "
                    "written"
                )
            return opened
        except sqlite3.DatabaseError as error:
            if shutil.disk_usage(self.folder).free < _ROOM:
                raise VtrError(
                    f"{self._file} cannot be opened ({error}): the disk is full, make room and call again"
                ) from error
            raise VtrError(
                f"{self._file} cannot be opened ({error}); restore it, or build the library anew"
                if is_damage(error)
                else f"{self._file} cannot be opened ({error})"
            ) from error

    def _open_writable(self) -> _Connection:
        # Any thread may close what this one opens.
        db = sqlite3.connect(self._file, timeout=30, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA foreign_keys=ON")
        _migrate(db)
        db.executescript(SCHEMA + words.SCHEMA)
        return _prepared(db, frozen=False)

    def _open_read_only(self) -> _Connection:
        """In a place where SQLite cannot make the lock files that it otherwise needs beside the database.

        Those of a writer, who may be at work under another name, serve; without one the database is a file like others.
        """
        uri = f"{self._file.resolve().as_uri()}?mode=ro"
        frozen = not self._pending()
        db = sqlite3.connect(uri + ("&immutable=1" if frozen else ""), timeout=30, uri=True, check_same_thread=False)
        try:
            return _prepared(db, frozen=frozen)
        except sqlite3.OperationalError as error:
            if frozen or not self._pending():
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

    # -- transactions -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the library's writer lock; a writer of another process gets one clear line, one of this process waits."""
        with self._writer, _locked(self.folder):
            try:
                self.check_place()
                self._tidy()
                yield
            except sqlite3.Error as error:
                raise VtrError(
                    f"{self._file} cannot be written ({error}); what was committed is safe, "
                    "call again once that is mended"
                ) from error

    def _tidy(self) -> None:
        """Delete what killed writers left behind; called with the writer lock held."""
        current = self.vectors_file().name
        frames = self.frames_file().name
        vectors = [*self.folder.glob("embeddings*.f32"), *self.folder.glob("frames*.i8")]
        for stale in [*vectors, *self.folder.glob("*.tmp")]:
            own = stale.suffix != ".tmp" or stale.name.startswith(("index.", "library."))
            if own and stale.name not in (current, frames):
                with contextlib.suppress(OSError):
                    stale.unlink()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """One transaction. What it commits counts as a new generation, so that readers notice it."""
        with self.db as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            self._count("generation", self.generation() + 1)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """One view of the database, whatever is committed meanwhile. May be nested."""
        connection = self._connection()
        if connection.db.in_transaction:
            yield
            return
        self.check_place()
        if connection.frozen and self._pending():  # a writer has come
            del self._own.connection
            connection.db.close()
            connection = self._connection()
        db = connection.db
        db.execute("BEGIN")
        try:
            yield
        finally:
            db.rollback()

    def _count(self, name: str, value: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def _counter(self, name: str) -> int | None:
        try:
            found = self.db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        except sqlite3.OperationalError:
            # A read-only library of before there were counters.
            if self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'counters'").fetchone():
                raise
            found = None
        return int(found[0]) if found else None

    def calibrated(self) -> int:
        """Number of segments when unrelated texts were last scored."""
        return self._counter("calibrated") or 0

    def set_calibrated(self, count: int) -> None:
        """Write it down, within `change`."""
        self._count("calibrated", count)

    def generation(self) -> int:
        """Grows with every committed change."""
        return self._counter("generation") or 0

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

    def append(self, vectors: np.ndarray, frames: np.ndarray | None = None) -> int:
        """Append (n, width) float32 vectors durably, within `change`, and return the row of the first.

        `frames` are their rows of the file of frames' vectors, where there are some.

        Vectors are on disk before the database names them: what a killed process left behind the last committed row
        is overwritten.
        """
        first = self.rows()
        data = np.ascontiguousarray(vectors, dtype=np.float32)
        if data.ndim != 2 or data.shape[1] != self.width:
            raise VtrError(f"vectors of shape {data.shape} do not fit a library of width {self.width}")
        path = self.vectors_file()
        self.check_place()
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
        if frames is not None and len(frames):
            write_rows(self.frames_file(), first, frames)
            self._count("frame_bytes", frames.shape[1])
        self._count("rows", first + len(data))
        return first

    def frames_file(self) -> Path:
        """The file of frames' vectors, as `vectors_file`."""
        part = self.part()
        return self.folder / (f"frames.{part}.i8" if part else "frames.i8")

    def frame_rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """What is kept of the frames of segments, see `vtr.library.frame_vectors`; None where nothing ever was."""
        size = self._counter("frame_bytes")
        return read_rows(self.frames_file(), np.asarray(rows, np.int64), size) if size else None

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
        new_file, new_frames = self.folder / f"embeddings.{part}.f32", self.folder / f"frames.{part}.i8"
        old_frames = self.frames_file()
        step = max(1, (64 << 20) // (self.width * 4))
        try:
            with new_file.open("wb") as file:
                for start in range(0, len(pairs), step):
                    file.write(np.ascontiguousarray(vectors[pairs[start : start + step, 1]]).data)
                file.flush()
                os.fsync(file.fileno())
            for start in range(0, len(pairs), step):
                frames = self.frame_rows(pairs[start : start + step, 1])
                if frames is not None:
                    write_rows(new_frames, start, frames)
            sync_folder(self.folder)
        except (OSError, VtrError) as error:
            new_file.unlink(missing_ok=True)
            new_frames.unlink(missing_ok=True)
            if isinstance(error, VtrError):
                raise
            raise VtrError(f"{new_file} cannot be written ({error.strerror}); the library is as before") from error
        with self.change():
            self.db.executemany(
                "UPDATE segments SET row = ? WHERE id = ?", ((n, int(i)) for n, i in enumerate(pairs[:, 0]))
            )
            self._count("rows", len(pairs))
            self._count("part", part)
        del vectors
        old_file.unlink(missing_ok=True)
        old_frames.unlink(missing_ok=True)
        self.db.execute("VACUUM")
        return old_size - len(pairs) * self.width * 4


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, and not the moment: a lock, a full disk, a lost permission."""
    return type(error) is sqlite3.DatabaseError


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _prepared(db: sqlite3.Connection, *, frozen: bool) -> _Connection:
    db.create_function("contains", 2, _contains, deterministic=True)
    db.execute("SELECT COUNT(*) FROM (SELECT 1 FROM videos LIMIT 1)").fetchone()
    return _Connection(db, frozen=frozen)


def _lacking(db: sqlite3.Connection) -> list[str]:
    known = {r[1] for r in db.execute("PRAGMA table_info(videos)")}
    return [name for name in LATER if known and name not in known]


def _migrate(db: sqlite3.Connection) -> None:
    for name in _lacking(db):
        try:
            db.execute(f"ALTER TABLE videos ADD COLUMN {name} {LATER[name]}")
        except sqlite3.OperationalError:
            if name in _lacking(db):  # else another process has just added it
                raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        file = (folder / "lock").open("a+")  # whose writer's number stays until there is another
    except OSError as error:
        raise VtrError(f"{folder}: the library cannot be written ({error.strerror})") from error
    if fcntl is None:
        file.close()
        try:
            with FileLock(folder / "lock.held", timeout=0):
                yield
        except Timeout as error:
            raise BeingWritten(f"{folder}: another process is writing to this library; wait for it to end") from error
        return
    with file:
        try:
            _take(file)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise BeingWritten(
                    f"{folder}: another process is writing to this library; wait for it to end"
                ) from error
            raise VtrError(
                f"{folder}: this file system gives no lock ({error.strerror}), so two writers could not be kept apart; "
                "keep the library on a local disk, or mend the mount (NFS needs its lock service)"
            ) from error
        yield


def _take(file: IO[str]) -> None:
    """Lock a file for this process, or raise as `flock` does.

    A killed writer's decoding processes end with it, but not in the same moment, and one that was just forked still has
    the lock: it is waited for.
    """
    end = time.monotonic() + _ORPHANS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            file.seek(0)
            gone = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN) and _is_gone(file.read())
            if not gone or time.monotonic() > end:
                raise
            time.sleep(0.01)
    file.truncate(0)
    file.write(f"{platform.node()} {os.getpid()}")
    file.flush()


def _is_gone(writer: str) -> bool:
    """Whether a writer, as the lock file names it, was a process of this machine and is no more."""
    import psutil

    node, _, number = writer.rpartition(" ")
    if node != platform.node() or not number.isdigit():
        return False
    try:
        return bool(psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


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
    """Local date and time of a file's time stamp, ISO 8601; `@SECONDS` for one that no calendar here holds."""
    if modified is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(modified).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"@{modified:.0f}"


def folded(text: str) -> str:
    """Text as `~` compares it: whatever the case, composed."""
    return unicodedata.normalize("NFC", text).casefold()


def _contains(text: object, part: object) -> bool:
    return text is not None and folded(str(part)) in folded(str(text))
