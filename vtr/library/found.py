"""A segment that a query found, on its way to become a hit."""

from __future__ import annotations

from typing import NamedTuple

from vtr.library.rows import Metadata


class Found(NamedTuple):
    """A segment and its score."""

    score: float
    similarity: float
    reranked: bool
    segment: int
    path: str
    start: float
    end: float
    duration: float
    metadata: Metadata
