"""Check a library: database, vectors and index agree with each other, and, where asked for, with the files."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vtr.library import index as indexes
from vtr.library.files import sha256, shown
from vtr.library.library import Library
from vtr.library.store import MissingVectors, checksum

_NEWER = "newer than library.db"
_MOST = 20  # problems of a kind that are named one by one


def verify(library: Library, *, files: bool = False) -> list[str]:
    """One line for each thing that is wrong, with what to do; nothing when all is well.

    Args:
        library: Searched and written by others meanwhile, if need be: one view of the database is checked.
        files: Also read every indexed file and compare its content's hash.
    """
    problems: list[str] = []
    for attempt in range(5):
        try:
            with library.store.reading():
                problems = [*_database(library), *_vectors(library), *_index(library)]
                if any(_NEWER in line for line in problems) and attempt < 2:
                    continue  # a writer has just replaced it
                if files:
                    problems += _files(library)
            return problems
        except MissingVectors as error:  # compacted at that moment, or lost
            problems = [str(error)]
        except sqlite3.Error as error:
            return [f"{library.path}/library.db cannot be read ({error}): restore it, or build the library anew"]
    return problems


def advice(library: Library) -> list[str]:
    """One line for each thing that is right but could be better."""
    count, path = library.store.segments(), library.path / "index.faiss"
    described = indexes.describe(path)
    tail = count - (described["count"] if described else 0)
    if tail > indexes.TAIL_UP_TO and count > indexes.EXACT_UP_TO:
        return [f"{tail} segments are not in index.faiss and searched one by one: vtr index compact {library.path}"]
    return []


def _some(lines: list[str], what: str) -> list[str]:
    return lines[:_MOST] + ([f"and {len(lines) - _MOST} more {what}"] if len(lines) > _MOST else [])


def _database(library: Library) -> list[str]:
    mend = "restore it, or build the library anew"
    broken = [f"library.db is damaged ({line}): {mend}" for line in library.store.damage()]
    return broken or [f"library.db has {what}: {mend}" for what in library.store.contradictions(library.store.rows())]


def _vectors(library: Library) -> list[str]:
    vectors = library.store.vectors()  # too short a file is an error of its own
    wrong: list[str] = []
    for path, crc, rows in library.store.rows_of_videos():
        own = vectors[[row for row in rows if row < len(vectors)]]  # those beyond the end are named above
        # A sample that was imported by an older vtr has no checksum of its own: the values are looked at.
        if crc is not None and checksum(own) != crc and len(own) == len(rows):
            wrong.append(f"{shown(path)}: its vectors are not those that were written; remove it and add it again")
        elif not np.isfinite(own).all():
            wrong.append(f"{shown(path)}: its vectors are not finite; remove it and add it again")
    return _some(wrong, "videos with wrong vectors")


def _index(library: Library) -> list[str]:
    path = library.path / "index.faiss"
    mend = f"vtr index compact {library.path} makes it anew"
    count = library.store.segments()
    if not path.is_file():
        lost = (library.settings.index or {}).get("type", "flat") != "flat" and count > indexes.EXACT_UP_TO
        return [f"index.faiss is missing: {mend}"] if lost else []
    described = indexes.describe(path)
    if described is None:
        return [f"index.faiss is damaged, or of an older vtr: {mend}"] if count > indexes.EXACT_UP_TO else []
    if not library.belongs(described):
        return [f"index.faiss is of another library, or {_NEWER}: {mend}"]
    if not indexes.intact(path, described):
        return [f"index.faiss is damaged: its bytes are not those that were written; {mend}"]
    index = indexes.read(path)
    if index is None:
        return [f"index.faiss cannot be read: {mend}"]
    inside = indexes.ids_of(index.faiss)
    live = library.store.pairs()[:, 0]
    live = live[live <= described["last"]]
    problems = []
    if len(np.unique(inside)) != len(inside):
        problems.append(f"index.faiss holds segments twice: {mend}")
    if lacking := len(np.setdiff1d(live, inside)):
        problems.append(f"index.faiss lacks {lacking} segments: {mend}")
    return problems


def _files(library: Library) -> list[str]:
    problems: list[str] = []
    for video in tqdm(library.store.readable_files(), desc="files", unit="file", file=sys.stderr):
        try:
            if not os.path.exists(video.path):
                problems.append(
                    f"{shown(video.path)}: the file is gone; vtr index sync of the folder it is in now finds it again, vtr index remove forgets it"
                )
            elif sha256(Path(video.path)) != video.facts.sha256:
                problems.append(f"{shown(video.path)}: the file has changed; vtr index sync does it again")
        except OSError as error:
            problems.append(f"{shown(video.path)}: cannot be read ({error.strerror})")
    return _some(problems, "files")
