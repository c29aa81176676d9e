"""The four training objectives: contrastive (VTC), matching (VTM), masked language (MLM), token alignment (UTA).

Legend: B local batch, G global batch (all ranks), F pooled vectors per video, L tokens, C joint width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Concatenate equal-sized tensors of all ranks; `full` sums the gradient over ranks, else only the own slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, full: bool) -> Tensor:
        ctx.full, ctx.rows = full, x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        if ctx.full:
            # Every rank computes the same global loss, and the gradients of the parameters are averaged afterwards:
            # the sum over ranks here makes that average the true gradient.
            dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows], None


def world_size() -> int:
    """Number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(x: Tensor, full_gradient: bool = True) -> Tensor:
    """Concatenate `x` (B, …) of all ranks to (G, …), with a gradient."""
    return _Gather.apply(x, full_gradient) if world_size() > 1 else x


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """UTA: mean over layers, samples and tokens of 2 - 2 cos (VIDEOMAMBA.md 3). Both (K, B, L, C)."""
    cosine = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (2 - 2 * cosine).mean()


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    ids: Tensor,
    temperature: Tensor,
    *,
    siblings: Tensor | None = None,
    sibling_mask: Tensor | None = None,
    full_gather_gradient: bool = True,
) -> Tensor:
    """VTC over the global batch (VIDEOMAMBA.md 5.3).

    Args:
        video: (B, F, C) unit vectors; the similarity is averaged over F.
        text: (B, C) unit vectors.
        ids: (B,) sample ids; equal ids are positives.
        temperature: Scalar divisor.
        siblings: (B, C) unit vectors of one extra negative caption per video, or None.
        sibling_mask: (B,) bool, False where a video has no such caption.

    Returns:
        Scalar: mean of the two soft cross-entropies.
    """
    videos = gather(video.float(), full_gather_gradient)
    texts = gather(text.float(), full_gather_gradient)
    ids = gather(ids)
    clip = videos.mean(1)  # the mean of the cosines is the cosine with the mean
    logits = clip @ texts.T / temperature
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    text_to_video = -(target * F.log_softmax(logits.T, dim=1)).sum(1).mean()
    if siblings is not None and sibling_mask is not None:
        own = (clip * gather(siblings.float(), full_gather_gradient)).sum(-1, keepdim=True) / temperature
        own = own.masked_fill(~gather(sibling_mask)[:, None], -1e4)
        logits = torch.cat([logits, own], dim=1)
        target = F.pad(target, (0, 1))
    video_to_text = -(target * F.log_softmax(logits, dim=1)).sum(1).mean()
    return (video_to_text + text_to_video) / 2


def hard_negatives(similarity: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one wrong partner per row, likelier the more similar it is.

    Args:
        similarity: (B, B) logits, rows query, columns candidates.
        ids: (B,) sample ids; equal ids are never drawn.
        generator: On the CPU, so that the draw does not depend on the device.

    Returns:
        (B,) column indices. With a single distinct id in the batch there is no wrong partner: raises ValueError.
    """
    same = ids[:, None] == ids[None, :]
    if bool(same.all(1).any()):
        raise ValueError("matching needs at least two different samples in each rank's batch")
    # The floor keeps every wrong partner possible: a row whose softmax underflows would stop multinomial.
    weights = similarity.detach().float().softmax(1).clamp_min(1e-6).masked_fill(same, 0.0)
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(similarity.device)


def matching_loss(logits: Tensor, positives: int) -> Tensor:
    """VTM: cross-entropy of (N, 2) match logits, the first `positives` of which are true pairs."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    return F.cross_entropy(logits.float(), labels)


def mask_tokens(
    ids: Tensor,
    attention_mask: Tensor,
    *,
    probability: float,
    cls_id: int,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict: 80 % [MASK], 10 % random, 10 % unchanged; never PAD or CLS (VIDEOMAMBA.md 5.3).

    Returns:
        Masked ids and labels, both (B, L); labels are -100 where nothing is predicted.
    """
    shape = ids.shape
    chosen = (torch.rand(shape, generator=generator) < probability).to(ids.device)
    chosen &= attention_mask.bool() & (ids != cls_id)
    kind = torch.rand(shape, generator=generator).to(ids.device)
    random_ids = torch.randint(vocab_size, shape, generator=generator).to(ids.device)
    masked = torch.where(chosen & (kind < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), random_ids, masked)
    return masked, ids.masked_fill(~chosen, -100)


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """MLM: cross-entropy over the chosen tokens; 0 when none was chosen. logits (B, L, V), labels (B, L)."""
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)


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
