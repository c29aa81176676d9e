"""The cross-modal decoder looks again at the best moments of a query. n moments, Lv visual tokens, D width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vtr.errors import VtrError
from vtr.library.encode import BATCH
from vtr.library.found import Found
from vtr.library.tokens import TokenCache
from vtr.models.base import TextFeatures, combined_scores

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder


class Reranker:
    """Combined scores of moments for one query.

    Args:
        model: It has a cross-modal decoder.
        texts: The query's.
        weights: Of each text; negative for what is not wanted.
        cache: Visual tokens of moments that were looked at before.
    """

    def __init__(
        self, model: VideoTextEncoder, texts: TextFeatures, weights: Sequence[float], cache: TokenCache | None
    ) -> None:
        self.model, self.texts, self.weights, self.cache = model, texts, weights, cache
        self.failed: list[str] = []  # why moments could not be looked at
        self._items: list[Found] = []
        self._odds: list[Tensor] = []

    def __call__(self, found: Sequence[Found], top: int, frames: Callable[[Found], Tensor]) -> list[Found]:
        """The top ones by the combined score first; those that cannot be looked at again keep their place after them.

        Args:
            found: Best first.
            top: How many are looked at.
            frames: Gives the frames of a moment, uint8 (T, 3, S, S); its errors mean that they cannot be had.
        """
        known: list[tuple[Found, np.ndarray]] = []
        rest: list[Found] = []
        batch: list[tuple[Found, Tensor]] = []
        for item in found[:top]:
            kept = self.cache.get(item.segment) if self.cache is not None else None
            if kept is not None:
                known.append((item, kept))
                continue
            try:
                batch.append((item, frames(item)))
            except (VtrError, OSError, ValueError) as error:
                rest.append(item)  # the file is gone or has changed since it was indexed
                self.failed.append(str(error))
                continue
            if len(batch) == BATCH:
                self._encode(batch)
                batch = []
        if batch:
            self._encode(batch)
        self._match_known(known)
        if self.cache is not None:
            self.cache.trim()
        return [*self._ordered(), *rest, *found[top:]] if self._items else list(found)

    def _encode(self, batch: Sequence[tuple[Found, Tensor]]) -> None:
        with torch.inference_mode():
            tokens = self.model.encode_video(torch.stack([frames for _, frames in batch])).tokens
        if self.cache is not None:
            for (item, _), own in zip(batch, tokens):
                self.cache.put(item.segment, own.half().cpu().numpy())
        self._match([item for item, _ in batch], tokens)

    def _match_known(self, known: list[tuple[Found, np.ndarray]]) -> None:
        # Images have fewer tokens than videos: only equal shapes make a batch.
        for _, same in itertools.groupby(sorted(known, key=lambda i: i[1].shape), key=lambda i: i[1].shape):
            group = list(same)
            for start in range(0, len(group), BATCH):
                part = group[start : start + BATCH]
                stacked = torch.from_numpy(np.stack([t for _, t in part])).to(self.model.device, torch.float32)
                self._match([item for item, _ in part], stacked)

    def _match(self, items: Sequence[Found], tokens: Tensor) -> None:
        n, total = len(items), torch.zeros(len(items))
        with torch.inference_mode():
            for place, weight in enumerate(self.weights):
                words, mask = self.texts.tokens[place : place + 1], self.texts.mask[place : place + 1]
                logits = self.model.match(words.expand(n, -1, -1), mask.expand(n, -1), tokens).float().cpu()
                total += weight * (logits[:, 1] - logits[:, 0])
        self._items.extend(items)
        self._odds.append(total)

    def _ordered(self) -> list[Found]:
        odds = torch.cat(self._odds)
        logits = torch.stack([torch.zeros_like(odds), odds], dim=1)
        similarity = torch.tensor([i.similarity for i in self._items])
        both = combined_scores(similarity, logits, float(self.model.temp.detach()))
        order = both.argsort(descending=True).tolist()
        return [self._items[i]._replace(score=float(both[i]), reranked=True) for i in order]
