"""Video through PyAV (FFmpeg): frame times without decoding, then frames in display order and orientation."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vtr.data.decode.types import MAX_PIXELS, Deadline, DecodeError, Source, source_name

# Codecs in which each packet holds exactly one shown frame (or says that it is hidden), so that counting packets counts
# frames. Elsewhere (packed AVI and the like) the count is checked by decoding to the end.
_ONE_FRAME_PER_PACKET = {
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
_KEEP_BYTES = 8 << 20  # packets of files up to this size are kept between counting and decoding
_SMALL_PIXELS = 640 * 360 + 1  # below this, starting decoder threads costs more than it saves
_SEEK_SECONDS = 4.0


class _Input(io.RawIOBase):
    """A file as FFmpeg sees it: no name to read meaning into (dashes, `%03d`, `http:`), and a time limit in reads."""

    def __init__(self, source: Source, deadline: Deadline) -> None:
        self._file: Any
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._file = io.BytesIO(source)
        else:
            self._file = open(source, "rb", buffering=0)  # noqa: SIM115
        self._deadline = deadline

    def read(self, size: int = -1) -> bytes:
        self._deadline.check()
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


class VideoReader:
    """One video stream of one file: `scan` lists the times of its frames, `frames` decodes them."""

    def __init__(self, source: Source, deadline: Deadline, head: bytes, threads: int | None = None) -> None:
        self.name = source_name(source)
        self.errors = 0
        self.first_error = ""
        self._source, self._deadline, self._head, self._threads = source, deadline, head, threads
        self._packets: list[Any] | None = None
        self._reformatter: Any = None
        self._origin: float | None = None
        self._cut_off = False
        self._open()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the decoder."""
        self._packets = None
        self._container.close()
        self._input.close()

    def _open(self) -> None:
        import av
        from av.stream import Disposition

        self._input = _Input(self._source, self._deadline)
        try:
            # A playlist inside an upload must not make FFmpeg open other files or addresses: no protocol is allowed.
            self._container = av.open(
                self._input, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace", buffer_size=65536
            )
        except DecodeError:
            self._input.close()
            raise
        except (av.error.FFmpegError, ValueError, RuntimeError) as error:
            self._input.close()
            raise DecodeError(self.name, self._why_not_opened(error)) from None
        try:
            self._choose_stream(Disposition)
        except DecodeError:
            self.close()
            raise

    def _why_not_opened(self, error: Exception) -> str:
        if self._head[4:8] == b"ftyp":
            return "an MP4/MOV file whose index (moov) is missing or damaged: cut off or malformed"
        if self._head[:4] == b"\x1a\x45\xdf\xa3":
            return "a Matroska/WebM file with a damaged header"
        detail = getattr(error, "strerror", None) or str(error)
        return f"not recognised as video or image, or its header is damaged ({detail})"

    def _choose_stream(self, disposition: Any) -> None:
        container = self._container
        videos = [s for s in container.streams.video if not s.disposition & disposition.attached_pic]
        if not videos:
            kinds = sorted({s.type for s in container.streams})
            if len(container.streams.video):
                raise DecodeError(self.name, "has no video, only a cover picture beside its sound")
            raise DecodeError(
                self.name, f"has no video stream ({'only ' + ', '.join(kinds) if kinds else 'no stream'})"
            )
        # Of several, the first that players show by default; FFmpeg's own choice would be the one of most pixels.
        self._stream = next((s for s in videos if s.disposition & disposition.default), videos[0])
        context = self._stream.codec_context
        if context is None or getattr(context, "codec", None) is None:
            raise DecodeError(self.name, "its video is in a codec that this FFmpeg cannot decode")
        self.codec = getattr(context.codec, "canonical_name", None) or context.name
        if self.codec.startswith("lib"):
            self.codec = context.name.removeprefix("lib")
        self.codec = {"dav1d": "av1", "vpx-vp9": "vp9", "vpx": "vp8"}.get(self.codec, self.codec)
        if str(context.codec_tag).lower() in ("encv", "drmi"):
            raise DecodeError(self.name, "its video is encrypted (DRM), no key")
        if (context.width or 0) * (context.height or 0) > MAX_PIXELS:
            raise DecodeError(
                self.name, f"claims {context.width}x{context.height} pixels, more than the limit of {MAX_PIXELS}"
            )
        small = (context.width or 0) * (context.height or 0) < _SMALL_PIXELS
        context.thread_count = self._threads or (1 if small else min(4, os.cpu_count() or 1))
        if context.thread_count > 1:
            context.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0) or 25.0
        self.claimed = int(self._stream.frames or 0)
        self._tick = float(self._stream.time_base or 1 / self.fps)
        self.trusted = self.codec in _ONE_FRAME_PER_PACKET and not self._cut_off

    def _seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else stamp * self._tick

    def _demux(self) -> Iterator[Any]:
        """Packets of the video stream up to the end, or to where the file can no longer be read."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            self._deadline.check()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except DecodeError:
                raise
            except (av.error.FFmpegError, ValueError) as error:
                self._note(error)
                return
            if packet.size == 0:  # the flush packet comes last; the decoder is flushed by `frames`
                continue
            yield packet

    def scan(self) -> np.ndarray:
        """Times of the frames that are there, without decoding: float64 (n,) ascending, seconds from the first.

        Reads every packet once. What an edit list hides does not count.
        """
        stamps: list[float | None] = []
        kept: list[Any] | None = []
        total = 0
        for packet in self._demux():
            if not total and packet.has_sidedata("encryption_info"):
                raise DecodeError(self.name, "its video is encrypted (DRM), no key")
            if packet.is_corrupt:  # cut off at the end of a truncated file: perhaps a frame, perhaps none
                self._cut_off = True
            if not packet.is_discard and not _hidden(packet, self.codec):
                stamps.append(self._seconds(packet.pts))
            total += packet.size
            if kept is not None:
                kept.append(packet)
                if total > _KEEP_BYTES:
                    kept = None
        self._packets = kept
        self._fresh = kept is not None
        known = sorted(s for s in stamps if s is not None)
        self._origin = known[0] if known else 0.0
        # Seeking finds frames again by their time: that takes a time for each, all different.
        self.trusted = self.trusted and not self._cut_off
        self.seekable = self.trusted and len(known) == len(stamps) == len(set(known))
        if len(known) < len(stamps):
            return np.arange(len(stamps)) / self.fps
        return np.asarray(known, dtype=np.float64) - self._origin

    def frames(self, seek: float = 0.0) -> Iterator[tuple[float | None, Any]]:
        """Every shown frame in display order, as (seconds from the first, PyAV frame); damaged packets are skipped.

        Args:
            seek: Begin at the last key frame before this time, where that is far enough to be worth it.
        """
        if not self._fresh or seek > _SEEK_SECONDS:
            self._container.close()
            self._input.close()
            self._packets = None
            self._open()
            if seek > _SEEK_SECONDS:
                self._seek(seek)
        self._fresh = False
        self.used_threads = self._stream.codec_context.thread_count
        self.errors, self.first_error = 0, ""
        packets = self._packets if self._packets is not None else self._demux()
        for packet in packets:
            self._deadline.check()
            yield from self._decode(packet)
        yield from self._decode(None)

    def single_thread(self) -> None:
        """Decode with one thread from now on: after damage, several threads lose more frames than one."""
        self._threads = 1

    def _seek(self, seconds: float) -> None:
        import av

        target = int((seconds + (self._origin or 0.0)) / self._tick)
        try:
            self._container.seek(target, stream=self._stream, backward=True, any_frame=False)
        except (av.error.FFmpegError, ValueError):
            self._container.close()
            self._input.close()
            self._open()

    def _decode(self, packet: Any) -> Iterator[tuple[float | None, Any]]:
        import av

        try:
            decoded = self._stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ValueError) as error:
            self.errors += 1
            self._note(error)
            return
        for frame in decoded:
            if frame.width * frame.height > MAX_PIXELS:
                raise DecodeError(self.name, f"a frame of {frame.width}x{frame.height} pixels: over the limit")
            at = self._seconds(frame.pts)
            yield (None if at is None else at - (self._origin or 0.0)), frame

    def _note(self, error: Exception) -> None:
        if not self.first_error:
            self.first_error = str(getattr(error, "strerror", None) or error)

    def why_no_frames(self, packets: int) -> str:
        """The cause to name where not one frame came out."""
        claimed = f", its header claims {self.claimed} frames" if self.claimed else ""
        if packets == 0:
            return f"a header without any video data{claimed}"
        error = f"; first error: {self.first_error}" if self.first_error else ""
        return f"none of its {packets} {self.codec} packets could be decoded: damaged or encrypted{claimed}{error}"

    def rgb(self, frame: Any) -> np.ndarray:
        """A PyAV frame as RGB, turned and mirrored as the file's display matrix asks: uint8 (H, W, 3)."""
        import av
        from av.video.reformatter import VideoReformatter

        if self._reformatter is None:
            # One converter for all frames: building FFmpeg's scaler anew costs more than converting a small frame.
            self._reformatter = VideoReformatter()
        try:
            pixels = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.name, f"pixels of format {frame.format.name} cannot be shown: {error}") from None
        return oriented(pixels, display_matrix(frame))


def _hidden(packet: Any, codec: str) -> bool:
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


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the frame's display matrix, 16.16 fixed point: x' = a x + c y, y' = b x + d y; None: upright."""
    try:
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                values = np.frombuffer(bytes(data), dtype="=i4")
                if values.size >= 5:
                    return int(values[0]), int(values[1]), int(values[3]), int(values[4])
    except ValueError:  # PyAV cannot list side data that holds a kind it has no name for; the turn alone is known then
        one = 1 << 16
        turns = {0: None, 90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}
        return turns.get(round(frame.rotation / 90) % 4 * 90)
    return None


def oriented(pixels: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
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


def turn_of(matrix: tuple[int, int, int, int] | None) -> int:
    """Degrees clockwise (0, 90, 180, 270) of a display matrix; a mirror image counts as its turn alone."""
    if matrix is None:
        return 0
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return 90 if b > 0 else 270
    return 180 if a < 0 and d < 0 else 0
