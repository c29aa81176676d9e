"""Retrieval metrics: recalls, median and mean rank, with ties counted fairly.

python -m vtr.eval.metrics FILE.npy        both directions of a square similarity matrix
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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


def ranks(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Rank of the best right answer of each query, from 1.

    Ties share the mean of their positions: a model that scores everything alike gets the middle rank, not the first.

    Args:
        similarity: (Q, G) scores; -inf for candidates out of the running.
        truth: Right answers of each query; default: query i's is i.

    Raises:
        VtrError: A score is NaN, or a query has no right answer.
    """
    scores = np.asarray(similarity, dtype=np.float64)
    if scores.ndim != 2:
        raise VtrError(f"a similarity matrix has two dimensions, this one {scores.ndim}")
    if np.isnan(scores).any():
        raise VtrError(f"{int(np.isnan(scores).sum())} similarities are NaN: the model's features are not finite")
    if truth is None:
        if scores.shape[0] != scores.shape[1]:
            raise VtrError(f"a {scores.shape[0]}x{scores.shape[1]} matrix needs to be told its right answers")
        truth = [[i] for i in range(len(scores))]
    out = np.empty(len(scores))
    for i, (row, right) in enumerate(zip(scores, truth)):
        if len(right) == 0:
            raise VtrError(f"query {i} has no right answer")
        wrong = np.ones(len(row), dtype=bool)
        wrong[list(right)] = False
        best = row[list(right)].max()
        out[i] = 1 + (row[wrong] > best).sum() + (row[wrong] == best).sum() / 2
    return out


def retrieval_metrics(similarity: np.ndarray, truth: Sequence[Sequence[int]] | None = None) -> RetrievalMetrics:
    """Metrics of a (Q, G) similarity matrix; see `ranks`."""
    r = ranks(similarity, truth)
    recall = [100 * float((r <= k).mean()) for k in (1, 5, 10)]
    return RetrievalMetrics(
        r1=recall[0], r5=recall[1], r10=recall[2], median_rank=float(np.median(r)), mean_rank=float(r.mean())
    )


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
        result = {
            "rows_to_columns": retrieval_metrics(matrix).to_dict(),
            "columns_to_rows": retrieval_metrics(matrix.T).to_dict(),
        }
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(result))
    else:
        for name, m in result.items():
            print(
                f"{name.replace('_', ' '):<16} R@1 {m['r1']:.1f}  R@5 {m['r5']:.1f}  R@10 {m['r10']:.1f}  MdR {m['median_rank']:g}  MnR {m['mean_rank']:.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
