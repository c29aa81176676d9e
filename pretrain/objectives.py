"""The four training objectives: contrastive (VTC), matching (VTM), masked language (MLM), token alignment (UTA).

Legend: B rows, G global batch (all ranks), F pooled vectors per video, L tokens, C joint width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vtr.encoders import draws
from vtr.encoders.distill import alignment_loss, token_distillation_loss
from vtr.encoders.losses import contrastive_loss, language_loss

__all__ = [
    "alignment_loss",
    "contrastive_loss",
    "gathered",
    "hard_negatives",
    "language_loss",
    "mask_tokens",
    "matching_loss",
    "text_pair_loss",
    "token_distillation_loss",
    "world_size",
]


def world_size() -> int:
    """Number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor, group: Any = None) -> Tensor:
    """Concatenate equal-sized tensors (B, …) of all ranks (of a process group) in rank order; without a gradient."""
    if world_size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts)


def hard_negatives(similarity: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
    """Draw one wrong partner per row, likelier the more similar it is.

    Args:
        similarity: (N, M) logits, rows query, columns candidates.
        allowed: (N, M) bool, False for right answers and for candidates out of reach.
        uniform: (N,) in [0, 1): the draw of each row.

    Returns:
        (N,) column indices. A row without an allowed partner raises ValueError.
    """
    if not bool(allowed.any(1).all()):
        raise ValueError("matching needs at least two different samples in each group of candidates")
    # The floor keeps every wrong partner possible: a row whose softmax underflows would have none.
    weights = similarity.detach().float().softmax(1).clamp_min(1e-6).masked_fill(~allowed, 0.0)
    cumulative = weights.double().cumsum(1)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform.double()[:, None] * total, total * (1 - 1e-12))
    return torch.searchsorted(cumulative, point, right=True).squeeze(1)


def matching_loss(logits: Tensor, positives: int, reduction: str = "mean") -> Tensor:
    """VTM: cross-entropy of (N, 2) match logits, the first `positives` of which are true pairs."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    return F.cross_entropy(logits.float(), labels, reduction=reduction)


def mask_tokens(
    ids: Tensor,
    attention_mask: Tensor,
    *,
    probability: float,
    cls_id: int,
    mask_id: int,
    vocab_size: int,
    seeds: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict: 80 % [MASK], 10 % random, 10 % unchanged; never PAD or CLS (VIDEOMAMBA.md 5.3).

    Args:
        ids, attention_mask: (B, L).
        seeds: (B,) int64; a row's choice depends on its seed alone (`vtr.encoders.draws`).

    Returns:
        Masked ids and labels, both (B, L); labels are -100 where nothing is predicted.
    """
    shape = tuple(ids.shape)
    chosen, kind, other = (draws.row_uniform(seeds.to(ids.device), shape, salt) for salt in range(3))
    picked = (chosen < probability) & attention_mask.bool() & (ids != cls_id)
    masked = torch.where(picked & (kind < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(picked & (kind >= 0.8) & (kind < 0.9), (other * vocab_size).long(), masked)
    return masked, ids.masked_fill(~picked, -100)


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
