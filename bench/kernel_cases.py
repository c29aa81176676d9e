"""The shapes and arguments that `bimamba` is measured on, on a CPU and on a GPU.

Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LENGTH = 1569  # one CLS token and eight frames of 14 x 14 patches
STATES, TAPS = 16, 4
WIDTHS = {"middle": 1152, "small": 768, "tiny": 384}  # inner widths of the encoders


class Shape(NamedTuple):
    """A batch of sequences as an encoder meets it."""

    name: str
    batch: int
    length: int


# The reference shape first.
SHAPES = (
    Shape("video", 32, LENGTH),
    Shape("masked video", 64, 314),
    Shape("one long video", 1, 12545),
    Shape("image", 128, 197),
    Shape("long video", 8, 12545),
)


def example(width: int, length: int = LENGTH, batch: int = 1, states: int = STATES, seed: int = 0) -> list[Tensor]:
    """The fifteen arguments of `bimamba` with the statistics that an untrained VideoMamba gives them, float32."""
    g = torch.Generator().manual_seed(seed)
    rank = max(1, width // 32)
    values = [torch.randn(batch, length, 2 * width, generator=g)]
    for _ in range(2):
        step = torch.exp(torch.rand(width, generator=g) * math.log(100) + math.log(1e-3))  # 1e-3 .. 1e-1
        values += [
            (torch.rand(width, TAPS, generator=g) - 0.5) * 2 / TAPS**0.5,
            (torch.rand(width, generator=g) - 0.5) * 2 / TAPS**0.5,
            torch.randn(rank + 2 * states, width, generator=g) / width**0.5,
            (torch.rand(width, rank, generator=g) - 0.5) * 2 / rank**0.5,
            step + torch.log(-torch.expm1(-step)),  # softplus of it is `step`
            torch.log(torch.arange(1.0, states + 1)).expand(width, states).clone(),
            torch.ones(width),
        ]
    return values
