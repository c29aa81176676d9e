"""Right decisions between a right and a wrong text, or a clip and its reversal: what a model takes from time.

V videos, Q texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vtr.eval.benchmarks import Question
from vtr.eval.orders import SHOWN

# Scores that differ by less are equal: two orders of the same frames give a frame average that is equal but for the order
# of float32 sums.
_ALIKE = 1e-5
_SIGMAS = 2.5
Scores = Mapping[str, Tensor]
"""By row (embedding, match): the score of each text with each video (Q, V)."""


class Shown(NamedTuple):
    """The scores of the clips as they were shown, and backwards where the protocol asks for it."""

    clips: Scores
    backwards: Scores | None


def contrast_rows(
    questions: Sequence[Question], score: Callable[[str], Shown]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Right decisions in percent, chance 50, by row; ties are half a right one.

    Of `counterfactual` a clip chooses between its texts. Of `reversed` there are four decisions a question: each text
    chooses between the clip and its reversal, each of these between the texts. Then the same with frames shuffled and with
    one frame repeated: what is above 50 there, time did not tell.

    Args:
        score: The scores for each of `SHOWN`.

    Returns:
        The rows: `all`, both ways of `reversed`, each kind, and `all` for the other ways of showing; and warnings.
    """
    rows: dict[str, dict[str, float]] = {}
    for shown in SHOWN:
        scores = score(shown)
        for row, clips in scores.clips.items():
            back = None if scores.backwards is None else scores.backwards[row]
            ways = _decisions(questions, clips, back)
            whole = torch.stack(list(ways.values())).mean(0)  # of each question
            if shown != SHOWN[0]:
                rows[row][shown] = _percent(whole)
                continue
            rows[row] = {"all": _percent(whole)}
            if len(ways) > 1:
                rows[row] |= {way: _percent(right) for way, right in ways.items()}
            kinds = dict.fromkeys(q.kind for q in questions)
            if len(kinds) > 1:
                for kind in kinds:
                    own = torch.tensor([q.kind == kind for q in questions])
                    rows[row][kind or "(no kind)"] = _percent(whole[own])
    return rows, _words(rows, len(questions))


def _decisions(questions: Sequence[Question], clips: Tensor, back: Tensor | None) -> dict[str, Tensor]:
    """Points (1, 0.5 or 0) of each question, by way of deciding."""
    video, right, wrong = (torch.tensor([q[i] for q in questions]) for i in range(3))
    by_clip = _points(clips[right, video], clips[wrong, video])
    if back is None:
        return {"clip to text": by_clip}
    by_reversal = _points(back[wrong, video], back[right, video])
    by_text = (_points(clips[right, video], back[right, video]) + _points(back[wrong, video], clips[wrong, video])) / 2
    return {"text to clip": by_text, "clip to text": (by_clip + by_reversal) / 2}


def _points(right: Tensor, wrong: Tensor) -> Tensor:
    alike = (right - wrong).abs() <= _ALIKE * torch.maximum(right.abs(), wrong.abs()).clamp(min=1)
    return torch.where(alike, 0.5, (right > wrong).double())


def _percent(points: Tensor) -> float:
    return round(100 * float(points.double().mean()), 2)


def _words(rows: Mapping[str, Mapping[str, float]], questions: int) -> list[str]:
    """Of rows that a coin would reach, and of those that reach as much without the order of the frames."""
    said = []
    near = _SIGMAS * 50 / math.sqrt(questions)
    for row, found in rows.items():
        if found["all"] - 50 < near:
            said.append(f"AT CHANCE LEVEL: by {row} it decides no better than a coin ({questions} questions)")
        elif found["all"] - found["frames shuffled"] < near:
            said.append(
                f"by {row} it decides nearly as well with the frames shuffled ({found['shuffled']:g}): what tells it is not "
                "their order"
            )
    return said
