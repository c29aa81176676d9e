"""Decode a video for some moments of it: frames that are not looked at, and that no other refers to, are passed over.

What is decoded has the pixels that it has otherwise. What is passed over still takes its place in time, so that the clock
and all that counts frames see the same film.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.codec.context import CodecContext
    from av.packet import Packet
    from av.video.frame import VideoFrame

# Codecs whose decoders pass over frames that no other refers to, one packet a frame.
CODECS = {"h264", "hevc", "mpeg2video", "mpeg1video", "mpeg4"}
_AHEAD = 24  # packets between a frame and the next that is shown: more than any decoder reorders
_APART = 10.0  # seconds by which a packet's stamps may lie before those of its neighbours
_SETTLED = 2  # frames that come out before any is passed over

Looks = Callable[
    [float, float], bool
]  # whether a frame on display between two times (seconds of the timeline) is looked at


@dataclass(frozen=True, slots=True)
class Unread:
    """A frame that was passed over: it has a time, and gives its pixels, should they be wanted, by reading the file again."""

    reread: Callable[[], np.ndarray]
    is_corrupt = False

    def pixels(self) -> np.ndarray:
        """As displayed: uint8 (H, W, 3), RGB."""
        return self.reread()


class Sparse:
    """Gives packets to a decoder, telling it what it may pass over.

    Args:
        context: The decoder.
        decode: Decodes a packet, or flushes (None).
        tick: Seconds of a unit of the stamps.
        looks: What is looked at, in raw seconds; None where it cannot tell yet.
        keys: Decode key frames alone.

    Attributes:
        off: Nothing is passed over any more: the stamps or the frames are not as they should be.
        lost: A frame that was to come out did not.
    """

    def __init__(
        self,
        context: CodecContext,
        decode: Callable[[Packet | None], Iterator[VideoFrame]],
        tick: float,
        looks: Callable[[float, float], bool | None],
        *,
        keys: bool = False,
    ) -> None:
        self._context, self._decode, self._tick, self._looks, self._keys = context, decode, tick, looks, keys
        self.off = self.lost = False
        self._ahead: deque[Packet] = deque()
        self._stamps: deque[int] = deque(maxlen=2 * _AHEAD)  # of packets near the one at hand, in order of decoding
        self._last: int | None = None  # decoding stamp
        self._sent: list[tuple[int, bool]] = []  # heap of stamps that have not come out, and whether they may
        self._out = 0
        self._sparing = False

    def frames(
        self, packets: Iterable[Packet], hidden: Callable[[Packet], bool]
    ) -> Iterator[tuple[int, None] | VideoFrame]:
        """Frames in display order; for one that was passed over its stamp.

        Args:
            packets: In order of decoding.
            hidden: Whether a packet's frame is never shown.
        """
        source = iter(packets)
        while True:
            while len(self._ahead) < _AHEAD and (packet := next(source, None)) is not None:
                self._look_at(packet)
                self._ahead.append(packet)
            if not self._ahead:
                break
            packet = self._ahead.popleft()
            wanted = self._wanted(packet)
            if not packet.is_discard and packet.pts is not None and not hidden(packet):
                heapq.heappush(self._sent, (packet.pts, wanted))
            if self._keys and not wanted:
                continue
            self._spare(not wanted)
            for frame in self._decode(packet):
                yield from self._ordered(frame)
        for frame in self._decode(None):
            yield from self._ordered(frame)
        while self._sent:
            stamp, wanted = heapq.heappop(self._sent)
            if not wanted:
                yield stamp, None

    def _look_at(self, packet: Packet) -> None:
        """Take note of a packet's stamps, and whether they can be believed."""
        if packet.pts is None or packet.is_corrupt:
            self.off = True
            return
        self._stamps.append(packet.pts)
        order = packet.pts if packet.dts is None else packet.dts  # Matroska has no decoding stamps of its first packets
        back = self._last is not None and packet.dts is not None and packet.dts <= self._last
        if back or max(self._stamps) - min(packet.pts, order) > _APART / self._tick:
            self.off = True
        self._last = packet.dts

    def _wanted(self, packet: Packet) -> bool:
        """Whether a packet's frame must come out."""
        if self._keys:
            return bool(packet.is_keyframe)
        if self.off or self._out < _SETTLED or packet.pts is None or packet.is_keyframe:
            return True
        later = [stamp for stamp in self._stamps if stamp > packet.pts]
        if not later:
            return True
        return self._looks(packet.pts * self._tick, min(later) * self._tick) is not False

    def _spare(self, spare: bool) -> None:
        if spare != self._sparing:
            self._context.skip_frame = "NONREF" if spare else "DEFAULT"
            self._sparing = spare

    def _ordered(self, frame: VideoFrame) -> Iterator[tuple[int, None] | VideoFrame]:
        """A frame, after those before it that were passed over."""
        stamp = frame.pts
        if stamp is None:
            self.off = True
            yield frame
            return
        while self._sent and self._sent[0][0] <= stamp:
            sent, wanted = heapq.heappop(self._sent)
            if sent == stamp:
                break
            if wanted:
                self.lost = self.lost or self._out > 0  # it was to come out and did not: damage
                self.off = self.off or self.lost
            elif self._out:
                yield sent, None
        self._out += 1
        yield frame
