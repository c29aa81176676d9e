"""Whether a media file is whole: by its container's own account of its bytes, and by the duration that its header names.

A decoder takes what is left of a cut-off file for the clip that the caption is of, without a word; so everything that
checks files asks here first: `vtr shards build` and `verify`, `vtr benchmarks check`, the training stream, `vtr index`.
"""

from __future__ import annotations

import contextlib
import io
import mmap

import av

from vtr.data.decode.sniff import missing_bytes
from vtr.data.decode.types import Source, Stored

_UNFINISHED = 1 << 62  # what a file promises that ends inside one of its parts
_SLACK = 16  # bytes: writers that count a padding byte too many
_FAR = (1.0, 0.1)  # seconds, and share of the header's duration, that may be lacking
_TIMED = ("matroska", "webm", "flv", "mov", "mp4", "avi", "asf")  # formats whose header names a duration
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def cut_off(source: Source, *, thorough: bool = True) -> str:
    """Why a video is not whole, or "" where nothing speaks against it. Nothing is decoded; nothing is raised.

    Args:
        source: A path, or the file's bytes.
        thorough: Read the packets too, and compare their last time with the header's duration; otherwise only for
            containers that do not say how long they are in bytes.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _verdict(bytes(source), bytes(source), thorough)
    if isinstance(source, Stored):  # it would be read twice; one that its server cuts off is not read at all
        return ""
    try:
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _verdict(data, source, thorough)
    except (OSError, ValueError):  # not there, empty, no file: what reads it says so
        return ""


def _verdict(data: bytes | mmap.mmap, source: Source, thorough: bool) -> str:
    size = len(data)
    promised, certain = _promised(data)
    if promised >= _UNFINISHED:
        return "cut off: it ends in the middle of a part"
    if promised > size + _SLACK:
        return f"cut off: {promised - size} of its {promised} bytes are missing"
    if certain and not thorough:
        return ""
    return _too_short(source)


def _promised(data: bytes | mmap.mmap) -> tuple[int, bool]:
    """The bytes that a file says it has (0: it does not say), and whether that settles it."""
    head = data[:16]
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        missing = missing_bytes(data)  # type: ignore[arg-type]
        return len(data) + missing, b"moof" not in data[: 1 << 16]
    if head[:4] == b"\x1aE\xdf\xa3":
        return _ebml(data)
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return _riff(data), True
    if head == _ASF:
        return _asf(data), True
    if head[:4] == b"OggS":
        return _ogg(data), True
    if head[:4] == b"GIF8":
        return _gif(data), True
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data), True
    if head[:3] == b"FLV":
        return _flv(data), False
    # A transport stream says no length, but all of its packets are whole.
    for packet, at in ((188, 0), (192, 4)):
        if len(data) > 4 * packet and all(data[at + i * packet] == 0x47 for i in range(4)):
            return len(data) + -len(data) % packet, True
    return 0, True


def _ebml(data: bytes | mmap.mmap) -> tuple[int, bool]:
    """Matroska and WebM: the end of the segment; a live recording does not know it."""

    def number(place: int) -> tuple[int, int, bool]:
        first = data[place] if place < len(data) else 0
        width = 9 - first.bit_length()
        raw = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
        return raw, place + width, raw == (1 << 7 * width) - 1

    size, place, _ = number(4)
    place += size
    while place + 12 <= len(data):
        kind = data[place : place + 4]
        if kind == b"\x18S\x80g":
            size, place, unknown = number(place + 4)
            return (0, False) if unknown or size == 0 else (place + size, True)
        if data[place] != 0xEC:  # a void may stand before it
            break
        size, place, _ = number(place + 1)
        place += size
    return 0, False


def _riff(data: bytes | mmap.mmap) -> int:
    """AVI and WebP: the end of the last RIFF chunk; a file over 1 GB has several."""
    place = 0
    while data[place : place + 4] == b"RIFF":
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if size == 0:  # a writer that was stopped
            return 0
        place += 8 + size
    return place


def _flv(data: bytes | mmap.mmap) -> int:
    """FLV: the end of the last tag; the duration is another matter."""
    place = int.from_bytes(data[5:9], "big") + 4
    while place + 11 <= len(data) and data[place] & 0x1F in (8, 9, 18):
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    return place if place - len(data) > 4 else 0  # the last tag's own length, behind it, matters to nobody


def _asf(data: bytes | mmap.mmap) -> int:
    """WMV: the file size of the file properties, unless it was broadcast."""
    place = data.find(_ASF_FILE, 0, 1 << 16)
    if place < 0 or len(data) < place + 96:
        return 0
    broadcast = int.from_bytes(data[place + 88 : place + 92], "little") & 1
    return 0 if broadcast else int.from_bytes(data[place + 40 : place + 48], "little")


def _ogg(data: bytes | mmap.mmap) -> int:
    """Ogg: the end of the last page."""
    place = data.rfind(b"OggS")
    if len(data) < place + 27:
        return _UNFINISHED
    segments = data[place + 26]
    table = data[place + 27 : place + 27 + segments]
    return place + 27 + segments + sum(table) if len(table) == segments else _UNFINISHED


def _png(data: bytes | mmap.mmap) -> int:
    """PNG, which may be animated: walks its chunks up to the last, IEND."""
    place = 8
    while data[place + 4 : place + 8] not in (b"", b"IEND"):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return place + 12


def _gif(data: bytes | mmap.mmap) -> int:
    """GIF: walks its blocks up to the trailer."""
    size = len(data)
    if size < 13:
        return _UNFINISHED
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while place < size:
        kind = data[place]
        if kind == 0x21:
            place += 2
        elif kind == 0x2C and place + 10 <= size:
            place += 11 + (3 << (data[place + 9] & 7) + 1 if data[place + 9] & 0x80 else 0)
        else:  # the trailer, or rubbish that players pass over
            return size
        while place < size and data[place]:
            place += 1 + data[place]
        place += 1
    return _UNFINISHED


def _too_short(source: Source) -> str:
    """Compares the time of the last packet with the duration that the header names."""
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        with av.open(opened, "r") as file:
            formats = set(file.format.name.split(","))
            if file.duration is None or not file.streams.video or not formats & set(_TIMED):
                return ""
            # Where the header has none, FFmpeg guesses from the bytes that are there: that lacks nothing.
            named = file.duration / av.time_base
            begin = (file.start_time or 0) / av.time_base
            last = begin
            with contextlib.suppress(av.FFmpegError):  # what is there ends where reading does
                for packet in file.demux():
                    if packet.pts is not None and packet.time_base is not None:
                        last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except (av.FFmpegError, OSError, ValueError):
        return ""  # whoever decodes it says what is wrong
    there = last - begin
    if there < named - max(_FAR[0], _FAR[1] * named):
        return f"cut off: its header names {named:.1f} s, {there:.1f} s are there"
    return ""
