"""Whether a library holds anything like what was asked: hits compared with the best ones of texts that have no answer.

The texts (unrelated.txt) are the same for all; their vectors and the score of the best segment for each are kept in the
database. w width, m texts.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from vtr.errors import UsageError

LEAST = 20  # segments of a library that can tell
MARKED = 0.85  # hits below are marked, unless asked otherwise
AGAIN = 0.05  # share of segments that were added or removed after which the scores are looked up again


@cache
def unrelated_texts() -> tuple[str, ...]:
    """Texts that hardly any library answers: everyday scenes of all kinds, and shapes that move."""
    lines = (Path(__file__).parent / "unrelated.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def confidence(score: float, unrelated: np.ndarray) -> float:
    """The share of unrelated texts whose best hit scores lower: 0 to 1, and it grows with the score.

    Args:
        score: The similarity of a hit, of one text.
        unrelated: (m,) scores of the best hits of unrelated texts, ascending.
    """
    count = len(unrelated)
    places = (np.arange(count) + 1) / (count + 1)
    if unrelated[0] <= score <= unrelated[-1]:
        return float(np.interp(score, unrelated, places))
    spread = max(float(unrelated[-1] - unrelated[0]) / 4, 1e-6)
    if score > unrelated[-1]:
        return float(1 - (1 - places[-1]) * np.exp((unrelated[-1] - score) / spread))
    return float(places[0] * np.exp((score - unrelated[0]) / spread))


def check_least(least: float | None) -> None:
    """UsageError where a least confidence is none."""
    if least is not None and not 0 <= least <= 1:
        raise UsageError(lambda say: f"{say.given('min_score', f'{least:g}')}: expected a number from 0 to 1")
