"""The student's head of self-distillation (VIDEOMAMBA.md 4.6): tokens to the teacher's width; dropped afterwards."""

from __future__ import annotations

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
