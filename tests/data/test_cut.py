"""Clips cut out of videos: the right frames and sound, from every container, in files that play."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.data.media import film
from vtr.data.decode import DecodeError, probe
from vtr.data.decode.cut import cut

FPS, SECONDS = 25, 4
MADE = {
    "a.mp4": ("libx264", "aac"),
    "a.mkv": ("libx264", "aac"),
    "a.webm": ("libvpx", "libopus"),
    "a.ts": ("libx264", "aac"),
}
PLACES = [(32 * (b // 4), 16 * (b % 4)) for b in range(8)]


def numbered(path: Path, codec: str, sound: str | None, colours: str = "yuv420p") -> Path:
    """A film whose frames show their numbers in light and dark squares, with a beep at each full second."""
    with av.open(path, "w") as out:
        video: Any = out.add_stream(codec, rate=FPS)
        video.width = video.height = 64
        video.pix_fmt, video.codec_context.gop_size = colours, FPS
        if codec == "mpeg4":
            video.codec_context.max_b_frames = 2
        audio: Any = out.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for number in range(FPS * SECONDS):
            image = np.full((64, 64, 3), 20, np.uint8)
            for bit, (y, x) in enumerate(PLACES):
                image[y : y + 32, x : x + 16] = 230 if number >> bit & 1 else 20
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(video.encode(None))
        if audio is not None:
            times = np.arange(48000 * SECONDS) / 48000
            wave = (0.5 * np.sin(2000 * np.pi * times) * (times % 1 < 0.1)).astype(np.float32)
            for at in range(0, len(wave), 960):
                frame = av.AudioFrame.from_ndarray(np.stack([wave[at : at + 960]] * 2), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
                out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path


def numbers(path: Path) -> list[int]:
    """The numbers of a clip's frames."""
    with av.open(path) as file:
        shown = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    return [sum(int(picture[y + 16, x + 8] > 128) << b for b, (y, x) in enumerate(PLACES)) for picture in shown]


def first_beep(path: Path) -> float:
    """Seconds at which it begins to be loud."""
    with av.open(path) as file:
        for frame in file.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(np.float32)).max(0) > 0.1
            if loud.any():
                return (
                    float(frame.time or 0)
                    + int(loud.argmax() // (1 if frame.format.is_planar else 2)) / frame.sample_rate
                )
    raise AssertionError("no beep")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {name: numbered(folder / name, *codecs) for name, codecs in MADE.items()}


@pytest.mark.parametrize("name", MADE)
def test_an_exact_clip_begins_with_the_frame_on_display_and_its_sound(
    films: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made = cut(films[name], 1.6, 2.6, tmp_path / "clip", exact=True)
    first, *_, last = numbers(made.path)
    assert (made.path.suffix, made.encoded, made.start, made.end) == (".mp4", True, 1.6, 2.6)
    assert abs(first - 1.6 * FPS) <= 1
    assert abs(last - (2.6 * FPS - 1)) <= 1
    assert first_beep(made.path) == pytest.approx(0.4, abs=0.03)  # at 2 s of the film


@pytest.mark.parametrize(
    ("name", "ending"), [("a.mp4", ".mp4"), ("a.mkv", ".mp4"), ("a.webm", ".webm"), ("a.ts", ".mp4")]
)
def test_a_copy_begins_at_the_key_frame_before_and_says_where(
    films: dict[str, Path], tmp_path: Path, name: str, ending: str
) -> None:
    made = cut(films[name], 1.5, 2.5, tmp_path / "clip")
    shown = numbers(made.path)
    assert (made.path.suffix, made.encoded, made.note) == (ending, False, "")
    assert made.start <= 1.5
    assert abs(shown[0] - made.start * FPS) <= 1
    assert shown == list(range(shown[0], shown[-1] + 1))
    assert shown[-1] >= 2.5 * FPS - 2
    assert made.end == pytest.approx((shown[-1] + 1) / FPS, abs=0.05)
    beep = (made.start + first_beep(made.path)) % 1  # of the film: it beeps for a tenth of each second
    assert beep < 0.12 or beep > 0.96


def test_bytes_are_cut_as_files_are(films: dict[str, Path], tmp_path: Path) -> None:
    made = cut(films["a.mkv"].read_bytes(), 0.0, 0.4, tmp_path / "clip", exact=True)
    assert numbers(made.path) == list(range(10))


def test_a_clip_lasts_as_long_as_what_it_is_of_and_no_longer(films: dict[str, Path], tmp_path: Path) -> None:
    made = cut(films["a.mp4"], 3.5, 99.0, tmp_path / "clip", exact=True)
    assert made.end == pytest.approx(SECONDS, abs=0.05)
    assert numbers(made.path)[-1] == FPS * SECONDS - 1


@pytest.mark.parametrize("end", [4.0, 4.1])
def test_an_exact_clips_last_frame_is_shown_up_to_its_end(tmp_path: Path, end: float) -> None:
    data = film([np.full((48, 64, 3), n, np.uint8) for n in range(15)], fps=3)
    assert probe(cut(data, 1.9, end, tmp_path / "clip", exact=True).path).duration == pytest.approx(end - 1.9, abs=1e-3)


@pytest.mark.parametrize(("name", "codec", "colours"), [("a.avi", "mpeg4", "yuv420p"), ("a.mp4", "libx264", "yuv444p")])
def test_what_cannot_be_copied_is_encoded_and_says_so(tmp_path: Path, name: str, codec: str, colours: str) -> None:
    made = cut(numbered(tmp_path / name, codec, None, colours), 1.5, 2.5, tmp_path / "clip")
    assert made.encoded
    assert made.note.startswith("cannot be copied (")
    assert abs(numbers(made.path)[0] - 1.5 * FPS) <= 1


def test_a_moment_behind_the_end_and_a_broken_file_are_one_line_and_leave_nothing(
    films: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DecodeError, match=r"lasts 4\.\d\d s, so there is nothing at 9 s"):
        cut(films["a.mp4"], 9.0, 10.0, tmp_path / "clip")
    with pytest.raises(DecodeError):
        cut(io.BytesIO(b"nothing at all").getvalue(), 0.0, 1.0, tmp_path / "clip")
    assert list(tmp_path.iterdir()) == []
