"""What a query looks for, as vectors: words by the paper's similarity, examples by cosine.

n segments, w width, Q directions, m windows of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Measure = Literal["similarity", "likeness", "mixed", "combined", "words", "fused"]
FUSE_AFTER = 60  # of reciprocal rank fusion: the weight of rank r is 1 / (FUSE_AFTER + r)
MINUS = 0.5  # weight of what is not wanted: with 1 little but the difference would be left


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A query. A segment of vector v scores `words · v + weight · Σ max(example · v/|v|)`.

    A segment's vector is a mean of unit vectors, so that `words · v` is the paper's similarity: the mean cosine of a
    text and its frames. Its length says how much a segment changes; it is no part of how like two segments are.

    Attributes:
        words: (w,), or None.
        examples: Each (m, w), unit vectors: the windows of a clip, of which a segment is as like as the most like one.
        weight: Of an example.
    """

    words: np.ndarray | None = None
    examples: tuple[np.ndarray, ...] = ()
    weight: float = 1.0

    @classmethod
    def of(cls, texts: np.ndarray, against: np.ndarray, examples: Sequence[np.ndarray]) -> Wanted:
        """The mean of what is wanted, less MINUS times the mean of what is not.

        Args:
            texts, against: (·, w) unit vectors of texts.
            examples: Vectors (m, w) of each example's windows, of any length.
        """
        count = len(texts) + len(examples)
        words = texts.sum(0) / count if len(texts) else None
        if len(against):
            words = (0 if words is None else words) - MINUS * against.mean(0)
        return cls(
            words=None if words is None else words.astype(np.float32),
            examples=tuple(unit(example) for example in examples),
            weight=1 / count,
        )

    @property
    def measure(self) -> Measure:
        """What its scores are called."""
        if not self.examples:
            return "similarity"
        return "likeness" if self.words is None else "mixed"

    @property
    def directions(self) -> np.ndarray:
        """Vectors (Q, w) near which the best segments lie."""
        parts = [] if self.words is None else [self.words[None]]
        return np.ascontiguousarray(np.concatenate([*parts, *self.examples]), np.float32)

    @property
    def empty(self) -> bool:
        """Whether nothing is looked for in pictures."""
        return self.words is None and not self.examples

    @property
    def plain(self) -> bool:
        """Whether a score is the inner product with the one direction, of the vectors as they are or of unit ones."""
        return len(self.directions) == 1

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Scores (n,) of vectors (n, w)."""
        total = np.zeros(len(vectors), np.float32) if self.words is None else vectors @ self.words
        if self.examples and len(vectors):
            inverse = self.weight / lengths(vectors)
            for example in self.examples:
                total = total + (vectors @ example.T).max(1) * inverse
        return total.astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, w) of length 1; those of length 0 stay."""
    return np.ascontiguousarray(vectors / lengths(vectors)[:, None], np.float32)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths (n,) of vectors, 1 for those of length 0."""
    found = np.linalg.norm(vectors, axis=1)
    return np.where(found > 0, found, 1.0).astype(np.float32)


def match(score: float, measure: Measure, temperature: float = 1.0) -> float:
    """A score between 0 and 1, by which hits of any kind may be shown; it grows with the score.

    Cosines and shares of words as they are; a rank fusion as a share of the best there is. A combined score is a cosine over the temperature plus log-odds: brought back to the scale of
    cosines, and bent so that it stays between 0 and 1.
    """
    if measure == "fused":
        score *= (FUSE_AFTER + 1) / 2
    if measure != "combined":
        return float(np.clip(score, 0.0, 1.0))
    return float(1 / (1 + np.exp(-4 * (np.clip(score * temperature, -20, 20) - 0.5))))
