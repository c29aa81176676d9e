"""HEIC photos as phones write them (ISO/IEC 23008-12): tiles put together, cropped, turned and mirrored, on white.

FFmpeg gives the tiles as they are; of a photo in one piece it cannot be asked for the crop, nor for a mirror beside EXIF.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.container import open_container
from vtr.data.decode.image import reduced
from vtr.data.decode.picture import Painter
from vtr.data.decode.types import MAX_PIXELS, Deadline, DecodeError, Source, Still, opened, source_name

if TYPE_CHECKING:
    from av.container import InputContainer

_MOST_META = 64 << 20  # bytes of the description before the picture data
_MOST_TILES = 4096
_ALPHA = re.compile(rb"auxid:1\0|auxiliary:alpha\0")


class _Cut(Exception):
    """The description ends too early or makes no sense."""


@dataclass
class _Photo:
    """What the `meta` box says: the main item, its tiles, and how items lie in the file."""

    primary: int = 0
    types: dict[int, bytes] = field(default_factory=dict)
    tiles: dict[int, list[int]] = field(default_factory=dict)  # item -> items it is derived from
    beside: dict[int, int] = field(default_factory=dict)  # item -> the item that it is an auxiliary picture of
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # item -> (method, offset, length)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    owned: dict[int, list[int]] = field(default_factory=dict)  # item -> properties, counted from 1
    data: bytes = b""  # idat

    def of_item(self, item: int) -> list[tuple[bytes, bytes]]:
        """The properties of an item, in order."""
        return [self.properties[i - 1] for i in self.owned.get(item, []) if 0 < i <= len(self.properties)]

    def alpha(self) -> int | None:
        """The item that says how opaque the main item is."""
        marks = [i for i, of in self.beside.items() if of == self.primary and self.types.get(i) == b"hvc1"]
        return next((i for i in marks if any(k == b"auxC" and _ALPHA.search(b) for k, b in self.of_item(i))), None)


class HeifReader:
    """A photo made of tiles, or one that is more than its pixels; offers what `ImageReader` does. `of` says which are."""

    frames = 1
    fps = 10.0
    codec = "heic"
    claimed_end: float | None = None
    entered = enterable = False

    def __init__(self, source: Source, deadline: Deadline, photo: _Photo, grid: bytes, least: int | None) -> None:
        self.name, self._least = source_name(source), least
        self._source, self._deadline, self._photo = source, deadline, photo
        try:
            if grid:
                self._rows, self._columns = grid[2] + 1, grid[3] + 1
                self._size = struct.unpack_from(">II" if grid[1] & 1 else ">HH", grid, 4)
            else:
                self._rows = self._columns = 1
                self._size = struct.unpack_from(
                    ">II", next(b for k, b in photo.of_item(photo.primary) if k == b"ispe"), 4
                )
            wide, high = self._size
        except (IndexError, struct.error):
            raise DecodeError(self.name, "a HEIC photo whose description of its tiles is cut off") from None
        if wide * high > MAX_PIXELS or self._rows * self._columns > _MOST_TILES:
            raise DecodeError(
                self.name, f"a HEIC photo of {wide}x{high} pixels, more than the limit of {MAX_PIXELS}: save it smaller"
            )
        self.rotation = sum(-90 * (body[0] & 3) for kind, body in self._transforms() if kind == b"irot" and body) % 360
        # Turned and cropped as the picture will be, of which this is one row and one column.
        self.height, self.width = self._shown(np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (high, wide, 1))).shape[:2]

    @staticmethod
    def of(source: Source, deadline: Deadline, least: int | None) -> HeifReader | None:
        """A reader where the file is a photo made of tiles, cropped, mirrored or transparent; None where it is anything
        else that FFmpeg may read."""
        try:
            photo = _parse(_meta(source))
            kind = photo.types.get(photo.primary)
            if kind == b"grid":
                method, offset, length = photo.places[photo.primary]
                grid = photo.data[offset : offset + length] if method == 1 else _at(source, offset, length)
                return HeifReader(source, deadline, photo, grid, least)
            own = {name for name, _ in photo.of_item(photo.primary)}
            if kind == b"hvc1" and b"ispe" in own and (own & {b"imir", b"clap"} or photo.alpha() is not None):
                return HeifReader(source, deadline, photo, b"", least)
        except (_Cut, KeyError, struct.error, IndexError):
            pass
        return None

    def __enter__(self) -> HeifReader:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    def play(self) -> Iterator[tuple[float, Still]]:
        """The photo, as the one frame of a video."""
        yield 0.0, Still(self._assembled())

    def play_from(self, moment: float, *, sure: bool = False) -> Iterator[tuple[float, Still]]:
        """As `play`."""
        return self.play()

    def length(self) -> float:
        """0: a photo does not last."""
        return 0.0

    def why_no_frames(self, packets: int) -> str:
        """The cause to name where no picture came out."""
        return "a HEIC photo none of whose tiles could be decoded"

    def _transforms(self) -> list[tuple[bytes, bytes]]:
        """Crops, turns and mirrors of the photo in the order in which they are applied."""
        return [(k, b) for k, b in self._photo.of_item(self._photo.primary) if k in (b"irot", b"imir", b"clap")]

    def _shown(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, …) cropped, turned and mirrored."""
        for kind, body in self._transforms():
            if kind == b"clap":
                picture = _cropped(picture, body)
            elif kind == b"irot" and body:
                picture = np.rot90(picture, body[0] & 3)  # counted anticlockwise
            elif body:
                picture = picture[:, ::-1] if body[0] & 1 else picture[::-1]
        return picture

    def _assembled(self) -> np.ndarray:
        from PIL import Image

        photo = self._photo
        wanted = photo.tiles.get(photo.primary, []) if photo.types[photo.primary] == b"grid" else [photo.primary]
        alpha = photo.alpha()
        if len(wanted) != self._rows * self._columns:
            raise DecodeError(self.name, "a HEIC photo that does not name all of its tiles")
        tiles = self._decoded({*wanted, *([] if alpha is None else [alpha])})
        missing = [i for i in wanted if i not in tiles]
        if missing:
            raise DecodeError(self.name, f"a HEIC photo of which {len(missing)} of {len(wanted)} tiles are damaged")
        high, wide = tiles[wanted[0]].shape[:2]
        if high * wide * len(wanted) > 2 * MAX_PIXELS:
            raise DecodeError(self.name, f"a HEIC photo of {len(wanted)} tiles of {wide}x{high}: over the limit")
        canvas = np.zeros((high * self._rows, wide * self._columns, 3), np.uint8)
        for place, item in enumerate(wanted):
            row, column = divmod(place, self._columns)
            tile = tiles[item][:high, :wide]
            canvas[row * high : row * high + tile.shape[0], column * wide : column * wide + tile.shape[1]] = tile
        picture = canvas[: self._size[1], : self._size[0]]
        veil = None if alpha is None else tiles.get(alpha)
        if veil is not None and veil.shape[0] >= picture.shape[0] and veil.shape[1] >= picture.shape[1]:
            opaque = veil[: picture.shape[0], : picture.shape[1], :1].astype(np.uint16)
            picture = ((picture * opaque + 255 * (255 - opaque)) // 255).astype(np.uint8)
        picture = self._shown(picture)
        return reduced(Image.fromarray(np.ascontiguousarray(picture)), self._least)

    def _decoded(self, wanted: set[int]) -> dict[int, np.ndarray]:
        """Pixels of the tiles by item: FFmpeg gives each as a stream of one packet."""
        import av

        tiles: dict[int, np.ndarray] = {}
        with open_container(self._source, self._deadline) as container:
            with contextlib.suppress(av.error.FFmpegError, ValueError):  # what is missing is said by the caller
                self._decode_all(container, wanted, tiles)
        return tiles

    def _decode_all(self, container: InputContainer, wanted: set[int], tiles: dict[int, np.ndarray]) -> None:
        painter = Painter(self.name, turns=False)
        streams = [s for s in container.streams.video if s.id in wanted]
        by_index = {s.index: s for s in streams}
        for packet in container.demux(*streams) if streams else ():
            self._deadline.check()
            if not packet.size or packet.stream.id in tiles:
                continue
            context = by_index[packet.stream_index].codec_context
            for frame in [*context.decode(packet), *context.decode(None)]:
                tiles.setdefault(packet.stream.id, painter.rgb(frame))
                self._deadline.progress()


def _cropped(picture: np.ndarray, body: bytes) -> np.ndarray:
    """A picture's clean aperture: width, height, and how far its middle is from the picture's, as fractions."""
    values = struct.unpack(">IIIIiIiI", body[:32]) if len(body) >= 32 else ()
    if not values or not all(values[1::2]):
        return picture
    wide, high, right, down = (values[i] / values[i + 1] for i in (0, 2, 4, 6))
    left = round((picture.shape[1] - wide) / 2 + right)
    top = round((picture.shape[0] - high) / 2 + down)
    if left < 0 or top < 0 or wide < 1 or high < 1:
        return picture
    return picture[top : top + round(high), left : left + round(wide)]


def _at(source: Source, offset: int, length: int) -> bytes:
    if length > _MOST_META:
        raise _Cut
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[offset : offset + length])
    with opened(source) as file:
        file.seek(offset)
        return file.read(length)


def _meta(source: Source) -> bytes:
    """Body of the top-level `meta` box."""
    place = 0
    while True:
        head = _at(source, place, 16)
        if len(head) < 8:
            raise _Cut
        size, kind = struct.unpack_from(">I4s", head)
        begin = 8
        if size == 1 and len(head) == 16:
            size, begin = struct.unpack_from(">Q", head, 8)[0], 16
        if kind == b"meta":
            return _at(source, place + begin + 4, size - begin - 4)
        if size < 8:
            raise _Cut
        place += size


def _boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, place)
        begin = 8
        if size == 1:
            size, begin = struct.unpack_from(">Q", body, place + 8)[0], 16
        if size == 0:
            size = len(body) - place
        if size < begin or place + size > len(body):
            raise _Cut
        yield kind, body[place + begin : place + size]
        place += size


class _Fields:
    """Whole numbers, one after the other, of a box with a version."""

    def __init__(self, body: bytes) -> None:
        self.version = body[0]
        self.flags = int.from_bytes(body[1:4], "big")
        self._body, self._place = body, 4

    def take(self, size: int) -> int:
        if self._place + size > len(self._body):
            raise _Cut
        self._place += size
        return int.from_bytes(self._body[self._place - size : self._place], "big")


def _parse(meta: bytes) -> _Photo:
    photo = _Photo()
    for kind, body in _boxes(meta):
        if kind == b"pitm":
            fields = _Fields(body)
            photo.primary = fields.take(4 if fields.version else 2)
        elif kind == b"iinf":
            for entry, info in _boxes(body[6 if body[0] == 0 else 8 :]):
                if entry == b"infe" and info[0] >= 2:
                    fields = _Fields(info)
                    item = fields.take(2 if fields.version == 2 else 4)
                    fields.take(2)
                    photo.types[item] = fields.take(4).to_bytes(4, "big")
        elif kind == b"iref":
            wide = 4 if body[0] else 2
            for relation, ids in _boxes(body[4:]):
                fields = _Fields(b"\0\0\0\0" + ids)
                item, count = fields.take(wide), fields.take(2)
                if relation == b"dimg":
                    photo.tiles[item] = [fields.take(wide) for _ in range(count)]
                elif relation == b"auxl" and count:
                    photo.beside[item] = fields.take(wide)
        elif kind == b"iloc":
            _parse_places(body, photo)
        elif kind == b"idat":
            photo.data = body
        elif kind == b"iprp":
            _parse_properties(body, photo)
    return photo


def _parse_places(body: bytes, photo: _Photo) -> None:
    fields = _Fields(body)
    sizes = fields.take(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(fields.take(4 if fields.version == 2 else 2)):
        item = fields.take(4 if fields.version == 2 else 2)
        method = fields.take(2) & 15 if fields.version else 0
        fields.take(2)
        base = fields.take(base_size)
        for extent in range(fields.take(2)):
            if fields.version:
                fields.take(index_size)
            offset, length = base + fields.take(offset_size), fields.take(length_size)
            if extent == 0:
                photo.places[item] = method, offset, length


def _parse_properties(body: bytes, photo: _Photo) -> None:
    for kind, inside in _boxes(body):
        if kind == b"ipco":
            photo.properties = list(_boxes(inside))
        elif kind == b"ipma":
            fields = _Fields(inside)
            for _ in range(fields.take(4)):
                item = fields.take(4 if fields.version else 2)
                wide = 2 if fields.flags & 1 else 1
                mask = 0x7FFF if wide == 2 else 0x7F
                photo.owned[item] = [fields.take(wide) & mask for _ in range(fields.take(1))]
