"""Videos in the order of how well a text describes them: the search of a list, without a library."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vtr.errors import UsageError
from vtr.models.base import TextFeatures, VideoFeatures, VideoTextEncoder, combined_scores, paths_of

_BATCH = 8  # videos read and encoded at once


class Ranked(NamedTuple):
    """A video and how well a text describes it.

    Attributes:
        index: Its place in the list that was given, from 0.
        path: As it was given.
        score: Of `combined_scores` (a logit, any size) where the model has a cross-modal decoder, else a cosine, -1 to 1.
    """

    index: int  # type: ignore[assignment]  # nobody looks for a value in it
    path: str
    score: float


class Ranking(list[Ranked]):
    """Videos, best first; a notebook shows a table."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{n}</td><td>{html.escape(r.path)}</td><td>{r.score:.3f}</td></tr>" for n, r in enumerate(self, 1)
        )
        return f"<table><tr><th></th><th>video</th><th>score</th></tr>{rows}</table>"


class ComparesVideos:
    """What a model of texts and videos does with both."""

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Cosine similarities (texts, videos), averaged over a video's pooled vectors; temperature 1.

        Args:
            text: What `encode_text` gave.
            video: What `encode_video` gave.

        >>> import vtr
        >>> model = vtr.load("runs/demo")
        >>> model.similarity(model.encode_text(["a dog", "a cat"]), model.encode_video(["a.mp4", "b.mp4"])).shape
        torch.Size([2, 2])
        """
        return text.embedding @ video.embedding.T

    def rank(self, text: str, videos: Sequence[str | Path], rerank: bool = True) -> Ranking:
        """Videos, best first; see `vtr.models.rank.rank`.

        >>> import vtr
        >>> model = vtr.load("runs/demo")
        >>> best = model.rank("a dog", ["a.mp4", "b.mp4"])[0]
        >>> best.index, best.path
        (1, 'b.mp4')
        """
        return rank(cast(VideoTextEncoder, self), text, videos, rerank)  # a model itself has the rest of the protocol


@torch.inference_mode()
def rank(model: VideoTextEncoder, text: str, videos: Sequence[str | Path], rerank: bool = True) -> Ranking:
    """Videos, best first; equal ones in the order they were given.

    Args:
        model: Anything with the protocol `VideoTextEncoder`.
        text: What is looked for.
        videos: Paths of videos or images, each looked at whole, as `encode_video` does.
        rerank: Use the cross-modal decoder too, where the model has one, as `vtr search --rerank` does.

    Raises:
        UsageError: The text is empty, or `videos` is no list of paths or an empty one.
        DecodeError: A file is missing or no video.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"rank: expected a text, got {text!r}")
    if isinstance(videos, str | Path):
        raise UsageError(
            "rank: expected a list of videos, got one; encode_video and similarity compare one with a text"
        )
    paths = paths_of(videos, "rank: expected a list of paths")
    words = model.encode_text(text)
    found = []
    for start in range(0, len(paths), _BATCH):
        part = paths[start : start + _BATCH]
        seen = model.encode_video(part)
        scores = (seen.embedding @ words.embedding.T)[:, 0].float()
        if rerank and model.reranks:
            count = len(part)
            logits = model.match(words.tokens.expand(count, -1, -1), words.mask.expand(count, -1), seen.tokens)
            scores = combined_scores(scores, logits, float(model.temp))
        found += [Ranked(start + n, str(path), float(score)) for n, (path, score) in enumerate(zip(part, scores))]
    return Ranking(sorted(found, key=lambda ranked: -ranked.score))
