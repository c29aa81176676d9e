"""What a frame shows at a glance: few of its pixels, taken from where they are, for what compares frames.

N pixels along each side of a glimpse.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.picture import HLG, PQ, VideoShot

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.plane import VideoPlane

    from vtr.data.decode.types import Shot

_SIDE = 36  # N
_FULL = 2  # a range of codes without head and foot room (as FFmpeg numbers it)
_WHITE = {PQ: 0.58, HLG: 0.75}  # codes of diffuse white (ITU-R BT.2408), beyond which those of HDR reach far
_ONE = 1 << 12  # of the matrix, which is of whole numbers: the same on every machine


def glimpse(shot: Shot) -> np.ndarray:
    """uint8 (3, N, N), about RGB, of pixels at even distances; not turned, and N less where there are fewer pixels.

    Planes of YUV are sampled as they lie in memory, and brought to RGB by the one matrix of BT.601: as good as any for
    comparing frames of one file.
    """
    seen = _of_planes(shot.frame) if isinstance(shot, VideoShot) else None
    if seen is None:
        pixels = shot.pixels()
        rows, columns = (_places(n, n) for n in pixels.shape[:2])
        seen = np.ascontiguousarray(pixels[rows[:, None], columns].transpose(2, 0, 1))
    return seen


@lru_cache
def _places(count: int, among: int) -> np.ndarray:
    """Where to look in a row of a plane that shows so many pixels by so many values: in the middle of equal parts."""
    side = min(_SIDE, count)
    return (np.arange(side) * 2 + 1) * count // (2 * side) * among // count


@lru_cache
def _bits(name: str) -> int:
    """Bits of a value of a pixel format that has its luma and chroma in planes 0, 1 and 2; 0 for any other."""
    import av

    form = av.VideoFormat(name)
    parts = form.components[:3]
    if [part.plane for part in parts] != [0, 1, 2] or form.is_rgb or (form.is_big_endian and parts[0].bits > 8):
        return 0
    return int(parts[0].bits)


@lru_cache
def _matrix(full: bool, transfer: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3, 1): from YUV codes of 8 bits to RGB, in units of `_ONE`."""
    foot, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    gains = np.array([255 / luma, 255 / chroma, 255 / chroma]) / _WHITE.get(transfer, 1.0)
    matrix = np.array([[1.0, 0.0, 1.402], [1.0, -0.344, -0.714], [1.0, 1.772, 0.0]]) * gains * _ONE
    whole = np.rint(matrix).astype(np.int32)
    return whole, _ONE // 2 - whole @ np.array([[foot], [128], [128]], dtype=np.int32)


def _of_planes(frame: VideoFrame) -> np.ndarray | None:
    """uint8 (3, N, N) of a frame's planes; None where it has no three planes of YUV."""
    bits = _bits(frame.format.name)
    planes = frame.planes[:3] if bits else ()
    if not planes or any(plane.line_size <= 0 for plane in planes):
        return None
    codes = np.stack([_sampled(plane, frame.height, frame.width, bits) for plane in planes])
    full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    matrix, offset = _matrix(full, int(frame.color_trc))
    rgb = (matrix @ codes.reshape(3, -1).astype(np.int32) + offset) // _ONE
    return rgb.clip(0, 255).astype(np.uint8).reshape(codes.shape)


def _sampled(plane: VideoPlane, height: int, width: int, bits: int) -> np.ndarray:
    """Codes (N, N), as of 8 bits, of a plane of a picture of this size."""
    kind: type[np.uint8] | type[np.uint16] = np.uint8 if bits <= 8 else np.uint16
    lines = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind().itemsize)
    samples = lines.take(_places(height, plane.height), 0).take(_places(width, plane.width), 1)
    return np.right_shift(samples, max(0, bits - 8))
