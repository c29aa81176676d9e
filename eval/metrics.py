"""Retrieval metrics: recalls, median and mean rank, with ties counted fairly.

python -m vtr.eval.metrics FILE.npy        both directions of a square similarity matrix

Where a wrong answer scores exactly as the right one, `fair` gives the right one the mean of the places they share;
`won` gives it the best of them, as code does that counts only strictly better answers; `lost` the worst.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """Rank of the best right answer of each query, from 1.

    Args:
        similarity: (Q, G) scores; -inf for candidates out of the running.
        truth: Right answers of each query; default: query i's is i.
        ties: `fair`: ties share the mean of their places, so that a model that scores everything alike gets the middle
            rank, not the first. `won`, `lost`: the right answer comes first or last of them.

    Raises:
        VtrError: A score is NaN, or a query has no right answer.
    """
    better, equal = _places(similarity, truth)
    return 1 + better + equal * {"fair": 0.5, "won": 0.0, "lost": 1.0}[ties]


def _places(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None) -> tuple[np.ndarray, np.ndarray]:
    """Wrong answers above, and beside, the best right answer of each query."""
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise VtrError(f"a similarity matrix has two dimensions, this one {scores.ndim}")
    if np.isnan(scores).any():
        raise VtrError(f"{int(np.isnan(scores).sum())} similarities are NaN: the model's features are not finite")
    if truth is None:
        if scores.shape[0] != scores.shape[1]:
            raise VtrError(f"a {scores.shape[0]}x{scores.shape[1]} matrix needs to be told its right answers")
        truth = [[i] for i in range(len(scores))]
    better, equal = np.empty(len(scores)), np.empty(len(scores))
    for i, (row, right) in enumerate(zip(scores, truth)):
        if len(right) == 0:
            raise VtrError(f"query {i} has no right answer")
        own = row[list(right)]
        best = own.max()
        better[i] = (row > best).sum()
        equal[i] = (row == best).sum() - (own == best).sum()
    return better, equal


def retrieval_metrics(
    similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None, ties: str = "fair"
) -> RetrievalMetrics:
    """Metrics of a (Q, G) similarity matrix; see `ranks`."""
    r = ranks(similarity, truth, ties)
    recall = [100 * float((r <= k).mean()) for k in (1, 5, 10)]
    return RetrievalMetrics(
        r1=recall[0], r5=recall[1], r10=recall[2], median_rank=float(np.median(r)), mean_rank=float(r.mean())
    )


def tied_queries(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None) -> int:
    """Queries whose best right answer scores exactly as a wrong one."""
    return int((_places(similarity, truth)[1] > 0).sum())


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
                result[f"{name}_ties_won"] = retrieval_metrics(scores, ties="won").to_dict()
                result[f"{name}_tied_queries"] = tied
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(result))
        return 0
    for name, m in result.items():
        words = name.replace("_", " ").replace(" ties", ", ties")
        if isinstance(m, dict):
            print(
                f"{words:<26} R@1 {m['r1']:.1f}  R@5 {m['r5']:.1f}  R@10 {m['r10']:.1f}  "
                f"MdR {m['median_rank']:g}  MnR {m['mean_rank']:.2f}"
            )
        elif name.endswith("tied_queries"):
            print(
                f"  {m} of {len(matrix)} queries score a wrong answer exactly as the right one. Such ties share the "
                'mean of their places; "ties won" gives the right answer the best of them, as published figures often do.'
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
