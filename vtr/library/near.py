"""Near copies: the same pictures in another codec, size, compression or frame, found by a few tiny pictures a segment.

Of some frames of a segment, without black bars around them, 8 x 8 cells of brightness and 4 x 4 of each colour difference
are kept. Two are the same where they differ by little of what is in them; where there is next to nothing in them (black,
fog, a blank page) that cannot be told, and they are not. What is compared stands at the same times of two files.

T frames of a window, S pixels, F tiny pictures, _BYTES of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vtr.library.found import Moment

FRAMES = 4  # F, of a segment
_CELLS = 8  # a side, of brightness; half as many of colours
_BYTES = _CELLS**2 * 3 // 2
_DARK, _FEW, _LEAST = 24, 0.02, 0.3  # a bar: no brighter, but for few pixels; what is left is no less of a side
_FLAT = 4.0  # contrast below which there is nothing to compare
# Share of the contrast by which two may differ, and levels by which their mean colours may: a codec leaves these alone, and
# another scene of the same layout has others. Measured by `python -m bench.near_copies`.
_SAME, _TINT = 0.4, 3.0
_NEEDED = 2  # pictures that must be comparable
_APART, _LATE = 0.25, 0.1  # how far times may differ: of the pictures' distance, and seconds at least
_LONGER = 0.02  # by which a copy may be longer, and no less than half a second
_WEIGHTS = np.repeat(
    np.array([1, 4], np.float32), [_CELLS**2, _CELLS**2 // 2]
)  # colours tell shapes apart that move alike


class Looks(NamedTuple):
    """Tiny pictures (n, _BYTES) uint8 and the seconds (n,) at which they stand, ascending."""

    times: np.ndarray
    pictures: np.ndarray


def pictures_of(frames: np.ndarray) -> np.ndarray:
    """Tiny pictures (F, _BYTES) uint8 of a window's frames (T, 3, S, S) uint8."""
    picked = frames[((np.arange(FRAMES) + 0.5) * len(frames) / FRAMES).astype(int)]
    inside = picked[(slice(None), slice(None), *_content(picked))].astype(np.float32)
    cells = _shares(inside.shape[2]) @ inside @ _shares(inside.shape[3]).T
    red, green, blue = cells[:, 0], cells[:, 1], cells[:, 2]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [_halved(128 + 0.564 * (blue - bright)), _halved(128 + 0.713 * (red - bright))]
    values = np.concatenate([part.reshape(FRAMES, -1) for part in (bright, *colours)], 1)
    return values.round().clip(0, 255).astype(np.uint8)


def looks_of(pictures: np.ndarray, start: float, end: float) -> Looks:
    """The tiny pictures of a segment, with their times."""
    return Looks(start + (np.arange(len(pictures)) + 0.5) / len(pictures) * (end - start), pictures)


def joined(looks: Sequence[Looks]) -> Looks:
    """Those of several segments, by time."""
    times = np.concatenate([one.times for one in looks])
    order = np.argsort(times, kind="stable")
    return Looks(times[order], np.concatenate([one.pictures for one in looks])[order])


def same_looks(one: Looks, other: Looks) -> bool:
    """Whether what `one` shows is shown by `other` at the same times."""
    if not len(one.times) or not len(other.times):
        return False
    nearest = np.abs(other.times[None] - one.times[:, None]).argmin(1)
    far = max(_APART * float(np.ptp(one.times)) / max(1, len(one.times) - 1), _LATE)
    there = np.abs(other.times[nearest] - one.times) <= far
    a, b = one.pictures[there].astype(np.float32), other.pictures[nearest[there]].astype(np.float32)
    contrast = np.minimum(_contrast(a), _contrast(b))
    told = contrast >= _FLAT
    if told.sum() < _NEEDED:
        return False
    tint = np.abs([colour.mean(1) for colour in _parts(a - b)[1:]]).max(0)
    return bool(np.median(_size(a - b)[told] / contrast[told]) <= _SAME and np.median(tint[told]) <= _TINT)


def _parts(pictures: np.ndarray) -> list[np.ndarray]:
    """Brightness and the two colour differences of pictures (n, _BYTES)."""
    return np.split(pictures, [_CELLS**2, _CELLS**2 * 5 // 4], 1)


def _contrast(pictures: np.ndarray) -> np.ndarray:
    """How much there is in pictures (n, _BYTES): the deviation of brightness and colours from their means."""
    return _size(np.concatenate([part - part.mean(1, keepdims=True) for part in _parts(pictures)], 1))


def _size(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2 * _WEIGHTS).sum(1) / _WEIGHTS.sum())


def _content(frames: np.ndarray) -> tuple[slice, slice]:
    """Where the picture is between black bars, down and across; all of it where little would be left."""
    bright = frames.max((0, 1)) > _DARK
    found = []
    for axis in (1, 0):
        lines = np.flatnonzero(bright.mean(axis) > _FEW)
        if len(lines) < max(_CELLS, _LEAST * bright.shape[0]):
            return slice(None), slice(None)
        found.append(slice(int(lines[0]), int(lines[-1]) + 1))
    return found[0], found[1]


@lru_cache(maxsize=64)
def _shares(pixels: int) -> np.ndarray:
    """(_CELLS, pixels): how much of each cell is of each pixel."""
    edges, at = np.linspace(0, pixels, _CELLS + 1), np.arange(pixels)
    over = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    return (over.clip(0) * _CELLS / pixels).astype(np.float32)


def _halved(cells: np.ndarray) -> np.ndarray:
    return cells.reshape(len(cells), _CELLS // 2, 2, _CELLS // 2, 2).mean((2, 4))


Kept = tuple[list[Moment], tuple[str, ...]]  # what becomes a hit, or the hits of a video; files that look the same
Seen = Callable[[str, float, float], Looks | None]  # what a file shows between two times


def folded(groups: Sequence[list[Moment]], most: int, seen: Seen, *, overlapping: bool) -> list[Kept]:
    """The first so many of what hits are made of, each with the files of those after it that look the same.

    One follows another only where each shows at the other's time what the other shows: two films that share their first
    minute are two.

    Args:
        groups: Best first; of each the first moment counts.
        most: How many to give.
        seen: Looks into files.
        overlapping: Only moments of the same time are one: where a file may have several hits.
    """
    kept: list[tuple[list[Moment], list[str]]] = []
    for group in groups:
        of = next((near for first, near in kept if _copied(first[0], group[0], seen, overlapping)), None)
        if of is not None:
            of.append(group[0].best.path)
        elif len(kept) == most:
            break
        else:
            kept.append((group, []))
    return [(group, tuple(dict.fromkeys(near))) for group, near in kept]


def _copied(a: Moment, b: Moment, seen: Seen, overlapping: bool) -> bool:
    if a.best.what == b.best.what or abs(a.best.duration - b.best.duration) > max(0.5, _LONGER * a.best.duration):
        return False
    if overlapping and min(a.end, b.end) < max(a.start, b.start):
        return False
    for span in {(a.start, a.end), (b.start, b.end)}:
        one, other = seen(a.best.path, *span), seen(b.best.path, *span)
        if one is None or other is None or not same_looks(one, other):
            return False
    return True
