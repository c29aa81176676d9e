"""Library: add videos, keep them up to date with their folders, search them in words.

A library is a folder: library.json (settings, model, what the index is), library.db (videos, segments: the truth),
embeddings.f32 (append-only), index.faiss (derived from them, can always be made again; none while exact search is fast).
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from vtr.errors import VtrError
from vtr.library import index as indexes
from vtr.library.files import full_name, shown
from vtr.library.found import Hit, Hits, hit_dict
from vtr.library.index_types import Description
from vtr.library.reading import StoredSearcher
from vtr.library.scan import below, no_folder, unmounted
from vtr.library.settings import ALL, Compacted, Info, LibrarySettings, Work, check_windows
from vtr.library.store import Store
from vtr.library.tokens import TokenCache

if TYPE_CHECKING:
    from vtr.data.uri import Access
    from vtr.library.ingest import AddReport, Ingest, Listing
    from vtr.library.pipeline import Pipeline
    from vtr.models.base import VideoTextEncoder

__all__ = ["Hit", "Hits", "Library", "hit_dict"]

T = TypeVar("T")
_OWN = ("library.db", "library.db-journal", "library.db-wal", "library.db-shm", "lock")


class Library(StoredSearcher):
    """A search library on disk; use `create` or `open`.

    Any number of processes may search while one writes. An object may be used from several threads at once.
    """

    def __init__(
        self, path: Path, settings: LibrarySettings, model: VideoTextEncoder | None, *, create: bool = False
    ) -> None:
        self.path = path
        self.settings = settings
        self._model = model
        self._model_path = settings.model
        self._cache = TokenCache(path / "tokens", settings.token_cache or 0)
        self._indexed_up_to = 0
        super().__init__(Store(path, settings.width, create=create))

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: VideoTextEncoder | str | Path,
        *,
        model_path: str | None = None,
        window: float = 8.0,
        stride: float = 4.0,
        segments: str | None = None,
        frame_vectors: bool | None = None,
        max_memory: int | None = None,
        token_cache: int | None = None,
    ) -> Library:
        """Make an empty library, or open the one that is there if model and windows agree.

        Args:
            path: Its folder: new, empty, or a library.
            model: The model (or its path) that embeds videos and queries.
            model_path: Where a model given as an object is stored, so that `open` finds it.
            window, stride: Seconds of a segment and between the starts of two.
            segments: "windows": one after the other. "shots": none crosses a cut. "auto": shots in films over two minutes.
                Default: what the library has, "auto" for a new one.
            frame_vectors: Also keep the vectors of single frames (int8), for finer boundaries. Default: as it is, not kept
                in a new one.
            max_memory: Bytes the index may take; default: half of the machine's. Written down.
            token_cache: Bytes of visual tokens kept on disk for re-ranking; default: none. Written down.

        Raises:
            VtrError: The folder holds something else, a library of another model or other windows, or is not writable.
        """
        from vtr.library.encode import frame_count, load_encoder, settings_of

        there = LibrarySettings.read(Path(path)) if (Path(path) / "library.json").is_file() else None
        segments = segments or (there.cutting if there else "auto")
        frame_vectors = bool(there and there.frame_vectors) if frame_vectors is None else frame_vectors
        check_windows(window, stride, segments)
        if isinstance(model, str | Path):
            # A hub id stays as it is; a folder is remembered by its full path.
            model_path = os.path.abspath(model) if Path(model).exists() else str(model)
            model = load_encoder(model)
        settings = settings_of(model, model_path, window, stride, segments)
        settings = replace(settings, frame_vectors=frame_count(model) if frame_vectors else 0)
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
            library._agree(settings)
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
        """Write down what the library may take; None: as it is.

        Args:
            max_memory: Bytes of the index.
            token_cache: Bytes of visual tokens kept on disk.
        """
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

    def _agree(self, wanted: LibrarySettings) -> None:
        own = self.settings
        if wanted.keyframes != own.keyframes:
            raise VtrError(
                f"{self.path} was made of {'key frames' if own.keyframes else 'all frames'}: leave --frames out, or "
                "choose another folder"
            )
        if (own.window, own.stride) != (wanted.window, wanted.stride):
            raise VtrError(
                f"{self.path} has windows of {own.window:g} s every {own.stride:g} s, "
                f"asked for {wanted.window:g} and {wanted.stride:g}: leave them out, or choose another folder"
            )
        if own.cutting != wanted.cutting:
            raise VtrError(
                lambda say: (
                    f"{self.path} was made with {say.given('segments', own.cutting)}, asked for {wanted.cutting}: name "
                    "that, or choose another folder"
                )
            )
        if own.frame_vectors != wanted.frame_vectors:
            raise VtrError(
                lambda say: (
                    f"{self.path} was made with{'' if own.frame_vectors else 'out'} {say.name('frame_vectors')}: do the "
                    "same, or choose another folder"
                )
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
        access: Access | None = None,
    ) -> AddReport:
        """Index files, folders and addresses; what is unchanged is skipped, what changed done again.

        Each video is committed by itself, in their order: a killed call loses the videos under way, and the next goes on.
        Files that cannot be read are remembered with their reason and returned. A file whose content is in the library
        under another name is not encoded again.

        Args:
            paths: Folders (searched for media files), files of any name, addresses (https://, s3:// …) of single videos.
            window, stride: Seconds; those of the library unless it is still empty.
            metadata: {path: {column: number or text}}; replaces what a video had.
            exclude: Patterns of files and folders to leave out, see `vtr.library.scan.find_media`. Written down.
            include_hidden: Also take what has a dot before its name. Written down.
            keyframes: A quick look: only key frames are decoded, and hits say so; that of the library unless it is
                still empty.
            work: Decoding processes, devices, precision.
            access: What may be fetched; by default nothing of this machine and private networks.
        """
        from vtr.data.uri import is_uri
        from vtr.library.addresses import add_addresses

        named = [paths] if isinstance(paths, str | Path) else list(paths)
        uris = [p for p in named if isinstance(p, str) and is_uri(p)]
        self._choose(exclude, include_hidden)
        ingest = self._ingest(metadata, work)
        files = ingest.find([p for p in named if p not in uris])
        with self.store.writing():
            self.set_windows(window, stride, keyframes)
            ingest.add(files)
            self.update_index()
            self.calibrate()
        return add_addresses(self, uris, access=access, report=ingest.report, work=work) if uris else ingest.report

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
                raise no_folder(folder)
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
                if known and not may_be_empty and not any(below(f, folder) for f in there):
                    raise unmounted(folder, len(known), self.path)
                gone += [f for f in known if f not in there and not any(below(f, u) for u in ingest.unlisted)]
            ingest.add(files, hashed=not quick, gone=gone)
            ingest.forget(gone)
            self.update_index()
            self.calibrate(model=False)
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
        self._agree(wanted)

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
            self.calibrate(model=False)
        return count

    def compact(self) -> Compacted:
        """Leave out the vectors of forgotten videos, make the index anew where it is needed; returns sizes.

        Readers go on meanwhile; a killed call leaves the library as it was before or after.
        """
        with self.store.writing():
            saved = self.store.compact()
            self.update_index(anew=True)
            self.calibrate()
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

    def _describe(self, description: Description) -> None:
        kept = Description(**{k: v for k, v in description.items() if k not in ("bytes", "crc", "library")})  # type: ignore[typeddict-item]
        if self.settings.index != kept:
            self._write_settings(replace(self.settings, index=kept))

    # -- what it holds ------------------------------------------------------------------------------------------------

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
