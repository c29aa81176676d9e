"""Videos in the order of how well a text describes them: the search of a list, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vtr.errors import UsageError
from vtr.models.base import VideoTextEncoder, combined_scores

_BATCH = 8  # videos read and encoded at once


class Ranked(NamedTuple):
    """A video and how well the text describes it."""

    video: str
    score: float  # of `combined_scores` where the model has a cross-modal decoder, else a cosine


@torch.inference_mode()
def rank(model: VideoTextEncoder, text: str, videos: Sequence[str | Path], rerank: bool = True) -> list[Ranked]:
    """Videos, best first.

    Args:
        text: What is looked for.
        videos: Paths of videos or images.
        rerank: Use the cross-modal decoder too, where the model has one, as `vtr search --rerank` does.

    Raises:
        UsageError: The text is empty, or `videos` is no list of paths.
        DecodeError: A file is missing or no video.
    """
    if isinstance(videos, str | Path):
        raise UsageError(
            "rank: expected a list of videos, got one; encode_video and similarity compare one with a text"
        )
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"rank: expected a text, got {text!r}")
    words = model.encode_text(text)
    found = []
    for start in range(0, len(videos), _BATCH):
        paths = videos[start : start + _BATCH]
        seen = model.encode_video(paths)
        scores = (seen.embedding @ words.embedding.T)[:, 0].float()
        if rerank and model.reranks:
            count = len(paths)
            logits = model.match(words.tokens.expand(count, -1, -1), words.mask.expand(count, -1), seen.tokens)
            scores = combined_scores(scores, logits, float(model.temp))
        found += [Ranked(str(path), float(score)) for path, score in zip(paths, scores)]
    return sorted(found, key=lambda ranked: -ranked.score)
