"""VTC: videos and captions of the global batch told apart, both ways.

Legend: G global batch (all ranks), F pooled vectors per video, C joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtr.pretrain.objectives.base import EmbeddingObjective, Embeddings


class Contrastive(EmbeddingObjective):
    """See `contrastive_loss`."""

    uses_temperature = True
    weakened = True

    def kinds(self) -> tuple[str, ...]:
        """The sibling captions, where the stage takes them for negatives."""
        return ("sibling",) if self.stage.sibling_negatives else ()

    def loss(self, batch: Embeddings) -> Tensor:
        """Of the global batch."""
        return contrastive_loss(
            batch.video,
            batch.texts["caption"],
            batch.ids,
            batch.temperature,
            siblings=batch.texts["sibling"] if self.stage.sibling_negatives else None,
            sibling_mask=batch.has_sibling,
        )


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    ids: Tensor,
    temperature: Tensor,
    *,
    siblings: Tensor | None = None,
    sibling_mask: Tensor | None = None,
) -> Tensor:
    """VTC of a whole batch (VIDEOMAMBA.md 5.3).

    Args:
        video: (G, F, C) unit vectors; the similarity is averaged over F.
        text: (G, C) unit vectors.
        ids: (G,) sample ids; equal ids are positives.
        temperature: Scalar divisor.
        siblings: (G, C) unit vectors of one extra negative caption per video, or None.
        sibling_mask: (G,) bool, False where a video has no such caption.

    Returns:
        Scalar: mean of the two soft cross-entropies.
    """
    clip = video.float().mean(1)  # the mean of the cosines is the cosine with the mean
    logits = clip @ text.float().T / temperature
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    text_to_video = -(target * F.log_softmax(logits.T, dim=1)).sum(1).mean()
    if siblings is not None and sibling_mask is not None:
        own = (clip * siblings.float()).sum(-1, keepdim=True) / temperature
        own = own.masked_fill(~sibling_mask[:, None], -1e4)
        logits = torch.cat([logits, own], dim=1)
        target = F.pad(target, (0, 1))
    video_to_text = -(target * F.log_softmax(logits, dim=1)).sum(1).mean()
    return (video_to_text + text_to_video) / 2
