"""Small media files made for tests: scenes of plain colours at given times, in many containers and codecs."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

from vtr.data.decode import Window

RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 160, 0)
NAMES = {"red": RED, "blue": BLUE, "green": GREEN, "white": (235, 235, 235)}


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture of one colour: uint8 (H, W, 3)."""
    return np.full((size[1], size[0], 3), colour, np.uint8)


def scenes(seconds: float = 4.0, fps: int = 5, colours: Sequence[tuple[int, int, int]] = (RED, BLUE, GREEN)) -> list:
    """Frames of one colour after the other."""
    return [plain(c) for c in colours for _ in range(round(seconds * fps))]


def film(
    frames: Iterable[np.ndarray],
    *,
    fmt: str = "mp4",
    codec: str = "libx264",
    fps: int = 5,
    times: Sequence[float] | None = None,
    begin: float = 0.0,
    sound: tuple[float, float] | None = None,
    gop: int = 10,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    aspect: Fraction | None = None,
    change: Callable[[int, av.Packet], None] | None = None,
) -> bytes:
    """A film as bytes.

    Args:
        frames: uint8 (H, W, 3) each.
        fmt, codec, gop, options, muxer, pix_fmt, aspect: As FFmpeg knows them; aspect is that of a pixel.
        fps: Frames a second, where `times` does not say when each is shown.
        times: Seconds of each frame.
        begin: Seconds added to all times of the picture.
        sound: Seconds from which to which there is sound.
        change: Gets each packet of the picture, by number in decoding order, before it is written.
    """
    frames = list(frames)
    held = io.BytesIO()
    with av.open(held, "w", format=fmt, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        clock = Fraction(1, 1000) if times is not None or codec.startswith("libvpx") else Fraction(1, fps)
        stream.codec_context.time_base = clock
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        audio = container.add_stream("libopus" if fmt in ("webm", "matroska") else "mp2", rate=48000) if sound else None
        packets = []
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pix_fmt)
            at = (number / fps if times is None else times[number]) + begin
            frame.pts, frame.time_base = round(at / clock), clock
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if audio is not None and sound is not None:
            audio.layout = "mono"
            packets += list(_tone(audio, *sound))
        container.start_encoding()
        for number, packet in enumerate(p for p in packets if p.stream is stream):
            if change is not None:
                change(number, packet)
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            container.mux(packet)
    return held.getvalue()


def _tone(audio: av.AudioStream, start: float, end: float) -> Iterator[av.Packet]:
    form = audio.codec_context.format.name
    step = audio.codec_context.frame_size or 960
    for place in range(round(start * 48000), round(end * 48000), step):
        wave = np.sin(np.arange(place, place + step) * 0.05)[None] * 0.1
        data = (wave * 32767).astype(np.int16) if form.startswith("s16") else wave.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(data, form, "mono")
        frame.rate, frame.pts, frame.time_base = 48000, place, Fraction(1, 48000)
        yield from audio.encode(frame)
    yield from audio.encode(None)


def remuxed(
    data: bytes, fmt: str, *, shift: float = 0.0, muxer: dict[str, str] | None = None, **change: object
) -> bytes:
    """The same packets in another container.

    Args:
        data: A film.
        fmt, muxer: As FFmpeg knows them.
        shift: Seconds added to all stamps.
        change: `at`, a function that gets number and packet.
    """
    held = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(held, "w", format=fmt, options=muxer or {}) as target:
        tracks = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for number, packet in enumerate(p for p in source.demux() if p.size):
            packet.stream = tracks[packet.stream_index]
            moved = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
            if "at" in change:
                change["at"](number, packet)  # type: ignore[operator]
            target.mux(packet)
    return held.getvalue()


def moved(number: int, seconds: float) -> Callable[[int, av.Packet], None]:
    """A change that moves the stamps of one packet."""

    def change(place: int, packet: av.Packet) -> None:
        if place == number:
            packet.pts += round(seconds / packet.time_base)

    return change


def colour(pixels: np.ndarray) -> str:
    """The name of the colour that a picture (H, W, 3) mostly is."""
    mean = pixels.reshape(-1, 3).mean(0)
    return min(NAMES, key=lambda name: float(np.abs(mean - NAMES[name]).sum()))


def seen(window: Window) -> list[str]:
    """Colours of a window's frames, each run of equal ones once."""
    names = [colour(f.permute(1, 2, 0).numpy()) for f in window.frames]
    return [n for i, n in enumerate(names) if i == 0 or names[i - 1] != n]


def box(kind: bytes, body: bytes) -> bytes:
    """A box of ISO 14496-12."""
    return struct.pack(">I4s", 8 + len(body), kind) + body
