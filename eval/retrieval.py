"""Rows of a result: retrieval in both directions, multiple choice, classification, direction pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtr.eval.features import EncodeSettings, autocast, load_clip, tokenised
from vtr.eval.metrics import ranks, recalls, retrieval_metrics
from vtr.models.base import VideoTextEncoder, combined_scores

_SIGMAS = 2.5  # a result this many standard errors above chance is no chance


class RetrievalRows(NamedTuple):
    """Metrics of both directions, by row; and the mean of their six recalls."""

    t2v: dict[str, dict[str, float]]
    v2t: dict[str, dict[str, float]]
    mean_recall: dict[str, float]


def retrieval_rows(
    similarity: Tensor,
    logits: Tensor | None,
    text_truth: Sequence[Sequence[int]],
    video_truth: Sequence[Sequence[int]],
    top: int,
    temperature: float,
    ties: str = "fair",
    by_logit: bool = False,
) -> RetrievalRows:
    """Text-to-video and video-to-text, in up to three rows: embedding, reranked (match alone), combined.

    Candidates below the top keep their order there: below all of the top in the combined scores, out of the running by
    the match head alone.

    Args:
        similarity: (Q, V) cosines.
        logits: (Q, V, 2) match logits of the pairs among the top; None: no re-ranking.
        by_logit: Re-rank by the logit of "match" alone, as published figures were made, and not by the log-odds. The
            matching loss trains the log-odds; what shifts both logits together, no loss has ever seen.
    """
    found = []
    for by_text, matrix, truth in ((True, similarity, text_truth), (False, similarity.T, video_truth)):
        asked = [i for i, right in enumerate(truth) if len(right)]  # wrong options have no right video
        rows = {"embedding": matrix}
        if logits is not None:
            pair = logits if by_text else logits.transpose(0, 1)
            chosen = torch.zeros(matrix.shape, dtype=torch.bool)
            chosen.scatter_(1, matrix.topk(min(top, matrix.shape[1]), dim=1).indices, True)
            match = pair[..., 1] if by_logit else pair[..., 1] - pair[..., 0]
            rows["reranked"] = torch.where(chosen, match, torch.tensor(float("-inf")))
            both, alone = combined_scores(matrix, pair, temperature), matrix / temperature
            # Just below the last of the top: a large offset would round the scores, and make ties of them.
            lowest = torch.where(chosen, both, torch.inf).amin(1, keepdim=True)
            rows["combined"] = torch.where(chosen, both, alone - alone.amax(1, keepdim=True) + lowest - 1)
        kept = [truth[i] for i in asked]
        found.append(
            {row: retrieval_metrics(scores[asked].numpy(), kept, ties).to_dict() for row, scores in rows.items()}
        )
    t2v, v2t = found
    means = {row: round(sum(d[row][k] for d in found for k in ("r1", "r5", "r10")) / 6, 2) for row in t2v}
    return RetrievalRows(t2v, v2t, means)


def at_chance(similarity: Tensor, truth: Sequence[Sequence[int]]) -> bool:
    """Whether the right answers stand no better than where blind guessing would put them."""
    asked = [i for i, right in enumerate(truth) if len(right)]
    right = [truth[i] for i in asked]
    gallery = similarity.shape[1]
    found = ranks(similarity[asked].numpy(), right)
    # Of k right answers among G, blind guessing puts the best at (G + 1) / (k + 1) on average.
    k = np.array([len(r) for r in right], dtype=float)
    mean = (gallery + 1) / (k + 1)
    variance = k * (gallery + 1) * (gallery - k) / ((k + 1) ** 2 * (k + 2))
    if variance.sum() == 0:
        return False
    return float((mean - found).sum() / math.sqrt(variance.sum())) < _SIGMAS


def chance_words(similarity: Tensor, logits: Tensor | None, truth: Sequence[Sequence[int]], top: int) -> list[str]:
    """What to say of a model, or its match head, that does no better than blind guessing."""
    words = []
    if at_chance(similarity, truth):
        words.append(
            "AT CHANCE LEVEL: the embeddings find the right video no better than blind guessing. Is this a trained model, "
            "were its weights loaded, and do the captions belong to these videos?"
        )
    if logits is not None and similarity.shape[1] > 1:
        best = similarity.topk(min(top, similarity.shape[1]), dim=1).indices
        scores, right = [], []
        for query, answers in enumerate(truth):
            candidates = best[query].tolist()
            own = [candidates.index(a) for a in answers if a in candidates]
            if own and len(own) < len(candidates):
                scores.append(logits[query, candidates, 1])
                right.append(own)
        if right and at_chance(torch.stack(scores), right):
            words.append(
                "MATCH HEAD AT CHANCE LEVEL: among the candidates it picks no better than blind guessing. Was its head, or "
                "the part of the text tower that reads the video, not trained or not loaded?"
            )
    return words


def choice_rows(
    similarity: Tensor,
    logits: Tensor | None,
    options: Sequence[Sequence[int]],
    text_truth: Sequence[Sequence[int]],
    temperature: float,
) -> dict[str, float]:
    """Accuracy in percent of choosing among each video's options; ties share the point.

    `ensemble` is the published rule: 0.7 x probability of a match + 0.3 x softmax of the cosines over the options.
    """
    points: dict[str, list[float]] = {}
    for video, own in enumerate(options):
        right = [i for i, text in enumerate(own) if video in text_truth[text]]
        cosine = (similarity[list(own), video] / temperature).softmax(0)
        rows = {"embedding": cosine}
        if logits is not None:
            match = logits[list(own), video].softmax(-1)[:, 1]
            rows |= {"match": match, "ensemble": 0.7 * match + 0.3 * cosine}
        for name, scores in rows.items():
            winners = (scores == scores.max()).nonzero()[:, 0].tolist()
            points.setdefault(name, []).append(sum(w in right for w in winners) / len(winners))
    return {name: round(100 * float(np.mean(values)), 2) for name, values in points.items()}


def class_rows(text: Tensor, video: Tensor, prompts: int, labels: Sequence[int]) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent; a class is the mean of its prompts' embeddings.

    Args:
        text: (classes * prompts, E), a class's prompts beside each other.
        video: (V, E).
    """
    means = torch.nn.functional.normalize(text.unflatten(0, (-1, prompts)).mean(1), dim=-1)
    first, fifth = recalls((video @ means.T).numpy(), [[label] for label in labels], (1, 5))
    return {"top1": round(first, 2), "top5": round(fifth, 2)}


@torch.inference_mode()
def direction_pairs(
    model: VideoTextEncoder,
    pairs: Sequence[dict[str, str]],
    folder: Path,
    settings: EncodeSettings,
    match: bool = False,
    batch: int = 16,
) -> dict[str, dict[str, float]]:
    """Share of right decisions between a clip and its sibling, in percent, by kind and over all (chance 50).

    Four decisions a pair: each caption chooses between the two clips, each clip between the two captions.

    Returns:
        By the embedding, and by the match head where it is asked for and there is one.
    """
    chosen: dict[str, list[Tensor]] = {"embedding": []}
    if match and model.reranks:
        chosen["match"] = []
    with autocast(model, settings.bf16):
        for first in range(0, len(pairs), batch):
            some = pairs[first : first + batch]
            paths = [folder / p[k] for p in some for k in ("video_a", "video_b")]
            captions = [p[k] for p in some for k in ("caption_a", "caption_b")]
            videos = model.encode_video(torch.stack([load_clip(p, model, settings) for p in paths]))
            texts = [model.encode_text(t) for t in tokenised(model, captions, settings.max_text_tokens)[0]]
            cosines = torch.cat([t.embedding for t in texts]) @ videos.embedding.T
            chosen["embedding"].append(_decided(cosines))
            if "match" in chosen:
                odds = []
                for video in videos.tokens.split(1):
                    logits = torch.cat([model.match(t.tokens, t.mask, video) for t in texts]).float()
                    odds.append(logits[:, 1] - logits[:, 0])
                chosen["match"].append(_decided(torch.stack(odds, 1)))
    kinds = np.array([p["kind"] for p in pairs])
    return {name: _by_kind(torch.cat(right).cpu().numpy(), kinds) for name, right in chosen.items()}


def _decided(scores: Tensor) -> Tensor:
    """Share of right decisions of each pair (P,), from the scores (2 P, 2 P) of their captions and clips."""
    own = scores.unflatten(0, (-1, 2)).unflatten(2, (-1, 2))
    a, b, c, d = (own[:, t, :, v].diagonal() for t in range(2) for v in range(2))
    # A tie is half a right decision, so that a model blind to direction gets 50.
    return torch.stack([(x > y).float() + 0.5 * (x == y).float() for x, y in ((a, b), (d, c), (a, c), (d, b))], 1).mean(
        1
    )


def _by_kind(right: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    result = {"all": round(100 * float(right.mean()), 2)}
    return result | {k: round(100 * float(right[kinds == k].mean()), 2) for k in dict.fromkeys(kinds.tolist())}
