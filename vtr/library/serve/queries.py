"""Queries of the server: threads that ask the library, and what they ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from vtr.errors import VtrError
from vtr.library.curve import Curve
from vtr.library.found import Hit
from vtr.library.library import Library
from vtr.library.serve.door import Door
from vtr.library.serve.media import Moment, Refused, Video

P = ParamSpec("P")
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

    async def run(self, function: Callable[P, T], *values: P.args, **more: P.kwargs) -> T:
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
    """Threads that ask the library.

    Args:
        door: Gives the library.
        waiting: As for `Pool`.
        cores: How many the model may use; None: as many as torch takes. A short text gains nothing from a second one,
            and on a busy machine its steps wait for each other a hundred times as long as they work.
    """

    def __init__(self, door: Door, *, waiting: int = 256, cores: int | None = None) -> None:
        super().__init__(1, waiting)
        self._door, self._cores = door, cores

    async def ask(self, function: Callable[Concatenate[Library, P], T], *values: P.args, **more: P.kwargs) -> T:
        """`function(library, *values, **more)` in the lane's thread; Busy as from `run`."""
        return await self.run(self._call, function, *values, **more)

    def now(self, function: Callable[[Library], T]) -> T:
        """As `ask`, for the time before the server answers."""
        return self._threads.submit(self._call, function).result()

    def _call(self, function: Callable[Concatenate[Library, P], T], *values: P.args, **more: P.kwargs) -> T:
        if self._cores is not None:
            torch.set_num_threads(self._cores)  # of this thread, and the default of those that come later
            self._cores = None
        return self._door.ask(function, *values, **more)


class Answered(NamedTuple):
    """Hits, each with the id of its video, and the library they are of."""

    pairs: list[tuple[Hit, int]]
    notes: list[str]
    library: str


def stamp(library: Library) -> str:
    """What tells this library from others that may come into its folder."""
    device, inode = library.store.identity
    return (library.settings.id or f"{device:x}-{inode:x}")[:12]


def _check(library: Library, of: str | None) -> None:
    if of and of != stamp(library):
        raise Refused(409, "the library was replaced by another one since; search again")


def moment_of(library: Library, segment: int, of: str | None = None) -> Moment:
    """A segment and its video.

    Args:
        of: The stamp of the library that the id was given by; None: whichever is there.

    Raises:
        Refused: There is none of this id, or the library is another one now.
    """
    _check(library, of)
    row = library.store.details([segment]).get(segment)
    if row is None:
        raise Refused(404, f"no moment {segment} in this library (perhaps it was removed)")
    video = video_of(library, row.video)
    return Moment(id=row.id, start=row.start, end=row.end, lasts=row.duration, video=video, library=stamp(library))


def video_of(library: Library, video: int, of: str | None = None) -> Video:
    """A video by its id; arguments and errors as in `moment_of`."""
    _check(library, of)
    row = library.store.video(video)
    if row is None or row.failure is not None:
        raise Refused(404, f"no video {video} in this library (perhaps it was removed)")
    size, modified, sha256 = row.facts
    return Video(id=row.id, path=row.path, bytes=size, modified=modified, sha256=sha256)


def search(
    library: Library, words: Sequence[str] = (), k: int = 10, *, of: str | None = None, **options: Any
) -> Answered:
    """`Library.search`, each hit with the id of its video.

    Raises:
        Refused: `more` names a moment that there is not.
    """
    if options.get("more") is not None:
        moment_of(library, options["more"], of)
    hits = library.search(words, k, **options)
    rows = library.store.details([h.segment for h in hits])
    pairs = [(h, rows[h.segment].video) for h in hits if h.segment in rows]
    return Answered(pairs, hits.notes, stamp(library))


def curve(
    library: Library, video: int, words: Sequence[str], minus: Sequence[str], of: str | None
) -> tuple[Curve, str]:
    """`Library.curve`, and the library's stamp; errors as in `moment_of`."""
    found = library.curve(video_of(library, video, of).id, words, minus=minus)
    return found, stamp(library)


def clip_frames(library: Library, clip: bytes) -> tuple[Tensor, list[str]]:
    """Frames of an uploaded clip's windows, uint8 (m, T, 3, S, S), decoded in a bounded process of its own; and notes."""
    return library.example_frames(clip, isolated=True)


def warm_up(library: Library) -> Library:
    """Load what a query needs, so that everything that is wrong is said before the server answers."""
    library.model.eval()
    library.search("warm up", 1)
    return library
