"""What the decoders give back (clips, windows, media facts), their one error, and their time limit."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import numpy as np

from vtr.errors import VtrError

if TYPE_CHECKING:
    import torch


class Stored(ABC):
    """Media that lie elsewhere than in a file here, as a source of the decoders."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As messages have it."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """A reader of its own, from the start; it can be sought in."""

    @abstractmethod
    def size(self) -> int:
        """Bytes."""


Source = str | Path | bytes | Stored
Pick = Callable[[int], Sequence[int]]
Span = tuple[float | None, float | None]  # seconds; None: the file's start, its end

# One frame may have at most this many pixels (a 200 MB RGB frame), and one clip this many bytes: a forged header
# must not take the machine's memory.
MAX_PIXELS = 1 << 26
MAX_CLIP_BYTES = 4 << 30
CLOSE = 1e-4  # seconds within which two times are one


class DecodeError(VtrError):
    """A file that gives no frames. The text is one line, `NAME: cause`.

    Attributes:
        name: The file's name (or "upload" for bytes).
        cause: Why it gives no frames.
    """

    def __init__(self, name: str, cause: str) -> None:
        self.name = name
        self.cause = " ".join(str(cause).split())
        super().__init__(f"{name}: {self.cause}")

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Loader workers send errors to the main process: the default would lose the second argument.
        return (type(self), (self.name, self.cause))


class TimeLimit(DecodeError):
    """A file that was not decoded in time: on a machine that is less busy, or a faster disk, it may be."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Facts about a media file.

    Attributes:
        kind: "video" or "image" (a still, or a video of one frame).
        width, height: Pixels as displayed: upright, square pixels.
        duration: Seconds of the file's timeline (the picture is held while sound runs on); 0 for an image.
        fps: Mean frames per second; 0 for an image.
        frames: Frames that are there to be decoded (packets that can be read and that the edit list shows).
        rotation: Degrees clockwise that the file asks the player to turn the picture by.
        codec: Codec name.
    """

    kind: str
    width: int
    height: int
    duration: float
    fps: float
    frames: int
    rotation: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Chosen frames of one file.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB, as displayed: upright, square pixels.
        times: float64 (T,), seconds on the file's own timeline, as a player counts them.
    """

    frames: np.ndarray
    times: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a video.

    Attributes:
        start, end: Seconds on the file's own timeline, as a player counts them; both 0 for an image.
        frames: uint8 tensor (T, 3, S, S), RGB, as displayed.
    """

    start: float
    end: float
    frames: torch.Tensor


class Shot(Protocol):
    """A frame that has been decoded, and is turned into pixels only when it is wanted."""

    @property
    def is_corrupt(self) -> bool: ...
    def pixels(self) -> np.ndarray:
        """As displayed: uint8 (H, W, 3), RGB."""


@dataclass(frozen=True, slots=True)
class Still:
    """A shot whose pixels are there."""

    picture: np.ndarray
    is_corrupt = False

    def pixels(self) -> np.ndarray:
        """As displayed: uint8 (H, W, 3), RGB."""
        return self.picture


class Player(Protocol):
    """What all readers of files offer: shots in display order, with their times."""

    name: str
    fps: float
    claimed_end: float | None
    entered: bool

    @property
    def enterable(self) -> bool: ...
    def play(self) -> Iterator[tuple[float, Shot]]: ...
    def play_from(self, moment: float, *, sure: bool = False) -> Iterator[tuple[float, Shot]]: ...
    def length(self) -> float: ...
    def why_no_frames(self, packets: int) -> str: ...


_SPIN = 20  # times the limit that a process may work without progress, all its threads together
_SHARES = 8  # of a limit: one time asleep, or between two checks, counts as no more than one


class Deadline:
    """A limit on the time without progress: it runs anew whenever more of the file has been read or decoded.

    So a slow disk, a busy core or a long film is no fault of the file; what stands still is. Nor is it one that the process
    was stopped (Ctrl-Z, a paused container): of any one wait only a share of the limit counts.
    """

    _watched = 0.0  # seconds after which `watch` ends this process
    _still = -math.inf  # shares of them that went by without progress; -inf: nothing is being decoded

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.progress()

    def progress(self) -> None:
        """Give the full time again."""
        self._spent, self._seen = 0.0, time.monotonic()
        if self._watched:
            Deadline._still = 0
            signal.setitimer(signal.ITIMER_PROF, _SPIN * self._watched)

    @classmethod
    def watch(cls, seconds: float) -> None:
        """End this process, which decodes and does nothing else, by SIGALRM where it makes no progress: no check is reached
        inside a decoder that hangs. One that spins and lets no thread run is ended by SIGPROF, which counts its work."""
        cls._watched = seconds

        def look() -> None:
            while True:
                time.sleep(seconds / _SHARES)
                cls.tick()

        threading.Thread(target=look, daemon=True).start()

    @classmethod
    def tick(cls) -> None:
        """A share of the watch's time has gone by."""
        Deadline._still += 1
        if Deadline._still > _SHARES:
            os.kill(os.getpid(), signal.SIGALRM)

    @classmethod
    def rest(cls) -> None:
        """What follows is no decoding: nothing is watched until there is progress again."""
        if cls._watched:
            Deadline._still = -math.inf
            signal.setitimer(signal.ITIMER_PROF, 0)

    def check(self) -> None:
        """Raise TimeLimit where the time is over."""
        now = time.monotonic()
        self._spent += min(now - self._seen, self.seconds / _SHARES)
        self._seen = now
        if self._spent >= self.seconds:
            raise TimeLimit(self.name, f"nothing more of it was decoded within the time limit of {self.seconds:g} s")


def source_name(source: Source) -> str:
    """How an error names a source: the file's path, or "upload" for bytes."""
    if isinstance(source, (Stored, Held)):
        return source.name
    return "upload" if isinstance(source, (bytes, bytearray, memoryview)) else str(source)


def opened(source: Source, *, buffering: int = -1) -> BinaryIO:
    """A source opened for reading; OSError where a file cannot be."""
    if isinstance(source, Stored):
        return source.open()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    return cast(BinaryIO, open(source, "rb", buffering=buffering))


class Held(bytes):
    """The bytes of something that has a name."""

    name = "upload"

    @classmethod
    def of(cls, source: Stored, most: int) -> Held:
        """All of what is stored elsewhere; DecodeError where it has more bytes than `most`."""
        if source.size() > most:
            raise DecodeError(source.name, f"an image of {source.size()} bytes, more than {most}")
        with source.open() as file:
            out = cls(file.read())
        out.name = source.name
        return out


def chosen(pick: Pick, count: int) -> list[int]:
    """What `pick` wants out of `count` frames, checked."""
    wanted = [int(i) for i in pick(count)]
    if not wanted:
        raise ValueError("pick returned no frame index")
    if min(wanted) < 0 or max(wanted) >= count:
        raise ValueError(f"pick returned frame indices {min(wanted)}..{max(wanted)}, but there are {count} frames")
    return wanted


def span_of(times: np.ndarray, start: float | None, end: float | None, name: str, duration: float) -> tuple[int, int]:
    """First and last+1 index of the frames in start <= time < end; the frame on display where none begins there."""
    low = 0 if start is None else int(np.searchsorted(times, start - CLOSE, side="left"))
    high = len(times) if end is None else int(np.searchsorted(times, end - CLOSE, side="left"))
    if high > low:
        return low, high
    if start is not None and start > max(duration, float(times[-1])) + CLOSE:
        raise DecodeError(name, f"lasts {duration:.2f} s, so there is nothing at {start:g} s")
    shown = max(0, min(low, len(times)) - 1)
    return shown, shown + 1
