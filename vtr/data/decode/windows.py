"""A video as windows along time, in one pass and constant memory; the frames that stand for one moment."""

from __future__ import annotations

import math
from bisect import bisect, bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.cutter import Cutter
from vtr.data.decode.frames import SCAN_BYTES, open_media, pictures_at, probe, stack
from vtr.data.decode.heif import HeifReader
from vtr.data.decode.image import ImageReader
from vtr.data.decode.isolated import read_moments_isolated
from vtr.data.decode.pyav import VideoReader
from vtr.data.decode.shots import REPEATS, ShotCutter, times_on_grid
from vtr.data.decode.sniff import source_bytes
from vtr.data.decode.sparse import Unread
from vtr.data.decode.types import CLOSE, Clip, Deadline, DecodeError, Shot, Source, Span, Window, source_name
from vtr.data.sampling import display_times

if TYPE_CHECKING:
    import torch

LONG = 120.0  # seconds from which on "auto" follows shots
_SAME = 1e-3  # seconds within which two ends are one


def reduced_to(size: int) -> int:
    """Pixels that a photo's shorter side keeps when it is reduced while decoding for a network of size x size."""
    return 2 * size


class Windows:
    """The windows of a file, made one by one as they are asked for.

    Attributes:
        duration: Seconds of the file's timeline, once the last window is out; 0 for an image.
        claimed: Where the file says that it ends, once the first window is out; 0 where it does not.
        damaged: Whether something of it could not be decoded, once the last window is out.
        lacking: What of it no window shows, in words.
    """

    def __init__(self, windows: Callable[[Windows], Iterator[Window]]) -> None:
        self.duration = self.claimed = 0.0
        self.damaged, self.lacking = False, ""
        self._windows = windows(self)

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Window:
        return next(self._windows)


def read_windows(
    path: Source,
    *,
    window: float,
    stride: float,
    frames: int,
    size: int,
    timeout: float = 30.0,
    antialias: bool = False,
    threads: int | None = None,
    keyframes: bool = False,
    thorough: bool = False,
    segments: str = "windows",
) -> Windows:
    """A video as overlapping windows of `frames` frames each, chosen by the time they are on display.

    One pass: nothing is read ahead, and a window is let go when it is given out. Windows begin at multiples of the
    stride; each holds a frame that begins in it before the next window does, so that a picture that stands still for an
    hour is one window. The last one ends with the file, a video no longer than one window and an image give one.

    Args:
        path: A path, or the file's bytes.
        window, stride: Length and distance of windows in seconds.
        frames: T, frames per window.
        size: S, pixels: frames are resized to S x S as the test protocol does.
        timeout: Seconds without progress (more of the file read, a frame decoded) after which DecodeError is raised.
        antialias: As in `transforms.eval_frames`.
        threads: Decoder threads, as in `read_frames`.
        keyframes: A quick look: only key frames are decoded, and each stands for all frames up to the next.
        thorough: Decode every frame. Otherwise those that no window shows, and no other frame refers to, are passed
            over: the pixels of the others are the same, but in what a decoder patches up of a damaged file.
        segments: "windows": as above. "shots": no window crosses a cut, see `ShotCutter`. "auto": shots in a file that says
            it is longer than two minutes.

    Raises:
        DecodeError: Not one window could be decoded, or the time limit was passed.
    """
    if window <= 0 or stride <= 0:
        raise ValueError(f"window ({window}) and stride ({stride}) must be longer than 0 seconds")

    def windows(owner: Windows) -> Iterator[Window]:
        from vtr.data.transforms import eval_frames

        deadline = Deadline(source_name(path), timeout)

        def tensor(pixels: np.ndarray) -> torch.Tensor:
            return eval_frames(pixels[None], size, antialias)[0]

        with open_media(path, deadline, threads=threads, least=reduced_to(size)) as reader:
            owner.claimed = reader.claimed_end or 0.0
            along_shots = segments == "shots" or (segments == "auto" and owner.claimed > LONG)
            cutter = ShotCutter if along_shots else _Cutter
            cut = cutter(reader, window, stride, frames, tensor, keys=keyframes, sparse=not thorough)
            for made in cut.windows():
                owner.duration = cut.duration
                yield made
                deadline.progress()  # the time that its user took is no fault of the file
            owner.duration = cut.duration
            if isinstance(reader, VideoReader):
                owner.damaged, owner.lacking = bool(reader.errors or reader.lost), reader.lacking()

    return Windows(windows)


class _Plan:
    """A window under way: when to look, and what was on display then."""

    def __init__(self, start: float, end: float, targets: Sequence[float]) -> None:
        self.start, self.end, self.targets = start, end, targets
        self.slots: list[torch.Tensor] = []

    def window(self) -> Window:
        import torch

        return Window(start=self.start, end=self.end, frames=torch.stack(self.slots))


class _Cutter(Cutter):
    """Cuts what a player shows into windows at multiples of the stride."""

    def __post_init__(self) -> None:
        self._offsets = display_times(0.0, self.window, self.count, self.player.fps)
        self._plans: deque[_Plan] = deque()
        self._last: _Plan | None = None  # the window that ends with the file, if that ends where its header says
        self._newest = -1  # number of the last window begun
        self._covered = 0.0  # end of the last window given out
        self._shown: Shot | None = None
        self._made: torch.Tensor | None = None

    def _plan(self, start: float, end: float) -> _Plan:
        return _Plan(start, end, display_times(start, end, self.count, self.player.fps))

    def windows(self) -> Iterator[Window]:
        player, seen, begun = self.player, 0, 0.0
        if player.claimed_end:
            self._last = self._plan(max(0.0, player.claimed_end - self.window), player.claimed_end)
        for at, frame in self.playing():
            if seen:
                self._serve(at - CLOSE)
            self._begin(at, frame if seen == 0 else None)
            if not (self.keys and isinstance(frame, Unread)):  # else the last key frame stands for it
                self._shown, self._made = frame, None
            while self._plans and at >= self._plans[0].end - CLOSE:
                yield self._out(self._plans.popleft())
            seen, begun = seen + 1, at
        if not seen:
            raise DecodeError(player.name, player.why_no_frames(0))
        self._serve(math.inf)
        yield from self._ending(seen, begun)

    def looks(self, start: float, end: float) -> bool:
        """Whether any window looks at a frame that is on display from `start` to `end`."""
        low, high = start - 2 * CLOSE, end + 2 * CLOSE
        if self._last and bisect(self._last.targets, high) > bisect_left(self._last.targets, low):
            return True
        for place in range(max(0, math.floor((low - self.window) / self.stride)), math.floor(high / self.stride) + 1):
            begins = place * self.stride
            if bisect(self._offsets, high - begins) > bisect_left(self._offsets, low - begins):
                return True
        return False

    def _out(self, plan: _Plan) -> Window:
        self._covered = plan.end
        return plan.window()

    def _begin(self, at: float, first: Shot | None) -> None:
        """Plan the window that a frame beginning now calls for."""
        place = max(0, math.floor((at + CLOSE) / self.stride))
        if place <= self._newest or at >= place * self.stride + self.window:
            return
        self._newest = place
        self._plans.append(self._plan(place * self.stride, place * self.stride + self.window))
        if first is not None:  # before the first frame there is nothing else to show
            self._shown = first
        self._serve(at - CLOSE)

    def _serve(self, until: float) -> None:
        """Give the frame on display to all windows that look before a time."""
        for plan in [*self._plans, *([self._last] if self._last else [])]:
            while len(plan.slots) < len(plan.targets) and plan.targets[len(plan.slots)] < until:
                if self._made is None:
                    assert self._shown is not None
                    self._made = self.tensor(self._shown.pixels())
                plan.slots.append(self._made)

    def _ending(self, seen: int, begun: float) -> Iterator[Window]:
        """The windows that are left when the file has ended; `begun` is when its last frame began."""
        length = self.player.length()
        self.duration = length
        if length <= self.window + CLOSE:
            yield self._out(self._final(0.0, length, alone=seen == 1))
            return
        regular = math.ceil((length - self.window) / self.stride - 1e-6)
        for plan in self._plans:
            if round(plan.start / self.stride) < regular:
                yield self._out(plan)
        new = begun >= regular * self.stride - CLOSE and length - self._covered > self.stride * REPEATS
        if new or begun >= self._covered - CLOSE:  # else it would repeat what others show
            yield self._out(self._final(length - self.window, length))

    def _final(self, start: float, end: float, *, alone: bool = False) -> _Plan:
        """The window that ends with the file: as planned, or read anew where the file ends elsewhere than it claimed.

        Args:
            start, end: Seconds.
            alone: The frame that was shown last is the only one.
        """
        for plan in [self._last, *self._plans]:
            if plan is not None and abs(plan.start - start) < _SAME and abs(plan.end - end) < _SAME:
                plan.start, plan.end = start, end
                return plan
        plan = self._plan(start, end)
        if alone and self._shown is not None:
            made_once = self._made if self._made is not None else self.tensor(self._shown.pixels())
            plan.slots = [made_once] * self.count
            return plan
        made: dict[int, torch.Tensor] = {}
        for _, pixels in pictures_at(self.player, plan.targets):
            if id(pixels) not in made:
                made = {id(pixels): self.tensor(pixels)}
            plan.slots.append(made[id(pixels)])
        return plan


def read_moment(
    source: Source,
    count: int,
    *,
    start: float | None = None,
    end: float | None = None,
    lasts: float | None = None,
    least: int | None = None,
    timeout: float = 30.0,
    threads: int | None = None,
    isolated: bool = False,
    grid: float = 0.0,
) -> Clip:
    """The frames that stand for a moment, or for a whole file: those that `read_windows` takes for the same span.

    A long file is entered at the moment, whatever its codec: nothing before it is read or decoded.

    Args:
        source: A path, or the file's bytes.
        count: T, frames; a still is given so many times.
        start, end: Seconds on the file's timeline; None: its start and its end.
        lasts: Seconds of the whole file, where they are known: recordings glued together are told by them.
        least: Pixels that neither side of a picture needs to exceed (a photo is then reduced while it is decoded).
        timeout, threads, isolated: As in `read_frames`.
        grid: Seconds between two looks, of a film that was cut along its shots (`grid_of`); 0 otherwise.

    Raises:
        DecodeError: The file gives no frame, in time, or ends before `start`.
    """
    if isolated:
        [clip] = read_moments_isolated(source, count, lambda _: [(start, end)], least=least, timeout=timeout)
        return clip
    deadline = Deadline(source_name(source), timeout)
    with open_media(source, deadline, threads=threads, least=least) as reader:
        if isinstance(reader, VideoReader):
            return _moment(reader, count, start, video_end(reader, source_bytes(source), start, end, lasts), grid)
        pictures = sum(1 for _ in reader.play()) if reader.frames > 1 else 1
        if pictures == 1:
            return Clip(frames=stack([next(reader.play())[1].pixels()] * count, reader.name), times=np.zeros(count))
        return _moment(reader, count, start, reader.length() if end is None else min(end, reader.length()))


def read_moments(
    source: Source,
    count: int,
    spans: Callable[[float], Sequence[Span]],
    *,
    least: int | None = None,
    timeout: float = 30.0,
    isolated: bool = False,
) -> Iterator[Clip]:
    """Several moments of a file, each as by `read_moment`; with `isolated`, all in one process of its own.

    Args:
        source, count, least, timeout: As in `read_moment`.
        spans: Gets the file's seconds (0 for an image), and says which moments are wanted: their starts and ends.
    """
    if isolated:
        yield from read_moments_isolated(source, count, spans, least=least, timeout=timeout)
        return
    lasts = probe(source, timeout=timeout).duration
    for start, end in spans(lasts):
        yield read_moment(source, count, start=start, end=end, lasts=lasts, least=least, timeout=timeout)


def video_end(reader: VideoReader, size: int, start: float | None, end: float | None, lasts: float | None) -> float:
    """Where a moment ends; small files are read whole first, so that no stamp misleads."""
    if size <= SCAN_BYTES or (end is None and not reader.claimed_end):
        if len(reader.scan()) and not reader.regular and end is None:
            for _ in reader.play():
                pass
        length = reader.length() if reader.regular or end is None else math.inf
    else:
        reader.survey(lasts)
        length = reader.claimed_end if reader.regular and reader.claimed_end else math.inf
    if start is not None and start > length + CLOSE:
        raise DecodeError(reader.name, f"lasts {length:.2f} s, so there is nothing at {start:g} s")
    return length if end is None else end


def _moment(
    reader: VideoReader | ImageReader | HeifReader, count: int, start: float | None, end: float, grid: float = 0.0
) -> Clip:
    span = start or 0.0, max(end, start or 0.0), count, reader.fps
    targets = times_on_grid(*span, grid) if grid else display_times(*span)
    shown = pictures_at(reader, targets)
    return Clip(frames=stack([pixels for _, pixels in shown], reader.name), times=np.asarray([at for at, _ in shown]))
