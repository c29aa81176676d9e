"""Retrieval metrics: recalls, median and mean rank, with ties counted fairly.

python -m vtr.eval.metrics FILE.npy        both directions of a square similarity matrix

Where wrong answers score exactly as the right one, `fair` gives what is expected when they stand in random order: the
mean of the places they share as the rank, and the share of the orders in which the right one is among the first k as the
recall. `won` gives the right one the first of these places, as code does that counts only strictly better answers (so the
figures stated with published similarity matrices are often made); `lost` the last.

Such ties are common where a caption stands twice in a benchmark: MSRVTT 1k-A has four captions that belong to two or
three videos each, nine videos in all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtr.errors import VtrError


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Recalls in percent, ranks counted from 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float

    def to_dict(self) -> dict[str, float]:
        """Rounded to two digits."""
        return {k: round(v, 2) for k, v in asdict(self).items()}


TIE_RULES = ("fair", "won", "lost")


def ranks(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None, ties: str = "fair") -> np.ndarray:
    """Rank of the best right answer of each query, from 1; under `fair` its mean over the orders of tied answers.

    Args:
        similarity: (Q, G) scores; -inf for candidates out of the running.
        truth: Right answers of each query; default: query i's is i.
        ties: `fair`, so that a model that scores everything alike gets the middle rank, not the first; `won`, `lost`:
            the right answer comes first or last of those that score the same (to float32 rounding).

    Raises:
        VtrError: A score is NaN, or a query has no right answer.
    """
    return _ranks(_places(similarity, truth), ties)


def recalls(
    similarity: np.ndarray,
    truth: Sequence[Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "fair",
) -> list[float]:
    """Recall at each k in percent; see `ranks`."""
    places = _places(similarity, truth)
    return [_recall(places, k, ties) for k in ks]


class _Places(NamedTuple):
    """Of each query: wrong answers above its best right one, and wrong and right ones beside it (itself included)."""

    better: np.ndarray
    wrong: np.ndarray
    right: np.ndarray


# Scores that differ by less, relative to the right one or to the query's median, are the same but for the order of float32
# sums: two copies of a caption get them apart on one number of threads and alike on another, and a result would depend on
# it. The median, since some scores may stand for "not asked" and be huge.
_ALIKE = 32 * float(np.finfo(np.float32).eps)


def _places(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None) -> _Places:
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise VtrError(f"a similarity matrix has two dimensions, this one {scores.ndim}")
    if np.isnan(scores).any():
        raise VtrError(f"{int(np.isnan(scores).sum())} similarities are NaN: the model's features are not finite")
    if truth is None:
        if scores.shape[0] != scores.shape[1]:
            raise VtrError(f"a {scores.shape[0]}x{scores.shape[1]} matrix needs to be told its right answers")
        truth = [[i] for i in range(len(scores))]
    out = _Places(*(np.empty(len(scores)) for _ in range(3)))
    for i, (row, right) in enumerate(zip(scores, truth)):
        if len(right) == 0:
            raise VtrError(f"query {i} has no right answer")
        best = row[list(right)].max()
        finite = np.abs(row[np.isfinite(row)])
        scale = max(float(np.median(finite)), abs(float(best)) if np.isfinite(best) else 0.0) if len(finite) else 0.0
        near = _ALIKE * scale
        with np.errstate(invalid="ignore"):  # -inf against -inf
            same = (row == best) | (np.abs(row - best) <= near)
        out.better[i] = ((row > best) & ~same).sum()
        out.right[i] = same[list(right)].sum()
        out.wrong[i] = same.sum() - out.right[i]
    return out


def _ranks(places: _Places, ties: str) -> np.ndarray:
    if ties == "fair":
        return places.better + (places.right + places.wrong + 1) / (places.right + 1)
    return 1 + places.better + (places.wrong if ties == "lost" else 0)


def _recall(places: _Places, k: int, ties: str) -> float:
    if ties != "fair":
        return 100 * float((_ranks(places, ties) <= k).mean())
    # Of the tied answers, the first k - better in random order are all wrong with the probability `missed`.
    missed = np.ones(len(places.better))
    for taken in range(k):
        open_place = taken < k - places.better
        left = np.maximum(places.wrong - taken, 0)
        missed *= np.where(open_place, left / (places.right + left), 1)
    return 100 * float((1 - missed).mean())


def retrieval_metrics(
    similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None, ties: str = "fair"
) -> RetrievalMetrics:
    """Metrics of a (Q, G) similarity matrix; see `ranks`."""
    places = _places(similarity, truth)
    r = _ranks(places, ties)
    r1, r5, r10 = (_recall(places, k, ties) for k in (1, 5, 10))
    return RetrievalMetrics(r1=r1, r5=r5, r10=r10, median_rank=float(np.median(r)), mean_rank=float(r.mean()))


def tied_queries(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None) -> int:
    """Queries whose best right answer scores as a wrong one, but for rounding."""
    return int((_places(similarity, truth).wrong > 0).sum())


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m vtr.eval.metrics`."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    files = [w for w in words if w != "--json"]
    if len(files) != 1:
        print("usage: python -m vtr.eval.metrics FILE.npy [--json]", file=sys.stderr)
        return 2
    try:
        try:
            matrix = np.load(Path(files[0]), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise VtrError(f"{files[0]}: not a .npy matrix ({error})") from error
        result: dict[str, Any] = {"shape": list(matrix.shape)}
        for name, scores in (("rows_to_columns", matrix), ("columns_to_rows", matrix.T)):
            result[name] = retrieval_metrics(scores).to_dict()
            tied = tied_queries(scores)
            if tied:
                for rule in ("won", "lost"):
                    result[f"{name}_ties_{rule}"] = retrieval_metrics(scores, ties=rule).to_dict()
                result[f"{name}_tied_queries"] = tied
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(result))
        return 0
    for name, m in result.items():
        title = name.replace("_", " ").replace(" ties", ", ties")
        if isinstance(m, dict):
            print(
                f"{title:<26} R@1 {m['r1']:.1f}  R@5 {m['r5']:.1f}  R@10 {m['r10']:.1f}  "
                f"MdR {m['median_rank']:g}  MnR {m['mean_rank']:.2f}"
            )
        elif name.endswith("tied_queries"):
            print(
                f"  {m} of {len(matrix)} queries score a wrong answer as the right one. The first line is what random "
                'order among such gives; "ties won" puts the right answer first, as published figures often do.'
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
