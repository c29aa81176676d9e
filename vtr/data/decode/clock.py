"""One clock: raw stamps of frames in display order become seconds of the file's own timeline.

Recordings glued together begin their stamps anew, cameras write one stamp of another day, and some frames have none.
A stamp that falls back or leaps is held until the next frame shows what it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vtr.data.decode.types import CLOSE

Item = TypeVar("Item")

FAR = 600.0  # seconds that one frame alone, at either end of a file, may stand away from all others
_BREAK = 10.0  # seconds of a leap that is a break of the recording where a container's stamps may break
_LEAP = 1.0  # seconds to the next frame from which on its stamp is looked at more closely
_SOUND_KEPT = 4096


class Sound:
    """Where the sound of a file has got to: it tells a long still picture from a wrong stamp."""

    def __init__(self) -> None:
        self.end: float | None = None
        self._recent: deque[float] = deque(maxlen=_SOUND_KEPT)

    def heard(self, stamp: float, duration: float) -> None:
        """Take note of one packet of sound, in raw seconds. A stamp far off the others does not count."""
        if self.end is not None and not -FAR < stamp - self.end < FAR:
            return
        self._recent.append(stamp)
        self.end = stamp + duration if self.end is None else max(self.end, stamp + duration)

    def between(self, low: float, high: float) -> bool:
        """Whether there is sound well inside a stretch."""
        margin = (high - low) / 4
        return any(low + margin < stamp < high - margin for stamp in self._recent)


class Clock:
    """Gives each frame its time on the timeline.

    Args:
        origin: Raw seconds at which the timeline begins; None: at the first frame.
        step: Seconds that a frame lasts where nothing else tells.
        breaks: Whether the container's stamps may leap forward without a pause in what is shown (MPEG streams).
        sound: The sound heard so far.

    Attributes:
        last: Time of the last frame; None before the first.
        shift: Seconds added to raw stamps now.
        broken: Whether a stamp was not believed, or stamps began anew.
    """

    def __init__(
        self,
        *,
        origin: float | None,
        step: float,
        breaks: bool,
        sound: Sound | None = None,
    ) -> None:
        self.shift = 0.0 if origin is None else -origin
        self.last: float | None = None
        self.broken = False
        self._free = origin is None
        self._step, self._breaks, self._sound = step, breaks, sound or Sound()
        self._gap = step  # between the last two frames

    def run(self, frames: Iterable[tuple[float | None, Item]]) -> Iterator[tuple[float, Item]]:
        """(raw seconds or None, frame) in display order -> (seconds on the timeline, frame), never falling back."""
        held: tuple[float, Item] | None = None
        for raw, item in frames:
            if held is not None:
                yield self._placed(self._settled(held[0], raw)), held[1]
                held = None
            if raw is None:
                yield self._placed(0.0 if self.last is None else self.last + self._step), item
            elif self._doubtful(raw):
                held = raw, item
            else:
                yield self._placed(raw + self.shift), item
        if held is not None:
            yield self._placed(self._settled(held[0], None)), held[1]

    def _placed(self, at: float) -> float:
        if self.last is not None:
            at = max(at, self.last)
            self._gap = at - self.last
            if 0 < self._gap < 60 * self._step:
                self._step = self._gap
        self.last = at
        return at

    def _doubtful(self, raw: float) -> bool:
        """Whether the next frame must be seen before this one can be placed."""
        if self.last is None:
            if self._free:
                self.shift, self._free = -raw, False
            return abs(raw + self.shift) > FAR
        ahead = raw + self.shift - self.last
        return ahead < -CLOSE or ahead > max(_LEAP, 4 * self._step)

    def _settled(self, raw: float, following: float | None) -> float:
        """The time of a doubtful frame, given the raw stamp of the one after it (None: there is none, or it has none)."""
        at = raw + self.shift
        after = None if following is None else following + self.shift
        if self.last is None:
            if after is not None and abs(after - at) > FAR:  # the first stamp is the wrong one
                self.broken = True
                return max(0.0, after - self._step)
            return at
        expected = self.last + self._step
        on_track = after is not None and self.last - CLOSE <= after
        if at < self.last:
            self.broken = True
            if on_track and after is not None:
                return min(expected, after)
            if after is not None:
                self.shift += expected - at  # stamps that begin anew go on from here
            return expected
        leap = at - self.last
        quiet = not self._sound.between(self.last - self.shift, raw)
        if after is None:
            wrong = leap > FAR and leap > 10 * self._gap and quiet
        elif after < at - CLOSE:
            wrong = on_track or leap > _BREAK
        else:
            wrong = self._breaks and leap > _BREAK and quiet
            if wrong:
                self.shift += expected - at
        if not wrong:
            return at
        self.broken = True
        return expected if after is None or not on_track else min(expected, max(after, self.last))
