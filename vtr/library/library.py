"""Library: add videos, keep them up to date with their folders, search them in words.

A library is a folder: library.json (settings, model, what the index is), library.db (videos, segments: the truth),
embeddings.f32 (append-only), index.faiss (derived from them, can always be made again; none while exact search is fast).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from vtr.errors import VtrError
from vtr.library import index as indexes
from vtr.library.files import full_name, shown
from vtr.library.found import Found, Hit, Hits, hit_dict
from vtr.library.hearing import Hearing
from vtr.library.index_types import Description
from vtr.library.rows import SegmentRow
from vtr.library.settings import ALL, Compacted, Info, LibrarySettings, Work, check_windows
from vtr.library.store import MissingVectors, Store, is_damage
from vtr.library.tokens import TokenCache
from vtr.library.wanted import Wanted
from vtr.library.where import Node, to_sql

if TYPE_CHECKING:
    from vtr.library.ingest import AddReport, Ingest, Listing
    from vtr.library.pipeline import Pipeline
    from vtr.models.base import VideoTextEncoder

__all__ = ["Hit", "Hits", "Library", "hit_dict"]

T = TypeVar("T")
_FILTERS = 8  # filters whose segments are remembered until the library changes
_OWN = ("library.db", "library.db-wal", "library.db-shm", "lock")


class Library(Hearing):
    """A search library on disk; use `create` or `open`.

    Any number of processes may search while one writes. An object may be used from several threads at once.
    """

    def __init__(
        self, path: Path, settings: LibrarySettings, model: VideoTextEncoder | None, *, create: bool = False
    ) -> None:
        self.path: Path = path
        self.settings = settings
        self._model = model
        self._model_path = settings.model
        self.store = Store(path, settings.width, create=create)
        self._cache = TokenCache(path / "tokens", settings.token_cache or 0)
        self._seen: indexes.Snapshot | None = None
        self._lock = threading.RLock()  # over what threads share: the snapshot, the model while it is loaded
        self._indexed_up_to = 0
        self._own = threading.local()  # patient: an index newer than the database seen is a matter of the moment

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: VideoTextEncoder | str | Path,
        *,
        model_path: str | None = None,
        window: float = 8.0,
        stride: float = 4.0,
        max_memory: int | None = None,
        token_cache: int | None = None,
    ) -> Library:
        """Make an empty library, or open the one that is there if model and windows agree.

        Args:
            path: Its folder: new, empty, or a library.
            model: The model (or its path) that embeds videos and queries.
            model_path: Where a model given as an object is stored, so that `open` finds it.
            window, stride: Seconds of a segment and between the starts of two.
            max_memory: Bytes the index may take; default: half of the machine's. Written down.
            token_cache: Bytes of visual tokens kept on disk for re-ranking; default: none. Written down.

        Raises:
            VtrError: The folder holds something else, a library of another model or other windows, or is not writable.
        """
        from vtr.library.encode import load_encoder, settings_of

        check_windows(window, stride)
        if isinstance(model, str | Path):
            # A hub id stays as it is; a folder is remembered by its full path.
            model_path = os.path.abspath(model) if Path(model).exists() else str(model)
            model = load_encoder(model)
        settings = settings_of(model, model_path, window, stride)
        return cls.create_from(path, settings, model, max_memory=max_memory, token_cache=token_cache)

    @classmethod
    def create_from(
        cls,
        path: str | Path,
        settings: LibrarySettings,
        model: VideoTextEncoder | None = None,
        *,
        max_memory: int | None = None,
        token_cache: int | None = None,
    ) -> Library:
        """As `create`, with the model described: model (path), fingerprint, width, window, stride, frames."""
        path = Path(path)
        if (path / "library.json").is_file():
            library = cls.open(path, model)
            if library.settings.fingerprint != settings.fingerprint:
                raise VtrError(
                    f"{path} was made with another model ({library.settings.fingerprint[:12]}, asked for "
                    f"{settings.fingerprint[:12]}): use that one, or build another library"
                )
            library._agree(settings.window, settings.stride)
        else:
            try:
                path.mkdir(parents=True, exist_ok=True)
                if any(p.name not in _OWN and not p.name.startswith("library.json.") for p in path.iterdir()):
                    raise VtrError(f"{path} is not empty and not a library; choose another folder")
                library = cls(path, replace(settings, id=uuid.uuid4().hex), model, create=True)
                with library.store.writing():
                    library._write_settings()
            except OSError as error:
                raise VtrError(f"{path}: the library cannot be made ({error.strerror})") from error
        library.set_limits(max_memory=max_memory, token_cache=token_cache)
        return library

    def set_limits(self, *, max_memory: int | None = None, token_cache: int | None = None) -> None:
        """Write down how many bytes the index may take and how many visual tokens may take on disk; None: as it is."""
        changed = replace(
            self.settings,
            max_memory=self.settings.max_memory if max_memory is None else max_memory,
            token_cache=self.settings.token_cache if token_cache is None else token_cache,
        )
        if changed != self.settings:
            with self.store.writing():
                self._write_settings(changed)
            self._cache = TokenCache(self.path / "tokens", self.settings.token_cache or 0)

    @classmethod
    def open(cls, path: str | Path, model: VideoTextEncoder | str | Path | None = None) -> Library:
        """Open a library; without `model` (an object or a path) its own is loaded when first needed.

        Raises:
            VtrError: It is no library, or `model` is not the one it was made with.
        """
        path = Path(path)
        library = cls(path, LibrarySettings.read(path), None)
        if isinstance(model, str | Path):
            library._model_path = str(model)
        elif model is not None:
            library._accept(model)
        return library

    def close(self) -> None:
        """Let go of the database; the library cannot be used afterwards."""
        self.store.close()

    def __repr__(self) -> str:
        try:
            videos, seconds = self.read(self.store.totals)
            count = self.store.segments()
        except VtrError:
            return f"<Library {self.path}: {'closed' if self.store.closed else 'cannot be read'}>"
        length = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"
        model = self.settings.model or self.settings.fingerprint[:12]
        return f"<Library {self.path}: {videos} videos, {count} segments, {length}; model {model}>"

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _agree(self, window: float, stride: float, keyframes: bool | None = None) -> None:
        own = self.settings
        if keyframes not in (None, own.keyframes):
            raise VtrError(
                f"{self.path} was made of {'key frames' if own.keyframes else 'all frames'}: leave --frames out, or "
                "choose another folder"
            )
        if (own.window, own.stride) != (window, stride):
            raise VtrError(
                f"{self.path} has windows of {own.window:g} s every {own.stride:g} s, "
                f"asked for {window:g} and {stride:g}: leave them out, or choose another folder"
            )

    def _write_settings(self, settings: LibrarySettings | None = None) -> None:
        """Write library.json, with other settings where they are given; they are kept once they are written."""
        settings = settings or self.settings
        settings.write(self.path)
        self.settings = settings

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        window: float | None = None,
        stride: float | None = None,
        metadata: Listing | None = None,
        exclude: Sequence[str] | None = None,
        include_hidden: bool | None = None,
        keyframes: bool | None = None,
        work: Work = ALL,
    ) -> AddReport:
        """Index files and folders; unchanged files are skipped, changed ones done again.

        Each video is committed by itself, in their order: a killed call loses the videos under way, and the next goes on.
        Files that cannot be read are remembered with their reason and returned. A file whose content is in the library
        under another name is not encoded again.

        Args:
            paths: Folders (searched for media files), and files of any name.
            window, stride: Seconds; those of the library unless it is still empty.
            metadata: {path: {column: number or text}}; replaces what a video had.
            exclude: Patterns of files and folders to leave out, see `vtr.library.scan.find_media`. Written down.
            include_hidden: Also take what has a dot before its name. Written down.
            keyframes: A quick look: only key frames are decoded, and hits say so; that of the library unless it is
                still empty.
            work: Decoding processes, devices, precision.
        """
        self._choose(exclude, include_hidden)
        ingest = self._ingest(metadata, work)
        files = ingest.find([paths] if isinstance(paths, str | Path) else paths)
        with self.store.writing():
            self.set_windows(window, stride, keyframes)
            ingest.add(files)
            self.update_index()
        return ingest.report

    def sync(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        quick: bool = False,
        may_be_empty: bool = False,
        leave: Collection[str] = (),
        metadata: Listing | None = None,
        exclude: Sequence[str] | None = None,
        include_hidden: bool | None = None,
        work: Work = ALL,
    ) -> AddReport:
        """Bring the library up to date with folders: new files are added, changed ones done again, vanished ones forgotten.

        Whether a file has changed is decided by its content's hash; a renamed one keeps its vectors. Nothing is
        forgotten that lies in a folder which cannot be read, and files elsewhere are not looked at.

        Args:
            paths: Folders.
            quick: Trust size and time stamp instead of reading every file.
            may_be_empty: A folder without any media file is meant: all its videos are forgotten.
            leave: Full paths of files that stay as they are in the library, whatever they are now.
            work: As in `add`.
            metadata, exclude, include_hidden: As in `add`; files that are left out now are forgotten.

        Raises:
            VtrError: A folder does not exist (an unmounted disk is no reason to forget its videos), or is empty.
        """
        folders = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        for folder in folders:
            if not folder.is_dir():
                raise _no_folder(folder)
        self._choose(exclude, include_hidden)
        ingest = self._ingest(metadata, work)
        files = [f for f in ingest.find(folders, may_be_empty=True) if f.exists()]
        there = {*leave, *(os.path.abspath(f) for f in files)}
        files = [f for f in files if os.path.abspath(f) not in leave]
        with self.store.writing():
            self.set_windows(None, None)
            gone: list[str] = []
            for folder in folders:
                known = self.store.paths_below(os.path.abspath(folder))
                if not may_be_empty and known and not any(f in there for f in known) and not _within(there, folder):
                    raise _unmounted(folder, len(known), self.path)
                gone += [f for f in known if f not in there and not any(_below(f, u) for u in ingest.unlisted)]
            ingest.add(files, hashed=not quick, gone=gone)
            ingest.forget(gone)
            self.update_index()
        return ingest.report

    def _choose(self, exclude: Sequence[str] | None, include_hidden: bool | None) -> None:
        """Remember which files are left out of folders, from now on; None: as it is."""
        own = self.settings
        chosen = replace(
            own,
            exclude=own.exclude if exclude is None else tuple(p for p in exclude if p),
            include_hidden=own.include_hidden if include_hidden is None else include_hidden,
        )
        if chosen != own:
            with self.store.writing():
                self._write_settings(chosen)

    def _ingest(self, metadata: Listing | None, work: Work) -> Ingest:
        from vtr.library.ingest import Ingest

        return Ingest(
            self.store,
            lambda: self.pipeline(work),
            after=self._index_tail,
            metadata=metadata,
            exclude=self.settings.exclude,
            include_hidden=self.settings.include_hidden,
        )

    def _index_tail(self) -> None:
        """Put a long tail into the index while files are added: for readers of a library that grows for days."""
        tail = self.store.last_segment() - self._indexed_up_to
        if tail > max(indexes.TAIL_UP_TO, self._indexed_up_to // 4) and tail > indexes.EXACT_UP_TO:
            self.update_index()

    def set_windows(self, window: float | None, stride: float | None, keyframes: bool | None = None) -> None:
        """Windows of a library that is empty; those of another must be the ones it has. None: as they are."""
        wanted = self.settings.with_windows(window, stride, keyframes)
        if self.store.segments() == 0 and wanted != self.settings:
            self._write_settings(wanted)
        self._agree(wanted.window, wanted.stride, wanted.keyframes)

    @contextlib.contextmanager
    def pipeline(self, work: Work) -> Iterator[Pipeline]:
        """What embeds files for this library; its precision is written down before the first vector is."""
        from vtr.library.pipeline import Pipeline

        with Pipeline(self.model, self.settings, work) as pipeline:
            self.note_precision(pipeline.precision, None)
            yield pipeline
            self.note_precision(pipeline.precision, pipeline.parity)

    def note_precision(self, precision: str, parity: float | None) -> None:
        """Write down what vectors were encoded in; with the writer lock held."""
        settings = self.settings.encoded_in(precision, parity)
        if settings != self.settings:
            self._write_settings(settings)

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Forget videos, or all those of a folder; returns how many. The files themselves are not touched.

        Raises:
            VtrError: One is not in the library; then nothing is removed.
        """
        count = 0
        with self.store.writing():
            with self.store.change():
                for path in paths:
                    gone = self.store.delete_path(full_name(path), below=True)
                    if gone == 0:
                        raise VtrError(f"{path} is not in {self.path}; nothing was removed")
                    count += gone
            self.update_index()
        return count

    def compact(self) -> Compacted:
        """Leave out the vectors of forgotten videos, make the index anew where it is needed; returns sizes.

        Readers go on meanwhile; a killed call leaves the library as it was before or after.
        """
        with self.store.writing():
            saved = self.store.compact()
            self.update_index(anew=True)
        return {"segments": self.store.segments(), "saved": saved, "index": self.settings.index}

    def update_index(self, *, anew: bool = False) -> None:
        """Bring index.faiss up to date where its tail has grown long; a library that is small enough has none.

        Args:
            anew: Also where it would do for longer: no tail, no forgotten segments, recall measured again.
        """
        path = self.path / "index.faiss"
        count = self.store.segments()
        described = indexes.describe(path)
        usable = described is not None and self.belongs(described)
        budget = self.settings.max_memory or indexes.default_memory()
        wanted = indexes.plan(count, self.settings.width, budget)
        if wanted["type"] == "flat":
            path.unlink(missing_ok=True)
            self._indexed_up_to = 0
            return self._describe({"type": "flat", "recall_at_10": 1.0, "count": count})
        if usable and described is not None:
            self._indexed_up_to = int(described["last"])
            inside = self.store.segments_up_to(described["last"])
            tail, dead = count - inside, described["count"] - inside
            same = (described["type"], described.get("code_bytes")) == (wanted["type"], wanted.get("code_bytes"))
            fits = same and count / 4 <= described["trained_on"] <= 4 * count
            late = tail > indexes.TAIL_UP_TO or dead > described["count"] / 5 or (anew and (tail or dead))
            if fits and not late and (not anew or indexes.intact(path, described)):
                return self._describe(described)
        else:
            fits = False
        pairs, vectors = self.store.pairs(), self.store.vectors()
        index = indexes.read(path, mapped=False) if fits else None
        print(f"index: {wanted['type']} of {count} segments …", file=sys.stderr)
        if index is None:
            index = indexes.build(vectors, pairs, max_memory=budget)
        else:
            last = index.description["last"]
            indexes.remove(index, np.setdiff1d(indexes.ids_of(index.faiss), pairs[:, 0]))
            indexes.extend(index, vectors, pairs[np.searchsorted(pairs[:, 0], last, side="right") :])
            measured = index.description.get("measured_on", 0)
            if anew or abs(count - measured) > measured / 10:  # to measure is to read every vector
                indexes.tune(index, vectors, pairs)
        index.description["generation"] = self.store.generation()
        index.description["library"] = self.settings.id
        indexes.write(index, path)
        self._indexed_up_to = index.description["last"]
        self._describe(index.description)
        if index.description["recall_at_10"] < indexes.RECALL:
            print(
                f"warning: recall@10 of the index is {index.description['recall_at_10']:g}, below {indexes.RECALL:g}: "
                "give it more with --max-memory",
                file=sys.stderr,
            )

    def belongs(self, described: Description) -> bool:
        """Whether an index was made of this library as it is now or was before: not after a database was restored."""
        return described.get("library") == self.settings.id and not self._newer(described)

    def _newer(self, described: Description) -> bool:
        return int(described.get("generation", 0)) > self.store.generation()

    def _describe(self, description: Description) -> None:
        kept = Description(**{k: v for k, v in description.items() if k not in ("bytes", "crc", "library")})  # type: ignore[typeddict-item]
        if self.settings.index != kept:
            self._write_settings(replace(self.settings, index=kept))

    # -- reading ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> indexes.Snapshot:
        """What is searched now; within `store.reading()` it fits what the database shows there."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> indexes.Snapshot:
        generation, part = self.store.generation(), self.store.part()
        seen = self._seen
        if seen is None or (seen.generation, seen.part) != (generation, part):
            path = self.path / "index.faiss"
            described = indexes.describe(path)
            if getattr(self._own, "patient", False) and described is not None and self._newer(described):
                raise MissingVectors(f"{path} was replaced at that moment")  # look again: the database is newer too
            base, damaged = None, False
            kept = seen.base if seen is not None else None
            if kept is not None and described is not None and kept.description["crc"] == described["crc"]:
                base = kept  # only the tail has changed
            if base is None and path.is_file():
                base = indexes.read(path) if described is not None and self.belongs(described) else None
                damaged = base is None
            tail = self.store.pairs(base.description["last"] if base else 0)
            tail = tail[np.argsort(tail[:, 1], kind="stable")]
            if damaged and len(tail) > indexes.EXACT_UP_TO and not (seen and seen.damaged):
                print(
                    f"warning: {path} is damaged or of another library: searching without it, which is slower; "
                    f"vtr index compact {self.path} makes it anew",
                    file=sys.stderr,
                )
            seen = indexes.Snapshot(base, tail, self.store.vectors(), generation, part, damaged)
            self.store.check_place()  # the vectors and the index were opened by their names
            self._seen = seen
        return seen

    def read(self, function: Callable[[], T]) -> T:
        """Call within one view of the database; again where vectors or index were replaced at that moment."""
        try:
            for _ in range(5):
                try:
                    self._own.patient = True
                    with self.store.reading():
                        return function()
                except MissingVectors:
                    continue
                finally:
                    self._own.patient = False
            with self.store.reading():
                return function()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise VtrError(f"{self.path}/library.db cannot be read at the moment ({error})") from error
            raise VtrError(
                lambda say, why=str(error): (  # type: ignore[misc]
                    f"{self.path}/library.db cannot be read ({why}); {say.call('index verify')} says more, "
                    "restore it or build anew"
                )
            ) from error

    def _nothing(self) -> bool:
        return bool(self.read(self.store.empty))

    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return list(self.read(self.store.columns))

    def _allowed(self, where: Node | None, snapshot: indexes.Snapshot) -> np.ndarray | None:
        """Ids and rows of the segments a filter allows; within `read`."""
        if where is None:
            return None
        kept = snapshot.filters.get(where)
        if kept is None:
            values: list[object] = []
            kept = self.store.pairs(0, to_sql(where, values), values)
            with self._lock:
                while len(snapshot.filters) >= _FILTERS:
                    snapshot.filters.pop(next(iter(snapshot.filters)))
                snapshot.filters[where] = kept
        return kept

    def _nearest(self, wanted: Wanted, count: int, where: Node | None) -> tuple[list[Found], bool]:
        def read() -> tuple[list[Found], bool]:
            snapshot = self.snapshot()
            allowed = self._allowed(where, snapshot)
            total = len(snapshot) if allowed is None else len(allowed)
            if total == 0:
                return [], True
            scores, ids = snapshot.nearest(wanted, min(count, total), allowed, self.store.rows_of)
            return self._found(scores, ids), count >= total

        return self.read(read)

    def _moments(self, wanted: Wanted, paths: Sequence[str], where: Node | None) -> list[Found]:
        def read() -> list[Found]:
            snapshot = self.snapshot()
            allowed = self._allowed(where, snapshot)
            pairs = self.store.pairs_of(paths)
            if allowed is not None:
                pairs = pairs[np.isin(pairs[:, 0], allowed[:, 0])]
            scores = wanted.scores(snapshot.vectors[pairs[:, 1]])
            order = np.argsort(-scores, kind="stable")
            return self._found(scores[order], pairs[order, 0])

        return self.read(read)

    def _vector_of(self, segment: int) -> tuple[np.ndarray, Found]:
        def read() -> tuple[np.ndarray, Found]:
            row = self.store.details([segment]).get(segment)
            if row is None:
                raise VtrError(f"{self.path} has no segment {segment}; hits show theirs as #NUMBER")
            return np.array(self.store.vectors()[row.row]), _found(row, 1.0)

        return self.read(read)

    def _copies(self, contents: Collection[str]) -> dict[str, list[str]]:
        return self.read(lambda: self.store.copies(contents))

    def _found(self, scores: np.ndarray, ids: np.ndarray) -> list[Found]:
        details = self.store.details(ids.tolist())
        return [
            _found(row, score)
            for score, segment in zip(scores.tolist(), ids.tolist())
            if (row := details.get(segment)) is not None  # else it was removed since the index was made
        ]

    def info(self) -> Info:
        """Counts, settings, the files that could not be read with their reasons, and those that are cut off."""
        videos, seconds = self.read(self.store.totals)
        spoken, problems = self.store.spoken()
        counted = {
            "videos": videos,
            "segments": self.store.segments(),
            "seconds": seconds,
            "unreadable": [shown(reason) for reason in self.store.reasons()],
            "cut_off": [shown(line) for line in self.store.cut_off()],
            "spoken": spoken,
            "subtitles": [shown(line) for line in problems],
        }
        return cast(Info, {"path": str(self.path), **self.settings.as_json(), **counted})


def _found(row: SegmentRow, score: float) -> Found:
    return Found(score, score, False, row.id, row.path, row.start, row.end, row.duration, row.metadata, row.sha256)


def _no_folder(folder: Path) -> VtrError:
    return VtrError(lambda say: f"{folder}: no such folder; to forget what was in it: {say.call('index remove')}")


def _unmounted(folder: Path, count: int, library: Path) -> VtrError:
    return VtrError(
        lambda say: (
            f"{folder}: no media files, but {count} of them are in {library}; is a disk not mounted? "
            f"{say.name('may_be_empty')} forgets them"
        )
    )


def _below(path: str, folder: str | Path) -> bool:
    return path.startswith(os.path.abspath(folder).rstrip(os.sep) + os.sep)


def _within(paths: Iterable[str], folder: Path) -> bool:
    return any(_below(p, folder) for p in paths)
