"""What packets tell without being decoded: whether their stamps can be believed, and whether they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.clock import FAR
from vtr.data.decode.types import CLOSE

if TYPE_CHECKING:
    from av.packet import Packet

# Codecs in which each packet holds exactly one shown frame (or says that it is hidden), so that counting packets counts
# frames. Elsewhere (packed AVI and the like) the count is checked by decoding to the end.
ONE_FRAME_PER_PACKET = {
    "h264",
    "hevc",
    "av1",
    "vp8",
    "vp9",
    "mjpeg",
    "gif",
    "mpeg1video",
    "h263",
    "vvc",
    "png",
    "theora",
}


def strange(stamps: list[float | None], orders: list[float | None], step: float, breaks: bool) -> bool:
    """Whether a list of raw stamps in decoding order holds some that a clock would not believe."""
    shown = np.asarray([s for s in stamps if s is not None])
    order = np.asarray([s for s in orders if s is not None])
    if len(shown) > 1:
        gaps = np.diff(np.sort(shown))
        typical = max(float(np.median(gaps)), step)
        if max(gaps[0], gaps[-1]) > FAR or (breaks and gaps.max() > 10.0):
            return True
        if len(order) == len(shown) and np.abs(shown - order).max() > max(10.0, 20 * typical):
            return True
    return bool(len(order) > 1 and np.diff(order).min() < -CLOSE)


def hidden(packet: Packet, codec: str) -> bool:
    """Whether a VP8 or VP9 packet is a reference frame that is never shown (RFC 6386 9.1; VP9 bitstream 6.2)."""
    if codec not in ("vp8", "vp9") or packet.size < 3:
        return False
    data = memoryview(packet)
    first = data[0]
    if codec == "vp8":
        return not first >> 4 & 1
    if first >> 6 != 2 or data[-1] & 0xE0 == 0xC0:  # not a VP9 frame header, or several frames of which one is shown
        return False
    # Bits from the top: marker (2), profile (2), one reserved bit in profile 3, show_existing, frame type, show_frame.
    shift = 1 if first >> 4 & 3 == 3 else 0
    bits = (first << 8 | data[1]) << shift
    return not bits >> 11 & 1 and not bits >> 9 & 1
