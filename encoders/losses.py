"""The contrastive and the language loss, which recorded outputs of the official system hold; alignment: `distill`.

G global batch (all ranks), F pooled vectors a video, B rows, L tokens, V words, C joint width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reversal(NamedTuple):
    """One more wrong partner of each caption and of each video, where a caption tells a direction."""

    video: Tensor  # (G, F, C) unit vectors of the clip played backwards
    text: Tensor  # (G, C) of the caption turned to it
    mask: Tensor  # (G,) bool, False where there are none


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    ids: Tensor,
    temperature: Tensor,
    *,
    siblings: Tensor | None = None,
    sibling_mask: Tensor | None = None,
    reversal: Reversal | None = None,
) -> Tensor:
    """VTC of a whole batch (docs/notes/videomamba.md, "Losses").

    Args:
        video: (G, F, C) unit vectors; the similarity is averaged over F.
        text: (G, C) unit vectors.
        ids: (G,) sample ids; equal ids are positives.
        temperature: Scalar divisor.
        siblings: (G, C) unit vectors of one extra negative caption per video, or None.
        sibling_mask: (G,) bool, False where a video has no such caption.
        reversal: Reversed clips, wrong for the captions, and turned captions, wrong for the videos; or None.

    Returns:
        Scalar: mean of the two soft cross-entropies.
    """
    clip = video.float().mean(1)  # the mean of the cosines is the cosine with the mean
    logits = clip @ text.float().T / temperature
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    to_text, to_video = [logits], [logits.T]
    if siblings is not None and sibling_mask is not None:
        to_text.append(_own(clip, siblings, temperature, sibling_mask))
    if reversal is not None:
        to_text.append(_own(clip, reversal.text, temperature, reversal.mask))
        to_video.append(_own(text, reversal.video.float().mean(1), temperature, reversal.mask))
    video_to_text, text_to_video = (_soft_cross_entropy(torch.cat(parts, 1), target) for parts in (to_text, to_video))
    return (video_to_text + text_to_video) / 2


def _own(one: Tensor, other: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """Logits (G, 1) of each row with its own extra partner."""
    logits = (one.float() * other.float()).sum(-1, keepdim=True) / temperature
    return logits.masked_fill(~mask[:, None], -1e4)


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits (G, G + extra): what is beyond the targets (G, G) is wrong."""
    target = F.pad(target, (0, logits.shape[1] - target.shape[1]))
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()


def language_loss(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """MLM: cross-entropy over the chosen tokens; 0 when none was chosen. logits (B, L, V), labels (B, L).

    Args:
        count: Chosen tokens to divide by, where the labels are a part of a larger batch.
    """
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if count is None else count).clamp_min(1)
