"""Decoding less: what is decoded has the same pixels, and what is passed over keeps its place in time."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vtr.data.decode import Window, pyav, read_windows
from vtr.data.decode.pyav import VideoReader

_MANY_B = {"preset": "veryfast", "x264-params": "bframes=8:b-adapt=0:b-pyramid=strict:keyint=60"}
_OPEN = {"preset": "veryfast", "x264-params": "open-gop=1:bframes=4:b-adapt=0:keyint=24:min-keyint=12"}
_HEVC = {"preset": "ultrafast", "x265-params": "bframes=4:b-adapt=0:open-gop=1:keyint=24:log-level=none"}


def _film(codec: str, options: dict[str, str], container: str, frames: int = 150) -> bytes:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (40, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    import av

    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        if codec == "mpeg4":
            stream.max_b_frames = 2
        for i in range(frames):
            picture = np.ascontiguousarray(texture[i // 3 : i // 3 + 96, i : i + 160])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def _windows(film: bytes, **how: object) -> tuple[list[Window], float]:
    windows = read_windows(film, window=2.0, stride=1.0, frames=2, size=32, **how)  # type: ignore[arg-type]
    return list(windows), windows.duration


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts frames that decoders give out."""
    count = [0]
    real = VideoReader._decode

    def counting(self: VideoReader, packet: object) -> Iterator[object]:
        for frame in real(self, packet):  # type: ignore[arg-type]
            count[0] += 1
            yield frame

    monkeypatch.setattr(VideoReader, "_decode", counting)
    return count


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("codec", "options", "container"),
    [
        ("libx264", _MANY_B, "mp4"),
        ("libx264", _MANY_B, "matroska"),
        ("libx264", _OPEN, "mpegts"),
        ("libx264", _OPEN, "mp4"),
        ("libx265", _HEVC, "mp4"),
        ("libx265", _HEVC, "matroska"),
        ("mpeg4", {}, "mp4"),
        ("mpeg2video", {"bf": "2"}, "mpegts"),
    ],
)
def test_passing_over_frames_changes_no_pixel_and_no_time(
    codec: str, options: dict[str, str], container: str, threads: int, decoded: list[int]
) -> None:
    film = _film(codec, options, container)
    whole, duration = _windows(film, thorough=True, threads=threads)
    all_frames, decoded[0] = decoded[0], 0
    sparse, same = _windows(film, threads=threads)
    assert decoded[0] < all_frames
    assert same == duration
    assert [(w.start, w.end) for w in sparse] == [(w.start, w.end) for w in whole]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(sparse, whole))


def test_a_frame_that_was_passed_over_gives_its_pixels_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    film = _film("libx264", _MANY_B, "mp4")
    whole, _ = _windows(film, thorough=True)
    monkeypatch.setattr("vtr.data.decode.windows._Cutter.looks", lambda *_: False)  # a wrong prediction, always
    wrong, _ = _windows(film)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(wrong, whole))


def test_key_frames_alone_give_the_same_windows_from_fewer_frames(decoded: list[int]) -> None:
    film = _film("libx264", _OPEN, "mp4")
    whole, duration = _windows(film, thorough=True)
    decoded[0] = 0
    quick, same = _windows(film, keyframes=True)
    assert decoded[0] < 15
    assert same == duration
    assert [(w.start, w.end) for w in quick] == [(w.start, w.end) for w in whole]
    assert torch.equal(quick[0].frames[0], quick[0].frames[0])
    assert not torch.equal(quick[0].frames, quick[-1].frames)


def test_a_damaged_film_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    film = bytearray(_film("libx264", _MANY_B, "mp4"))
    for place in range(len(film) // 3, len(film) // 2, 97):
        film[place] ^= 0x55
    windows = read_windows(bytes(film), window=2.0, stride=1.0, frames=2, size=32)
    assert list(windows)
    assert windows.damaged


def test_stamps_that_begin_anew_are_decoded_whole(decoded: list[int]) -> None:
    film = _film("libx264", _MANY_B, "mpegts")
    whole, duration = _windows(film * 2, thorough=True)
    decoded[0] = 0
    sparse, same = _windows(film * 2)
    assert same == duration
    assert [(w.start, w.end) for w in sparse] == [(w.start, w.end) for w in whole]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(sparse, whole))
    assert pyav.CODECS
