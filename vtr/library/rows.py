"""Rows of library.db as they are handed around: videos, segments, spans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vtr.data.subtitles import Track

Value = str | int | float
Metadata = dict[str, Value]


class Span(NamedTuple):
    """Seconds of a segment; equal ends for an image."""

    start: float
    end: float


class Facts(NamedTuple):
    """What a file was when it was indexed; None where it could not be read, or for a sample of a shard."""

    bytes: int | None
    modified: float | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A file as the model saw it: its segments, their vectors (n, w), and its length in seconds.

    `lacking` says what the file promises and does not hold; "" where it is whole. `sha256` is its content's hash; None
    where it was not read whole. `frames` are the rows of its frames' vectors (`vtr.library.frame_vectors`), where they are
    kept; `looks` the tiny pictures of its segments (`vtr.library.near`), (n, F, bytes). `tracks` are the text tracks inside it; None where it was not looked for them.
    """

    spans: list[Span]
    vectors: np.ndarray
    duration: float
    lacking: str = ""
    sha256: str | None = None
    frames: np.ndarray | None = None
    looks: np.ndarray | None = None
    tracks: Sequence[Track] | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a file is not searched.

    Attributes:
        reason: One line.
        kind: "unreadable" (by its content), "slow" (a time limit), "unopened" (missing or not allowed), "crashed" (it
            took its decoder down); None in older libraries. All but the first are tried again.
    """

    reason: str
    kind: str | None = "unreadable"


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """A file of the library.

    `failure` where it could not be read, `origin` where it came with embeddings, `lacking` where it is cut off.
    """

    id: int
    path: str
    facts: Facts
    duration: float
    failure: Failure | None
    crc: int | None
    metadata: Metadata
    origin: str | None
    lacking: str = ""


class SegmentRow(NamedTuple):
    """A segment with what a hit shows of its video."""

    id: int
    video: int
    path: str
    start: float
    end: float
    duration: float
    modified: float | None
    sha256: str | None
    row: int
    meta: str | None  # JSON, as it is stored

    @property
    def metadata(self) -> Metadata:
        return json.loads(self.meta) if self.meta else {}


def as_json(metadata: Mapping[str, Value] | None) -> str | None:
    """Metadata as it is stored; None for none."""
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True) if metadata else None
