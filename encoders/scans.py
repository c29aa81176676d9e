"""Scan orders of video tokens as permutations of the same blocks (paper section 3.2, Fig. 4 and 7a).

B batch, T frames, P patches of a frame, L visible patch tokens. CLS stays first in every order. The stream of tokens is
kept spatial-first (frame by frame), so that order costs nothing; the others permute it, and put it back at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtr.errors import unknown_name

# name -> the paper's words and its top-1 on SthSthV2 with VideoMamba-Ti (Fig. 7a).
SCANS = {
    "spatial": ("spatial-first, bidirectional", 65.1),
    "temporal": ("temporal-first, bidirectional", 62.4),
    "spatiotemporal_v1": ("both orders, half of the channels each", 63.9),
    "spatiotemporal_v2": ("both orders, all channels (twice the computation)", 64.2),
    "spatial_temporal": ("half of the layers spatial-first, then temporal-first", 64.0),
    "temporal_spatial": ("half of the layers temporal-first, then spatial-first", 64.1),
    "alternating": ("spatial-first and temporal-first layers in turn", 65.1),
}


class Permutation(NamedTuple):
    """A way from spatial-first to temporal-first and back; 1-D for all samples, (B, 1 + L) where masks differ."""

    forth: Tensor
    back: Tensor


def layer_orders(scan: str, depth: int) -> tuple[str, ...]:
    """The order each layer scans in: "spatial", "temporal", or "v1" / "v2", which see both.

    Raises:
        UsageError: No scan of that name.
    """
    if scan not in SCANS:
        raise unknown_name("scan", scan, SCANS)
    half = depth // 2
    return {
        "spatial": ("spatial",) * depth,
        "temporal": ("temporal",) * depth,
        "spatiotemporal_v1": ("v1",) * depth,
        "spatiotemporal_v2": ("v2",) * depth,
        "spatial_temporal": ("spatial",) * half + ("temporal",) * (depth - half),
        "temporal_spatial": ("temporal",) * half + ("spatial",) * (depth - half),
        "alternating": tuple(("spatial", "temporal")[i % 2] for i in range(depth)),
    }[scan]


def temporal_first(frames: int, patches: int, device: torch.device, mask: Tensor | None = None) -> Permutation:
    """The permutation of [CLS, frame 0, frame 1, …] to [CLS, patch 0 of all frames, patch 1 of all frames, …].

    Args:
        frames, patches: T and P.
        mask: (B, 1 + T*P) bool, True = dropped: the permutation of the visible tokens of each sample.
    """
    place = torch.arange(frames * patches, device=device).view(frames, patches)
    key = place % patches * frames + place // patches
    key = torch.cat([key.new_tensor([-1]), key.flatten()])  # CLS stays first
    if mask is not None:
        key = key.expand(mask.shape[0], -1)[~mask].view(mask.shape[0], -1)
    forth = key.argsort(-1)
    return Permutation(forth, forth.argsort(-1))


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """x (B, L, D) with its tokens in another order, (L,) or (B, L)."""
    if order.ndim == 1:
        return x.index_select(1, order)
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
