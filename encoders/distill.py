"""A student guided by a teacher's tokens: the losses, and the head that brings tokens to the teacher's width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.videomamba import RMSNorm
from vtr.kernels.linear import Linear


class DistillHead(nn.Module):
    """RMSNorm, then linear: (B, L, D) -> (B, L, D of the teacher)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.proj = Linear(dim, out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(self.norm(tokens))


def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """UTA: mean over layers, samples and tokens of 2 - 2 cos (docs/notes/videomamba.md). Both (K, B, L, C)."""
    cosine = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (2 - 2 * cosine).mean()


def token_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Self-distillation (docs/notes/videomamba.md): mean of 2 - 2 cos over samples and tokens with CLS. Both (B, L, C)."""
    return alignment_loss(student, teacher)
