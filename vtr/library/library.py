"""Library: add videos, search them in words.

A library is a folder: library.json (settings, model), library.db (videos, segments), embeddings.f32, index.faiss (derived).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library.store import Store
from vtr.library.where import parse_where

MEDIA = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".gif",
        ".flv",
        ".mpg",
        ".mpeg",
        ".3gp",
        ".ogv",
        ".wmv",
        ".ts",
        ".mts",
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer: a moment of a video."""

    score: float
    path: str
    start: float  # seconds
    end: float
    duration: float
    segment: int


@dataclass(kw_only=True)
class AddReport:
    """What an `add` did."""

    added: int = 0
    unchanged: int = 0
    segments: int = 0
    failed: list[str] | None = None


class Library:
    """A search library on disk; use `create` or `open`."""

    def __init__(self, path: Path, settings: dict[str, Any], model: Any | None) -> None:
        self.path, self.settings = path, settings
        self._model = model
        self.store = Store(path, settings["width"])
        self._index: Any = None
        self._index_rows = -1

    @classmethod
    def create(
        cls, path: str | Path, model: Any, *, model_path: str | None = None, window: float = 8.0, stride: float = 4.0
    ) -> Library:
        """Make an empty library, or open the one that is there if model and windows agree.

        Args:
            path: Its folder.
            model: The model (or its path) that embeds videos and queries.
            window, stride: Seconds of a segment and between the starts of two.
        """
        import vtr.model

        if window <= 0 or stride <= 0:
            raise UsageError(f"window {window} and stride {stride}: expected positive seconds")
        if isinstance(model, str | Path):
            model_path, model = str(model), vtr.model.load(model)
        path = Path(path)
        if (path / "library.json").is_file():
            library = cls.open(path, model)
            if (library.settings["window"], library.settings["stride"]) != (window, stride):
                raise VtrError(
                    f"{path} has windows of {library.settings['window']:g} s every {library.settings['stride']:g} s, "
                    f"asked for {window:g} and {stride:g}: choose another folder"
                )
            return library
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise VtrError(f"{path} is not empty and not a library; choose another folder")
            settings = {
                "format": 1,
                "model": os.path.abspath(model_path) if model_path else None,
                "fingerprint": model.fingerprint(),
                "width": int(model.config.embed_dim),
                "window": window,
                "stride": stride,
                "frames": int(model.config.video.num_frames),
            }
            partial = path / "library.json.tmp"
            partial.write_text(json.dumps(settings, indent=1) + "\n")
            os.replace(partial, path / "library.json")
        except OSError as error:
            raise VtrError(f"{path}: the library cannot be made ({error.strerror})") from error
        return cls(path, settings, model)

    @classmethod
    def open(cls, path: str | Path, model: Any | None = None) -> Library:
        """Open a library; without `model` the one it was made with is loaded when first needed.

        Raises:
            VtrError: It is no library, or `model` is not the one it was made with.
        """
        path = Path(path)
        try:
            settings = json.loads((path / "library.json").read_text())
        except FileNotFoundError as error:
            raise VtrError(f"{path}: not a library (no library.json); make one with: vtr index build") from error
        except (json.JSONDecodeError, NotADirectoryError, UnicodeDecodeError) as error:
            raise VtrError(f"{path}/library.json cannot be read ({error})") from error
        library = cls(path, settings, None)
        if model is not None:
            library._accept(model)
        return library

    def _accept(self, model: Any) -> None:
        own, given = self.settings["fingerprint"], model.fingerprint()
        if own != given:
            raise VtrError(
                f"{self.path} was made with another model ({own[:12]}, this one is {given[:12]}): build it anew"
            )
        self._model = model

    @property
    def model(self) -> Any:
        """The model, loaded on first use."""
        if self._model is None:
            import vtr.model

            if not self.settings["model"]:
                raise VtrError(f"{self.path} does not say where its model is; pass it with --model")
            self._accept(vtr.model.load(self.settings["model"]))
        return self._model

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, paths: str | Path | Iterable[str | Path]) -> AddReport:
        """Index files and folders; unchanged files are skipped, changed ones done again.

        Each video is committed by itself: a killed call loses at most the video it was at, and the next call goes on.
        Files that cannot be read are remembered with their reason and returned.
        """
        from tqdm import tqdm

        files = find_media([paths] if isinstance(paths, str | Path) else paths)
        report = AddReport(failed=[])
        with self.store.writing():
            for file in tqdm(files, desc="index", unit="file", file=sys.stderr):
                self._add_one(file, report)
        self._write_index()
        return report

    def _add_one(self, file: Path, report: AddReport) -> None:
        assert report.failed is not None
        db, name = self.store.db, os.path.abspath(file)
        try:
            stat = file.stat()
            known = db.execute(
                "SELECT bytes, modified, sha256, reason, id FROM videos WHERE path = ?", (name,)
            ).fetchone()
            if known and known[:2] == (stat.st_size, stat.st_mtime):
                return self._unchanged(known[3], report)
            digest = sha256(file)
        except OSError as error:
            report.failed.append(f"{file.name}: {error.strerror}")
            return
        if known and known[2] == digest:
            with db:
                db.execute(
                    "UPDATE videos SET bytes = ?, modified = ? WHERE id = ?", (stat.st_size, stat.st_mtime, known[4])
                )
            return self._unchanged(known[3], report)
        reason: str | None = None
        spans: list[tuple[float, float]] = []
        vectors: list[np.ndarray] = []
        try:
            spans, vectors = self._embed(file)
        except VtrError as error:
            reason = str(error)
            report.failed.append(reason)
        with db:
            if known:
                db.execute("DELETE FROM videos WHERE id = ?", (known[4],))
            first = self.store.append(np.stack(vectors)) if vectors else 0
            cursor = db.execute(
                "INSERT INTO videos (path, bytes, modified, sha256, duration, reason) VALUES (?, ?, ?, ?, ?, ?)",
                (name, stat.st_size, stat.st_mtime, digest, max((e for _, e in spans), default=0.0), reason),
            )
            db.executemany(
                "INSERT INTO segments (video, start, end, row) VALUES (?, ?, ?, ?)",
                [(cursor.lastrowid, s, e, first + i) for i, (s, e) in enumerate(spans)],
            )
        report.added += reason is None
        report.segments += len(spans)

    @staticmethod
    def _unchanged(reason: str | None, report: AddReport) -> None:
        assert report.failed is not None
        if reason:
            report.failed.append(reason)
        else:
            report.unchanged += 1

    def _embed(self, file: Path) -> tuple[list[tuple[float, float]], list[np.ndarray]]:
        import torch

        from vtr.data.decode import read_windows

        spans: list[tuple[float, float]] = []
        vectors: list[np.ndarray] = []
        batch: list[Any] = []

        def flush() -> None:
            with torch.inference_mode():
                vectors.extend(self.model.eval().encode_video(torch.stack(batch)).embedding.float().cpu().numpy())
            batch.clear()

        for window in read_windows(
            file,
            window=self.settings["window"],
            stride=self.settings["stride"],
            frames=self.settings["frames"],
            size=self.model.config.video.image_size,
            timeout=30.0,
        ):
            spans.append((window.start, window.end))
            batch.append(window.frames)
            if len(batch) == 16:
                flush()
        if batch:
            flush()
        if not spans:
            raise VtrError(f"{file.name}: no frames")
        return spans, vectors

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Forget videos; returns how many. Raises VtrError for one that is not in the library."""
        with self.store.writing(), self.store.db as db:
            for path in paths:
                if db.execute("DELETE FROM videos WHERE path = ?", (os.path.abspath(path),)).rowcount == 0:
                    raise VtrError(f"{path} is not in {self.path}; nothing was removed")
        self._write_index()
        return len(paths)

    def _write_index(self) -> None:
        import faiss

        index = self._built_index()
        partial = self.path / f"index.faiss.{os.getpid()}.tmp"
        faiss.write_index(index, str(partial))
        os.replace(partial, self.path / "index.faiss")

    def _built_index(self) -> Any:
        """Exact inner-product index over the live segments; ids are segment ids."""
        import faiss

        pairs = np.array(
            self.store.db.execute("SELECT id, row FROM segments ORDER BY row").fetchall(), dtype=np.int64
        ).reshape(-1, 2)
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(self.settings["width"]))
        if len(pairs):
            index.add_with_ids(np.ascontiguousarray(self.store.vectors()[pairs[:, 1]]), pairs[:, 0])
        return index

    # -- reading ------------------------------------------------------------------------------------------------------

    def _ready_index(self) -> Any:
        """index.faiss, or one built in memory when it is missing or does not have every segment."""
        import faiss

        count = self.store.db.execute("SELECT COUNT(*) FROM segments").fetchone()[0]
        if self._index is None or self._index_rows != count:
            path = self.path / "index.faiss"
            self._index = faiss.read_index(str(path)) if path.is_file() else None
            if self._index is None or self._index.ntotal != count:
                self._index = self._built_index()
            self._index_rows = count
        return self._index

    def search(
        self, text: str, k: int = 10, *, rerank: int = 0, where: str | None = None, all_moments: bool = False
    ) -> list[Hit]:
        """The best moments for a text, best first; one moment a video unless `all_moments`.

        Args:
            text: The query.
            k: Number of hits.
            rerank: Segments that the cross-modal decoder looks at again (0 = none): slower, better.
            where: A filter, applied before the search; see `vtr.library.where`.
        """
        import torch

        if not text.strip():
            raise UsageError("an empty query: ask for something")
        if k < 1:
            raise UsageError(f"-k {k}: expected a positive number")
        with torch.inference_mode():
            query = self.model.eval().encode_text([_clean(text)])
        vector = query.embedding.float().cpu().numpy()
        scores, ids = self._nearest(vector, max(k * (1 if all_moments else 8), rerank), where)
        rows = {r[0]: r for r in self._segments(ids)}
        found = [(float(s), rows[int(i)]) for s, i in zip(scores, ids) if int(i) in rows]
        if rerank:
            found = self._reranked(query, found, rerank)
        hits, seen = [], set()
        for score, (segment, path, start, end, duration) in found:
            if path in seen and not all_moments:
                continue
            seen.add(path)
            hits.append(Hit(score=score, path=path, start=start, end=end, duration=duration, segment=segment))
        return hits[:k]

    def _nearest(self, vector: np.ndarray, count: int, where: str | None) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        index = self._ready_index()
        parameters = None
        if where:
            condition, values = parse_where(where)
            sql = f"SELECT segments.id FROM segments JOIN videos ON videos.id = segments.video WHERE {condition}"
            allowed = np.array([r[0] for r in self.store.db.execute(sql, values)], dtype=np.int64)
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(allowed))  # type: ignore[call-arg]
            count = min(count, len(allowed))
        count = min(count, index.ntotal)
        if count == 0:
            return np.zeros(0), np.zeros(0, np.int64)
        scores, ids = index.search(vector, count, params=parameters)
        return scores[0], ids[0]

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
        import torch

        from vtr.model import combined_scores

        head, frames = [], []
        for item in found[:top]:
            try:
                frames.append(self.segment_frames(item[1][1], item[1][2], item[1][3]))
                head.append(item)
            except (VtrError, OSError):
                continue  # the file is gone or has changed since it was indexed: it cannot be looked at again
        if not head:
            return found
        with torch.inference_mode():
            tokens = self.model.encode_video(torch.stack(frames)).tokens
            n = len(head)
            logits = self.model.match(query.tokens.expand(n, -1, -1), query.mask.expand(n, -1), tokens)
            both = combined_scores(torch.tensor([s for s, _ in head]), logits.cpu(), float(self.model.temp))
        order = both.argsort(descending=True).tolist()
        return [(float(both[i]), head[i][1]) for i in order]

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
            "segments": one("SELECT COUNT(*) FROM segments").fetchone()[0],
            "seconds": one("SELECT COALESCE(SUM(duration), 0) FROM videos").fetchone()[0],
            "unreadable": [r[0] for r in one("SELECT reason FROM videos WHERE reason IS NOT NULL ORDER BY path")],
        }


def _clean(text: str) -> str:
    from vtr.data.text import clean_caption

    return clean_caption(text)


def find_media(paths: Iterable[str | Path]) -> list[Path]:
    """Media files under folders (by extension), and files named outright whatever their extension."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA and p.is_file())
            if not inside:
                raise VtrError(f"{path}: no video or image files in this folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise VtrError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def sha256(file: Path) -> str:
    """Content hash of a file."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def hit_dict(hit: Hit) -> dict[str, Any]:
    """A hit as plain values for JSON."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(hit).items()}
