"""Queries of the server: a library that belongs to one thread, and what it is asked."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from vtr.errors import VtrError
from vtr.library.library import Library
from vtr.library.search import Hit
from vtr.library.serve.media import Moment, Refused, Video

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

    async def run(self, function: Callable[..., T], *values: Any, **more: Any) -> T:
        """`function(*values, **more)` in one of the threads.

        Raises:
            Busy: The queue is full.
        """
        if self._queued >= self._waiting:
            raise Busy("too many requests at once; try again in a moment")
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *values, **more))
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
        cores: How many the model may use; None: as many as torch takes. A short text gains nothing from a second one,
            and on a busy machine its steps wait for each other a hundred times as long as they work.
    """

    def __init__(self, path: Path, model: Callable[[], Any], *, waiting: int = 256, cores: int | None = None) -> None:
        super().__init__(1, waiting)
        self._path, self._model, self._cores = path, model, cores
        self._library: Library | None = None

    async def ask(self, function: Callable[..., T], *values: Any, **more: Any) -> T:
        """`function(library, *values, **more)` in the lane's thread; Busy as from `run`."""
        return await self.run(self._call, function, *values, **more)

    def now(self, function: Callable[..., T], *values: Any) -> T:
        """As `ask`, for the time before the server answers."""
        return self._threads.submit(self._call, function, *values).result()

    def _call(self, function: Callable[..., T], *values: Any, **more: Any) -> T:
        try:
            if self._library is None:
                if self._cores is not None:
                    torch.set_num_threads(self._cores)  # of this thread, and the default of those that come later
                self._library = Library.open(self._path, self._model())
            return function(self._library, *values, **more)
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
    row = library.store.details([segment]).get(segment)
    if row is None:
        raise Refused(404, f"no moment {segment} in this library (perhaps it was removed)")
    return Moment(id=row.id, start=row.start, end=row.end, video=video_of(library, row.video))


def video_of(library: Library, video: int) -> Video:
    """A video by its id.

    Raises:
        Refused: There is none of this id.
    """
    row = library.store.video(video)
    if row is None or row.failure is not None:
        raise Refused(404, f"no video {video} in this library (perhaps it was removed)")
    size, modified, sha256 = row.facts
    return Video(id=row.id, path=row.path, bytes=size, modified=modified, sha256=sha256)


def search(library: Library, words: Sequence[str] = (), k: int = 10, **options: Any) -> list[tuple[Hit, int]]:
    """`Library.search`, each hit with the id of its video.

    Raises:
        Refused: `more` names a moment that there is not.
    """
    if options.get("more") is not None:
        moment_of(library, options["more"])
    return _with_videos(library, library.search(words, k, **options))


def clip_frames(library: Library, clip: bytes) -> Any:
    """Frames of an uploaded clip, uint8 (T, 3, S, S), decoded in a bounded process of its own.

    Uses the library's settings and model, not its database: any thread may call it.
    """
    return library.frames_of(clip, isolated=True)


def _with_videos(library: Library, hits: list[Hit]) -> list[tuple[Hit, int]]:
    rows = library.store.details([h.segment for h in hits])
    return [(h, rows[h.segment].video) for h in hits if h.segment in rows]


def warm_up(library: Library) -> Library:
    """Load what a query needs, so that everything that is wrong is said before the server answers."""
    library.model.eval()
    library.search("warm up", 1)
    return library
