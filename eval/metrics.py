"""Retrieval metrics: recalls, median and mean rank, with ties counted fairly.

python -m vtr.eval.metrics FILE.npy                         both directions of a square similarity matrix
python -m vtr.eval.metrics FILE.npy --truth ANSWERS.json    of any matrix: the right column(s) of each row, a JSON list

Where wrong answers score exactly as the right one, `fair` gives what is expected when they stand in random order: the
mean of the places they share as the rank, and the share of the orders in which the right one is among the first k as the
recall. `won` gives the right one the first of these places, as code does that counts only strictly better answers (so the
figures stated with published similarity matrices are often made); `lost` the last.

Such ties are common where a caption stands twice in a benchmark: MSRVTT 1k-A has four captions that belong to two or
three videos each, nine videos in all.
"""

from __future__ import annotations

import json
import operator
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

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


def ranks(similarity: ArrayLike, truth: Sequence[Sequence[int]] | None = None, ties: str = "fair") -> np.ndarray:
    """Rank of the best right answer of each query, from 1; under `fair` its mean over the orders of tied answers.

    Args:
        similarity: (Q, G) scores, of any real type; -inf for candidates out of the running.
        truth: Right answers of each query; default: query i's is i.
        ties: `fair`, so that a model that scores everything alike gets the middle rank, not the first; `won`, `lost`:
            the right answer comes first or last of those that score the same (to float32 rounding).

    Raises:
        VtrError: A score is NaN or no real number, or a query has no right answer.
    """
    return _ranks(_places(similarity, truth), ties)


def recalls(
    similarity: ArrayLike,
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


def as_scores(similarity: ArrayLike) -> np.ndarray:
    """Scores (Q, G) as floats, of whatever real numbers they are given in.

    Raises:
        VtrError: They are no real numbers, no matrix, none at all, or some are NaN.
    """
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.detach().cpu()
        similarity = similarity.float() if similarity.dtype == torch.bfloat16 else similarity
    try:
        scores = np.asarray(similarity)
    except (TypeError, ValueError) as error:  # ragged lists, a tensor of a type that NumPy does not have
        raise VtrError(f"not a matrix of numbers: {str(error).splitlines()[0]}") from error
    if scores.dtype.name == "bfloat16":  # of ml_dtypes
        scores = scores.astype(np.float32)
    if scores.dtype.kind not in "fiub":
        what = {"c": "complex numbers", "O": "objects", "V": "raw bytes (bfloat16 is saved so: save float32)"}
        found = what.get(scores.dtype.kind, f"{scores.dtype} values")
        raise VtrError(f"a similarity matrix holds real numbers, this one {found}")
    if scores.ndim != 2:
        raise VtrError(f"a similarity matrix has two dimensions, this one {scores.ndim}")
    if scores.size == 0:
        raise VtrError(f"a {scores.shape[0]}x{scores.shape[1]} matrix has no scores")
    # Whole numbers would wrap around where they are subtracted, and 1000 half-precision numbers overflow in a sum.
    scores = scores.astype(np.float32 if scores.dtype in (np.float16, np.float32) else np.float64, copy=False)
    if np.isnan(scores).any():
        raise VtrError(f"{int(np.isnan(scores).sum())} similarities are NaN: the model's features are not finite")
    return scores


def _truth(shape: tuple[int, ...], truth: Sequence[Sequence[int]] | None) -> Sequence[Sequence[int]]:
    """The right answers of each query, checked."""
    queries, gallery = shape
    if truth is None:
        if queries != gallery:
            raise VtrError(f"a {queries}x{gallery} matrix is not square and needs to be told its right answers (truth)")
        return [[i] for i in range(queries)]
    if len(truth) != queries:
        raise VtrError(f"right answers of {len(truth)} queries for a matrix of {queries}")
    for i, right in enumerate(truth):
        if len(right) == 0:
            raise VtrError(f"query {i} has no right answer")
        if min(right) < 0 or max(right) >= gallery:
            wrong = next(r for r in right if not 0 <= r < gallery)
            raise VtrError(f"query {i}: there is no right answer {wrong} among {gallery} (0 to {gallery - 1})")
    return truth


def _places(similarity: ArrayLike, truth: Sequence[Sequence[int]] | None) -> _Places:
    scores = as_scores(similarity)
    out = _Places(*(np.empty(len(scores)) for _ in range(3)))
    for i, (row, right) in enumerate(zip(scores, _truth(scores.shape, truth))):
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
    similarity: ArrayLike, truth: Sequence[Sequence[int]] | None = None, ties: str = "fair"
) -> RetrievalMetrics:
    """Metrics of a (Q, G) similarity matrix; see `ranks`."""
    places = _places(similarity, truth)
    r = _ranks(places, ties)
    r1, r5, r10 = (_recall(places, k, ties) for k in (1, 5, 10))
    return RetrievalMetrics(r1=r1, r5=r5, r10=r10, median_rank=float(np.median(r)), mean_rank=float(r.mean()))


def tied_queries(similarity: ArrayLike, truth: Sequence[Sequence[int]] | None = None) -> int:
    """Queries whose best right answer scores as a wrong one, but for rounding."""
    return int((_places(similarity, truth).wrong > 0).sum())


def _loaded(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VtrError(f"{path}: not a .npy matrix ({str(error).splitlines()[0]})") from error
    if not isinstance(found, np.ndarray):
        raise VtrError(f"{path} holds several arrays ({', '.join(found.files)}): save one of them with numpy.save")
    try:
        return as_scores(found)
    except VtrError as error:
        raise VtrError(f"{path}: {error}") from error


def _measured(matrix: np.ndarray, truth: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """Both directions of a matrix."""
    result: dict[str, Any] = {"shape": list(matrix.shape)}
    inverse: list[list[int]] | None = None
    if truth is not None:
        truth = _truth(matrix.shape, truth)
        inverse = [[] for _ in range(matrix.shape[1])]
        for query, own in enumerate(truth):
            for answer in own:
                inverse[answer].append(query)
    for name, scores, answers in (("rows_to_columns", matrix, truth), ("columns_to_rows", matrix.T, inverse)):
        right = answers
        if answers is not None:  # columns that are no row's answer ask nothing
            asked = [i for i, own in enumerate(answers) if len(own)]
            scores, right = scores[asked], [answers[i] for i in asked]
        result[name] = retrieval_metrics(scores, right).to_dict()
        tied = tied_queries(scores, right)
        if tied:
            for rule in ("won", "lost"):
                result[f"{name}_ties_{rule}"] = retrieval_metrics(scores, right, rule).to_dict()
            result[f"{name}_tied_queries"] = tied
    return result


def _answers(path: str) -> list[list[int]]:
    """The right columns of each row: a JSON list of numbers, or of lists of numbers."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        return [[row] if isinstance(row, int) else [operator.index(r) for r in row] for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise VtrError(
            f"--truth {path}: expected a JSON list with the right column of each row, or a list of them ({error})"
        ) from error


_USAGE = "usage: python -m vtr.eval.metrics FILE.npy [--truth ANSWERS.json] [--json]"


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m vtr.eval.metrics`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["-h"], ["--help"]):
        print(_USAGE, __doc__, sep="\n\n", end="")
        return 0
    as_json = "--json" in words
    answers = None
    if "--truth" in words and words[-1] != "--truth":
        place = words.index("--truth")
        answers = words[place + 1]
        del words[place : place + 2]
    files = [w for w in words if w != "--json"]
    if len(files) != 1 or files[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        matrix = _loaded(Path(files[0]))
        if answers is None and matrix.shape[0] != matrix.shape[1]:
            raise VtrError(
                f"{files[0]}: a {matrix.shape[0]}x{matrix.shape[1]} matrix needs to be told its right answers: "
                "--truth FILE.json with the right column, or columns, of each row"
            )
        result = _measured(matrix, None if answers is None else _answers(answers))
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
