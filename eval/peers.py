"""Peers to compare VideoMamba's cost with: transformers with joint space-time attention (TimeSformer's "joint" variant).

B batch, T frames, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.kernels.linear import Linear


@dataclass(frozen=True, kw_only=True)
class TimeSformerConfig:
    """Sizes; those of ViT."""

    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 8
    dim: int = 192
    depth: int = 12
    heads: int = 3
    num_classes: int = 400
    fused: bool = True  # torch's fused attention; False: the L x L scores are written out, as the published code does


TIMESFORMER_SIZES = {
    "tiny": TimeSformerConfig(),
    "small": TimeSformerConfig(dim=384, heads=6),
    "base": TimeSformerConfig(dim=768, heads=12),
}


class _Block(nn.Module):
    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.fused = config.heads, config.fused
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.mlp = nn.Sequential(Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            y = scores.softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TimeSformer(nn.Module):
    """Joint space-time attention over all patches of all frames, with a CLS token."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config = config
        patches = (config.image_size // config.patch_size) ** 2
        self.patch = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, config.dim))
        self.time_embed = nn.Parameter(torch.zeros(1, config.num_frames, config.dim))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.head = Linear(config.dim, config.num_classes)

    def classify(self, video: Tensor) -> Tensor:
        """Logits (B, classes) of normalised frames (B, T, 3, H, W)."""
        x = self.patch(video.flatten(0, 1)).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = x.unflatten(0, video.shape[:2]) + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(video), -1, -1)
        x = torch.cat([cls, x.flatten(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
