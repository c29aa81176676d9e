"""The five masks of masked pretraining (Fig. 5, docs/notes/videomamba.md), vectorised and seeded. True = dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from vtr.errors import unknown_name

KINDS = ("random", "tube", "frame_row", "clip_row", "attention")


def make_mask(
    kind: str,
    batch: int,
    frames: int,
    grid_h: int,
    grid_w: int,
    ratio: float,
    generator: torch.Generator,
    attention: Tensor | None = None,
) -> Tensor:
    """Draw a mask (B, 1 + T*P) bool; column 0 (CLS) is never dropped, every row drops the same number.

    Args:
        kind: random (over the clip), tube (same patches in each frame), frame_row (rows, per frame), clip_row (rows,
            over the clip), attention (keeps patches in proportion to the teacher's attention).
        ratio: Share of patches (or rows) to drop.
        generator: CPU generator; all randomness comes from it.
        attention: (B*T, P) non-negative, for kind attention.
    """
    patches = grid_h * grid_w

    def shuffled(rows: int, columns: int, dropped: int) -> Tensor:
        order = torch.rand(rows, columns, generator=generator).argsort(1)
        return order < dropped

    if kind == "random":
        mask = shuffled(batch, frames * patches, int(ratio * frames * patches))
    elif kind == "tube":
        mask = shuffled(batch, patches, int(ratio * patches)).repeat(1, frames)
    elif kind == "frame_row":
        mask = shuffled(batch * frames, grid_h, int(ratio * grid_h)).repeat_interleave(grid_w, 1)
    elif kind == "clip_row":
        mask = shuffled(batch, frames * grid_h, frames * int(ratio * grid_h)).repeat_interleave(grid_w, 1)
    elif kind == "attention":
        if attention is None:
            raise ValueError("an attention mask needs the teacher's attention (B*T, P)")
        visible = patches - int(patches * ratio)
        weights = attention.detach().float().cpu().clamp_min(1e-12)
        drawn = torch.multinomial(weights, visible, generator=generator)
        mask = torch.ones(batch * frames, patches, dtype=torch.bool).scatter_(1, drawn, False)
    else:
        raise unknown_name("mask", kind, KINDS)
    mask = mask.reshape(batch, frames * patches)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.bool), mask], 1)
