"""UMT's video transformer: joint space-time attention over all frames' patches, fixed positions, no CLS token.

The video encoder of "Unmasked Teacher" (Li et al., 2023), which VideoMamba's paper compares with. B batch, T frames, P patches
of a frame, N = T*P tokens, D width, C width of the teacher.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders import draws
from vtr.encoders.base import EncoderConfig, VideoEncoder, VideoOutput
from vtr.encoders.videomamba import AlignHead, PatchEmbed, drop_scale, sinusoid
from vtr.errors import UsageError
from vtr.kernels.linear import Linear, linear

_EPS = 1e-6  # of every norm but the alignment heads'


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """Sizes of UMT's encoder. There is no CLS token: whatever `pool` says, tokens are averaged; `cls` alone is refused."""

    heads: int = 0  # 0: of 64 channels each
    mlp_ratio: float = 4.0
    position_frames: int = (
        0  # frames that a checkpoint's positions were made for, interpolated to others; 0: counted on
    )


VIT_SIZES = {
    "umt_base": ViTConfig(dim=768, depth=12, num_frames=4, pool="avg", align_layers=6),
    "umt_large": ViTConfig(dim=1024, depth=24, num_frames=4, pool="avg", align_layers=6),
}


@functools.lru_cache(maxsize=8)
def position_table(frames: int, side: int, height: int, width: int, dim: int, made_for: int = 0) -> Tensor:
    """The fixed table (frames * height * width, dim): sinusoids of one running index over all frames' patches.

    Args:
        frames: Of tokens; 1 is an image.
        side: Of the grid that the model was trained on; another grid's positions are interpolated (bicubic).
        made_for: The frames it was trained on, where they are to be interpolated (linear, each position by itself).
    """
    with torch.inference_mode(False):  # it outlives the call
        given = made_for if made_for and frames > 1 else frames
        table = sinusoid(given * side * side, dim).unflatten(0, (given, side, side))
        if given != frames:
            line = table.flatten(1).T[None]
            table = F.interpolate(line, frames, mode="linear", align_corners=False)[0].T.unflatten(1, (side, side, dim))
        if (height, width) != (side, side):
            grid = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
            table = grid.permute(0, 2, 3, 1)
        return table.flatten(0, 2).contiguous()


class DropPath(nn.Module):
    """Stochastic depth of a residual branch, tied to rows; `salt` tells the branches apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.salt = 0.0, 0

    def forward(self, x: Tensor) -> Tensor:
        scale = drop_scale(x.shape[0], self.rate, self.training, self.salt, x.device)
        return x if scale is None else x * scale.view(-1, 1, 1).to(x.dtype)


class _Attention(nn.Module):
    """Attention of all tokens to all; keys have no bias, which a softmax would not see."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner)
        self.fc2 = Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """Attention, then a feed-forward network, each after a norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=_EPS)
        self.attn = _Attention(config.dim, config.heads or config.dim // 64)
        self.norm2 = nn.LayerNorm(config.dim, eps=_EPS)
        self.mlp = _Mlp(config.dim, int(config.dim * config.mlp_ratio))
        self.drop1, self.drop2 = DropPath(), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(self.attn(self.norm1(x)))
        return x + self.drop2(self.mlp(self.norm2(x)))


class _Trunk(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=_EPS)


class ViT(VideoEncoder):
    """The encoder; parameters have the official names."""

    prefix = 0
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        heads = config.heads or config.dim // 64
        if heads < 1 or config.dim % heads:
            raise UsageError(f"width {config.dim} cannot be split among {heads} heads")
        if config.pool not in ("avg", "cls+avg"):
            raise UsageError(f"pool {config.pool!r}: this encoder has no CLS token; expected avg")
        self.encoder = _Trunk(config)
        if config.pool_norm:
            self.pool_norm = nn.LayerNorm(config.dim, eps=_EPS)
        if config.align_dim:
            self.clip_decoder = nn.ModuleList(
                AlignHead(config.dim, config.align_dim) for _ in range(config.align_layers)
            )
        if config.num_classes:
            self.head = Linear(config.dim, config.num_classes)
        self.set_drop_path(config.drop_path)
        draws.number_layers(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def blocks(self) -> Sequence[ViTBlock]:
        return [block for block in self.encoder.blocks if isinstance(block, ViTBlock)]

    def layer_of(self, parameter: str) -> int:
        parts = parameter.split(".")
        if parts[:2] == ["encoder", "patch_embed"]:
            return 0
        return int(parts[2]) + 1 if parts[:2] == ["encoder", "blocks"] else self.config.depth + 1

    def set_drop_path(self, rate: float) -> None:
        for i, block in enumerate(self.blocks):
            block.drop1.rate = block.drop2.rate = rate * i / max(1, self.config.depth - 1)

    def _positions(self, frames: int, height: int, width: int, like: Tensor) -> Tensor:
        config = self.config
        side, made_for = config.image_size // config.patch_size, config.position_frames // config.tubelet
        return position_table(frames, side, height, width, config.dim, made_for).to(like)

    def features(self, video: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, int]:
        """Normed tokens (B, Lv, D), aligned features (K, B, Lv, C) with the shallowest layer first, and T."""
        x = self.encoder.patch_embed(video)
        batch, frames, _, height, width = x.shape
        x = x.flatten(3).transpose(2, 3).flatten(1, 2)
        positions = self._positions(frames, height, width, x).expand(batch, -1, -1)
        x = x + positions
        if mask is not None:
            if mask.shape != (batch, 1 + x.shape[1]):
                raise ValueError(
                    f"mask {tuple(mask.shape)}: expected {(batch, 1 + x.shape[1])} (batch, 1 + frames * patches)"
                )
            seen = ~mask[:, 1:]
            x, positions = (t[seen].view(batch, -1, t.shape[2]) for t in (x, positions))
        config = self.config
        wanted = {config.depth - 1 - i * config.align_interval for i in range(config.align_layers)}
        wanted = wanted if config.align_dim and (mask is not None or self.training) else set()
        collected = []
        for i, block in enumerate(self.blocks):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = draws.checkpoint(block, x)
            else:
                x = block(x)
            if i in wanted:
                collected.append(self.encoder.norm(x))
        aligned = None
        if collected:
            aligned = torch.stack([head(y + positions) for head, y in zip(self.clip_decoder, collected)])
        return self.encoder.norm(x), aligned, frames

    def forward(self, video: Tensor, mask: Tensor | None = None, keep_temporal: bool = False) -> VideoOutput:
        tokens, aligned, frames = self.features(video, mask)
        pooled = tokens.unflatten(1, (frames if keep_temporal else 1, -1)).mean(2)
        if self.config.pool_norm:
            pooled = self.pool_norm(pooled)
        return VideoOutput(tokens, pooled, tokens.mean(1), aligned)

    def classify(self, video: Tensor) -> Tensor:
        if not self.config.num_classes:
            raise UsageError("this encoder has no classifier: num_classes is 0")
        return self.head(self.features(video)[0].mean(1))
