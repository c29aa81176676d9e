"""Video through PyAV (FFmpeg): packets and their stamps, frames from the start or from any moment, on one clock."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vtr.data.decode.clock import FAR, Clock, Sound
from vtr.data.decode.container import open_container
from vtr.data.decode.packets import ONE_FRAME_PER_PACKET, hidden, strange
from vtr.data.decode.picture import Painter, VideoShot
from vtr.data.decode.sparse import CODECS, Looks, Sparse, Unread
from vtr.data.decode.types import CLOSE, MAX_PIXELS, Deadline, DecodeError, Shot, Source, source_name

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

S = TypeVar("S", bound=Shot)

# Containers whose stamps are the player's times as they stand (a browser shifts none of them); the others begin
# wherever their recorder's clock stood, and players count from the first stamp of any stream.
_ABSOLUTE = {"mov", "mp4", "matroska", "webm", "ogg"}
_BREAKS = {"mpegts", "mpeg"}  # containers whose stamps may break off and begin anew
_KEEP_BYTES = 8 << 20  # packets of files up to this size are kept between counting and decoding
_SMALL_PIXELS = 640 * 360 + 1  # below this, starting decoder threads costs more than it saves
_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before a moment at which a key frame is looked for
_STILL = 1.0  # seconds of sound that make a film of one picture
_NEAR = 0.5  # seconds by which the end that a header claims may miss what is there
_LOOKS = 24  # places of a long recording whose stamps are looked at
_NO_KEY = 2000  # packets without a key frame after which a place is given up
_NO_STAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS: a bare stream, which cannot be entered by time


class VideoReader:
    """One video stream of one file: `scan` lists the times of its frames, `play` decodes them.

    Attributes:
        fps, index: Mean frames a second, as the container says; the stream's number in it.
        begin, picture_end, end: Where frames begin, where they end, and where frames and sound end, in seconds on the
            timeline, once the file was scanned or played.
        regular: Whether the stamps seen so far can be believed as they stand, so that a moment is found by them.
        trusted: Whether counting packets counts frames.
        entered: Whether the last `play_from` jumped into the file.
        lost: Whether a frame that was to come out of the last `play` did not, or came out damaged.
        between: Most packets of other video tracks between two of this one, or behind it: a recording glued to this one.
    """

    def __init__(self, source: Source, deadline: Deadline, head: bytes, threads: int | None = None) -> None:
        self.name = source_name(source)
        self.errors = self.between = 0
        self.lost = False
        self.first_error = ""
        self.regular = True
        self._source, self._deadline, self._head, self._threads = source, deadline, head, threads
        self._packets: list[Packet] | None = None
        self._fresh = True
        self._cut_off = False
        self._choice: int | None = None
        self._sound = Sound()
        self._late: float | None = None  # seconds from a packet's count to the frame that it pushes out
        self._seen = 0
        self.painter = Painter(self.name)
        self._open()
        self.trusted = self.codec in ONE_FRAME_PER_PACKET
        self.begin = self.end = self.picture_end = self._last = 0.0
        self.entered = False

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the decoder."""
        self._packets = None
        self._container.close()

    def _open(self) -> None:
        import av

        try:
            self._container = open_container(self._source, self._deadline)
        except DecodeError:
            raise
        except (av.error.FFmpegError, ValueError, RuntimeError) as error:
            raise DecodeError(self.name, self._why_not_opened(error)) from None
        try:
            stream = self._choose_stream()
            if stream is None:  # packets were read to choose: begin again
                self._container.close()
                return self._open()
            self._describe(stream)
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

    def _choose_stream(self) -> VideoStream | None:
        """The stream to show; None where packets had to be read to tell, after which `_choice` tells."""
        from av.stream import Disposition

        streams = self._container.streams
        if self._choice is not None:
            return streams.video[self._choice]
        beside = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
        videos = [s for s in streams.video if not s.disposition & beside] or [
            s for s in streams.video if not s.disposition & Disposition.attached_pic
        ]
        if not videos:
            kinds = sorted({s.type for s in streams})
            if len(streams.video):
                raise DecodeError(self.name, "has no video, only a cover picture beside its sound")
            raise DecodeError(
                self.name, f"has no video stream ({'only ' + ', '.join(kinds) if kinds else 'no stream'})"
            )
        # Of several, the first that players show by default; FFmpeg's own choice would be the one of most pixels.
        videos.sort(key=lambda s: not s.disposition & Disposition.default)
        if len(videos) == 1 or videos[0].frames > 1:
            return videos[0]
        moving = self._first_moving(videos)
        self._choice = list(streams.video).index(moving)
        return None

    def _first_moving(self, videos: list[VideoStream]) -> VideoStream:
        """The first of these streams that holds more than one frame: a cover may stand before the film."""
        import av

        seen = dict.fromkeys((s.index for s in videos), 0)
        try:
            for count, packet in enumerate(self._container.demux(*videos)):
                seen[packet.stream_index] += packet.size > 0
                if seen[videos[0].index] > 1 or count > _NO_KEY:
                    break
                if count > 100 and max(seen.values()) > 50:
                    break
        except (av.error.FFmpegError, ValueError):
            pass
        return next((s for s in videos if seen[s.index] > 1), videos[0])

    def _describe(self, stream: VideoStream) -> None:
        self._stream, self.index = stream, stream.index
        context = stream.codec_context
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
        self.used_threads = context.thread_count
        self.fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        self.claimed = int(stream.frames or 0)
        self._tick = float(stream.time_base or 1 / self.fps)
        self.painter.aspect = stream.sample_aspect_ratio
        formats = set(self._container.format.name.split(","))
        self.breaks = bool(formats & _BREAKS)
        self._decode_stamps = "avi" in formats  # its packets are counted, not stamped with the time of display
        self._enterable = not self._container.format.flags & _NO_STAMPS
        start = self._container.start_time
        self.origin = 0.0 if formats & _ABSOLUTE else None if start is None else start / 1e6
        length = self._container.duration
        # Matroska and FLV write where the file ends, the others how long it is.
        begins = 0.0 if formats & {"matroska", "webm", "flv"} else (start or 0) / 1e6
        self.claimed_end = None if not length else begins + length / 1e6 - (self.origin or 0.0)

    def _demux(self, *, whole: bool = False) -> Iterator[Packet]:
        """Packets of the video stream up to the end, or to where the file can no longer be read.

        Args:
            whole: The file is read from its start to its end: take note of the sound on the way.
        """
        import av

        if whole:
            self._sound = Sound()
        there = self._container.streams
        others = (*there.audio, *(s for s in there.video if self.breaks and s is not self._stream)) if whole else ()
        packets = self._container.demux(*(streams := (self._stream, *others)))
        first, run, longest = True, 0, 0
        while True:
            self._deadline.check()
            try:
                packet = next(packets)
            except StopIteration:
                self.between = max(run, longest) if whole else self.between
                return
            except DecodeError:
                raise
            except (
                IndexError
            ) as error:  # a track that begins here, or damage that looks like one: PyAV does not know it
                self._note(error)
                run += _NO_KEY  # its packets cannot be counted
                packets = self._container.demux(*streams)
                continue
            except (av.error.FFmpegError, ValueError) as error:
                self._note(error)
                return
            if packet.size == 0:  # the flush packet comes last; the decoder is flushed by `_decoded`
                continue
            if packet.stream_index != self._stream.index:
                if packet.stream.type == "video":
                    run += 1
                elif packet.pts is not None:
                    tick = float(packet.time_base)
                    self._sound.heard(packet.pts * tick, (packet.duration or 0) * tick)
                continue
            if first and packet.has_sidedata("encryption_info"):
                raise DecodeError(self.name, "its video is encrypted (DRM), no key")
            first, run, longest = False, 0, max(run, longest)
            yield packet

    def scan(self) -> np.ndarray:
        """Times of the frames that are there, without decoding: float64 (n,) ascending, seconds on the timeline.

        Reads every packet once. What an edit list hides does not count. Where the stamps are not `regular`, only the
        number counts.
        """
        self._rewind()
        stamps: list[float | None] = []
        orders: list[float | None] = []
        kept: list[Packet] | None = []
        total, latest, lasts = 0, -np.inf, 0.0
        for packet in self._demux(whole=True):
            if packet.is_corrupt:  # cut off at the end of a truncated file: perhaps a frame, perhaps none
                self._cut_off = True
            if not packet.is_discard and not hidden(packet, self.codec):
                stamp = packet.dts if self._decode_stamps else packet.pts
                stamps.append(None if stamp is None else stamp * self._tick)
                orders.append(None if packet.dts is None else packet.dts * self._tick)
                if stamp is not None and stamp >= latest:
                    latest, lasts = stamp, (packet.duration or 0) * self._tick
            total += packet.size
            if kept is not None:
                kept.append(packet)
                if total > _KEEP_BYTES:
                    kept = None
        self._packets = kept
        self._fresh = kept is not None
        known = sorted(s for s in stamps if s is not None)
        # Frames are found again by their times: that takes a time for each, all different.
        complete = len(known) == len(stamps) == len(set(known))
        self.regular = complete and not strange(stamps, orders, 1 / self.fps, self.breaks)
        self.trusted = self.codec in ONE_FRAME_PER_PACKET and not self._cut_off
        self._seen = len(stamps)
        if not self.regular:
            return np.arange(len(stamps)) / self.fps
        times = np.asarray(known, dtype=np.float64)
        shift = -(float(times[0]) if self.origin is None and len(times) else self.origin or 0.0)
        if len(times):
            self.begin = float(times[0]) + shift
            self._ended(float(times[-1]) + shift, shift, lasts)
        return times + shift

    def _rewind(self) -> None:
        if not self._fresh:
            self._container.close()
            self._packets = None
            self._open()
        self._fresh = False

    def single_thread(self) -> None:
        """Decode with one thread from now on: after damage, several threads lose more frames than one."""
        self._threads = 1
        self._fresh = False

    def play(self) -> Iterator[tuple[float, VideoShot]]:
        """Every shown frame in display order from the first, with its time; damaged packets are skipped."""
        packets, clock = self._begun()
        yield from self._timed(clock, self._stamped(self._decoded(packets)))

    def play_for(self, looks: Looks | None, *, keys: bool = False) -> Iterator[tuple[float, Shot]]:
        """As `play`; frames that are not looked at are `Unread` where that saves decoding them.

        Args:
            looks: Which frames are looked at; None: all.
            keys: Only key frames are decoded.
        """
        packets, clock = self._begun()
        if self._decode_stamps or not (keys or (looks is not None and self.codec in CODECS)):
            yield from self._timed(clock, self._stamped(self._decoded(packets)))
        else:
            yield from self._timed(clock, self._sparse(packets, clock, looks, keys))

    def _begun(self) -> tuple[Iterator[Packet], Clock]:
        """All packets from the first on, and a clock for their frames."""
        kept = self._packets if self._fresh else None
        self._rewind()
        self.errors, self.first_error, self.lost = 0, "", False
        packets = iter(kept) if kept is not None else self._demux(whole=True)
        return packets, Clock(origin=self.origin, step=1 / self.fps, breaks=self.breaks, sound=self._sound)

    def _timed(self, clock: Clock, shots: Iterator[tuple[float | None, S]]) -> Iterator[tuple[float, S]]:
        """Shots with their times, taking note of what they tell of the file."""
        lasts, seen = 0.0, 0
        for at, shot in clock.run(shots):
            lasts = (shot.frame.duration or 0) * self._tick if isinstance(shot, VideoShot) else 0.0
            self.lost = self.lost or shot.is_corrupt
            self.begin = at if seen == 0 else self.begin
            seen += 1
            yield at, shot
        self.regular, self._seen = self.regular and not clock.broken, seen
        if clock.last is not None:
            self._ended(clock.last, None if clock.broken else clock.shift, lasts)

    def _sparse(
        self, packets: Iterator[Packet], clock: Clock, looks: Looks | None, keys: bool
    ) -> Iterator[tuple[float | None, Shot]]:
        """As `_stamped`, of what must be decoded; the others `Unread`."""

        def looked_at(start: float, end: float) -> bool | None:
            if looks is None or clock.last is None or clock.broken or self.errors:
                return None
            return looks(start + clock.shift, end + clock.shift)

        def unread(stamp: int) -> Unread:
            def reread() -> np.ndarray:
                sparse.off = True
                with VideoReader(self._source, self._deadline, self._head, self._threads) as other:
                    return next(shot for _, shot in other.play_from(stamp * self._tick + clock.shift)).pixels()

            return Unread(reread)

        sparse = Sparse(self._stream.codec_context, self._decode, self._tick, looked_at)
        for frame in (sparse.key_frames if keys else sparse.frames)(packets, lambda p: hidden(p, self.codec)):
            self.lost = self.lost or sparse.lost
            if isinstance(frame, tuple):
                yield frame[0] * self._tick, unread(frame[0])
            else:
                yield None if frame.pts is None else frame.pts * self._tick, VideoShot(frame, self.painter)

    def _ended(self, last: float, shift: float | None, lasts: float) -> None:
        """Take note of where the file ends, after its last frame.

        Args:
            last: Time of the last frame.
            shift: From raw seconds to the timeline; None: sound may belong to any part of the recording.
            lasts: Seconds that the last frame claims to last.
        """
        self._last = last
        held = lasts if 0 < lasts < FAR and self._seen > 1 else 1 / self.fps
        self.end = self.picture_end = last + held
        if shift is not None and self._sound.end is not None:
            self.end = max(self.end, self._sound.end + shift)

    def length(self) -> float:
        """Seconds of the file's timeline, once it was scanned or played: what it claims, where that can be.

        0 for a picture that no sound accompanies.
        """
        if self._seen == 1 and self.end < self.begin + _STILL + 1 / self.fps:
            return 0.0
        claimed = self.claimed_end
        if claimed is None or self._cut_off or self.claimed > 1.02 * self._seen + 2:
            return self.end
        if claimed < self._last + CLOSE:  # its last frame would never be shown
            return self.end
        if abs(claimed - self.end) <= _NEAR or self.end < claimed <= self.end + FAR:
            return claimed
        return self.end

    def lacking(self) -> str:
        """What of the file was not shown, once it was played to its end; "" where that is nothing to speak of."""
        if self.between > 2 * self.fps:
            return "tracks begin in its middle (another recording glued to it, or damage), which are not read: cut them apart"
        if self.errors > 2 + 0.1 * self._seen:
            return f"damaged: {self.errors} of its packets cannot be decoded ({self.first_error})"
        claimed = self.claimed_end or 0.0
        if self.claimed > 1.02 * self._seen + 2 and 0.9 * claimed - 1 > self.end > claimed - FAR:
            return f"its header names {claimed:.1f} s, {self.end:.1f} s are there: damaged, or a wrong index"
        return ""

    def play_from(self, moment: float, *, sure: bool = False) -> Iterator[tuple[float, VideoShot]]:
        """As `play`, but from the frame on display at a moment on.

        It is reached from a key frame before it, recognised by its time. Where the file cannot be entered there with
        certainty, it is played from the start.

        Args:
            moment: Seconds on the timeline.
            sure: Begin further before the moment, and take what comes: damage belongs to the file.
        """
        ways = _BACK[3:] if sure else _BACK
        for back in ways if self.enterable else ():
            if moment - back <= 0:
                break
            frames = self._enter(moment - back, moment, sure)
            if frames is not None:
                self.entered = True
                yield from frames
                return
        self.entered = False
        yield from self.play()

    def _demux_from(self, place: float) -> Iterator[Packet] | None:
        """Packets from the last key frame before a place on, as the container finds it; None where it cannot."""
        import av

        self._fresh, self._packets, self.errors = False, None, 0
        if self.origin is None:
            return None
        try:
            self._container.seek(int((place + self.origin) / self._tick), stream=self._stream, backward=True)
        except (av.error.FFmpegError, ValueError):
            return None
        return self._demux()

    def times_between(self, start: float, end: float) -> np.ndarray:
        """Times of the frames of a span, and of one or more before it, read from packets; empty where that fails."""
        times: list[float] = []
        for back in _BACK if self.enterable else ():
            packets = self._demux_from(max(0.0, start - back))
            if packets is None or self.origin is None:
                break
            for packet in packets:
                stamp = packet.dts if self._decode_stamps else packet.pts
                if stamp is not None and not packet.is_discard and not hidden(packet, self.codec):
                    times.append(stamp * self._tick - self.origin)
                order = packet.dts if packet.dts is not None else stamp
                if order is not None and order * self._tick - self.origin > end + CLOSE:
                    break
            if start - back <= 0 or (times and min(times) <= start + CLOSE):
                break
            times = []
        return np.unique(np.asarray(times, dtype=np.float64))

    def survey(self, lasts: float | None = None) -> None:
        """Look at stamps in a long recording of a kind whose stamps may break, before it is entered: here and there, and
        whether its ends are as far apart as it `lasts`."""
        import av

        size = self._container.size
        if not self.breaks or not self.regular or size <= 0:
            return
        self._fresh, self._packets = False, None
        found: list[float] = []
        for place in range(_LOOKS):
            try:
                self._container.seek(size * place // _LOOKS, unsupported_byte_offset=True)
            except (av.error.FFmpegError, ValueError):
                return
            stamps = (p.dts for p, _ in zip(self._demux(), range(50)) if p.dts is not None)
            first = next(stamps, None)
            if first is not None:
                found.append(first * self._tick)
        steps = np.diff(found)
        if (lasts is not None and abs(lasts - (self.claimed_end or lasts)) > 2 * _NEAR) or (
            len(steps) and (steps.min() < 0 or steps.max() > max(FAR, 20 * float(np.median(steps))))
        ):
            self.regular = False

    @property
    def enterable(self) -> bool:
        """Whether the file can be entered at a moment."""
        return self._enterable and self.regular and self.origin is not None

    def _enter(self, place: float, moment: float, sure: bool) -> Iterator[tuple[float, VideoShot]] | None:
        """Frames from the one at `moment` on, after a jump to a key frame before `place`; None where that fails."""
        if self._decode_stamps and self._late is None:
            next(self.play(), None)  # after a jump, the first frame may be some packets later than its own
        packets = self._demux_from(place)
        if packets is None or self.origin is None:
            return None
        key = next((p for p, _ in zip(packets, range(_NO_KEY)) if p.is_keyframe), None)
        stamp = None if key is None else key.dts if self._decode_stamps else key.pts
        if key is None or stamp is None or stamp * self._tick - self.origin > moment + CLOSE:
            return None
        begin = stamp * self._tick
        # What is shown before the key frame refers to frames before it, which are not there.
        stamped = self._stamped(self._decoded(itertools.chain([key], packets)))
        frames = (f for f in stamped if f[0] is None or f[0] >= begin - CLOSE)
        placed = Clock(origin=self.origin, step=1 / self.fps, breaks=self.breaks).run(frames)
        on_display: tuple[float, VideoShot] | None = None
        for at, shot in placed:
            if not sure and (self.errors or shot.is_corrupt):
                return None
            if at > moment + CLOSE:
                if on_display is None:
                    return None
                return itertools.chain([on_display, (at, shot)], placed)
            on_display = at, shot
        return None if on_display is None else iter([on_display])

    def _stamped(self, frames: Iterator[tuple[VideoFrame, float | None]]) -> Iterator[tuple[float | None, VideoShot]]:
        """Frames with their raw times of display, None where there is none."""
        for frame, entry in frames:
            stamp = frame.dts if self._decode_stamps else frame.pts
            if stamp is None:
                yield None, VideoShot(frame, self.painter)
                continue
            at = stamp * self._tick
            if self._decode_stamps and entry is not None:
                # Each frame carries the count of the packet that pushed it out: the decoder's delay is the same for all.
                self._late = at - entry if self._late is None else self._late
                at -= self._late
            yield at, VideoShot(frame, self.painter)

    def _decoded(self, packets: Iterator[Packet]) -> Iterator[tuple[VideoFrame, float | None]]:
        """Frames in display order, each with the decoding stamp (raw seconds) of the first packet."""
        import av

        entry: float | None = None
        for packet in packets:
            if entry is None and packet.dts is not None:
                entry = packet.dts * self._tick
            for frame in self._decode(packet):
                yield frame, entry
        try:
            for frame in self._decode(None):
                yield frame, entry
        except av.error.EOFError:
            return

    def _decode(self, packet: Packet | None) -> Iterator[VideoFrame]:
        import av

        self._deadline.check()
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
            self._deadline.progress()
            yield frame

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
