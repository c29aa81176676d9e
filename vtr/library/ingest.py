"""Files into a library: what is new, changed, moved or gone, and what becomes of each."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from vtr.library.files import clean_metadata, leads_out, sha256, shown, texts_like_numbers
from vtr.library.pipeline import Job, Pipeline
from vtr.library.progress import Progress, size_of
from vtr.library.rows import Embedded, Facts, Failure, Metadata, Value, VideoRow
from vtr.library.scan import Scan, find_media
from vtr.library.store import Store, checksum
from vtr.library.subtitles import SubtitleFiles
from vtr.library.where import BUILT_IN

_HASHING = 2  # threads
_HASHED_AHEAD = 8  # files that are looked at ahead of their turn
_PATIENCE = 0.005  # seconds that a hash is waited for
Listing = Mapping[str, Mapping[str, Value]]  # {path: {column: value}}


@dataclass(kw_only=True)
class AddReport:
    """What an `add` or `sync` did; `failed` holds one line for each file that could not be read, `cut_off` one for
    each that is shorter than it says and was indexed as far as it goes.

    `spoken` counts unchanged files whose subtitles were read again. `moved` files were found again under another name, `known` ones of the added have the content of another file:
    neither is encoded again. `skipped` counts what was left out of the folders, and why; `notes` say what was done
    otherwise than one might expect.
    """

    added: int = 0
    unchanged: int = 0
    segments: int = 0
    moved: int = 0
    known: int = 0
    removed: int = 0
    spoken: int = 0
    skipped: str = ""
    failed: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Found = Embedded | Failure | None
Act = Callable[[Found], None]


@dataclass(kw_only=True, eq=False)
class _Look:
    """A file that is looked at ahead of its turn.

    Attributes:
        seen: Size and time; an error where it cannot be looked at; None where its content need not be.
        twins: Files of its size that this call embeds: one of them may have its content.
        digest: Its content's hash, once it is wanted.
    """

    file: Path
    name: str
    seen: Facts | OSError | None = None
    twins: list[_Look] = field(default_factory=list)
    digest: Future[str] | None = None

    def waiting(self) -> list[Future[str]]:
        """Hashes that must be known before it can be told what it needs."""
        return [look.digest for look in (self, *self.twins) if look.digest is not None]


class Ingest:
    """One `add` or `sync`; called with the writer lock held.

    Args:
        store: Of the library.
        pipeline: What embeds files; asked for when there is a file to embed.
        after: Called after each file.
        metadata: Of files, by path.
        exclude, include_hidden: As in `find_media`.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Callable[[], AbstractContextManager[Pipeline]],
        *,
        after: Callable[[], None],
        metadata: Listing | None,
        exclude: Sequence[str] = (),
        include_hidden: bool = False,
    ) -> None:
        self.store, self.pipeline, self.after = store, pipeline, after
        self.report = AddReport()
        self.exclude, self.include_hidden = exclude, include_hidden
        self.wanted = {os.path.abspath(n): clean_metadata(v, "metadata") for n, v in (metadata or {}).items()}
        self.words = SubtitleFiles(store, self.report.notes)
        self._hashed = False
        self._vanished: set[str] = set()
        self._under_way: dict[int, list[_Look]] = {}  # files that are being embedded, by size
        self._failures: dict[str, tuple[str, Failure]] = {}  # by content: the file that failed in this call, and why

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
        self._vanished, self._hashed = set(gone), hashed
        with contextlib.closing(self._jobs(files, hashed)) as jobs, Progress(files) as progress:
            for act, found in self._embedded(jobs, progress):
                act(found)
                progress.file()
                self.after()
        self._describe({os.path.abspath(file) for file in files})
        self.words.note_unread()

    def _embedded(self, jobs: Iterator[Job[Act] | None], progress: Progress) -> Iterator[tuple[Act, Found]]:
        """What is to be done with each file, in their order; the model is loaded when one must be embedded."""
        for job in jobs:
            if job is None:
                continue
            if job.source is None:
                progress.passed(job.weight)
                yield job.key, None
                continue
            with self.pipeline() as pipeline:
                yield from pipeline.run(itertools.chain([job], jobs), lambda: progress.tick(pipeline))

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
        self.report.notes += map(shown, texts_like_numbers(self.wanted.values()))
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

    # -- files ahead of their turn ------------------------------------------------------------------------------------

    def _jobs(self, files: Sequence[Path], hashed: bool) -> Generator[Job[Act] | None, None, None]:
        """What each file needs, some files ahead; None while contents are being hashed that tell."""
        names = iter(files)
        ahead: deque[_Look] = deque()
        with ThreadPoolExecutor(_HASHING, thread_name_prefix="hash") as pool:
            try:
                while True:
                    for file in itertools.islice(names, _HASHED_AHEAD - len(ahead)):
                        ahead.append(self._look(file, hashed, pool))
                    if not ahead:
                        return
                    if wait(ahead[0].waiting(), _PATIENCE).not_done:
                        yield None
                    else:
                        yield self._job(ahead.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, file: Path, hashed: bool, pool: ThreadPoolExecutor) -> _Look:
        """Look at a file. To hash it is to read it whole, which only one whose size another has needs beforehand."""
        look = _Look(file=file, name=os.path.abspath(file))
        if not _is_text(look.name):
            return look
        try:
            seen = _facts(file)
        except OSError as error:
            look.seen = error
            return look
        known = self.store.video_at(look.name)
        if known and not _again(known) and not hashed and known.facts[:2] == seen[:2]:
            return look
        look.seen = seen
        alike = self._under_way.setdefault(seen.bytes or 0, [])
        look.twins = list(alike)
        alike.append(look)
        if look.twins or self.store.size_is_known(seen.bytes):
            for one in (look, *look.twins):
                one.digest = one.digest or pool.submit(sha256, one.file)
        return look

    def _job(self, look: _Look) -> Job[Act]:
        """What a file needs. The database is only looked at: what is to be done is done in the file's turn."""
        if look.seen is None:
            return Job(key=partial(self._as_it_was, look.name), source=None, weight=size_of(look.file))
        if isinstance(look.seen, OSError):
            return Job(key=partial(self._cannot, look.name, look.seen), source=None, weight=0)
        seen = look.seen
        if look.digest is not None:
            if error := look.digest.exception():
                if not isinstance(error, OSError):
                    raise error
                self._settled(look, seen)
                return Job(key=partial(self._cannot, look.name, error), source=None, weight=0)
            seen = seen._replace(sha256=look.digest.result())
        known = self.store.video_at(look.name)
        there = seen.sha256 is not None and (
            (known is not None and not _again(known) and known.facts.sha256 == seen.sha256)
            or any(t.digest and not t.digest.exception() and t.digest.result() == seen.sha256 for t in look.twins)
            or bool(self.store.of_content(seen.sha256, but=look.name))
        )
        return Job(
            key=partial(self._take, look, seen),
            source=None if there else Path(look.name),
            name=look.name,
            weight=seen.bytes or 0,
        )

    def _settled(self, look: _Look, seen: Facts) -> None:
        """A file's turn is over."""
        alike = self._under_way[seen.bytes or 0]
        alike.remove(look)
        if not alike:
            del self._under_way[seen.bytes or 0]

    # -- one file in its turn -----------------------------------------------------------------------------------------

    def _as_it_was(self, name: str, _: Found) -> None:
        if not _is_text(name):
            self.report.failed.append(f"{shown(name)}: the file's name is not UTF-8; rename it")
        elif (known := self.store.video_at(name)) is not None:
            self._unchanged(known, name)

    def _cannot(self, name: str, error: OSError, _: Found) -> None:
        known = self.store.video_at(name)
        if known and known.failure is None:  # what was indexed of it stays: it may be readable again tomorrow
            self.report.failed.append(shown(f"{name}: {error.strerror}"))
        else:
            self._record(name, known, Facts(None, None, None), _unopened(name, error))

    def _take(self, look: _Look, seen: Facts, found: Found) -> None:
        """Take a file in, embedded where it had to be."""
        self._settled(look, seen)
        name = look.name
        known = self.store.video_at(name)
        if known and not _again(known) and seen.sha256 and known.facts.sha256 == seen.sha256:
            if known.facts[:2] != seen[:2]:
                with self.store.db:
                    self.store.update_file(known.id, name, seen)
            return self._unchanged(known, name)
        try:
            if isinstance(found, Embedded) and seen.sha256 is None:
                seen = seen._replace(sha256=found.sha256)
            if seen.sha256 is None:
                seen = seen._replace(sha256=sha256(look.file))
            if found is not None and _facts(look.file)[:2] != seen[:2]:
                return self._changed(name)
        except OSError as error:
            found = _unopened(name, error)
        if self._taken_over(name, known, seen):
            return
        if found is None:
            twin, failure = self._failures.get(seen.sha256 or "", ("", None))
            if failure is None:  # the file that had this content is another one by now
                return self._changed(name)
            found = replace(failure, reason=failure.reason.replace(twin, name, 1))
        if isinstance(found, Failure) and seen.sha256:
            self._failures[seen.sha256] = name, found
        self._record(name, known, seen, found)

    def _changed(self, name: str) -> None:
        self.report.failed.append(shown(f"{name}: changed while it was read; call again"))

    def _taken_over(self, name: str, known: VideoRow | None, seen: Facts) -> bool:
        """Whether the same content is in the library under another name: then its vectors serve again."""
        others = self.store.of_content(seen.sha256, but=name) if seen.sha256 else []
        moved = next((o for o in others if o.path in self._vanished or _gone(o.path)), None)
        if moved is not None:
            with self.store.change():
                if known:
                    self.store.delete_video(known.id)
                self.store.update_file(moved.id, name, seen)
                if (metadata := self.wanted.get(name)) is not None:
                    self.store.set_metadata(moved.id, metadata)
            self._vanished.discard(moved.path)
            self.words.refresh(moved.id, name, hashed=self._hashed)
            self.report.moved += 1
            return True
        if not others:
            return False
        other = others[0]
        spans, rows = self.store.spans_of(other.id)
        same = Embedded(
            spans=spans,
            vectors=self.store.vectors()[rows],
            duration=other.duration,
            lacking=other.lacking,
            frames=self.store.frame_rows(rows),
            looks=self.store.looks_of(other.id),
        )
        self._record(name, known, seen, same, other)
        self.report.known += 1
        return True

    def _record(
        self, name: str, known: VideoRow | None, seen: Facts, found: Embedded | Failure, twin: VideoRow | None = None
    ) -> None:
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
            first = self.store.append(vectors, found.frames) if len(vectors) else 0
            number = self.store.insert_video(
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
            if found.looks is not None:
                self.store.set_looks(number, found.looks)
            if failure is None:
                if twin is not None:
                    self.store.copy_inner_tracks(number, twin.id)
                self.words.take(number, name, found.tracks)
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
            if self.words.refresh(known.id, name, hashed=self._hashed):
                self.report.spoken += 1
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


def _again(known: VideoRow) -> bool:
    """Whether a file that failed is tried again.

    One that was too slow may only have met a busy machine, and one that could not be opened may be mended.
    """
    return known.failure is not None and known.failure.kind != "unreadable"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
