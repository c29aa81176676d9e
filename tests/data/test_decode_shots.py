"""A video along its shots: windows begin with cuts and cross none, whatever is passed over while decoding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.data.media import BLUE, GREEN, RED, film, plain, scenes, seen
from vtr.data.decode import Window, read_moment, read_windows
from vtr.data.decode.glimpse import glimpse
from vtr.data.decode.picture import Painter, VideoShot
from vtr.data.decode.shots import Features, grid_of, times_on_grid
from vtr.data.decode.types import Still
from vtr.data.transforms import eval_frames

T, S = 4, 16


def cut(data: bytes, window: float = 4.0, stride: float = 2.0, **more: object) -> list[Window]:
    return list(read_windows(data, window=window, stride=stride, frames=T, size=S, segments="shots", **more))  # type: ignore[arg-type]


def spans(windows: list[Window]) -> list[tuple[float, float]]:
    return [(round(w.start, 2), round(w.end, 2)) for w in windows]


def moving(*shots: int, gop: int = 250) -> bytes:
    """Shots of so many frames, 10 a second: textures that drift; a key frame every `gop` of them."""
    frames = []
    for seed, count in enumerate(shots, 1):
        rng = np.random.default_rng(seed)
        sheet = (rng.integers(0, 120, (12, 12, 1)) + rng.integers(0, 130, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        places = [31 - abs(31 - i % 62) for i in range(count)]  # to and fro
        frames += [np.ascontiguousarray(sheet[at : at + 64, at : at + 64]) for at in places]
    return film(frames, fps=10, gop=gop, options={"bf": "3", "x264-params": "scenecut=0"})


def test_windows_begin_at_cuts_and_cross_none() -> None:
    windows = cut(film(scenes(3.0), sound=(0.0, 9.0)))
    assert spans(windows) == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    assert [seen(w) for w in windows] == [["red"], ["blue"], ["green"]]


def test_a_long_shot_is_windowed_as_if_it_were_a_film_of_its_own() -> None:
    found = spans(cut(moving(30, 90, 20)))
    first, long, last = found[0], found[1:-1], found[-1]
    at, end = first[1], last[0]
    assert at == pytest.approx(3.0, abs=0.25)
    assert end == pytest.approx(12.0, abs=0.25)
    assert long == [(at, at + 4), (at + 2, at + 6), (at + 4, at + 8), (end - 4, end)]
    assert last[1] == 14.0


def test_a_cut_at_a_key_frame_is_known_to_the_frame() -> None:
    found = spans(cut(moving(33, 37, gop=33)))
    assert found == [(0.0, 3.3), (3.3, 7.0)]


@pytest.mark.parametrize(
    ("lengths", "expected"), [((30, 5, 30), [(0, 3), (3, 6.5)]), ((30, 30, 5), [(0, 3), (3, 6.5)])]
)
def test_a_tiny_shot_belongs_to_the_next_or_at_the_end_to_the_one_before(
    lengths: tuple[int, ...], expected: list[tuple[float, float]]
) -> None:
    assert spans(cut(moving(*lengths, gop=5))) == [pytest.approx(span) for span in expected]


def test_what_is_passed_over_and_how_many_threads_decode_change_nothing() -> None:
    data = moving(47, 31, 66)
    plainly = cut(data, threads=1)
    for other in (cut(data, threads=2), cut(data, thorough=True, threads=2)):
        assert spans(other) == spans(plainly)
        assert all(bool((a.frames == b.frames).all()) for a, b in zip(other, plainly))


def test_a_segment_is_read_again_as_it_was_cut() -> None:
    data = moving(47, 31, 66)
    for window in cut(data):
        clip = read_moment(data, T, start=window.start, end=window.end, grid=grid_of(4.0, T))
        assert bool((eval_frames(clip.frames, S, False) == window.frames).all())


def test_motion_and_a_change_of_light_are_no_cuts() -> None:
    assert len(spans(cut(moving(100), window=20.0))) == 1
    rng = np.random.default_rng(0)
    picture = rng.integers(40, 160, (3, 64, 64)).astype(np.uint8)
    assert Features.of(picture).change(Features.of(picture + np.uint8(6))) < 0.12
    assert Features.of(picture).change(Features.of(np.roll(picture, 9, 2))) < 0.12


def test_a_picture_that_stands_still_for_long_is_not_cut_up() -> None:
    frames = [plain(RED), plain(BLUE), plain(GREEN), plain(GREEN)]
    windows = cut(film(frames, times=[0.0, 1.0, 3600.0, 3602.0]))
    assert len(windows) <= 6
    assert {colour for w in windows for colour in seen(w)} == {"red", "blue", "green"}


def test_a_picture_that_begins_late_has_the_players_times() -> None:
    found = spans(cut(film(scenes(3.0), begin=6.0, sound=(0.0, 15.0))))
    assert found == [(6.0, 9.0), (9.0, 12.0), (12.0, 15.0)]


def test_auto_follows_shots_in_films_over_two_minutes_alone() -> None:
    def count(seconds: int) -> list[tuple[float, float]]:
        data = film(scenes(seconds / 3, fps=1), fps=1)
        return spans(list(read_windows(data, window=50.0, stride=50.0, frames=T, size=S, segments="auto")))

    assert (0.0, 50.0) in count(120)
    assert count(150)[0] == (0.0, 50.0)
    assert [a for a, _ in count(126)] == [0.0, 42.0, 84.0]


def test_looks_stay_inside_their_span() -> None:
    for start, end in pairwise([0.0, 0.33, 2.1, 2.6, 11.0]):
        times = times_on_grid(start, end, 8, 25.0, 0.25)
        assert len(times) == 8
        assert all(start - 1e-3 <= t < end for t in times) or end - start < 0.35


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p10le", "yuvj420p", "rgb24", "gray"])
def test_a_glimpse_shows_about_what_the_picture_shows(pixels: str) -> None:
    import av

    rng = np.random.default_rng(0)
    picture = rng.integers(30, 220, (9, 16, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    shot = VideoShot(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels), Painter("film"))
    painted = glimpse(Still(shot.pixels()))
    assert glimpse(shot).shape == painted.shape == (3, 36, 36)
    assert np.abs(glimpse(shot).astype(int) - painted).mean() < 6


def test_how_many_frames_wait_for_their_windows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = moving(47, 31, 130)
    as_it_is = cut(data)
    monkeypatch.setattr("vtr.data.decode.shots._WAITING", 0)
    assert all(bool((a.frames == b.frames).all()) for a, b in zip(cut(data), as_it_is, strict=True))
