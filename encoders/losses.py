"""The losses that have a published definition, as plain functions of tensors; `vtr.pretrain` makes objectives of them.

B rows, G global batch (all ranks), F pooled vectors a video, K aligned layers, L tokens, V words, C joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """UTA: mean over layers, samples and tokens of 2 - 2 cos (VIDEOMAMBA.md 3). Both (K, B, L, C)."""
    cosine = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (2 - 2 * cosine).mean()


def token_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Self-distillation: mean over samples and tokens, CLS included, of 2 - 2 cos (VIDEOMAMBA.md 4.6). Both (B, L, C)."""
    return alignment_loss(student, teacher)


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


def matching_loss(logits: Tensor, positives: int, reduction: str = "mean") -> Tensor:
    """VTM: cross-entropy of (N, 2) match logits, the first `positives` of which are true pairs."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    return F.cross_entropy(logits.float(), labels, reduction=reduction)


def language_loss(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """MLM: cross-entropy over the chosen tokens; 0 when none was chosen. logits (B, L, V), labels (B, L).

    Args:
        count: Chosen tokens to divide by, where the labels are a part of a larger batch.
    """
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if count is None else count).clamp_min(1)
