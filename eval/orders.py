"""The orders in which a clip's frames are shown, to learn what a model takes from time. T frames."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

SHOWN = ("as they are", "frames shuffled", "one frame repeated")


def ordered(frames: Tensor, shown: str, name: str, *, backwards: bool = False) -> Tensor:
    """Frames (T, …) in the order of `shown`, then backwards where asked for.

    The random order depends on the video's name alone, so that it is the same in every run and on every rank; the middle
    frame is the one that is repeated.
    """
    count = len(frames)
    if shown == "frames shuffled":
        order = torch.randperm(count, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        frames = frames[order]
    elif shown == "one frame repeated":
        frames = frames[(count - 1) // 2].expand_as(frames)
    return frames.flip(0) if backwards else frames
