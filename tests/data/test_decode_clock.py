"""The clock: raw stamps in display order to the times a player counts, where they restart, leap or are missing."""

from __future__ import annotations

import pytest

from vtr.data.decode.clock import Clock, Sound


def times(
    raw: list[float | None], *, origin: float | None = 0.0, breaks: bool = False, sound: Sound | None = None
) -> list[float]:
    clock = Clock(origin=origin, step=0.1, breaks=breaks, sound=sound)
    return [round(at, 3) for at, _ in clock.run((r, None) for r in raw)]


STEADY = [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("far", [180.0, 10_800.0, 95_443.0, 946_080_000.0, -40.0])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_one_stamp_of_another_day_is_not_believed(place: int, far: float, breaks: bool) -> None:
    assert times([s + far if i == place else s for i, s in enumerate(STEADY)], breaks=breaks) == STEADY


@pytest.mark.parametrize("far", [10_800.0, 95_443.0, 946_080_000.0])
@pytest.mark.parametrize("place", [0, 4])
def test_nor_is_one_at_either_end(place: int, far: float) -> None:
    assert times([s + far if i == place else s for i, s in enumerate(STEADY)]) == STEADY


def test_two_wrong_stamps_apart_from_each_other_are_mended() -> None:
    assert times([0.0, 900.0, 0.2, 0.3, 5000.0, 0.5, 0.6]) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_stamps_that_begin_anew_go_on() -> None:
    assert times([5.0, 5.1, 5.2, 5.0, 5.1, 5.2], origin=5.0) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert times([9.0, 9.1, 0.0, 0.1, 4.0, 4.1], origin=9.0) == [0.0, 0.1, 0.2, 0.3, 4.2, 4.3]


def test_a_recording_that_breaks_off_goes_on_only_where_stamps_may_break() -> None:
    raw = [0.0, 0.1, 0.2, 50.0, 50.1, 50.2]
    assert times(raw, breaks=True) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert times(raw, breaks=False) == raw
    sound = Sound()
    for tick in range(510):
        sound.heard(tick / 10, 0.1)
    assert times(raw, breaks=True, sound=sound) == raw  # the sound goes on: the picture stood still


def test_a_still_picture_before_a_last_one_is_no_error() -> None:
    assert times([0.0, 0.1, 0.2, 300.0]) == [0.0, 0.1, 0.2, 300.0]
    assert times([0.0, 900.0, 1800.0]) == [0.0, 900.0, 1800.0]


def test_missing_stamps_follow_the_one_before() -> None:
    assert times([None, None, 0.2, None, 0.4]) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert times([None, None, None]) == [0.0, 0.1, 0.2]


def test_equal_and_shaking_stamps_never_fall_back() -> None:
    got = times([0.0, 0.1, 0.1, 0.2, 0.15, 0.3])
    assert got == sorted(got)
    assert got[-1] == 0.3


def test_without_an_origin_the_first_frame_is_zero() -> None:
    assert times([95_000.0, 95_000.1], origin=None) == [0.0, 0.1]
    assert times([-0.2, -0.1, 0.0], origin=0.0) == [-0.2, -0.1, 0.0]


def test_a_picture_that_comes_long_after_the_sound_is_believed() -> None:
    assert times([900.0, 900.1, 900.2]) == [900.0, 900.1, 900.2]
