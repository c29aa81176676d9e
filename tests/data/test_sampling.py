"""Frame sampling: the published test protocol, both training rules, and windows that cover a video."""

from __future__ import annotations

import numpy as np
import pytest

from vtr.data.sampling import intervals, middle_frames, picker, random_frames, trimmed_count, window_spans


@pytest.mark.parametrize(
    ("n", "count", "wanted"),
    [
        (16, 4, [1, 5, 9, 13]),
        (300, 8, [18, 55, 93, 130, 168, 205, 243, 280]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 8, [0, 1, 2, 2, 2, 2, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (10, 1, [4]),
    ],
)
def test_the_middle_of_each_interval_is_taken(n: int, count: int, wanted: list[int]) -> None:
    assert middle_frames(n, count) == wanted


def test_random_frames_stay_in_their_interval_and_reach_its_ends() -> None:
    rng = np.random.default_rng(0)
    draws = np.asarray([random_frames(30, 4, rng) for _ in range(400)])
    borders = intervals(30, 4)
    assert (draws.min(0) == borders[:-1]).all()
    assert (draws.max(0) == borders[1:] - 1).all()


def test_the_official_rule_never_draws_the_last_frame_of_an_interval() -> None:
    rng = np.random.default_rng(0)
    draws = np.asarray([random_frames(32, 4, rng, official=True) for _ in range(400)])
    assert set(draws[:, 0]) == set(range(7))
    assert set(draws[:, 3]) == set(range(24, 31))


def test_the_official_rule_falls_back_to_a_sorted_subset_of_a_short_video() -> None:
    rng = np.random.default_rng(0)
    draws = [random_frames(9, 8, rng, official=True) for _ in range(100)]
    assert all(draw == sorted(set(draw)) for draw in draws)
    assert {8} <= {index for draw in draws for index in draw}


def test_a_short_video_repeats_its_last_frame_in_training_too() -> None:
    assert random_frames(2, 5, np.random.default_rng(0)) == [0, 1, 1, 1, 1]


def test_the_same_seed_gives_the_same_frames() -> None:
    first, second = (picker(8, np.random.default_rng(5))(100) for _ in range(2))
    assert first == second
    assert picker(8)(100) == middle_frames(100, 8)


def test_no_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        middle_frames(0, 8)


def test_trimming_counts_the_first_thirty_seconds() -> None:
    assert trimmed_count(1000, 25.0) == 750
    assert trimmed_count(700, 25.0) == 700
    assert trimmed_count(10, 0.0) == 10


@pytest.mark.parametrize(
    ("duration", "wanted"),
    [
        (0.0, [(0.0, 0.0)]),
        (3.0, [(0.0, 3.0)]),
        (8.0, [(0.0, 8.0)]),
        (9.0, [(0.0, 8.0), (1.0, 9.0)]),
        (16.0, [(0.0, 8.0), (4.0, 12.0), (8.0, 16.0)]),
    ],
)
def test_windows_cover_a_video_and_end_with_it(duration: float, wanted: list[tuple[float, float]]) -> None:
    assert window_spans(duration, 8.0, 4.0) == wanted


def test_a_window_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 0"):
        window_spans(10.0, 8.0, 0.0)
