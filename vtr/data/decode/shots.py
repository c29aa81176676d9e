"""A video along its shots: cuts are found while it is decoded, and no window crosses one.

The film is looked at where a grid of times says, and at its key frames: what is on display there is compared with what was
there before, and is what windows are made of. So a cut is known to the frame where the encoder has set a key frame at it,
else to a step of the grid; and one pass is enough, though a shot's last window is known only when the shot has ended.
Frames are compared by glimpses, and wait as the decoder left them: pictures are made of those that windows show.

T frames, S pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vtr.data.decode.cutter import Cutter
from vtr.data.decode.glimpse import glimpse
from vtr.data.decode.picture import VideoShot
from vtr.data.decode.sparse import Unread
from vtr.data.decode.types import CLOSE, DecodeError, Shot, Window
from vtr.data.sampling import display_times

if TYPE_CHECKING:
    import torch

_STEP = 0.25  # seconds between two looks
_MOST = 64  # looks that a window holds at most
_BLOCKS = 12  # along each side of a picture, for what is compared
_CUT = 0.12  # change from one look to the next that is a cut …
_ABOVE = 2.5  # … where it is so many times what changes around it
_AROUND = 2  # looks before and after
_SAME = 1e-6  # seconds
_WAITING = 32 << 20  # bytes of decoded frames that wait to be shown at most, of one film
REPEATS = 0.1  # of a stride: a last window that is later by no more shows nothing new
SHORTEST = 1.0  # seconds of a shot; a shorter one belongs to the next, or at the end to the one before


def grid_of(window: float, frames: int) -> float:
    """Seconds between two looks at a film that is cut into windows of so many seconds and frames."""
    return max(window / _MOST, min(_STEP, window / (2 * frames)))


def times_on_grid(start: float, end: float, frames: int, fps: float, grid: float) -> list[float]:
    """When to look at a span, T times: `display_times`, each moved to the nearest look within the span.

    A span is looked at as often as the grid allows, or at steps of 2, 4, 8 … of it that are no longer than from one frame
    to the next: the longer a shot, the fewer of its frames may still be wanted.
    """
    step = _step(grid, end - start, frames)
    first = math.ceil((start - CLOSE) / step)
    last = max(first, math.ceil((end - CLOSE) / step) - 1)
    times = display_times(start, end, frames, fps)
    return [min(max(math.floor((at + CLOSE) / step + 0.5), first), last) * step for at in times]


def _step(grid: float, seconds: float, frames: int) -> float:
    """Seconds between two looks that a span of so many seconds may be shown by."""
    times = (seconds + CLOSE) / (frames * grid)
    return grid * 2 ** math.floor(math.log2(times)) if times > 1 else grid


def _on_grid(start: float, end: float, grid: float) -> bool:
    """Whether a frame that begins and ends then is on display at a time of the grid."""
    return math.ceil((start - CLOSE) / grid) * grid < end - CLOSE


class Features(NamedTuple):
    """What of a picture is compared: means of its blocks, and how many of its pixels have each of 64 colours."""

    blocks: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray) -> Features:
        """Of a picture (3, S, S) uint8. Sums of whole numbers: the same on every machine."""
        side = picture.shape[1]
        edges = np.arange(min(_BLOCKS, side)) * side // min(_BLOCKS, side)
        sums = np.add.reduceat(np.add.reduceat(picture.astype(np.int32), edges, axis=1), edges, axis=2)
        sides = np.diff([*edges, side])
        top = (picture >> 6).astype(np.int64)
        colours = np.bincount((top[0] * 16 + top[1] * 4 + top[2]).reshape(-1), minlength=64)
        return cls(sums / (sides[:, None] * sides * 255.0), colours / (side * side))

    def change(self, other: Features) -> float:
        """0 for the same picture, 1 for black and white: the geometric mean of how places and colours differ.

        What moves changes places and keeps colours, a flicker of light the other way round; a cut changes both.
        """
        places = float(np.abs(self.blocks - other.blocks).mean())
        colours = float(np.abs(self.colours - other.colours).sum()) / 2
        return math.sqrt(places * colours)


@dataclass(slots=True)
class _Look:
    """A frame that was looked at: when it begins, what it shows, how it differs from the one before.

    Attributes:
        begun: Seconds.
        features: Of its glimpse.
        change: From the look before.
        shot: The decoded frame, as long as its picture may be wanted and is not made.
        bytes: What that frame takes.
        made: The picture, once it was wanted.
    """

    begun: float
    features: Features
    change: float
    shot: Shot | None
    bytes: int = 0
    made: torch.Tensor | None = None

    def picture(self, tensor: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
        if self.made is None:
            assert self.shot is not None, f"the frame at {self.begun:g} s was let go"
            self.made, self.shot = tensor(self.shot.pixels()), None
        return self.made


class ShotCutter(Cutter):
    """Cuts what a player shows into windows that begin anew with each shot.

    Windows of a shot are those of a film that is the shot alone: at multiples of the stride, the last one ends with it,
    and a shot no longer than a window is one.
    """

    def __post_init__(self) -> None:
        self.grid = grid_of(self.window, self.count)
        self._widest = _step(self.grid, self.window, self.count)
        self._looks: deque[_Look] = deque()
        self._undecided = 0  # of the looks, the last so many may still turn out to begin a shot
        self._start = 0.0  # of the shot
        self._cut: float | None = None  # where the next one begins, unless it is too short
        self._plans: deque[float] = deque()  # starts of the windows under way
        self._number = 0  # of the next window that may be planned
        self._covered = 0.0  # end of the shot's last window given out

    def windows(self) -> Iterator[Window]:
        shown: Shot | None = None
        begun, looked = 0.0, False
        for seen, (at, frame) in enumerate(self.playing()):
            if (
                not seen and at >= self.stride
            ):  # sound alone before it; otherwise the first frame counts before it begins
                self._start = self._covered = at
            if shown is not None and not looked and _on_grid(begun, at, self.grid):
                yield from self._look(begun, at, shown)
                looked = True
            if seen and self.keys and isinstance(frame, Unread):
                continue  # the last key frame stands for it
            shown, begun, looked = frame, at if seen else self._start, False
            if seen and isinstance(frame, VideoShot) and frame.frame.key_frame:
                yield from self._look(begun, begun + 1 / self.player.fps, frame)
                looked = True
        if shown is None:
            raise DecodeError(self.player.name, self.player.why_no_frames(0))
        self.duration = self.player.length()
        if not looked and (not self._looks or _on_grid(begun, self.duration, self.grid)):
            yield from self._look(begun, self.duration, shown)
        yield from self._decide(last=True)
        if self._cut is not None and self.duration - self._cut >= SHORTEST:
            yield from self._finish(self._cut)
        yield from self._finish(self.duration)

    def looks(self, start: float, end: float) -> bool:
        return math.floor((end + 2 * CLOSE) / self.grid) * self.grid >= start - 2 * CLOSE

    # -- cuts ---------------------------------------------------------------------------------------------------------

    def _look(self, begun: float, until: float, shot: Shot) -> Iterator[Window]:
        features = Features.of(glimpse(shot))
        change = features.change(self._looks[-1].features) if self._looks else 0.0
        look = _Look(begun, features, change, shot)
        self._looks.append(look)
        if isinstance(shot, VideoShot) and not _on_grid(begun, until, self._widest):
            look.bytes = shot.bytes
        else:  # a window will hardly fail to show it, and now it is in the processor's cache
            look.picture(self.tensor)
        self._undecided += 1
        self._plan(begun)
        yield from self._decide()

    def _decide(self, *, last: bool = False) -> Iterator[Window]:
        """Tell of looks whether they begin a shot, and give out the windows that nothing can change any more."""
        while self._undecided > (0 if last else _AROUND):
            place = len(self._looks) - self._undecided
            look = self._looks[place]
            self._undecided -= 1
            if self._is_cut(place) and look.begun - (self._start if self._cut is None else self._cut) >= SHORTEST:
                if self._cut is not None:
                    yield from self._finish(self._cut)
                self._cut = look.begun
            elif self._cut is not None and look.begun - self._cut >= SHORTEST:
                yield from self._finish(self._cut)
            sure = self._cut if self._cut is not None else look.begun
            while self._plans and self._plans[0] + self.window < sure - _SAME:
                yield self._made(self._plans.popleft())
            self._forget(min(self._plans[0] if self._plans else sure, sure - self.window))
            self._spare(sure)

    def _is_cut(self, place: int) -> bool:
        change = self._looks[place].change
        if change < _CUT:
            return False
        low, high = max(0, place - _AROUND), min(len(self._looks), place + _AROUND + 1)
        around = [self._looks[i].change for i in range(low, high) if i != place]
        return change >= _ABOVE * sum(around) / max(1, len(around))

    def _forget(self, before: float) -> None:
        kept = max(self._undecided + _AROUND, 1)
        while len(self._looks) > kept and self._looks[1].begun <= before - self.grid:
            self._looks.popleft()

    def _spare(self, sure: float) -> None:
        """Let go of frames that no window will show, and make the oldest pictures where many frames wait.

        Args:
            sure: The shot goes on until then, so that none of its windows that are to come is shorter.
        """
        step = _step(self.grid, min(self.window, sure - self._start), self.count)
        for look, following in pairwise(self._looks):
            if look.shot is not None and look.begun < sure and not _on_grid(look.begun, following.begun, step):
                look.shot = None
        waiting = [look for look in self._looks if look.shot is not None]
        over = sum(look.bytes for look in waiting) - _WAITING
        for look in waiting:
            if over <= 0:
                break
            look.picture(self.tensor)
            over -= look.bytes

    # -- windows ------------------------------------------------------------------------------------------------------

    def _plan(self, begun: float) -> None:
        """Plan the window that a frame beginning now calls for."""
        number = max(0, math.floor((begun - self._start + CLOSE) / self.stride))
        start = self._start + number * self.stride
        if number >= self._number and begun < start + self.window:
            self._number = number + 1
            self._plans.append(start)

    def _finish(self, end: float) -> Iterator[Window]:
        """Give out the windows that are left of a shot, and begin the next."""
        start, newest = self._start, max((k.begun for k in self._looks if k.begun < end - CLOSE), default=0.0)
        if end - start <= self.window + CLOSE:
            yield self._made(start, end)
        else:
            while self._plans and self._plans[0] + self.window < end - _SAME:
                yield self._made(self._plans.popleft())
            regular = math.ceil((end - start - self.window) / self.stride - _SAME)
            if end - self._covered > self.stride * REPEATS and newest >= start + regular * self.stride - CLOSE:
                yield self._made(end - self.window, end)
        self._start, self._cut, self._number, self._covered = end, None, 0, end
        self._plans.clear()
        for look in self._looks:
            if look.begun >= end - CLOSE:
                self._plan(look.begun)

    def _made(self, start: float, end: float | None = None) -> Window:
        import torch

        self._covered = end = start + self.window if end is None else end
        pictures: list[torch.Tensor] = []
        place = 0
        for at in times_on_grid(start, end, self.count, self.player.fps, self.grid):
            while place + 1 < len(self._looks) and self._looks[place + 1].begun <= at + CLOSE:
                place += 1
            pictures.append(self._looks[place].picture(self.tensor))
        return Window(start=start, end=end, frames=torch.stack(pictures))
