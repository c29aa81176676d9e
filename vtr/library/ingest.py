"""Files into a library: what is new, changed, moved or gone, and what becomes of each."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vtr.data.decode import DecodeError, TimeLimit
from vtr.data.whole import cut_off
from vtr.library.files import clean_metadata, leads_out, sha256, shown
from vtr.library.rows import Embedded, Facts, Failure, Metadata, Value, VideoRow
from vtr.library.scan import Scan, find_media
from vtr.library.store import Store, checksum
from vtr.library.where import BUILT_IN

Listing = Mapping[str, Mapping[str, Value]]  # {path: {column: value}}


@dataclass(kw_only=True)
class AddReport:
    """What an `add` or `sync` did; `failed` holds one line for each file that could not be read, `cut_off` one for
    each that is shorter than it says and was indexed as far as it goes.

    `moved` files were found again under another name, `known` ones of the added have the content of another file:
    neither is encoded again. `skipped` counts what was left out of the folders, and why; `notes` say what was done
    otherwise than one might expect.
    """

    added: int = 0
    unchanged: int = 0
    segments: int = 0
    moved: int = 0
    known: int = 0
    removed: int = 0
    skipped: str = ""
    failed: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Ingest:
    """One `add` or `sync`; called with the writer lock held.

    Args:
        store: Of the library.
        embed: Segments and vectors of a file.
        after: Called after each file.
        metadata: Of files, by path.
        exclude, include_hidden: As in `find_media`.
    """

    def __init__(
        self,
        store: Store,
        embed: Callable[[Path], Embedded],
        *,
        after: Callable[[], None],
        metadata: Listing | None,
        exclude: Sequence[str] = (),
        include_hidden: bool = False,
    ) -> None:
        self.store, self.embed, self.after = store, embed, after
        self.report = AddReport()
        self.exclude, self.include_hidden = exclude, include_hidden
        self.wanted = {os.path.abspath(n): clean_metadata(v, "metadata") for n, v in (metadata or {}).items()}

    def find(self, paths: Iterable[str | Path], *, may_be_empty: bool = False) -> list[Path]:
        """Media files under paths; what could not be listed or followed goes into the report."""
        scan = find_media(paths, may_be_empty=may_be_empty, exclude=self.exclude, include_hidden=self.include_hidden)
        self.unlisted = scan.unlisted
        self.report.notes += _notes(scan)
        self.report.skipped = scan.skipped()
        self.report.failed += [shown(f"{folder}: the folder cannot be read") for folder in scan.unlisted]
        return scan.files

    def add(self, files: Sequence[Path], *, hashed: bool = False, gone: Iterable[str] = ()) -> None:
        """Take files in, each in a transaction of its own.

        Args:
            files: Of any name.
            hashed: Compare an unchanged file's content and not only its size and time.
            gone: Paths of files that are no longer there: one of their content is such a file, moved.
        """
        often = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file gets few lines
        vanished = set(gone)
        for file in tqdm(files, desc="index", unit="file", file=sys.stderr, mininterval=often):
            self._add_one(file, hashed, vanished)
            self.after()
        self._describe({os.path.abspath(file) for file in files})

    def _describe(self, visited: set[str]) -> None:
        """Metadata of files that were not looked at in this call; what fits no file of the library is said."""
        lost = []
        for path, values in self.wanted.items():
            if path in visited:
                continue
            known = self.store.video_at(path)
            if known is None:
                lost.append(path)
            elif known.metadata != values:
                with self.store.change():
                    self.store.set_metadata(known.id, values)
        if lost:
            self.report.notes.append(
                shown(
                    f"metadata: {len(lost)} of {len(self.wanted)} rows fit no file of the library (first: {lost[0]}); "
                    "paths are relative to the folder that the listing is in"
                )
            )
        ours = sorted({n for values in self.wanted.values() for n in values} & set(BUILT_IN))
        if ours:
            self.report.notes.append(
                f"metadata: in a filter, {', '.join(ours)} are the file's own; ask for these columns as "
                + ", ".join(f"meta.{n}" for n in ours)
            )

    def forget(self, paths: Sequence[str]) -> None:
        """Forget files that are gone."""
        with self.store.change():
            self.report.removed += sum(self.store.delete_path(path) for path in paths)

    # -- one file -----------------------------------------------------------------------------------------------------

    def _add_one(self, file: Path, hashed: bool, vanished: set[str]) -> None:
        name = os.path.abspath(file)
        try:
            name.encode()
        except UnicodeEncodeError:
            self.report.failed.append(f"{shown(name)}: the file's name is not UTF-8; rename it")
            return
        known = self.store.video_at(name)
        # A file that was too slow may only have met a busy machine, and one that could not be opened may be mended.
        again = known is not None and known.failure is not None and known.failure.kind != "unreadable"
        try:
            seen = _facts(file)
            if known and not again and not hashed and known.facts[:2] == seen[:2]:
                return self._unchanged(known, name)
            # Hashing reads the whole file, which only one of a known size needs before its windows are made.
            if self.store.size_is_known(seen.bytes):
                seen = seen._replace(sha256=sha256(file))
        except OSError as error:
            if known and known.failure is None:  # what was indexed of it stays: it may be readable again tomorrow
                self.report.failed.append(shown(f"{name}: {error.strerror}"))
                return
            return self._record(name, known, Facts(None, None, None), _unopened(name, error))
        if known and not again and seen.sha256 and known.facts.sha256 == seen.sha256:
            if known.facts[:2] != seen[:2]:
                with self.store.db:
                    self.store.update_file(known.id, name, seen)
            return self._unchanged(known, name)
        if self._taken_over(name, known, seen, vanished):
            return
        self._encode(file, name, known, seen)

    def _encode(self, file: Path, name: str, known: VideoRow | None, seen: Facts) -> None:
        found = self._embedded(name)
        try:
            if seen.sha256 is None:
                seen = seen._replace(sha256=sha256(file))
            if _facts(file)[:2] != seen[:2]:
                self.report.failed.append(shown(f"{name}: changed while it was read; call again"))
                return
        except OSError as error:
            found = _unopened(name, error)
        self._record(name, known, seen, found)

    def _embedded(self, name: str) -> Embedded | Failure:
        try:
            return replace(self.embed(Path(name)), lacking=cut_off(name, thorough=False))
        except TimeLimit as error:
            return Failure(reason=str(error), kind="slow")
        except DecodeError as error:
            return Failure(reason=str(error), kind="unreadable")
        except OSError as error:
            return _unopened(name, error)

    def _taken_over(self, name: str, known: VideoRow | None, seen: Facts, vanished: set[str]) -> bool:
        """Whether the same content is in the library under another name: then its vectors serve again."""
        others = self.store.of_content(seen.sha256, but=name) if seen.sha256 else []
        moved = next((o for o in others if o.path in vanished or _gone(o.path)), None)
        if moved is not None:
            with self.store.change():
                if known:
                    self.store.delete_video(known.id)
                self.store.update_file(moved.id, name, seen)
                if (metadata := self.wanted.get(name)) is not None:
                    self.store.set_metadata(moved.id, metadata)
            vanished.discard(moved.path)
            self.report.moved += 1
            return True
        if not others:
            return False
        other = others[0]
        spans, rows = self.store.spans_of(other.id)
        vectors = self.store.vectors()[rows]
        same = Embedded(spans=spans, vectors=vectors, duration=other.duration, lacking=other.lacking)
        self._record(name, known, seen, same)
        self.report.known += 1
        return True

    def _record(self, name: str, known: VideoRow | None, seen: Facts, found: Embedded | Failure) -> None:
        metadata: Metadata | None = self.wanted.get(name)
        if metadata is None and known:
            metadata = known.metadata
        failure = found if isinstance(found, Failure) else None
        if isinstance(found, Failure):
            found = Embedded(spans=[], vectors=np.zeros((0, self.store.width), np.float32), duration=0.0)
        spans, vectors = found.spans, found.vectors
        with self.store.change():
            if known:
                self.store.delete_video(known.id)
            first = self.store.append(vectors) if len(vectors) else 0
            self.store.insert_video(
                name,
                seen,
                spans,
                first,
                crc=checksum(vectors),
                duration=found.duration,
                failure=failure,
                metadata=metadata,
                lacking=found.lacking,
            )
        if failure is None:
            self.report.added += 1
            self.report.segments += len(spans)
            self._note_lacking(name, found.lacking)
        else:
            self.report.failed.append(shown(failure.reason))

    def _unchanged(self, known: VideoRow, name: str) -> None:
        metadata = self.wanted.get(name)
        if metadata is not None and metadata != known.metadata:
            with self.store.change():
                self.store.set_metadata(known.id, metadata)
        if known.failure:
            self.report.failed.append(shown(known.failure.reason))
        else:
            self.report.unchanged += 1
            self._note_lacking(name, known.lacking)

    def _note_lacking(self, name: str, lacking: str) -> None:
        if lacking:
            self.report.cut_off.append(shown(f"{name}: {lacking}"))


def _facts(file: Path) -> Facts:
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(0, "not a regular file")
    return Facts(facts.st_size, facts.st_mtime, None)


def _unopened(name: str, error: OSError) -> Failure:
    return Failure(reason=f"{name}: {error.strerror}", kind="unopened")


def _gone(path: str) -> bool:
    """Whether a file is surely no longer there; one that cannot be looked at may be."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _notes(scan: Scan) -> list[str]:
    notes = [shown(f"{link}: a link to a folder is not followed; name the folder itself") for link in scan.links]
    out = [f for f in scan.files if leads_out(f)]
    if out:
        notes.append(
            shown(f"links that lead out of their folders: {len(out)} ({out[0]}); indexed, ")
            + "but vtr serve shows them only with --follow-links"
        )
    return notes
