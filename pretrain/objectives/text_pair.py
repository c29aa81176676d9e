"""A caption against its paraphrase and its direction-swapped text, for corpora that carry them.

Legend: B rows, C joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtr.pretrain.objectives.base import EmbeddingObjective, Embeddings


class TextPair(EmbeddingObjective):
    """See `text_pair_loss`."""

    def kinds(self) -> tuple[str, ...]:
        """Both texts beside the caption."""
        return ("paraphrase", "sibling")

    def loss(self, batch: Embeddings) -> Tensor:
        """Of the global batch."""
        texts = batch.texts
        return text_pair_loss(texts["caption"], texts["paraphrase"], texts["sibling"], batch.has_sibling, 0.1)


def text_pair_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, has_negative: Tensor, temperature: float
) -> Tensor:
    """Caption against paraphrase, with the other captions' paraphrases and the swapped captions as negatives.

    Args:
        anchor, positive, negative: (B, C) unit vectors of a caption, its paraphrase and its direction-swapped text.
        has_negative: (B,) bool.
    """
    candidates = torch.cat([positive, negative]).float()
    logits = anchor.float() @ candidates.T / temperature
    absent = torch.cat([torch.zeros_like(has_negative), ~has_negative])
    logits = logits.masked_fill(absent[None, :], -1e4)
    return F.cross_entropy(logits, torch.arange(anchor.shape[0], device=anchor.device))
