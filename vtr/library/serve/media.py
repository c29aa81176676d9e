"""Files that the server gives out: only videos of the library, unchanged since they were indexed; their thumbnails."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from vtr.data.shards import split_member
from vtr.errors import VtrError
from vtr.library.files import shown

HASHED_UP_TO = 32 << 20  # bytes: smaller files are compared by content, larger ones by size and time
CACHE_BYTES = 64 << 20  # thumbnails kept in memory
_FORGET = 60.0  # seconds after which a thumbnail that could not be made is tried again
_SHARDS = 64  # whose lists of samples are kept
_DECODE = 15.0  # seconds without progress after which a thumbnail is given up

# What a browser is told a file is. Anything else is only offered as a download, so that no file of the library, whatever
# it holds, becomes a page of this server.
TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm",
    ".mkv": "video/x-matroska", ".ogv": "video/ogg", ".avi": "video/x-msvideo", ".wmv": "video/x-ms-wmv",
    ".flv": "video/x-flv", ".mpg": "video/mpeg", ".mpeg": "video/mpeg", ".vob": "video/mpeg", ".3gp": "video/3gpp",
    ".ts": "video/mp2t", ".mts": "video/mp2t", ".m2ts": "video/mp2t", ".mxf": "application/mxf",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif",
    ".bmp": "image/bmp", ".avif": "image/avif", ".tif": "image/tiff", ".tiff": "image/tiff", ".heic": "image/heic",
    ".jpe": "image/jpeg", ".jfif": "image/jpeg", ".jif": "image/jpeg", ".dib": "image/bmp", ".apng": "image/apng",
    ".qt": "video/quicktime", ".f4v": "video/mp4", ".mk3d": "video/x-matroska", ".3g2": "video/3gpp2", ".m2t": "video/mp2t",
}  # fmt: skip


class Refused(VtrError):
    """A file that is not given out, and the HTTP status that says so."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


@dataclass(frozen=True, kw_only=True)
class Video:
    """What the library knows of a file: its path, and its size, time and content hash when it was indexed.

    A sample of a shard has `SHARD.tar/KEY.mp4` as its path, and None where nothing was written down.
    """

    id: int
    path: str
    bytes: int | None
    modified: float | None
    sha256: str | None

    @property
    def name(self) -> str:
        return shown(Path(self.path).name)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A segment: its video and its span in seconds (equal ends for an image), of one library (its stamp)."""

    library: str
    id: int
    video: Video
    start: float
    end: float
    lasts: float  # seconds of the whole video


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checked file that is open: `size` bytes from `first` on belong to the video; `tag` names this content."""

    fd: int
    first: int
    size: int
    tag: str

    def read(self, count: int, at: int) -> bytes:
        """Up to `count` bytes from place `at` of the video. Moves no place that another reader shares."""
        return os.pread(self.fd, max(0, min(count, self.size - at)), self.first + at)

    def whole(self) -> bytes:
        parts, at = [], 0
        while part := self.read(1 << 20, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self.fd)


class Files:
    """Opens files of the library after checking that they are still what was indexed.

    Args:
        follow_links: Also serve a symbolic link that leads out of the folder it lies in.
    """

    def __init__(self, *, follow_links: bool = False) -> None:
        self.follow_links = follow_links
        self._hashes: dict[tuple[int, ...], str] = {}  # of files in the state that `identity` tells
        self._samples: OrderedDict[tuple[int, ...], dict[tuple[str, str], tuple[int, int]]] = OrderedDict()  # of shards
        self._lock = threading.Lock()

    def open(self, video: Video) -> Opened:
        """The video, opened; the caller closes it.

        What is checked is the open file itself, so that nothing can be put in its place between check and reading.

        Raises:
            Refused: It is gone, has changed, is no regular file, or is a link out of its folder.
        """
        shard, sign, sample = video.path.partition(".tar/")
        in_shard = bool(sign) and video.modified is None
        if in_shard and "://" in shard:
            raise Refused(410, f"{video.name} lies in a shard on another machine and is not served")
        path = Path(f"{shard}.tar" if in_shard else video.path)
        if path.is_symlink() and not self.follow_links:
            target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
            if not target.is_relative_to(folder):
                raise Refused(
                    403,
                    f"{shown(path.name)} is a symbolic link that leads out of its folder and is not served; "
                    "the server's --follow-links would allow it",
                )
        try:
            # NONBLOCK: opening a pipe that took the file's place must not wait for a writer.
            fd = os.open(os.path.realpath(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Refused(410, f"{video.name} is no longer there") from None
        except OSError as error:
            raise Refused(410, f"{video.name} can no longer be read ({error.strerror})") from None
        try:
            return self._checked(video, fd, sample if in_shard else None)
        except OSError as error:
            os.close(fd)
            raise Refused(410, f"{video.name} can no longer be read ({error.strerror})") from None
        except BaseException:
            os.close(fd)
            raise

    def _checked(self, video: Video, fd: int, sample: str | None) -> Opened:
        facts = os.fstat(fd)
        changed = Refused(409, f"{video.name} has changed since it was indexed; index it again to see it")
        if not stat.S_ISREG(facts.st_mode):
            raise changed
        first, size = 0, facts.st_size
        if sample is not None:
            first, size = self._place(fd, sample, video)
        if video.bytes is not None and size != video.bytes:
            raise changed
        if video.sha256 is None:
            state = ",".join(map(str, (*identity(fd), first)))
            return Opened(fd=fd, first=first, size=size, tag=hashlib.sha256(state.encode()).hexdigest()[:32])
        opened = Opened(fd=fd, first=first, size=size, tag=video.sha256[:32])
        # A file may be touched without a change, or changed under an old date: then its content decides.
        if (facts.st_mtime != video.modified or size <= HASHED_UP_TO) and self._hash(opened) != video.sha256:
            raise changed
        return opened

    def _hash(self, opened: Opened) -> str:
        key = (*identity(opened.fd), opened.first)
        with self._lock:
            known = self._hashes.get(key)
        if known is None:
            digest, at = hashlib.sha256(), 0
            while part := opened.read(1 << 20, at):
                digest.update(part)
                at += len(part)
            # "": it was written to meanwhile.
            known = digest.hexdigest() if (*identity(opened.fd), opened.first) == key else ""
            with self._lock:
                if len(self._hashes) > 100_000:
                    self._hashes.clear()
                self._hashes[key] = known
        return known

    def _place(self, fd: int, sample: str, video: Video) -> tuple[int, int]:
        """Where a sample begins in its shard, and its size."""
        key = identity(fd)
        with self._lock:
            places = self._samples.get(key)
            if places is not None:
                self._samples.move_to_end(key)
        if places is None:
            try:
                with os.fdopen(os.dup(fd), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                    places = {}
                    for m in tar:
                        if m.isreg() and m.sparse is None and (named := split_member(m.name)):
                            places.setdefault(named, (m.offset_data, m.size))
            except (tarfile.TarError, EOFError) as error:
                raise Refused(410, f"the shard of {video.name} can no longer be read ({shown(str(error))})") from None
            with self._lock:
                self._samples[key] = places
                while len(self._samples) > _SHARDS:
                    self._samples.popitem(last=False)
        place = places.get(split_member(sample) or ("", ""))
        if place is None:
            raise Refused(410, f"{video.name} is no longer in its shard")
        return place


def identity(fd: int) -> tuple[int, ...]:
    """What tells one state of a file from another; the change time (ctime) cannot be set by programs."""
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last+1 byte of a Range header, None for the whole file (RFC 9110: what cannot be read is ignored).

    Raises:
        Refused: The range lies behind the end (416).
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header or "", re.ASCII | re.IGNORECASE)
    if not found or found.groups() == ("", ""):
        return None  # several ranges too: the whole file is a right answer
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise Refused(416, f"the file has {size} bytes: nothing at the range asked for")
    return start, end


_Key = tuple[str, int, float, float, int]  # library, segment, its ends, frames


class Thumbnails:
    """JPEG pictures of moments, kept in memory up to a number of bytes; the oldest unused ones go first."""

    def __init__(self, files: Files, *, capacity: int = CACHE_BYTES) -> None:
        self.files, self.capacity = files, capacity
        self._cache: OrderedDict[_Key, bytes] = OrderedDict()
        self._failed: dict[_Key, tuple[float, str]] = {}
        self._size = 0
        self._lock = threading.Lock()
        self._making: dict[_Key, threading.Lock] = {}

    def get(self, moment: Moment, frames: int, width: int) -> bytes:
        """The moment's first picture, or `frames` of them side by side, each at most `width` x `width` pixels.

        Raises:
            Refused: The file is gone or has changed, or gives no picture.
        """
        opened = self.files.open(moment.video)
        try:
            key = (moment.library, moment.id, moment.start, moment.end, frames)
            with self._lock:
                lock = self._making.setdefault(key, threading.Lock())
            with lock:  # those who ask for the same picture meanwhile wait for it
                try:
                    return self._kept(key) or self._made(key, opened, moment, frames, width)
                finally:
                    with self._lock:
                        self._making.pop(key, None)
        finally:
            opened.close()

    def _kept(self, key: _Key) -> bytes | None:
        with self._lock:
            when, why = self._failed.get(key, (0.0, ""))
            if why and time.monotonic() - when < _FORGET:
                raise Refused(410, why)
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _made(self, key: _Key, opened: Opened, moment: Moment, frames: int, width: int) -> bytes:
        before = identity(opened.fd)
        in_shard = opened.first > 0
        try:
            made = _strip(opened.whole() if in_shard else Path(moment.video.path), moment, frames, width)
        except (VtrError, OSError, ValueError, MemoryError) as error:
            with self._lock:
                if len(self._failed) > 10_000:
                    self._failed.clear()
                self._failed[key] = time.monotonic(), f"no picture of {moment.video.name}: {shown(str(error))}"
            raise Refused(410, self._failed[key][1]) from error
        # The decoder opened the file by its path: it must be the one that was checked.
        again = self.files.open(moment.video)
        try:
            if identity(again.fd) != before:
                raise Refused(409, f"{moment.video.name} is changing; try again")
        finally:
            again.close()
        with self._lock:
            self._cache[key] = made
            self._size += len(made)
            while self._size > self.capacity:
                self._size -= len(self._cache.popitem(last=False)[1])
        return made


def _strip(source: Path | bytes, moment: Moment, count: int, width: int) -> bytes:
    from PIL import Image

    from vtr.data.decode import read_moment

    still = moment.end <= moment.start
    # One picture is the one that the player shows when it begins there. In this process: the same bytes were decoded
    # here when the file was indexed.
    clip = read_moment(
        source,
        count,
        start=None if still else moment.start,
        end=None if still else moment.start if count == 1 else moment.end,
        lasts=moment.lasts,
        least=width,
        timeout=_DECODE,
        threads=1,
    )
    pictures = [Image.fromarray(frame) for frame in clip.frames]
    for picture in pictures:
        picture.thumbnail((width, width))
    wide, high = pictures[0].size
    strip = Image.new("RGB", (wide * len(pictures), high))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (wide * i, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=80)
    return file.getvalue()
