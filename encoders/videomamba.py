"""VideoMamba: a bidirectional state-space encoder of images and videos (paper section 3, docs/notes/videomamba.md).

B batch, T frames, P patches of a frame, L tokens, D width, E inner width, N state size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders import draws
from vtr.encoders.base import EncoderConfig, VideoEncoder, VideoOutput
from vtr.encoders.scans import Permutation, layer_orders, permuted, temporal_first
from vtr.errors import UsageError
from vtr.kernels.add_norm import add_norm
from vtr.kernels.bimamba import bimamba
from vtr.kernels.linear import Linear


@dataclass(frozen=True, kw_only=True)
class VideoMambaConfig(EncoderConfig):
    """Sizes and choices of a VideoMamba encoder."""

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    temporal: bool = True  # False for a plain image model (no temporal embedding)
    scan: str = "spatial"  # order of the tokens in the layers, a name of `vtr.encoders.scans.SCANS`


_EMBEDDINGS = ("cls_token", "pos_embed", "temporal_pos_embedding", "patch_embed")
VIDEOMAMBA_SIZES = {
    "tiny": VideoMambaConfig(dim=192, depth=24),
    "small": VideoMambaConfig(dim=384, depth=24),
    "middle": VideoMambaConfig(dim=576, depth=32),
    "base": VideoMambaConfig(dim=768, depth=24),
}


class RMSNorm(nn.Module):
    """Root-mean-square norm, weight only, statistics in fp32."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Direction(NamedTuple):
    """The weights of one direction of the scan, in the order that `bimamba` takes them."""

    conv_weight: Tensor  # (E, taps)
    conv_bias: Tensor  # (E,)
    x_proj: Tensor  # (R + 2N, E)
    dt_weight: Tensor  # (E, R)
    dt_bias: Tensor  # (E,)
    a_log: Tensor  # (E, N)
    skip: Tensor  # (E,)

    def channels(self, rows: slice) -> Direction:
        """The weights of some channels, which make their own step, B and C."""
        return Direction(*(w[:, rows] if w is self.x_proj else w[rows] for w in self))


class BiMamba(nn.Module):
    """The mixer "bimamba v2" with the official parameter names."""

    A_log: nn.Parameter
    A_b_log: nn.Parameter

    def __init__(self, config: VideoMambaConfig) -> None:
        super().__init__()
        dim, state = config.dim, config.d_state
        inner, rank = config.expand * dim, math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        for end in ("", "_b"):
            setattr(self, f"conv1d{end}", nn.Conv1d(inner, inner, config.d_conv, groups=inner))
            setattr(self, f"x_proj{end}", Linear(inner, rank + 2 * state, bias=False))
            setattr(self, f"dt_proj{end}", Linear(rank, inner))
            log = torch.log(torch.arange(1, state + 1).float()).repeat(inner, 1)
            setattr(self, "A_b_log" if end else "A_log", nn.Parameter(log))
            setattr(self, f"D{end}", nn.Parameter(torch.ones(inner)))
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, xz: Tensor, order: str = "spatial", permutation: Permutation | None = None) -> Tensor:
        """What comes after in_proj: (B, L, 2E) -> (B, L, D).

        Args:
            xz: in_proj's output. The caller makes it, so that it can let go of in_proj's input: beside a long video's scan
                there should be no memory that nobody reads any more.
            order: "v1": the first half of the channels scans the tokens as they come, the second half permuted;
                "v2": all channels do both, and the mean is taken (so that its size is that of one). Else: as they come.
            permutation: For v1 and v2.
        """
        both = (*self._direction(""), *self._direction("_b"))
        if permutation is None or order not in ("v1", "v2"):
            return self.out_proj(bimamba(xz, *both))
        forth, back = permutation
        if order == "v2":
            twice = bimamba(xz, *both) + permuted(bimamba(permuted(xz, forth), *both), back)
            return self.out_proj(twice / 2)
        inner = xz.shape[-1] // 2
        halves = []
        for number, rows in enumerate((slice(0, inner // 2), slice(inner // 2, inner))):
            own = (*self._direction("").channels(rows), *self._direction("_b").channels(rows))
            part = torch.cat([xz[..., :inner][..., rows], xz[..., inner:][..., rows]], -1)
            halves.append(permuted(bimamba(permuted(part, forth), *own), back) if number else bimamba(part, *own))
        return self.out_proj(torch.cat(halves, -1))

    def _direction(self, end: str) -> Direction:
        """The weights forwards ("") or backwards ("_b")."""
        conv, dt = getattr(self, f"conv1d{end}"), getattr(self, f"dt_proj{end}")
        x_proj, skip = getattr(self, f"x_proj{end}").weight, getattr(self, f"D{end}")
        a_log = self.A_b_log if end else self.A_log
        return Direction(conv.weight.squeeze(1), conv.bias, x_proj, dt.weight, dt.bias, a_log, skip)


class Block(nn.Module):
    """Add, norm, mix: the residual stream stays in fp32."""

    def __init__(self, config: VideoMambaConfig, drop_path: float) -> None:
        super().__init__()
        self.mixer = BiMamba(config)
        self.norm = RMSNorm(config.dim)
        self.drop_path = drop_path  # of the mixer's output
        self.salt = 0

    def forward(
        self,
        hidden: Tensor | None,
        residual: Tensor,
        previous_drop: float,
        order: str = "spatial",
        permutation: Permutation | None = None,
    ) -> tuple[Tensor, Tensor]:
        scale = None
        if hidden is not None:
            scale = drop_scale(hidden.shape[0], previous_drop, self.training, self.salt, hidden.device)
        device = residual.device.type
        dtype = self.mixer.in_proj.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        normed, residual = add_norm(residual, hidden, self.norm.weight, scale=scale, eps=self.norm.eps, dtype=dtype)
        xz = self.mixer.in_proj(normed)
        del normed
        return self.mixer(xz, order, permutation), residual


def drop_scale(batch: int, rate: float, training: bool, salt: int, device: torch.device) -> Tensor | None:
    """Stochastic depth: factors (B,) of a residual branch, 0 with probability `rate`, else 1 / (1 - rate); None is 1."""
    if rate == 0 or not training:
        return None
    return (draws.uniform((batch,), salt, device) >= rate).float() / (1 - rate)


class AlignHead(nn.Module):
    """Linear and LayerNorm from the student's width to the teacher's."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = Linear(dim, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(x))


class PatchEmbed(nn.Module):
    """Non-overlapping tubes of tubelet x patch x patch pixels.

    With `stem` channels each patch is first cut into 4 x 4 pieces, and a non-linearity stands between: small models see
    shapes with it (early convolutions, 2106.14881). Nothing is read beyond the patch, so that masks hide what they should.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        side, channels = config.patch_size, 3
        if config.stem:
            if side % 4:
                raise UsageError(f"patch_size {side} with a stem: expected a multiple of 4")
            self.stem: nn.Module | None = nn.Sequential(nn.Conv2d(3, config.stem, side // 4, side // 4), nn.GELU())
            side, channels = 4, config.stem
        else:
            self.stem = None
        size = (config.tubelet, side, side)
        self.proj = nn.Conv3d(channels, config.dim, size, stride=size)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T', D, h, w)."""
        if self.stem is not None:
            video = self.stem(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        if self.proj.kernel_size[0] == 1:
            # One frame a token: a 2-D convolution over B*T images is several times faster on a CPU.
            flat = video.flatten(0, 1)
            out = F.conv2d(flat, self.proj.weight.squeeze(2), self.proj.bias, stride=self.proj.stride[1:])
            return out.unflatten(0, video.shape[:2])
        return self.proj(video.transpose(1, 2)).transpose(1, 2)


def sinusoid(positions: int, dim: int) -> Tensor:
    """The alignment branch's table (positions, dim): even columns sine, odd columns cosine."""
    column = torch.arange(dim)
    angle = torch.arange(positions)[:, None].double() / 10000 ** (2 * (column // 2).double() / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class VideoMamba(VideoEncoder):
    """The encoder; parameters have the official names.

    Args:
        config: Sizes. Frames of another size or number than configured are accepted: the embeddings are interpolated.
    """

    prefix = 1
    config: VideoMambaConfig

    def __init__(self, config: VideoMambaConfig) -> None:
        super().__init__(config)
        if config.init not in ("clean", "official"):
            raise UsageError(f"init {config.init!r}: expected clean or official")
        if config.pool not in ("cls", "avg", "cls+avg"):
            raise UsageError(f"pool {config.pool!r}: expected cls, avg or cls+avg")
        self.orders = layer_orders(config.scan, config.depth)
        self.patch_embed = PatchEmbed(config)
        side = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, config.dim))
        if config.temporal:
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.num_frames // config.tubelet, config.dim))
        self.layers: Any = nn.ModuleList(Block(config, 0.0) for _ in range(config.depth))
        self.set_drop_path(config.drop_path)
        draws.number_layers(self)
        self.norm = RMSNorm(config.dim)
        if config.pool_norm:
            self.pool_norm = nn.LayerNorm(config.dim)
        if config.align_dim:
            self.clip_decoder: Any = nn.ModuleList(
                AlignHead(config.dim, config.align_dim) for _ in range(config.align_layers)
            )
        if config.num_classes:
            self.head = Linear(config.dim, config.num_classes)
        self._init_weights()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.layers

    def layer_of(self, parameter: str) -> int:
        first = parameter.split(".")[0]
        if first in _EMBEDDINGS:
            return 0
        return int(parameter.split(".")[1]) + 1 if first == "layers" else self.config.depth + 1

    def set_drop_path(self, rate: float) -> None:
        """Set a linear schedule: mixer i's output is dropped with probability rate * i / (depth - 1)."""
        for i, layer in enumerate(self.layers):
            layer.drop_path = rate * i / max(1, len(self.layers) - 1)

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.layers:
            mixer = layer.mixer
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(len(self.layers))
            if self.config.init == "clean":
                for dt in (mixer.dt_proj, mixer.dt_proj_b):
                    bound = dt.in_features**-0.5
                    nn.init.uniform_(dt.weight, -bound, bound)
                    step = torch.exp(torch.empty_like(dt.bias).uniform_(math.log(1e-3), math.log(0.1)))
                    with torch.no_grad():  # inverse of softplus
                        dt.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def embed(self, video: Tensor) -> tuple[Tensor, int]:
        """Tokens [CLS, frame 0, frame 1, …] with positions: (B, 1 + T*P, D), and T."""
        x = self.patch_embed(video)
        batch, frames, _, h, w = x.shape
        spatial = self._spatial(h, w)
        x = x.flatten(3).transpose(2, 3) + spatial[:, None, 1:]
        if self.config.temporal and not (frames == 1 and self.config.num_frames > 1):
            x = x + self._temporal(frames)[:, :, None]
        cls = (self.cls_token + spatial[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, x.flatten(1, 2)], 1), frames

    def _spatial(self, h: int, w: int) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (h, w) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid.float(), (h, w), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)], 1)

    def _temporal(self, frames: int) -> Tensor:
        table = self.temporal_pos_embedding
        if table.shape[1] == frames:
            return table
        return F.interpolate(table.float().transpose(1, 2), frames, mode="linear", align_corners=False).transpose(1, 2)

    def features(self, video: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, int]:
        """Normed tokens with CLS (B, 1 + Lv, D), aligned features, and T."""
        tokens, frames = self.embed(video)
        total = tokens.shape[1]
        permutation = None
        if self.config.scan != "spatial" and frames > 1:
            permutation = temporal_first(frames, (total - 1) // frames, tokens.device, mask)
        turned = False  # whether the stream is in temporal-first order now
        if mask is not None:
            if mask.shape != tokens.shape[:2]:
                raise ValueError(
                    f"mask {tuple(mask.shape)}: expected {tuple(tokens.shape[:2])} (batch, 1 + frames * patches)"
                )
            tokens = tokens[~mask].view(tokens.shape[0], -1, tokens.shape[2])
        hidden: Tensor | None = None
        residual, drop = tokens.float(), 0.0
        del tokens  # not kept through the layers
        want = self.config.align_layers if self.config.align_dim else 0
        collected = []
        for i, (layer, order) in enumerate(zip(self.layers, self.orders)):
            if permutation is not None and (order == "temporal") != turned:
                turned = not turned
                residual = permuted(residual, permutation[not turned])
                hidden = None if hidden is None else permuted(hidden, permutation[not turned])
            if self.checkpointing and self.training and torch.is_grad_enabled():
                hidden, residual = draws.checkpoint(layer, hidden, residual, drop, order, permutation)
            else:
                hidden, residual = layer(hidden, residual, drop, order, permutation)
            drop = layer.drop_path
            # Layer i-1's output is the stream that block i sees.
            away, rest = divmod(len(self.layers) - i, self.config.align_interval)
            if i > 0 and rest == 0 and away < want:
                collected.append(
                    self.norm(permuted(residual, permutation.back) if turned and permutation else residual)
                )
        assert hidden is not None  # there is a layer
        if turned and permutation is not None:
            hidden, residual = permuted(hidden, permutation.back), permuted(residual, permutation.back)
        if want and self.config.init == "official":
            # The released code aligns the stream before the last mixer's output, without the norm (1.10).
            collected.append(residual)
        scale = drop_scale(hidden.shape[0], drop, self.training, -1, hidden.device)
        out, residual = add_norm(residual, hidden, self.norm.weight, scale=scale, eps=self.norm.eps)
        if want and self.config.init == "clean":
            collected.append(out)
        aligned = None
        if want and (mask is not None or self.training):
            table = sinusoid(total, self.config.dim).to(out.device)
            positions = table.expand(out.shape[0], -1, -1)
            if mask is not None:
                positions = positions[~mask].view(out.shape[0], -1, table.shape[1])
            dtype = self.clip_decoder[0].head.weight.dtype
            aligned = torch.stack([d((x + positions).to(dtype)) for d, x in zip(self.clip_decoder, collected)])
        return out, aligned, frames

    def pooled_vectors(self, frames: int) -> int:
        """The one CLS token, or one vector a frame."""
        return 1 if self.config.pool == "cls" else super().pooled_vectors(frames)

    def forward(self, video: Tensor, mask: Tensor | None = None, keep_temporal: bool = False) -> VideoOutput:
        out, aligned, frames = self.features(video, mask)
        cls, tokens = out[:, :1], out[:, 1:]
        pooled = cls
        if self.config.pool != "cls":
            groups = frames if keep_temporal else 1
            mean = tokens.unflatten(1, (groups, -1)).mean(2)
            pooled = mean if self.config.pool == "avg" else cls + mean
        if self.config.pool_norm:
            pooled = self.pool_norm(pooled)
        return VideoOutput(tokens, pooled, cls[:, 0], aligned)

    def classify(self, video: Tensor) -> Tensor:
        """Logits (B, classes) from CLS after the final norm."""
        if not self.config.num_classes:
            raise UsageError("this encoder has no classifier: num_classes is 0")
        return self.head(self.features(video)[0][:, 0])
