"""What a file really is, by its first bytes: so that an error can say "a git-LFS pointer" instead of "invalid data"."""

from __future__ import annotations

import os
from pathlib import Path

from vtr.data.decode.types import DecodeError, Source, Stored, source_name

_HEAD = 1024
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
)
_IMAGES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_IMAGE_BRANDS = (b"avif", b"avis", b"mif1", b"heic", b"heix")


def read_head(source: Source) -> bytes:
    """The first bytes of a source. A path that is missing, a folder, a device or unreadable raises DecodeError."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:_HEAD])
    if isinstance(source, Stored):
        with source.open() as stored:
            return stored.read(_HEAD)
    path = Path(source)
    name = source_name(source)
    try:
        if path.is_dir():
            raise DecodeError(name, "is a folder, not a file")
        if path.exists() and not path.is_file():
            raise DecodeError(name, "is not a regular file")
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise DecodeError(name, "no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DecodeError(name, f"cannot be read: {reason}") from None


def source_bytes(source: Source) -> int:
    """Size of a source in bytes."""
    if isinstance(source, Stored):
        return source.size()
    return len(source) if isinstance(source, (bytes, bytearray, memoryview)) else os.stat(source).st_size


def not_media(head: bytes, size: int) -> str | None:
    """What the file is, where that is certainly no video and no image; None where it may be one."""
    if size == 0:
        return "the file is empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the media itself: fetch it with `git lfs pull`"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "is an HTML page, not media (a failed download?)"
    if b"<svg" in start:
        return "is an SVG drawing, which is not decoded: export it as PNG"
    if head[257:262] == b"ustar":
        return "is a tar archive, not one video: read it as a shard or unpack it"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return f"is {what}, not media"
    if start.startswith((b"#extm3u", b"ffconcat")):
        return "is a playlist that names other files, not media: give the media file itself"
    if not head.strip(b"\x00"):
        return f"starts with {len(head)} zero bytes (an unfinished download?)"
    if not head.startswith((b"YUV4MPEG2", b"P1", b"P2", b"P3")) and _is_text(head):
        words = " ".join(head.decode("utf-8", "replace").split())
        return f"is text, not media: it begins with {words[:40]!r}"
    return None


def _is_text(head: bytes) -> bool:
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return False
    for cut in range(4):  # the last character may be cut in two
        try:
            head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


def image_format(head: bytes) -> str | None:
    """Format of a still (or animated WebP/AVIF) that PIL should read; None for everything else, GIF included."""
    for magic, name in _IMAGES:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
        return "avif"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "ppm"
    return None


def missing_bytes(data: bytes) -> int:
    """Bytes that an MP4/MOV file promises (ISO 14496-12, sizes of its top-level boxes) but does not hold; else 0."""
    if data[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):  # QuickTime has no ftyp
        return 0
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size == 0:  # up to the end of the file
            return 0
        if size < 8:  # no box: rubbish after the last one, which players pass over
            return 0
        place += size
    return max(0, place - len(data))
