"""One moment costs one moment: any file is entered at any time, shows the right frame, and reads little of itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.media import BLUE, GREEN, RED, colour, film, remuxed, scenes
from vtr.data.decode import DecodeError, container, probe, read_frames, read_moment, read_windows
from vtr.data.decode import frames as decode_frames
from vtr.data.decode import pyav as decode_pyav
from vtr.data.decode.types import Deadline, TimeLimit

KINDS = [
    ("mp4", "libx264", {"bf": "2"}),
    ("mp4", "mpeg4", {"bf": "2"}),
    ("matroska", "libx264", {"bf": "2"}),
    ("webm", "libvpx", {"deadline": "realtime"}),
    ("avi", "mpeg4", {"bf": "2"}),
    ("avi", "mpeg4", {}),
    ("avi", "libx264", {"bf": "2"}),
    ("mpegts", "mpeg2video", {"bf": "2"}),
    ("mpegts", "libx264", {"bf": "2"}),
    ("flv", "libx264", {"bf": "2"}),
    ("asf", "wmv2", {}),
    ("mov", "prores_ks", {}),
]


def numbered(count: int, size: int = 64) -> list[np.ndarray]:
    """Pictures that each tell their number, in the brightness of sixteen fields."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, (count, 4, 4)) * 200 + 20
    return [np.repeat(np.kron(c, np.ones((size // 4, size // 4)))[..., None], 3, 2).astype(np.uint8) for c in codes]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as too long to be read whole."""
    monkeypatch.setattr(decode_frames, "SCAN_BYTES", 0)
    monkeypatch.setattr("vtr.data.decode.windows.SCAN_BYTES", 0)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("fmt", "codec", "options"), KINDS, ids=[f"{f}-{c}-{len(o)}" for f, c, o in KINDS])
def test_a_moment_shows_the_frame_that_playing_shows(
    fmt: str, codec: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    data = film(numbered(750), fmt=fmt, codec=codec, fps=25, gop=12, options=options, pix_fmt=pix_fmt)
    monkeypatch.setattr(decode_frames, "SCAN_BYTES", 1 << 30)
    played = read_frames(data, lambda n: list(range(n)))
    monkeypatch.setattr(decode_frames, "SCAN_BYTES", 0)
    for moment in (0.1, 7.03, 13.0, 20.5, 29.5):
        clip = read_moment(data, 1, start=moment, end=moment)
        place = int(np.searchsorted(played.times, moment + 1e-4, side="right")) - 1
        assert clip.times[0] == pytest.approx(played.times[place], abs=2e-3)
        assert np.array_equal(clip.frames[0], played.frames[place]), moment
    span = read_frames(data, lambda n: [0, n // 2], start=20.0, end=22.0)
    assert span.times == pytest.approx([20.0, 21.0], abs=0.021)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("fmt", "codec", "options"), [k for k in KINDS if k[1] != "prores_ks"])
def test_a_late_moment_decodes_and_reads_little(
    fmt: str, codec: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = film(numbered(3000), fmt=fmt, codec=codec, fps=25, gop=25, options={**options, "crf": "8", "b": "2000000"})
    decoded, read = [0], [0]
    decode, fetch = decode_pyav.VideoReader._decode, container._Input.read

    def counting(self, packet):
        for frame in decode(self, packet):
            decoded[0] += 1
            yield frame

    def fetching(self, size=-1):
        part = fetch(self, size)
        read[0] += len(part)
        return part

    monkeypatch.setattr(decode_pyav.VideoReader, "_decode", counting)
    monkeypatch.setattr(container._Input, "read", fetching)
    clip = read_moment(data, 1, start=100.0, end=100.0)
    assert clip.times[0] == pytest.approx(100.0, abs=0.05)
    assert decoded[0] <= 160
    assert read[0] < max(len(data) / 2, 6 << 20)


@pytest.mark.usefixtures("large")
def test_a_glued_recording_is_not_entered_by_its_stamps() -> None:
    parts = [film(scenes(8.0, 25, (c,)), fmt="mpegts", fps=25) for c in (RED, BLUE, GREEN)]
    for moment, name in ((1.0, "red"), (12.0, "blue"), (20.0, "green")):
        assert colour(read_moment(b"".join(parts), 1, start=moment, end=moment).frames[0]) == name


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("fmt", ["mpegts", "mpeg"])
def test_a_short_piece_glued_to_a_long_recording_is_told_by_its_length(fmt: str) -> None:
    codec = "libx264" if fmt == "mpegts" else "mpeg2video"
    piece, long = (
        film(scenes(s, 25, c), fmt=fmt, codec=codec, fps=25) for s, c in ((2.0, (BLUE,)), (60.0, (RED, GREEN)))
    )
    for data, moment, name in (
        (piece + long, 61.0, "red"),
        (piece + long, 63.0, "green"),
        (long + piece, 121.0, "blue"),
    ):
        lasts = probe(data).duration
        assert lasts == pytest.approx(122.0, abs=0.2)
        assert colour(read_moment(data, 1, start=moment, end=moment, lasts=lasts).frames[0]) == name


@pytest.mark.usefixtures("large")
def test_late_pictures_are_entered_on_the_same_clock() -> None:
    for fmt in ("mp4", "matroska"):
        data = film(scenes(8.0), fmt=fmt, begin=20.0, sound=(0.0, 44.0))
        for moment, name in ((5.0, "red"), (21.0, "red"), (30.0, "blue"), (43.0, "green")):
            assert colour(read_moment(data, 1, start=moment, end=moment).frames[0]) == name
    late = remuxed(film(scenes(8.0)), "mpegts", shift=5000.0, muxer={"mpegts_copyts": "1"})
    assert colour(read_moment(late, 1, start=12.0, end=12.0).frames[0]) == "blue"


def test_what_lies_behind_the_end_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"lasts 12\.0. s, so there is nothing at 90 s"):
        read_moment(film(scenes()), 4, start=90.0, end=92.0)


def test_a_slow_disk_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block takes a fifth of the limit, the whole file many limits."""
    path = tmp_path / "film.mkv"
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(10)]
    path.write_bytes(film([noise[i % 10] for i in range(300)], fmt="matroska", options={"crf": "5"}))
    monkeypatch.setattr(container, "_BLOCK", 1 << 16)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fetch = container._Input.read

    def slow(self, size=-1):
        now[0] += 0.1
        return fetch(self, min(size, 1 << 15))

    monkeypatch.setattr(container._Input, "read", slow)
    windows = list(read_windows(path, window=8, stride=4, frames=4, size=16, timeout=1.0))
    assert len(windows) == 14
    assert now[0] > 3.0  # three times the limit
    assert read_moment(path, 1, start=50.0, end=50.0, timeout=1.0).times[0] == pytest.approx(50.0)


def test_the_time_that_the_user_of_a_window_takes_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in read_windows(film(scenes()), window=2, stride=1, frames=4, size=16, timeout=1.0):
        now[0] += 50.0


def test_a_file_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(container, "_BLOCK", 1 << 40)  # nothing after the first bytes is new
    fetch = container._Input.read

    def stuck(self, size=-1):
        now[0] += 0.5
        return fetch(self, min(size, 1 << 9))

    monkeypatch.setattr(container._Input, "read", stuck)
    with pytest.raises(DecodeError, match="time limit of 1 s"):
        read_frames(film(scenes()), lambda n: [0], timeout=1.0)


def test_the_time_in_which_a_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, killed = [0.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
    monkeypatch.setattr(Deadline, "_still", 0)
    deadline = Deadline("film", 90.0)
    now[0] += 1e6  # and the thread that watches woke once
    deadline.check()
    Deadline.tick()
    assert killed == []
    for _ in range(8):
        Deadline.tick()
    assert killed == [signal.SIGALRM]
    for _ in range(6):
        now[0] += 20.0
        deadline.check()
    now[0] += 20.0
    with pytest.raises(TimeLimit):
        deadline.check()


def test_decord_follows_the_clock_or_leaves_the_file() -> None:
    pytest.importorskip("decord")
    plain = film(numbered(40), options={"bf": "2"})
    ours = read_frames(plain, lambda n: [0, 9, 39])
    theirs = read_frames(plain, lambda n: [0, 9, 39], backend="decord")
    assert np.array_equal(ours.frames, theirs.frames)
    assert theirs.times == pytest.approx(ours.times, abs=2e-3)
    late = film(numbered(40), begin=6.0, sound=(0.0, 14.0))
    with pytest.raises(DecodeError, match="decord"):
        read_frames(late, lambda n: [0], backend="decord")
    glued = b"".join(film(scenes(4.0, 25, (c,)), fmt="mpegts", fps=25) for c in (RED, BLUE))
    with pytest.raises(DecodeError, match="decord"):
        read_frames(glued, lambda n: [0], backend="decord")
