"""Queries of the server: a library that belongs to one thread, and searches by clip and by moment."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vtr.errors import VtrError
from vtr.library import index as indexes
from vtr.library.library import Hit, Library
from vtr.library.serve_media import Moment, Refused, Video
from vtr.library.where import parse_where

T = TypeVar("T")


class Busy(VtrError):
    """Too many requests wait already."""


class Pool:
    """Threads with a bounded queue before them.

    Args:
        threads: How many work at once.
        waiting: How many requests may work or wait.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="vtr-serve")
        self._waiting, self._queued = waiting, 0

    async def run(self, function: Callable[..., T], *values: Any) -> T:
        """`function(*values)` in one of the threads.

        Raises:
            Busy: The queue is full.
        """
        if self._queued >= self._waiting:
            raise Busy("too many requests at once; try again in a moment")
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *values)
        finally:
            self._queued -= 1

    def close(self) -> None:
        """End the threads after what they do now; what waits is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class Lane(Pool):
    """One thread with a library of its own: SQLite connections belong to threads.

    Args:
        path: The library.
        model: Gives the model (object, path or None for the library's own) when the library is first needed.
        waiting: As for `Pool`.
    """

    def __init__(self, path: Path, model: Callable[[], Any], *, waiting: int = 256) -> None:
        super().__init__(1, waiting)
        self._path, self._model = path, model
        self._library: Library | None = None

    async def ask(self, function: Callable[..., T], *values: Any) -> T:
        """`function(library, *values)` in the lane's thread; Busy as from `run`."""
        return await self.run(self._call, function, *values)

    def now(self, function: Callable[..., T], *values: Any) -> T:
        """As `ask`, for the time before the server answers."""
        return self._threads.submit(self._call, function, *values).result()

    def _call(self, function: Callable[..., T], *values: Any) -> T:
        try:
            if self._library is None:
                self._library = Library.open(self._path, self._model())
            return function(self._library, *values)
        except sqlite3.Error as error:
            raise VtrError(f"{self._path}/library.db cannot be read ({error})") from error

    def close(self) -> None:
        def let_go() -> None:
            if self._library is not None:
                self._library.close()

        self._threads.submit(let_go)
        self._threads.shutdown(wait=True)


def moment_of(library: Library, segment: int) -> Moment:
    """A segment and its video.

    Raises:
        Refused: There is none of this id.
    """
    row = library.store.db.execute(
        "SELECT segments.id, segments.start, segments.end, videos.id, path, bytes, modified, sha256 FROM segments "
        "JOIN videos ON videos.id = segments.video WHERE segments.id = ?",
        (segment,),
    ).fetchone()
    if row is None:
        raise Refused(404, f"no moment {segment} in this library (perhaps it was removed)")
    return Moment(id=row[0], start=row[1], end=row[2], video=_video(row[3:]))


def video_of(library: Library, video: int) -> Video:
    """A video by its id.

    Raises:
        Refused: There is none of this id.
    """
    row = library.store.db.execute(
        "SELECT id, path, bytes, modified, sha256 FROM videos WHERE id = ? AND reason IS NULL", (video,)
    ).fetchone()
    if row is None:
        raise Refused(404, f"no video {video} in this library (perhaps it was removed)")
    return _video(row)


def _video(row: Sequence[Any]) -> Video:
    return Video(id=row[0], path=row[1], bytes=row[2], modified=row[3], sha256=row[4])


def by_text(
    library: Library, text: str, k: int, rerank: int, where: str | None, all_moments: bool
) -> list[tuple[Hit, int]]:
    """Hits for a text, each with the id of its video."""
    return _with_videos(library, library.search(text, k, rerank=rerank, where=where, all_moments=all_moments))


def by_frames(library: Library, frames: Any, k: int, where: str | None, all_moments: bool) -> list[tuple[Hit, int]]:
    """Hits for a clip given as its frames, uint8 (T, 3, S, S)."""
    import torch

    with torch.inference_mode():
        vector = library.model.eval().encode_video(frames[None]).embedding.float().cpu().numpy()
    return _with_videos(library, by_vector(library, vector, k, where, all_moments))


def by_moment(library: Library, segment: int, k: int, where: str | None, all_moments: bool) -> list[tuple[Hit, int]]:
    """Moments like one of the library; without it, and without others of its video unless `all_moments`."""
    moment = moment_of(library, segment)
    row = library.store.db.execute("SELECT row FROM segments WHERE id = ?", (segment,)).fetchone()[0]
    vector = np.array(library.store.vectors()[row : row + 1])
    own = "segments.id != ?" if all_moments else "videos.id != ?"
    hidden = (own, [segment if all_moments else moment.video.id])
    return _with_videos(library, by_vector(library, vector, k, where, all_moments, hidden))


def by_vector(
    library: Library,
    vector: np.ndarray,
    k: int,
    where: str | None,
    all_moments: bool,
    hidden: tuple[str, list[object]] | None = None,
) -> list[Hit]:
    """The moments nearest to a vector (1, width) by cosine similarity, as `Library.search` orders them.

    Args:
        hidden: A condition over videos and segments that hits must also meet, with its parameters.
    """
    parts = [p for p in (None if where is None else parse_where(where), hidden) if p]
    allowed = None
    if parts:
        allowed = library._allowed(" AND ".join(f"({c})" for c, _ in parts), [v for _, values in parts for v in values])
    if library.store.segments() == 0 or (allowed is not None and len(allowed) == 0):
        return []
    unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
    hits: list[Hit] = []
    seen: set[str] = set()
    for score, similarity, _, (segment, path, start, end, duration) in library._found(unit, k, 0, allowed, all_moments):
        if len(hits) == k:
            break
        if all_moments or path not in seen:
            seen.add(path)
            hits.append(
                Hit(
                    score=score, path=path, start=start, end=end, duration=duration, segment=segment,
                    rank=len(hits) + 1, similarity=similarity,
                )
            )  # fmt: skip
    return hits


def _with_videos(library: Library, hits: list[Hit]) -> list[tuple[Hit, int]]:
    marks = ",".join("?" * len(hits))
    owner = dict(
        library.store.db.execute(
            f"SELECT id, video FROM segments WHERE id IN ({marks})", [h.segment for h in hits]
        ).fetchall()
    )
    return [(h, owner[h.segment]) for h in hits if h.segment in owner]


def warm_up(library: Library) -> dict[str, Any]:
    """Load what a query needs, so that everything that is wrong is said before the server answers."""
    import torch

    library.model.eval()
    if library.store.segments():
        with torch.inference_mode():
            vector = library.model.encode_text(["warm up"]).embedding.float().cpu().numpy()
        indexes.nearest(library._ready_index(), vector, 1, None)
        library.store.vectors()
    return library.info()
