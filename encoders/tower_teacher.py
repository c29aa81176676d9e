"""Any other vision transformer as the frozen teacher: SigLIP 2, PE-Core, EVA and their like, as open_clip holds them.

B batch, T frames, P patches of a frame, L the tower's tokens (prefix and patches), D its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.base import EncoderConfig
from vtr.encoders.clip_teacher import FrameTeacher, TeacherOutput


class Pool(Protocol):
    """A learned query that reads all tokens (timm's AttentionPoolLatent): its attention says which patches matter."""

    num_heads: int
    latent: Tensor  # (1, queries, D)
    pos_embed: Tensor | None
    q: nn.Module
    kv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module


class Tower(Protocol):
    """What of timm's vision transformers is used: positions, rotary or not, are their own affair."""

    blocks: Sequence[nn.Module]
    norm: nn.Module
    num_features: int
    num_prefix_tokens: int  # CLS and registers
    attn_pool: Pool | None

    def forward_features(self, images: Tensor) -> Tensor: ...
    def set_input_size(self, img_size: tuple[int, int]) -> None: ...


class TowerTeacher(FrameTeacher):
    """A tower read frame by frame, its tokens after the final norm; where it has no CLS token, the patches' mean is it.

    Unlike the released CLIP teacher it sees frames with the pixel statistics that it was trained with.

    Args:
        tower: The module.
        patch_size: Side of its patches.
        mean, std: Its pixel statistics.
    """

    tower: nn.Module
    _scale: Tensor
    _shift: Tensor

    def __init__(self, tower: nn.Module, patch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self._parts: Tower = tower  # type: ignore[assignment]
        self.patch_size, self.mean, self.std = patch_size, tuple(mean), tuple(std)
        self.width, self.depth = self._parts.num_features, len(self._parts.blocks)
        self.attends = getattr(tower, "attn_pool", None) is not None
        self.image_size = 0
        self.register_buffer("_scale", torch.ones(3, 1, 1))
        self.register_buffer("_shift", torch.zeros(3, 1, 1))
        self._kept: list[Tensor] = []
        self._first = 0  # of the blocks whose tokens are kept
        for number, block in enumerate(self._parts.blocks):
            block.register_forward_hook(lambda _, __, tokens, number=number: self._keep(number, tokens))

    def _keep(self, number: int, tokens: Tensor) -> None:
        if number >= self._first:
            self._kept.append(tokens)

    def train(self, mode: bool = True) -> TowerTeacher:
        """Never: dropout stays off."""
        return super().train(False)

    def fit(self, student: EncoderConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        self.image_size = student.image_size // student.patch_size * self.patch_size
        self._parts.set_input_size((self.image_size, self.image_size))
        own_mean, own_std, seen_mean, seen_std = (
            torch.tensor(tuple(v)).view(3, 1, 1).to(self._scale) for v in (self.mean, self.std, mean, std)
        )
        self._scale.copy_(seen_std / own_std)
        self._shift.copy_((seen_mean - own_mean) / own_std)

    @torch.no_grad()
    def forward(self, frames: Tensor, layers: int = 1) -> TeacherOutput:
        self._check_layers(layers)
        batch, count = frames.shape[:2]
        images = frames.flatten(0, 1) * self._scale + self._shift
        if self.image_size and images.shape[-1] != self.image_size:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bicubic", align_corners=False)
        self._kept, self._first = [], self.depth - layers
        self._parts.forward_features(images)
        normed = [self._parts.norm(x) for x in self._kept]
        self._kept = []
        tokens = torch.stack([self._tokens(x, batch, count) for x in normed])
        return TeacherOutput(tokens[-1], self._attention(normed[-1]), tokens)

    def _tokens(self, x: Tensor, batch: int, count: int) -> Tensor:
        """(B, 1 + T*P, D) of (B*T, L, D)."""
        prefix = self._parts.num_prefix_tokens
        patches = x[:, prefix:].unflatten(0, (batch, count))
        whole = x[:, :1].unflatten(0, (batch, count)) if prefix else patches.mean(2, keepdim=True)
        return torch.cat([whole.mean(1), patches.flatten(1, 2)], 1)

    def _attention(self, x: Tensor) -> Tensor:
        """(B*T, P): the pool's attention to the patches, the mean of its heads and queries; (0,) without a pool."""
        pool = self._parts.attn_pool if self.attends else None
        if pool is None:
            return x.new_zeros(0)
        x = x if pool.pos_embed is None else x + pool.pos_embed
        query = pool.q_norm(pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2))
        keys = pool.k_norm(pool.kv(x).chunk(2, -1)[0].unflatten(-1, (pool.num_heads, -1)).transpose(1, 2))
        weights = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).float().softmax(-1)
        return weights.mean((1, 2))[:, self._parts.num_prefix_tokens :]
