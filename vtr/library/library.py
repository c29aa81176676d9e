"""Library: add videos, keep them up to date with their folders, search them in words.

A library is a folder: library.json (settings, model, what the index is), library.db (videos, segments: the truth),
embeddings.f32 (append-only), index.faiss (derived from them, can always be made again; none while exact search is fast).
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library import index as indexes
from vtr.library.files import clean_metadata, find_media, leads_out, sha256, shown
from vtr.library.search import BATCH, Found, Hit, Searcher, hit_dict
from vtr.library.store import MissingVectors, Store, checksum
from vtr.library.tokens import TokenCache
from vtr.library.where import Node, to_sql

__all__ = ["AddReport", "Hit", "Library", "hit_dict"]

_FORMAT = 1
_FILTERS = 8  # filters whose segments are remembered until the library changes
_OWN = ("library.db", "library.db-wal", "library.db-shm", "lock", "library.json.tmp")


@dataclass(kw_only=True)
class AddReport:
    """What an `add` or `sync` did; `failed` holds one line for each file that could not be read.

    `moved` files were found again under another name, `known` ones have the content of a file that is in the library:
    neither is encoded again. `notes` say what was done otherwise than one might expect.
    """

    added: int = 0
    unchanged: int = 0
    segments: int = 0
    moved: int = 0
    known: int = 0
    removed: int = 0
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Library(Searcher):
    """A search library on disk; use `create` or `open`.

    Any number of processes may search while one writes. An object is for one thread at a time.
    """

    def __init__(self, path: Path, settings: dict[str, Any], model: Any | None, *, create: bool = False) -> None:
        self.path, self.settings = path, settings
        self._model = model
        self._model_path = settings["model"]
        self.store = Store(path, settings["width"], create=create)
        self._cache = TokenCache(path / "tokens", int(settings.get("token_cache") or 0))
        self._seen: indexes.Snapshot | None = None
        self._filters: dict[Node, np.ndarray] = {}
        self._indexed_up_to = 0
        self._patient = False  # an index newer than the database seen is a matter of the moment

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: Any,
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
        _check_windows(window, stride)
        if isinstance(model, str | Path):
            import vtr.models.load

            # A hub id stays as it is; a folder is remembered by its full path.
            model_path = os.path.abspath(model) if Path(model).exists() else str(model)
            name, model = model, vtr.models.load.load(model)
            vtr.models.load.needs_text(model, name)
        settings = {
            "model": model_path,
            "fingerprint": model.fingerprint(),
            "width": int(model.config.embed_dim),
            "window": window,
            "stride": stride,
            "frames": int(model.config.video.num_frames),
        }
        return cls.create_from(path, settings, model, max_memory=max_memory, token_cache=token_cache)

    @classmethod
    def create_from(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        model: Any | None = None,
        *,
        max_memory: int | None = None,
        token_cache: int | None = None,
    ) -> Library:
        """As `create`, with the model described: model (path), fingerprint, width, window, stride, frames."""
        path = Path(path)
        if (path / "library.json").is_file():
            library = cls.open(path, model)
            if library.settings["fingerprint"] != settings["fingerprint"]:
                raise VtrError(
                    f"{path} was made with another model ({library.settings['fingerprint'][:12]}, asked for "
                    f"{settings['fingerprint'][:12]}): use that one, or build another library"
                )
            library._agree(settings["window"], settings["stride"])
        else:
            values = {"format": _FORMAT, "id": uuid.uuid4().hex, **settings, "index": None}
            try:
                path.mkdir(parents=True, exist_ok=True)
                if any(p.name not in _OWN for p in path.iterdir()):
                    raise VtrError(f"{path} is not empty and not a library; choose another folder")
                library = cls(path, values, model, create=True)
                with library.store.writing():
                    library._write_settings()
            except OSError as error:
                raise VtrError(f"{path}: the library cannot be made ({error.strerror})") from error
        library.set_limits(max_memory=max_memory, token_cache=token_cache)
        return library

    def set_limits(self, *, max_memory: int | None = None, token_cache: int | None = None) -> None:
        """Write down how many bytes the index may take and how many visual tokens may take on disk; None: as it is."""
        given = {"max_memory": max_memory, "token_cache": token_cache}
        changed = {k: v for k, v in given.items() if v is not None and v != self.settings.get(k)}
        if changed:
            with self.store.writing():
                self.settings.update(changed)
                self._write_settings()
            self._cache = TokenCache(self.path / "tokens", int(self.settings.get("token_cache") or 0))

    @classmethod
    def open(cls, path: str | Path, model: Any | None = None) -> Library:
        """Open a library; without `model` (an object or a path) its own is loaded when first needed.

        Raises:
            VtrError: It is no library, or `model` is not the one it was made with.
        """
        path = Path(path)
        try:
            settings = json.loads((path / "library.json").read_text())
            if not isinstance(settings, dict):
                raise ValueError("not a table")
            lacking = {"format", "model", "fingerprint", "width", "window", "stride", "frames"} - settings.keys()
            if lacking:
                raise ValueError(f"lacks {', '.join(sorted(lacking))}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VtrError(f"{path}: not a library (no library.json); make one with: vtr index build") from error
        except (OSError, ValueError) as error:
            raise VtrError(f"{path}/library.json cannot be read ({error}); restore it or build anew") from error
        if settings["format"] != _FORMAT:
            raise VtrError(f"{path} has format {settings['format']}, this vtr reads {_FORMAT}: use the vtr it is from")
        library = cls(path, settings, None)
        if isinstance(model, str | Path):
            library._model_path = str(model)
        elif model is not None:
            library._accept(model)
        return library

    def close(self) -> None:
        """Let go of the database; the library cannot be used afterwards."""
        self.store.db.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _agree(self, window: float, stride: float) -> None:
        if (self.settings["window"], self.settings["stride"]) != (window, stride):
            raise VtrError(
                f"{self.path} has windows of {self.settings['window']:g} s every {self.settings['stride']:g} s, "
                f"asked for {window:g} and {stride:g}: leave them out, or choose another folder"
            )

    def _write_settings(self) -> None:
        partial = self.path / "library.json.tmp"
        try:
            with partial.open("w") as file:
                file.write(json.dumps(self.settings, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path / "library.json")
        except OSError as error:
            raise VtrError(f"{self.path}/library.json cannot be written ({error.strerror})") from error

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        window: float | None = None,
        stride: float | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AddReport:
        """Index files and folders; unchanged files are skipped, changed ones done again.

        Each video is committed by itself: a killed call loses at most the video it was at, and the next call goes on.
        Files that cannot be read are remembered with their reason and returned. A file whose content is in the library
        under another name is not encoded again.

        Args:
            paths: Folders (searched for media files), and files of any name.
            window, stride: Seconds; those of the library unless it is still empty.
            metadata: {path: {column: number or text}}; replaces what a video had.
        """
        report, unlisted, links = AddReport(), list[str](), list[str]()
        files = find_media([paths] if isinstance(paths, str | Path) else paths, unlisted=unlisted, links=links)
        report.notes = _notes(files, links)
        with self.store.writing():
            self._set_windows(window, stride)
            self._add_all(files, report, metadata or {})
            self._update_index()
        report.failed += [shown(f"{folder}: the folder cannot be read") for folder in unlisted]
        return report

    def sync(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        quick: bool = False,
        may_be_empty: bool = False,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AddReport:
        """Bring the library up to date with folders: new files are added, changed ones done again, vanished ones forgotten.

        Whether a file has changed is decided by its content's hash; a renamed one keeps its vectors. Nothing is
        forgotten that lies in a folder which cannot be read, and files elsewhere are not looked at.

        Args:
            paths: Folders.
            quick: Trust size and time stamp instead of reading every file.
            may_be_empty: A folder without any media file is meant: all its videos are forgotten.
            metadata: As in `add`.

        Raises:
            VtrError: A folder does not exist (an unmounted disk is no reason to forget its videos), or is empty.
        """
        folders = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        for folder in folders:
            if not folder.is_dir():
                raise VtrError(f"{folder}: no such folder; to forget what was in it: vtr index remove")
        report, unlisted, links = AddReport(), list[str](), list[str]()
        files = find_media(folders, may_be_empty=True, unlisted=unlisted, links=links)
        report.notes = _notes(files, links)
        there = {os.path.abspath(f) for f in files if f.exists()}
        with self.store.writing():
            self._set_windows(None, None)
            gone: list[str] = []
            for folder in folders:
                known = self._inside(folder)
                if not may_be_empty and known and not any(f in there for f in known) and not _within(there, folder):
                    raise VtrError(
                        f"{folder}: no media files, but {len(known)} of them are in {self.path}; is a disk not mounted? "
                        "--may-be-empty forgets them"
                    )
                gone += [f for f in known if f not in there and not any(_below(f, u) for u in unlisted)]
            self._add_all([f for f in files if f.exists()], report, metadata or {}, hashed=not quick, gone=set(gone))
            with self.store.change():
                for name in gone:
                    count = self.store.db.execute("DELETE FROM videos WHERE path = ?", (name,)).rowcount
                    report.removed += count
            self._update_index()
        report.failed += [shown(f"{folder}: the folder cannot be read") for folder in unlisted]
        return report

    def _inside(self, folder: Path) -> list[str]:
        inside = os.path.abspath(folder).rstrip(os.sep) + os.sep
        sql = "SELECT path FROM videos WHERE substr(path, 1, ?) = ? AND origin IS NULL ORDER BY path"
        return [r[0] for r in self.store.db.execute(sql, (len(inside), inside))]

    def _add_all(
        self,
        files: Sequence[Path],
        report: AddReport,
        metadata: Mapping[str, Mapping[str, Any]],
        *,
        hashed: bool = False,
        gone: Iterable[str] = (),
    ) -> None:
        from tqdm import tqdm

        often = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file gets few lines
        wanted = {os.path.abspath(n): clean_metadata(v, "metadata") for n, v in metadata.items()}
        vanished = set(gone)
        for file in tqdm(files, desc="index", unit="file", file=sys.stderr, mininterval=often):
            self._add_one(file, report, wanted.get(os.path.abspath(file)), hashed, vanished)
            if self._tail() > max(indexes.TAIL_UP_TO, self._indexed_up_to // 4) and self._tail() > indexes.EXACT_UP_TO:
                self._update_index()  # readers of a library that grows for days

    def _tail(self) -> int:
        last = self.store.db.execute("SELECT COALESCE(MAX(id), 0) FROM segments").fetchone()[0]
        return int(last) - self._indexed_up_to

    def _set_windows(self, window: float | None, stride: float | None) -> None:
        window = self.settings["window"] if window is None else window
        stride = self.settings["stride"] if stride is None else stride
        _check_windows(window, stride)
        if self.store.segments() == 0 and (self.settings["window"], self.settings["stride"]) != (window, stride):
            self.settings.update(window=window, stride=stride)
            self._write_settings()
        self._agree(window, stride)

    def _add_one(
        self, file: Path, report: AddReport, metadata: dict[str, Any] | None, hashed: bool, vanished: set[str]
    ) -> None:
        name = os.path.abspath(file)
        try:
            name.encode()
        except UnicodeEncodeError:
            report.failed.append(f"{shown(name)}: the file's name is not UTF-8; rename it")
            return
        known = self.store.db.execute(
            "SELECT bytes, modified, sha256, reason, id, meta FROM videos WHERE path = ?", (name,)
        ).fetchone()
        # A file that was too slow may only have met a busy machine, and one that could not be opened may be mended.
        again = known is not None and known[3] is not None and (known[2] is None or "time limit" in known[3])
        try:
            facts = file.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(0, "not a regular file")
            if known and not again and not hashed and known[:2] == (facts.st_size, facts.st_mtime):
                return self._unchanged(known, metadata, report)
            digest = sha256(file)
        except OSError as error:
            if known and known[3] is None:  # what was indexed of it stays: it may be readable again tomorrow
                report.failed.append(shown(f"{name}: {error.strerror}"))
                return
            return self._record(name, known, (None, None, None), [], [], f"{name}: {error.strerror}", metadata, report)
        seen = (facts.st_size, facts.st_mtime, digest)
        if known and not again and known[2] == digest:
            if known[:2] != seen[:2]:
                with self.store.db as db:
                    db.execute("UPDATE videos SET bytes = ?, modified = ? WHERE id = ?", (*seen[:2], known[4]))
            return self._unchanged(known, metadata, report)
        if self._taken_over(name, known, seen, metadata, vanished, report):
            return
        reason: str | None = None
        _ = self.model  # a wrong or missing model is no fault of the file
        spans: list[tuple[float, float]] = []
        vectors: list[np.ndarray] = []
        try:
            spans, vectors = self._embed(Path(name))
            after = file.stat()
            if (after.st_size, after.st_mtime) != seen[:2]:
                report.failed.append(shown(f"{name}: changed while it was read; call again"))
                return
        except VtrError as error:
            reason = str(error)
        except OSError as error:
            reason = f"{name}: {error.strerror}"
        self._record(name, known, seen, spans, vectors, reason, metadata, report)

    def _taken_over(
        self,
        name: str,
        known: tuple[Any, ...] | None,
        seen: tuple[Any, ...],
        metadata: dict[str, Any] | None,
        vanished: set[str],
        report: AddReport,
    ) -> bool:
        """Whether the same content is in the library under another name: then its vectors serve again."""
        db = self.store.db
        others = db.execute(
            "SELECT id, path, meta FROM videos WHERE sha256 = ? AND reason IS NULL AND path != ? AND origin IS NULL",
            (seen[2], name),
        ).fetchall()
        moved = next((o for o in others if o[1] in vanished), None)
        if moved is not None:
            with self.store.change():
                if known:
                    db.execute("DELETE FROM videos WHERE id = ?", (known[4],))
                db.execute(
                    "UPDATE videos SET path = ?, bytes = ?, modified = ? WHERE id = ?", (name, *seen[:2], moved[0])
                )
                if metadata is not None:
                    self.store.set_meta(moved[0], metadata)
            vanished.discard(moved[1])
            report.moved += 1
            return True
        if not others:
            return False
        rows = db.execute(
            "SELECT start, end, row FROM segments WHERE video = ? ORDER BY row", (others[0][0],)
        ).fetchall()
        vectors = self.store.vectors()[[r[2] for r in rows]]
        self._record(name, known, seen, [r[:2] for r in rows], list(vectors), None, metadata, report)
        report.known += 1
        return True

    def _record(
        self,
        name: str,
        known: tuple[Any, ...] | None,
        seen: tuple[Any, ...],
        spans: list[tuple[float, float]],
        vectors: list[np.ndarray],
        reason: str | None,
        metadata: dict[str, Any] | None,
        report: AddReport,
    ) -> None:
        db = self.store.db
        if metadata is None and known and known[5]:
            metadata = json.loads(known[5])
        with self.store.change():
            if known:
                db.execute("DELETE FROM videos WHERE id = ?", (known[4],))
            stacked = np.stack(vectors) if vectors else np.zeros((0, self.settings["width"]), np.float32)
            first = self.store.append(stacked) if vectors else 0
            cursor = db.execute(
                "INSERT INTO videos (path, bytes, modified, sha256, duration, reason, crc) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, *seen, max((e for _, e in spans), default=0.0), reason, checksum(stacked)),
            )
            assert cursor.lastrowid is not None
            db.executemany(
                "INSERT INTO segments (video, start, end, row) VALUES (?, ?, ?, ?)",
                [(cursor.lastrowid, s, e, first + i) for i, (s, e) in enumerate(spans)],
            )
            if metadata:
                self.store.set_meta(cursor.lastrowid, metadata)
        if reason is None:
            report.added += 1
            report.segments += len(spans)
        else:
            report.failed.append(shown(reason))

    def _unchanged(self, known: tuple[Any, ...], metadata: dict[str, Any] | None, report: AddReport) -> None:
        if metadata is not None and metadata != json.loads(known[5] or "{}"):
            with self.store.change():
                self.store.set_meta(known[4], metadata)
        if known[3]:
            report.failed.append(shown(known[3]))
        else:
            report.unchanged += 1

    def _embed(self, file: Path) -> tuple[list[tuple[float, float]], list[np.ndarray]]:
        from vtr.data.decode import read_windows

        model = self.model.eval()
        spans: list[tuple[float, float]] = []
        vectors: list[np.ndarray] = []
        batch: list[Any] = []
        for window in read_windows(
            file,
            window=self.settings["window"],
            stride=self.settings["stride"],
            frames=self.settings["frames"],
            size=model.config.video.image_size,
            antialias=model.config.antialias,
            timeout=30.0,
        ):
            spans.append((window.start, window.end))
            batch.append(window.frames)
            if len(batch) == BATCH:
                vectors.extend(self.encoded(batch))
                batch = []
        if batch:
            vectors.extend(self.encoded(batch))
        if not spans:
            raise VtrError(f"{file}: no frames")
        return spans, vectors

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Forget videos, or all those of a folder; returns how many. The files themselves are not touched.

        Raises:
            VtrError: One is not in the library; then nothing is removed.
        """
        count = 0
        with self.store.writing():
            with self.store.change():
                for path in paths:
                    full = os.path.abspath(path)
                    inside = full.rstrip(os.sep) + os.sep
                    gone = self.store.db.execute(
                        "DELETE FROM videos WHERE path = ? OR substr(path, 1, ?) = ?", (full, len(inside), inside)
                    ).rowcount
                    if gone == 0:
                        raise VtrError(f"{path} is not in {self.path}; nothing was removed")
                    count += gone
            self._update_index()
        return count

    def compact(self) -> dict[str, Any]:
        """Leave out the vectors of forgotten videos, make the index anew where it is needed; returns sizes.

        Readers go on meanwhile; a killed call leaves the library as it was before or after.
        """
        with self.store.writing():
            saved = self.store.compact()
            self._update_index(anew=True)
        return {"segments": self.store.segments(), "saved": saved, "index": self.settings["index"]}

    def _update_index(self, *, anew: bool = False) -> None:
        """Bring index.faiss up to date where its tail has grown long; a library that is small enough has none.

        Args:
            anew: Also where it would do for longer: no tail, no forgotten segments, recall measured again.
        """
        path = self.path / "index.faiss"
        count = self.store.segments()
        described = indexes.describe(path)
        usable = described is not None and self._belongs(described)
        budget = self.settings.get("max_memory") or indexes.default_memory()
        wanted = indexes.plan(count, self.settings["width"], budget)
        if wanted["type"] == "flat":
            path.unlink(missing_ok=True)
            self._indexed_up_to = 0
            return self._describe({"type": "flat", "recall_at_10": 1.0, "count": count})
        if usable and described is not None:
            self._indexed_up_to = int(described["last"])
            inside = self.store.db.execute(
                "SELECT COUNT(*) FROM segments WHERE id <= ?", (described["last"],)
            ).fetchone()
            tail, dead = count - inside[0], described["count"] - inside[0]
            same = (described["type"], described.get("code_bytes")) == (wanted["type"], wanted.get("code_bytes"))
            fits = same and count / 4 <= described["trained_on"] <= 4 * count
            late = tail > indexes.TAIL_UP_TO or dead > described["count"] / 5 or (anew and (tail or dead))
            if fits and not late and (not anew or indexes.intact(path, described)):
                return self._describe({k: v for k, v in described.items() if k not in ("bytes", "crc", "library")})
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
        index.description.update(generation=self.store.generation(), library=self.settings.get("id"))
        indexes.write(index, path)
        self._indexed_up_to = index.description["last"]
        self._describe({k: v for k, v in index.description.items() if k not in ("bytes", "crc", "library")})
        if index.description["recall_at_10"] < indexes.RECALL:
            print(
                f"warning: recall@10 of the index is {index.description['recall_at_10']:g}, below {indexes.RECALL:g}: "
                "give it more with --max-memory",
                file=sys.stderr,
            )

    def _belongs(self, described: Mapping[str, Any]) -> bool:
        """Whether an index was made of this library as it is now or was before: not after a database was restored."""
        return described.get("library") == self.settings.get("id") and not self._newer(described)

    def _newer(self, described: Mapping[str, Any]) -> bool:
        return int(described.get("generation", 0)) > self.store.generation()

    def _describe(self, description: dict[str, Any]) -> None:
        if self.settings.get("index") != description:
            self.settings["index"] = description
            self._write_settings()

    # -- reading ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> indexes.Snapshot:
        """What is searched now; within `store.reading()` it fits what the database shows there."""
        generation, part = self.store.generation(), self.store.part()
        seen = self._seen
        if seen is None or (seen.generation, seen.part) != (generation, part):
            path = self.path / "index.faiss"
            described = indexes.describe(path)
            if self._patient and described is not None and self._newer(described):
                raise MissingVectors(f"{path} was replaced at that moment")  # look again: the database is newer too
            base, damaged = None, False
            kept = seen.base if seen is not None else None
            if kept is not None and described is not None and kept.description["crc"] == described["crc"]:
                base = kept  # only the tail has changed
            if base is None and path.is_file():
                base = indexes.read(path) if described is not None and self._belongs(described) else None
                damaged = base is None
            tail = self.store.pairs(base.description["last"] if base else 0)
            tail = tail[np.argsort(tail[:, 1], kind="stable")]
            if damaged and len(tail) > indexes.EXACT_UP_TO and not (seen and seen.damaged):
                print(
                    f"warning: {path} is damaged or of another library: searching without it, which is slower; "
                    f"vtr index compact {self.path} makes it anew",
                    file=sys.stderr,
                )
            self._seen = indexes.Snapshot(base, tail, self.store.vectors(), generation, part, damaged)
            self._filters.clear()
        assert self._seen is not None
        return self._seen

    def _read(self, function: Callable[[], Any]) -> Any:
        """Call within one view of the database; again where vectors or index were replaced at that moment."""
        try:
            for _ in range(5):
                try:
                    self._patient = True
                    with self.store.reading():
                        return function()
                except MissingVectors:
                    continue
                finally:
                    self._patient = False
            with self.store.reading():
                return function()
        except sqlite3.Error as error:
            raise VtrError(
                f"{self.path}/library.db cannot be read ({error}); vtr index verify says more, restore it or build anew"
            ) from error

    def _nothing(self) -> bool:
        return bool(self._read(self.store.empty))

    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return list(self._read(self.store.columns))

    def _allowed(self, where: Node | None) -> np.ndarray | None:
        """Ids and rows of the segments a filter allows; within `_read`, after `snapshot`."""
        if where is None:
            return None
        if where not in self._filters:
            values: list[object] = []
            condition = to_sql(where, values)
            while len(self._filters) >= _FILTERS:
                self._filters.pop(next(iter(self._filters)))
            self._filters[where] = self.store.pairs(0, condition, values)
        return self._filters[where]

    def _nearest(self, vector: np.ndarray, count: int, where: Node | None) -> tuple[list[Found], bool]:
        def read() -> tuple[list[Found], bool]:
            snapshot = self.snapshot()
            allowed = self._allowed(where)
            total = len(snapshot) if allowed is None else len(allowed)
            if total == 0:
                return [], True
            scores, ids = snapshot.nearest(vector, min(count, total), allowed, self.store.rows_of)
            return self._found(scores, ids), count >= total

        return self._read(read)

    def _moments(self, vector: np.ndarray, paths: Sequence[str], where: Node | None) -> list[Found]:
        def read() -> list[Found]:
            snapshot = self.snapshot()
            allowed = self._allowed(where)
            marks = ",".join("?" * len(paths))
            pairs = self.store.pairs(0, f"videos.path IN ({marks})", paths)
            if allowed is not None:
                pairs = pairs[np.isin(pairs[:, 0], allowed[:, 0])]
            scores = snapshot.vectors[pairs[:, 1]] @ vector[0]
            order = np.argsort(-scores, kind="stable")
            return self._found(scores[order], pairs[order, 0])

        return self._read(read)

    def _vector_of(self, segment: int) -> tuple[np.ndarray, str]:
        def read() -> tuple[np.ndarray, str]:
            found = self.store.details([segment])
            if segment not in found:
                raise VtrError(f"{self.path} has no segment {segment}; hits show theirs as #NUMBER")
            return np.array(self.store.vectors()[self.store.rows_of(np.array([segment]))[0]]), found[segment][1]

        return self._read(read)

    def _found(self, scores: np.ndarray, ids: np.ndarray) -> list[Found]:
        details = self.store.details(ids.tolist())
        out = []
        for score, segment in zip(scores.tolist(), ids.tolist()):
            if segment in details:  # else it was removed since the index was made
                _, path, start, end, duration, meta = details[segment]
                metadata = json.loads(meta) if meta else {}
                out.append(Found(score, score, False, segment, path, start, end, duration, metadata))
        return out

    def info(self) -> dict[str, Any]:
        """Counts, settings, and the files that could not be read with their reasons."""
        one = self.store.db.execute
        return {
            "path": str(self.path),
            **self.settings,
            "videos": one("SELECT COUNT(*) FROM videos WHERE reason IS NULL").fetchone()[0],
            "segments": self.store.segments(),
            "seconds": one("SELECT COALESCE(SUM(duration), 0) FROM videos").fetchone()[0],
            "unreadable": [
                shown(r[0]) for r in one("SELECT reason FROM videos WHERE reason IS NOT NULL ORDER BY path")
            ],
        }


def _check_windows(window: float, stride: float) -> None:
    if not (0 < window < float("inf") and 0 < stride < float("inf")):
        raise UsageError(f"--window {window:g} --stride {stride:g}: expected positive seconds")


def _notes(files: Sequence[Path], links: Sequence[str]) -> list[str]:
    notes = [shown(f"{link}: a link to a folder is not followed; name the folder itself") for link in links]
    out = [f for f in files if leads_out(f)]
    if out:
        notes.append(
            shown(f"links that lead out of their folders: {len(out)} ({out[0]}); indexed, ")
            + "but vtr serve shows them only with --follow-links"
        )
    return notes


def _below(path: str, folder: str | Path) -> bool:
    return path.startswith(os.path.abspath(folder).rstrip(os.sep) + os.sep)


def _within(paths: Iterable[str], folder: Path) -> bool:
    return any(_below(p, folder) for p in paths)
