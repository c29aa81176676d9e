"""A copy of a library while others search and write it: one that agrees with itself, and is checked."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from vtr.errors import VtrError
from vtr.library.library import Library
from vtr.library.store import Store, sync_folder
from vtr.library.verify import verify

_TRIES = 5  # a compaction may take the vectors away in the middle, each time


def backup(library: Library, out: Path) -> list[str]:
    """Copy a library into a new folder; returns what `verify` finds wrong with the copy, nothing when all is well.

    Database first: its rows never change in the file of vectors, which only grows, so that what is copied after it holds
    all of them. The index is copied before it: an older one serves a newer library. Cached tokens stay behind.

    Args:
        out: New, or empty. A killed call leaves `OUT.partial`.

    Raises:
        VtrError: `out` holds something, or cannot be written; the library cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VtrError(f"{out} is there already: name a new folder for each backup")
    partial = out.with_name(f"{out.name}.partial")
    for attempt in range(_TRIES):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _copy(library, partial)
            break
        except FileNotFoundError as error:  # the library was compacted at that moment
            if attempt == _TRIES - 1:
                raise VtrError(f"{library.path}: {error.filename} is not there; vtr index verify says more") from error
        except (OSError, sqlite3.Error) as error:
            raise VtrError(f"{partial}: the backup cannot be written ({error})") from error
    with contextlib.suppress(OSError):
        out.rmdir()
    os.replace(partial, out)
    sync_folder(out.parent)
    with Library.open(out) as copy:
        return verify(copy)


def _copy(library: Library, out: Path) -> None:
    for name in ("library.json", "index.faiss"):
        if (library.path / name).is_file():
            shutil.copyfile(library.path / name, out / name)
    with contextlib.closing(sqlite3.connect(out / "library.db")) as copied:
        library.store.db.backup(copied)  # with what stands in library.db-wal, as of one moment
    with contextlib.closing(Store(out, library.settings.width)) as store:
        rows = store.rows()
        if rows:
            _copy_file(library.path / store.vectors_file().name, store.vectors_file(), rows * store.width * 4)
        frames = library.path / store.frames_file().name
        if frames.is_file():
            _copy_file(frames, store.frames_file())


def _copy_file(source: Path, copy: Path, most: int | None = None) -> None:
    with source.open("rb") as old, copy.open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 22)
        if most is not None:
            new.truncate(most)  # behind it stands what a writer has begun since
        new.flush()
        os.fsync(new.fileno())
