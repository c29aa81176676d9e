"""Library: add videos, search them in words.

A library is a folder: library.json (settings, model, what the index is), library.db (videos, segments: the truth),
embeddings.f32 (append-only), index.faiss (derived from them, can always be made again).
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library import index as indexes
from vtr.library.files import find_media, sha256, shown
from vtr.library.store import Store
from vtr.library.where import parse_where

_BATCH = 16  # windows that are encoded together
_FORMAT = 1
_OWN = ("library.db", "library.db-wal", "library.db-shm", "lock", "library.json.tmp")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer: a moment of a video.

    Attributes:
        score: What hits are ordered by: the cosine similarity, or the combined score where it was re-ranked.
        path: The file.
        start, end: Seconds; equal for an image.
        duration: Seconds of the whole video.
        segment: The moment's id in the library.
        rank: 1 for the best.
        similarity: The cosine similarity of text and moment.
        reranked: Whether the cross-modal decoder has looked at it.
    """

    score: float
    path: str
    start: float
    end: float
    duration: float
    segment: int
    rank: int = 0
    similarity: float = 0.0
    reranked: bool = False


@dataclass(kw_only=True)
class AddReport:
    """What an `add` did; `failed` holds one line for each file that could not be read."""

    added: int = 0
    unchanged: int = 0
    segments: int = 0
    failed: list[str] = field(default_factory=list)


class Library:
    """A search library on disk; use `create` or `open`."""

    def __init__(self, path: Path, settings: dict[str, Any], model: Any | None, *, create: bool = False) -> None:
        self.path, self.settings = path, settings
        self._model = model
        self._model_path: str | None = settings["model"]
        self.store = Store(path, settings["width"], create=create)
        self._index: Any = None
        self._index_generation = -1

    @classmethod
    def create(
        cls, path: str | Path, model: Any, *, model_path: str | None = None, window: float = 8.0, stride: float = 4.0
    ) -> Library:
        """Make an empty library, or open the one that is there if model and windows agree.

        Args:
            path: Its folder: new, empty, or a library.
            model: The model (or its path) that embeds videos and queries.
            model_path: Where a model given as an object is stored, so that `open` finds it.
            window, stride: Seconds of a segment and between the starts of two.

        Raises:
            VtrError: The folder holds something else, a library of another model or other windows, or is not writable.
        """
        _check_windows(window, stride)
        if isinstance(model, str | Path):
            import vtr.model

            # A hub id stays as it is; a folder is remembered by its full path.
            model_path = os.path.abspath(model) if Path(model).exists() else str(model)
            name, model = model, vtr.model.load(model)
            vtr.model.needs_text(model, name)
        path = Path(path)
        if (path / "library.json").is_file():
            library = cls.open(path, model)
            library._agree(window, stride)
            return library
        settings = {
            "format": _FORMAT,
            "model": model_path,
            "fingerprint": model.fingerprint(),
            "width": int(model.config.embed_dim),
            "window": window,
            "stride": stride,
            "frames": int(model.config.video.num_frames),
            "index": None,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(p.name not in _OWN for p in path.iterdir()):
                raise VtrError(f"{path} is not empty and not a library; choose another folder")
            library = cls(path, settings, model, create=True)
            with library.store.writing():
                library._write_settings()
        except OSError as error:
            raise VtrError(f"{path}: the library cannot be made ({error.strerror})") from error
        return library

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

    def _accept(self, model: Any) -> None:
        own, given = self.settings["fingerprint"], model.fingerprint()
        if own != given:
            raise VtrError(
                f"{self.path} was made with another model ({own[:12]}, this one is {given[:12]}): use that one, "
                "or build another library"
            )
        self._model = model

    def _agree(self, window: float, stride: float) -> None:
        if (self.settings["window"], self.settings["stride"]) != (window, stride):
            raise VtrError(
                f"{self.path} has windows of {self.settings['window']:g} s every {self.settings['stride']:g} s, "
                f"asked for {window:g} and {stride:g}: leave them out, or choose another folder"
            )

    @property
    def model(self) -> Any:
        """The model, loaded on first use."""
        if self._model is None:
            if not self._model_path:
                raise VtrError(f"{self.path} does not say where its model is: name it with --model")
            import vtr.model

            self._accept(vtr.model.load(self._model_path))
        return self._model

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
        self, paths: str | Path | Iterable[str | Path], *, window: float | None = None, stride: float | None = None
    ) -> AddReport:
        """Index files and folders; unchanged files are skipped, changed ones done again.

        Each video is committed by itself: a killed call loses at most the video it was at, and the next call goes on.
        Files that cannot be read are remembered with their reason and returned.

        Args:
            paths: Folders (searched for media files), and files of any name.
            window, stride: Seconds; those of the library unless it is still empty.
        """
        from tqdm import tqdm

        files = find_media([paths] if isinstance(paths, str | Path) else paths)
        report = AddReport()
        with self.store.writing():
            self._set_windows(window, stride)
            often = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file gets few lines
            for file in tqdm(files, desc="index", unit="file", file=sys.stderr, mininterval=often):
                self._add_one(file, report)
            self._update_index()
        return report

    def _set_windows(self, window: float | None, stride: float | None) -> None:
        window = self.settings["window"] if window is None else window
        stride = self.settings["stride"] if stride is None else stride
        _check_windows(window, stride)
        if self.store.segments() == 0 and (self.settings["window"], self.settings["stride"]) != (window, stride):
            self.settings.update(window=window, stride=stride)
            self._write_settings()
        self._agree(window, stride)

    def _add_one(self, file: Path, report: AddReport) -> None:
        name = os.path.abspath(file)
        try:
            name.encode()
        except UnicodeEncodeError:
            report.failed.append(f"{shown(name)}: the file's name is not UTF-8; rename it")
            return
        known = self.store.db.execute(
            "SELECT bytes, modified, sha256, reason, id FROM videos WHERE path = ?", (name,)
        ).fetchone()
        # A file that was too slow may only have met a busy machine, and one that could not be opened may be mended.
        again = known is not None and known[3] is not None and (known[2] is None or "time limit" in known[3])
        try:
            facts = file.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(0, "not a regular file")
            if known and not again and known[:2] == (facts.st_size, facts.st_mtime):
                return self._unchanged(known[3], report)
            digest = sha256(file)
        except OSError as error:
            return self._record(name, known, (None, None, None), [], [], f"{name}: {error.strerror}", report)
        seen = (facts.st_size, facts.st_mtime, digest)
        if known and not again and known[2] == digest:
            with self.store.db as db:
                db.execute("UPDATE videos SET bytes = ?, modified = ? WHERE id = ?", (*seen[:2], known[4]))
            return self._unchanged(known[3], report)
        reason: str | None = None
        spans: list[tuple[float, float]] = []
        vectors: list[np.ndarray] = []
        try:
            spans, vectors = self._embed(Path(name))
        except VtrError as error:
            reason = str(error)
        self._record(name, known, seen, spans, vectors, reason, report)

    def _record(
        self,
        name: str,
        known: tuple[Any, ...] | None,
        seen: tuple[Any, ...],
        spans: list[tuple[float, float]],
        vectors: list[np.ndarray],
        reason: str | None,
        report: AddReport,
    ) -> None:
        db = self.store.db
        with self.store.change():
            if known:
                db.execute("DELETE FROM videos WHERE id = ?", (known[4],))
            first = self.store.append(np.stack(vectors)) if vectors else 0
            cursor = db.execute(
                "INSERT INTO videos (path, bytes, modified, sha256, duration, reason) VALUES (?, ?, ?, ?, ?, ?)",
                (name, *seen, max((e for _, e in spans), default=0.0), reason),
            )
            db.executemany(
                "INSERT INTO segments (video, start, end, row) VALUES (?, ?, ?, ?)",
                [(cursor.lastrowid, s, e, first + i) for i, (s, e) in enumerate(spans)],
            )
        if reason is None:
            report.added += 1
            report.segments += len(spans)
        else:
            report.failed.append(shown(reason))

    @staticmethod
    def _unchanged(reason: str | None, report: AddReport) -> None:
        if reason:
            report.failed.append(shown(reason))
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
            if len(batch) == _BATCH:
                vectors.extend(self._encoded(batch))
                batch = []
        if batch:
            vectors.extend(self._encoded(batch))
        if not spans:
            raise VtrError(f"{file}: no frames")
        return spans, vectors

    def _encoded(self, batch: list[Any]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out = self.model.encode_video(torch.stack(batch)).embedding.float().cpu().numpy()
        if not np.isfinite(out).all():
            raise VtrError(f"the model {self._model_path} gives embeddings that are not finite: is it a trained one?")
        return out

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

    def _update_index(self) -> None:
        """Bring index.faiss up to date; the generation it belongs to is written after it, so it never claims more."""
        generation = self.store.generation()
        described = self.settings.get("index") or {}
        if described.get("generation") == generation and (self.path / "index.faiss").is_file():
            return
        index, description = self._built_index(indexes.EXACT_UP_TO)
        indexes.write(index, self.path / "index.faiss")
        self.settings["index"] = {"generation": generation, **description}
        self._write_settings()
        self._index, self._index_generation = index, generation

    def _built_index(self, exact_up_to: int) -> tuple[Any, dict[str, Any]]:
        pairs = np.array(
            self.store.db.execute("SELECT id, row FROM segments ORDER BY row").fetchall(), dtype=np.int64
        ).reshape(-1, 2)
        return indexes.build(self.store.vectors()[pairs[:, 1]], pairs[:, 0], exact_up_to=exact_up_to)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _ready_index(self) -> Any:
        """index.faiss, or an exact one built in memory where it is missing, damaged or older than the database."""
        generation = self.store.generation()
        if self._index is None or self._index_generation != generation:
            try:
                described = json.loads((self.path / "library.json").read_text()).get("index") or {}
            except (OSError, ValueError):
                described = {}
            self._index = None
            if described.get("generation") == generation:
                self._index = indexes.read(self.path / "index.faiss")
            if self._index is None or self._index.ntotal != self.store.segments():
                self._index = self._built_index(sys.maxsize)[0]
            self._index_generation = generation
        return self._index

    def search(
        self, text: str, k: int = 10, *, rerank: int = 0, where: str | None = None, all_moments: bool = False
    ) -> list[Hit]:
        """The best moments for a text, best first; one moment a video unless `all_moments`.

        Args:
            text: The query.
            k: Number of hits.
            rerank: Best segments that the cross-modal decoder looks at again (0 = none): slower, better. They come
                first, by the combined score; the others follow by similarity.
            where: A filter, applied before the search; see `vtr.library.where`.
            all_moments: Several moments of one video.

        Raises:
            UsageError: An empty query, a number out of range, a filter that does not parse.
        """
        import torch

        from vtr.data.text import clean_caption

        words = clean_caption(text)
        if not words.strip():
            raise UsageError(f"an empty query ({text!r} has no words): ask for something")
        if k < 1:
            raise UsageError(f"-k {k}: expected a positive number")
        if rerank < 0:
            raise UsageError(f"--rerank {rerank}: expected 0 or a positive number")
        if rerank and not hasattr(self.model, "match"):
            raise UsageError(f"--rerank {rerank}: {self._model_path} has no cross-modal decoder; leave --rerank out")
        condition = None if where is None else parse_where(where)
        try:
            allowed = None if condition is None else self._allowed(*condition)
            if self.store.segments() == 0 or (allowed is not None and len(allowed) == 0):
                return []
            with torch.inference_mode():
                query = self.model.eval().encode_text([words])
            vector = query.embedding.float().cpu().numpy()
            found = self._found(vector, k, rerank, allowed, all_moments)
        except sqlite3.Error as error:
            raise VtrError(f"{self.path}/library.db cannot be read ({error})") from error
        if rerank:
            found = self._reranked(query, found, rerank)
        hits: list[Hit] = []
        seen: set[str] = set()
        for score, similarity, reranked, (segment, path, start, end, duration) in found:
            if len(hits) == k:
                break
            if all_moments or path not in seen:
                seen.add(path)
                hits.append(
                    Hit(
                        score=score,
                        path=path,
                        start=start,
                        end=end,
                        duration=duration,
                        segment=segment,
                        rank=len(hits) + 1,
                        similarity=similarity,
                        reranked=reranked,
                    )
                )
        return hits

    def _allowed(self, condition: str, values: list[object]) -> np.ndarray:
        sql = f"SELECT segments.id FROM segments JOIN videos ON videos.id = segments.video WHERE {condition}"
        return np.array([r[0] for r in self.store.db.execute(sql, values)], dtype=np.int64)

    def _found(
        self, vector: np.ndarray, k: int, rerank: int, allowed: np.ndarray | None, all_moments: bool
    ) -> list[tuple[float, float, bool, Any]]:
        """Nearest segments, enough of them for k videos: (score, similarity, False, (id, path, start, end, duration))."""
        index = self._ready_index()
        total = index.ntotal if allowed is None else len(allowed)
        count = max(k if all_moments else 4 * k, rerank)
        while True:
            scores, ids = indexes.nearest(index, vector, count, allowed)
            rows = {r[0]: r for r in self._segments(ids)}
            found = [(float(s), float(s), False, rows[int(i)]) for s, i in zip(scores, ids) if int(i) in rows]
            if all_moments or count >= total or len({row[1] for *_, row in found}) >= k:
                return found
            count *= 4  # long videos fill the list with their own moments

    def _segments(self, ids: Iterable[int]) -> list[tuple[int, str, float, float, float]]:
        wanted = [int(i) for i in ids]
        out = []
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            out += self.store.db.execute(
                "SELECT segments.id, videos.path, segments.start, segments.end, videos.duration FROM segments "
                f"JOIN videos ON videos.id = segments.video WHERE segments.id IN ({marks})",
                part,
            ).fetchall()
        return out

    def _reranked(self, query: Any, found: list[Any], top: int) -> list[Any]:
        """The top ones by the combined score first; those that cannot be looked at again keep their place after them."""
        import torch

        from vtr.model import combined_scores

        head: list[Any] = []
        batch: list[Any] = []
        logits: list[Any] = []
        rest: list[Any] = []

        def flush() -> None:
            n = len(batch)
            with torch.inference_mode():
                tokens = self.model.encode_video(torch.stack(batch)).tokens
                pairs = self.model.match(query.tokens.expand(n, -1, -1), query.mask.expand(n, -1), tokens)
            logits.append(pairs.float().cpu())
            batch.clear()

        for item in found[:top]:
            try:
                batch.append(self.segment_frames(item[3][1], item[3][2], item[3][3]))
                head.append(item)
            except (VtrError, OSError, ValueError):
                rest.append(item)  # the file is gone or has changed since it was indexed
                continue
            if len(batch) == _BATCH:
                flush()
        if batch:
            flush()
        if not head:
            return found
        both = combined_scores(torch.tensor([i[1] for i in head]), torch.cat(logits), float(self.model.temp.detach()))
        first = [(float(both[i]), head[i][1], True, head[i][3]) for i in both.argsort(descending=True).tolist()]
        return first + rest + found[top:]

    def segment_frames(self, path: str, start: float, end: float) -> Any:
        """The frames a segment was embedded from: uint8 tensor (T, 3, S, S)."""
        from vtr.data.decode import read_frames
        from vtr.data.sampling import middle_frames
        from vtr.data.transforms import eval_frames

        whole = end <= start
        clip = read_frames(
            Path(path),
            lambda n: middle_frames(n, self.settings["frames"]),
            start=None if whole else start,
            end=None if whole else end,
        )
        return eval_frames(clip.frames, self.model.config.video.image_size, antialias=self.model.config.antialias)

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


def hit_dict(hit: Hit) -> dict[str, Any]:
    """A hit as plain values for JSON."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(hit).items()}
