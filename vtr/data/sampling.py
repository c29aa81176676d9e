"""Which frames of a video to take: the middle or a random one of equal intervals, and windows along time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np


def intervals(n: int, count: int) -> np.ndarray:
    """Borders of min(count, n) nearly equal intervals of n frames: int64 (k + 1,), from 0 to n.

    The borders are a linear ramp cut to whole numbers, as the official protocol computes them.
    """
    if n < 1 or count < 1:
        raise ValueError(f"cannot take {count} frame(s) out of {n}: both numbers must be at least 1")
    return np.linspace(0, n, min(count, n) + 1).astype(np.int64)


def _padded(indices: list[int], count: int) -> list[int]:
    return indices + [indices[-1]] * (count - len(indices))


def middle_frames(n: int, count: int) -> list[int]:
    """The middle frame of each of `count` equal intervals of n frames (test protocol).

    A video of fewer frames than asked for gives each frame once, then the last one again.
    """
    borders = intervals(n, count)
    return _padded([int(a + b - 1) // 2 for a, b in itertools.pairwise(borders)], count)


def random_frames(n: int, count: int, rng: np.random.Generator, *, official: bool = False) -> list[int]:
    """One random frame out of each of `count` equal intervals of n frames (training), ascending.

    Args:
        n: Frames in the video.
        count: Frames wanted; a shorter video repeats its last chosen one.
        rng: Source of randomness; one draw per interval.
        official: Reproduce the official code, which never draws the last frame of an interval, and falls back to a
            sorted random subset of the whole video as soon as one interval holds a single frame.
    """
    borders = intervals(n, count)
    lengths = np.diff(borders)
    if official and int(lengths.min()) < 2:
        return _padded(sorted(int(i) for i in rng.permutation(n)[: len(lengths)]), count)
    highs = borders[1:] - 1 if official else borders[1:]
    return _padded([int(i) for i in rng.integers(borders[:-1], highs)], count)


def trimmed_count(n: int, fps: float, limit: float = 30.0) -> int:
    """Frames within the first `limit` seconds (the DiDeMo protocol); all n where the video is not longer."""
    if fps <= 0 or n / fps <= limit:
        return n
    return max(1, min(n, int(limit * fps)))


def picker(count: int, rng: np.random.Generator | None = None, *, official: bool = False) -> Callable[[int], list[int]]:
    """The `pick` argument of `read_frames`: random frames where `rng` is given, the middle ones otherwise."""
    if rng is None:
        return lambda n: middle_frames(n, count)
    return lambda n: random_frames(n, count, rng, official=official)


def display_times(start: float, end: float, count: int, fps: float) -> list[float]:
    """When to look at a span in which frames may last differently long: `count` times, ascending.

    They are the middles of equal stretches of time. At a constant rate the frames on display then are those that
    `middle_frames` takes.

    Args:
        start, end: The span in seconds.
        count: Times wanted.
        fps: Mean frames a second.
    """
    frames = round((end - start) * fps)
    if frames < count:
        return [start + (end - start) * (k + 0.5) / count for k in range(count)]
    return [start + (end - start) * (i + 0.5) / frames for i in middle_frames(frames, count)]


def window_spans(duration: float, window: float, stride: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of windows of one length that cover a video; a short video gives one window.

    The last window is moved back so that it ends with the video and is as long as the others.
    """
    if window <= 0 or stride <= 0:
        raise ValueError(f"window ({window}) and stride ({stride}) must be longer than 0 seconds")
    if duration <= window:
        return [(0.0, max(0.0, duration))]
    count = int(np.ceil((duration - window) / stride - 1e-6))
    starts = [i * stride for i in range(max(count, 1))]
    return [(s, s + window) for s in starts] + [(duration - window, duration)]
