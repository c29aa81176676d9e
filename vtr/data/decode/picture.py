"""A decoded frame as a person sees it: RGB in standard range, square pixels, upright."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.types import MAX_PIXELS, DecodeError

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

Matrix = tuple[int, int, int, int]

_UNSPECIFIED = 2  # matrix, primaries and transfer that a file does not tell (ITU-T H.273)
PQ, HLG = HDR = 16, 18  # transfer characteristics (ITU-T H.273)
WIDE = 9  # primaries and matrix of BT.2020
_HD_LINES = 720  # from here on players take BT.709 where a file does not tell its matrix
_WHITE = 203.0  # nits of diffuse white in HDR (ITU-R BT.2408)
_PEAK = 1000.0  # nits of the display that HLG is made for, and of most PQ masters
_KNEE = 0.8  # of diffuse white: darker light stays as it is, brighter is compressed
# BT.2020 to BT.709 primaries, linear light (ITU-R BT.2087).
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_SQUARE = 0.01  # pixels so near to squares come of rounding, and resampling for them would only blur
_STRETCH = 32.0  # wider pixels than this are a damaged header
_LEVELS = 1 << 12  # steps of the tables from codes to light and back


class Painter:
    """Turns frames of one file into pictures.

    Attributes:
        aspect: Width by height of one pixel as the container says; None or 0 where it does not.
        turns: Whether pictures are turned as the file asks.
    """

    def __init__(self, name: str, *, turns: bool = True) -> None:
        self.name, self.turns = name, turns
        self.aspect: Fraction | None = None
        self._reformatter: VideoReformatter | None = None
        self._turn: tuple[int, Matrix | None] | None = None

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3) of a PyAV frame.

        Raises:
            DecodeError: FFmpeg cannot convert its pixel format.
        """
        import av
        from av.video.reformatter import Colorspace, VideoReformatter

        if self._reformatter is None:
            # One converter for all frames: building FFmpeg's scaler anew costs more than converting a small frame.
            self._reformatter = VideoReformatter()
        width, height = self.size(frame)
        hdr = frame.color_trc in HDR
        guessed = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES and not _is_rgb(frame)
        try:
            pixels = self._reformatter.reformat(
                frame,
                width,
                height,
                format="rgb48le" if hdr else "rgb24",
                src_colorspace=Colorspace.ITU709 if guessed else None,
            ).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.name, f"pixels of format {frame.format.name} cannot be shown: {error}") from None
        if hdr:
            pixels = standard_range(pixels, int(frame.color_trc), wide=frame.color_primaries in (WIDE, _UNSPECIFIED))
        return oriented(pixels, self._matrix(frame)) if self.turns else pixels

    def _matrix(self, frame: VideoFrame) -> Matrix | None:
        """The frame's display matrix, read again only where the turn changes.

        PyAV ties a frame whose side data was asked for to itself: it would stay in memory until Python looks for cycles.
        """
        if self._turn is None or self._turn[0] != frame.rotation:
            self._turn = frame.rotation, display_matrix(frame)
        return self._turn[1]

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height with square pixels, before any turn: the longer side grows, as in browsers."""
        width, height = frame.width, frame.height
        aspect = float(self.aspect or 1)
        if not 1 / _STRETCH < aspect < _STRETCH or abs(aspect - 1) < _SQUARE:
            return width, height
        wide, high = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        return (width, height) if wide * high > MAX_PIXELS else (max(wide, 1), max(high, 1))


@dataclass(frozen=True, slots=True)
class VideoShot:
    """A decoded frame of a video, with what turns it into pixels."""

    frame: VideoFrame
    painter: Painter

    @property
    def is_corrupt(self) -> bool:
        return bool(self.frame.is_corrupt)

    @property
    def bytes(self) -> int:
        """What the frame takes as the decoder left it."""
        return sum(plane.buffer_size for plane in self.frame.planes)

    def pixels(self) -> np.ndarray:
        """As displayed: uint8 (H, W, 3), RGB."""
        return self.painter.rgb(self.frame)


def _is_rgb(frame: VideoFrame) -> bool:
    return bool(frame.format.is_rgb) or frame.format.name.startswith(("gray", "mono", "pal"))


def standard_range(pixels: np.ndarray, transfer: int, *, wide: bool = True) -> np.ndarray:
    """HDR to SDR: uint16 (H, W, 3) of PQ (SMPTE ST 2084) or HLG (ITU-R BT.2100) to uint8 as BT.1886 shows them.

    Diffuse white (203 nits, BT.2408) becomes white; what is brighter is compressed into the last fifth below it.

    Args:
        pixels: RGB codes, 0..65535.
        transfer: 16 for PQ, 18 for HLG (ITU-T H.273).
        wide: The primaries are BT.2020's, and are brought to BT.709.
    """
    codes = np.linspace(0.0, 1.0, _LEVELS, dtype=np.float64)
    table = (_pq(codes) if transfer == PQ else _hlg(codes)).astype(np.float32)
    light = table[pixels >> 4]  # (H, W, 3), 1 = diffuse white in PQ, scene light in HLG
    if transfer == HLG:
        luma = light @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        light *= (_PEAK / _WHITE * np.power(np.maximum(luma, 1e-6), 0.2))[..., None]
    if wide:
        light = np.maximum(light @ _TO_709.T, 0.0)
    light *= (_compressed(light.max(axis=2)))[..., None]
    shown = np.linspace(0.0, 1.0, _LEVELS, dtype=np.float64) ** 2  # finer steps in the dark
    back = np.round(255 * np.power(shown, 1 / 2.4)).astype(np.uint8)
    return back[(np.sqrt(np.clip(light, 0.0, 1.0)) * (_LEVELS - 1) + 0.5).astype(np.int32)]


def _pq(codes: np.ndarray) -> np.ndarray:
    """Display light of PQ codes 0..1, in units of diffuse white."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(codes, 1 / m2)
    return 10000.0 / _WHITE * np.power(np.maximum(power - c1, 0.0) / (c2 - c3 * power), 1 / m1)


def _hlg(codes: np.ndarray) -> np.ndarray:
    """Scene light 0..1 of HLG codes 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)


def _compressed(brightest: np.ndarray) -> np.ndarray:
    """What to multiply a pixel's light by, given its brightest channel: 1 up to the knee, then less and less."""
    room = 1 - _KNEE
    over = np.maximum(brightest - _KNEE, 0.0) / room
    most = (_PEAK / _WHITE - _KNEE) / room
    squeezed = _KNEE + room * over * (1 + over / most**2) / (1 + over)
    return np.where(brightest > _KNEE, squeezed / np.maximum(brightest, 1e-6), 1.0)


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """(a, b, c, d) of the frame's display matrix, 16.16 fixed point: x' = a x + c y, y' = b x + d y; None: upright."""
    try:
        for index in range(len(frame.side_data)):  # iterated, it gives data before PyAV 19 and kinds since
            data: SideData = frame.side_data[index]  # type: ignore[literal-required]  # PyAV 18's stubs
            if data.type.name == "DISPLAYMATRIX":
                values = np.frombuffer(bytes(data), dtype="=i4")
                if values.size >= 5:
                    return int(values[0]), int(values[1]), int(values[3]), int(values[4])
    except ValueError:  # PyAV cannot list side data that holds a kind it has no name for; the turn alone is known then
        one = 1 << 16
        turns: dict[int, Matrix] = {90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}
        return turns.get(round(frame.rotation / 90) % 4 * 90)
    return None


def oriented(pixels: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """(H, W, 3) turned by the nearest quarter turn, and mirrored, as a display matrix says."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, horizontal, vertical = pixels.transpose(1, 0, 2), c, b
    else:
        horizontal, vertical = a, d
    if horizontal < 0:
        pixels = pixels[:, ::-1]
    if vertical < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def turn_of(matrix: Matrix | None) -> int:
    """Degrees clockwise (0, 90, 180, 270) of a display matrix; a mirror image counts as its turn alone."""
    if matrix is None:
        return 0
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return 90 if b > 0 else 270
    return 180 if a < 0 and d < 0 else 0
