"""A stretch of a video as a file of its own: copied at key frames, or encoded again from the very frame.

Times are seconds on the file's own timeline, as a player counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.container import open_container
from vtr.data.decode.frames import open_media
from vtr.data.decode.pyav import VideoReader
from vtr.data.decode.sniff import source_bytes
from vtr.data.decode.types import CLOSE, Deadline, DecodeError, Player, Shot, Source, source_name
from vtr.data.decode.windows import video_end
from vtr.files import write_atomically

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

_TICKS = 90_000  # a second, of an encoded clip's stamps
_QUALITY = "18"  # x264's constant rate factor: no difference is seen
_RATE = 48_000  # samples a second
_MARGIN = 0.5  # seconds of sound that are decoded before the first one wanted
# What browsers play, by container; what neither holds goes into Matroska.
_MP4 = {"h264", "hevc", "av1", "mpeg4", "aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"}
_WEBM = {"vp8", "vp9", "av1", "opus", "vorbis"}
_FORMATS = {"mp4": ".mp4", "webm": ".webm", "matroska": ".mkv"}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A clip that was made.

    Attributes:
        path: The file.
        start, end: What it holds, in seconds of the source: a copy begins at the key frame before what was asked for.
        encoded: Whether it was encoded again.
        note: Why it was, where a copy was asked for; "" otherwise.
    """

    path: Path
    start: float
    end: float
    encoded: bool
    note: str = ""


def cut(
    source: Source,
    start: float,
    end: float,
    out: Path,
    *,
    exact: bool = False,
    lasts: float | None = None,
    timeout: float = 60.0,
) -> Cut:
    """Write a stretch of a video to a file.

    Args:
        source: A path, or the file's bytes.
        start, end: Seconds.
        out: The new file without its ending: that follows from what it holds (.mp4, .webm, .mkv).
        exact: Encode again (H.264 and AAC) from the frame on display at `start` on, as it is shown: upright, square
            pixels. Otherwise packets are copied from the key frame before it, without loss and in no time; what cannot
            be copied so is encoded.
        lasts: Seconds of the whole file, where they are known.
        timeout: Seconds without progress.

    Raises:
        DecodeError: It gives no frames there.
        OSError: The clip cannot be written.
    """
    import av

    deadline = Deadline(source_name(source), timeout)
    with open_media(source, deadline) as reader:
        if isinstance(reader, VideoReader):
            until = min(end, video_end(reader, source_bytes(source), start, None, lasts)) if end > start else end
            if not exact:
                why = _not_copied(reader)
                if not why:
                    try:
                        return _copied(source, reader, start, until, out, deadline)
                    except (av.error.FFmpegError, ValueError, LookupError) as error:
                        why = getattr(error, "strerror", None) or str(error)
                return _encoded(source, reader, start, until, out, deadline, f"cannot be copied ({why}): encoded again")
            return _encoded(source, reader, start, until, out, deadline, "")
        return _encoded(source, reader, start, min(end, reader.length()), out, deadline, "")


def _not_copied(reader: VideoReader) -> str:
    if not reader.enterable or reader.origin is None:
        return "it has no times"
    return "" if reader.regular else "its times are not what they say"


# -- copies -----------------------------------------------------------------------------------------------------------


def _copied(source: Source, reader: VideoReader, start: float, end: float, out: Path, deadline: Deadline) -> Cut:
    import av

    origin = reader.origin or 0.0
    with open_container(source, deadline) as container:
        if "avi" in container.format.name.split(","):
            raise LookupError("an AVI says when packets are decoded, not when they are shown")
        video = container.streams[reader.index]
        if _codec(video) == "h264" and str(getattr(video, "pix_fmt", "")).startswith(("yuv444", "gbr")):
            raise LookupError("H.264 with full colour may be read right from its first picture alone")
        first, place = _key_before(container, video, start + origin)
        base = float(first.pts * first.time_base)  # type: ignore[operator]
        sound = [s for s in container.streams.audio if _codec(s)]
        names = {_codec(s) for s in (video, *sound)}
        kind = "mp4" if names <= _MP4 else "webm" if names <= _WEBM else "matroska"
        path, last = out.with_name(out.name + _FORMATS[kind]), base
        with (
            write_atomically(path) as partial,
            av.open(f"file:{partial}", "w", format=kind, options=_options(kind)) as made,
        ):
            streams = {s.index: made.add_stream_from_template(s) for s in (video, *sound)}
            container.seek(place, stream=video, backward=True)
            for packet in _between(_stamped(container.demux(video, *sound), video), video, first, end + origin):
                tick = packet.time_base or Fraction(1)
                if packet.stream_index == video.index:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * tick))
                shift = round(base / tick)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream_index]
                made.mux(packet)
            if last == base:
                raise LookupError("its packets are not found again")
    return Cut(path=path, start=base - origin, end=last - origin, encoded=False)


def _codec(stream: Stream) -> str:
    """A stream's codec; "" for one that this FFmpeg does not know."""
    codec = getattr(stream.codec_context, "codec", None)
    return "" if codec is None else str(getattr(codec, "canonical_name", None) or codec.name)


def _options(kind: str) -> dict[str, str]:
    return {"movflags": "+faststart"} if kind == "mp4" else {}


def _key_before(container: InputContainer, video: Stream, moment: float) -> tuple[Packet, int]:
    """The last key frame up to a moment (raw seconds), and from where it is found; LookupError where there is none."""
    tick = video.time_base or Fraction(1)
    for back in (0.0, 1.0, 4.0, 16.0, 64.0):
        place = int((moment - back) / tick)
        container.seek(place, stream=video, backward=True)
        found = None
        for packet in container.demux(video):
            if packet.pts is None:
                if packet.size:
                    raise LookupError("packets without times")
                break
            if packet.is_keyframe and packet.pts * tick <= moment + CLOSE:
                found = packet
            elif (packet.pts if packet.dts is None else packet.dts) * tick > moment:
                break
        if found is not None:
            return found, place
    raise LookupError("no key frame before it")


def _stamped(packets: Iterable[Packet], video: Stream) -> Iterator[Packet]:
    """Packets, each with the time at which it is decoded: after a jump, Matroska's first ones have none."""
    waiting: list[Packet] = []
    for packet in packets:
        if packet.pts is None:
            continue
        if packet.stream_index == video.index and (packet.dts is None or waiting):
            waiting.append(packet)
            if packet.dts is None:
                continue
            step = max(1, min(p.duration or 1 for p in waiting))
            for number, earlier in enumerate(waiting):
                earlier.dts = packet.dts - (len(waiting) - 1 - number) * step
            yield from waiting
            waiting = []
        elif packet.dts is not None:
            yield packet
    if waiting:
        raise LookupError("packets without times")


def _between(packets: Iterable[Packet], video: Stream, first: Packet, last: float) -> Iterator[Packet]:
    """Packets from a key frame on, up to a moment (raw seconds), with all that is shown before the last one of them."""
    begun = False
    base = float((first.pts or 0) * (first.time_base or 1))
    shown = first.pts or 0
    for packet in packets:
        if packet.pts is None or packet.dts is None or packet.time_base is None:
            continue
        late = float(packet.dts * packet.time_base) >= last - CLOSE
        if packet.stream_index != video.index:
            if not late and float(packet.pts * packet.time_base) >= base - CLOSE:
                yield packet
            continue
        if late and packet.dts >= shown:
            return
        begun = begun or packet.pts == first.pts
        # Those shown before the key frame need what was before it; of the late ones, those shown among the others are left.
        if begun and packet.pts >= (first.pts or 0) and not (late and packet.pts > shown):
            shown = max(shown, packet.pts)
            yield packet


# -- encoded again ----------------------------------------------------------------------------------------------------


def _encoded(source: Source, reader: Player, start: float, end: float, out: Path, deadline: Deadline, note: str) -> Cut:
    import av

    path = out.with_name(out.name + ".mp4")
    origin = getattr(reader, "origin", None)
    sound = _sound(source, origin, start, end, deadline) if isinstance(reader, VideoReader) else iter(())
    heard = next(sound, None)
    options = _options("mp4")
    with write_atomically(path) as partial, av.open(f"file:{partial}", "w", format="mp4", options=options) as made:
        stream: VideoStream | None = None
        audio = made.add_stream("aac", rate=_RATE, layout="stereo") if heard is not None else None
        for at, shot in _shown(reader, start, end):
            pixels = shot.pixels()
            pixels = np.ascontiguousarray(
                pixels[: max(2, pixels.shape[0] // 2 * 2), : max(2, pixels.shape[1] // 2 * 2)]
            )
            if stream is None:
                stream = _video_stream(made, reader.fps, pixels.shape[1], pixels.shape[0])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(stream.width, stream.height, format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = round((max(at, start) - start) * _TICKS), Fraction(1, _TICKS)
            made.mux(stream.encode(frame))
            deadline.progress()
        if stream is None:
            raise DecodeError(source_name(source), f"has no frame from {start:.2f} to {end:.2f} s")
        rest = stream.encode(None)
        for packet in rest[-1:]:  # the encoder takes it to last as long as the first one does
            packet.duration = max(1, round((end - start) * _TICKS) - frame.pts)
        made.mux(rest)
        written = 0
        while heard is not None and audio is not None:
            block = av.AudioFrame.from_ndarray(heard, format="fltp", layout="stereo")
            block.sample_rate, block.pts, block.time_base = _RATE, written, Fraction(1, _RATE)
            written += heard.shape[1]
            made.mux(audio.encode(block))
            heard = next(sound, None)
        if audio is not None:
            made.mux(audio.encode(None))
    return Cut(path=path, start=start, end=end, encoded=True, note=note)


def _video_stream(made: OutputContainer, fps: float, width: int, height: int) -> VideoStream:
    stream = made.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = Fraction(1, _TICKS)
    # Without B-frames: the file ends where its last packet does, and that is the last frame then.
    stream.codec_context.options = {"crf": _QUALITY, "preset": "veryfast", "bf": "0"}
    stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = (
        1  # BT.709
    )
    return stream


def _shown(reader: Player, start: float, end: float) -> Iterator[tuple[float, Shot]]:
    """What is on display from a moment on, with its times; the last one again at the end where it is held for long."""
    held: tuple[float, Shot] | None = None
    last: tuple[float, Shot] | None = None
    for at, shot in reader.play_from(start):
        if at <= start + CLOSE:
            held = at, shot
            continue
        if held is not None:
            last = start, held[1]
            yield last
            held = None
        if at >= end - CLOSE:
            break
        last = at, shot
        yield last
    if held is not None:
        last = start, held[1]
        yield last
    step = 1 / reader.fps
    if last is not None and end - last[0] > 1.5 * step:
        yield end - step, last[1]


def _sound(source: Source, origin: float | None, start: float, end: float, deadline: Deadline) -> Iterator[np.ndarray]:
    """The sound of a stretch as float32 blocks (2, n) without gaps: silence stands where there is none."""
    import av

    if origin is None:
        return
    with open_container(source, deadline) as container:
        streams = [
            s for s in container.streams.audio if s.codec_context is not None and s.codec_context.codec is not None
        ]
        if not streams:
            return
        stream = streams[0]
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_RATE)
        total, written = round((end - start) * _RATE), 0
        try:
            container.seek(
                int((max(start - _MARGIN, 0.0) + origin) / (stream.time_base or 1)), stream=stream, backward=True
            )
            for frame in container.decode(stream):
                deadline.progress()
                place = round((float(frame.time or 0.0) - origin - start) * _RATE)
                if place >= total:
                    break
                for block in resampler.resample(frame):
                    samples = block.to_ndarray()
                    drop = max(0, written - place)
                    if drop < samples.shape[1]:
                        if place > written:
                            yield np.zeros((2, place - written), np.float32)
                            written = place
                        part = np.ascontiguousarray(samples[:, drop : drop + total - written])
                        if part.size:
                            yield part
                            written += part.shape[1]
                    place += samples.shape[1]
        except (av.error.FFmpegError, ValueError):
            return  # the rest is silent
