"""The contrastive and the language loss, which recorded outputs of the official system hold; alignment: `distill`.

G global batch (all ranks), F pooled vectors a video, B rows, L tokens, V words, C joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    ids: Tensor,
    temperature: Tensor,
    *,
    siblings: Tensor | None = None,
    sibling_mask: Tensor | None = None,
) -> Tensor:
    """VTC of a whole batch (docs/notes/videomamba.md, "Losses").

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


def language_loss(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """MLM: cross-entropy over the chosen tokens; 0 when none was chosen. logits (B, L, V), labels (B, L).

    Args:
        count: Chosen tokens to divide by, where the labels are a part of a larger batch.
    """
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if count is None else count).clamp_min(1)
