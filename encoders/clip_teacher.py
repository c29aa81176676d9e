"""The frozen CLIP teacher: patch tokens, frame-averaged CLS and last-layer attention (docs/notes/videomamba.md)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.base import EncoderConfig
from vtr.encoders.vit import ViTConfig
from vtr.kernels.linear import linear


class TeacherOutput(NamedTuple):
    """What the student is aligned with."""

    tokens: Tensor  # (B, 1 + T*P, C): mean CLS over frames, then all patches, through the projection
    attention: Tensor  # (B*T, P): the last block's attention from CLS to the patches, averaged over heads; or empty
    layers: Tensor  # (K, B, 1 + T*P, C): as `tokens` after each of the last K blocks, the last one last


def image_tower(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors of a whole CLIP, as open_clip names them, those of its image tower."""
    return {name.removeprefix("visual."): value for name, value in clip.items() if name.startswith("visual.")}


class FrameTeacher(nn.Module, ABC):
    """What guides a student: a frozen image model read frame by frame.

    Attributes:
        width: Channels of its tokens.
        depth: Layers that can be aligned with.
        attends: Whether its attention can choose patches; without, `TeacherOutput.attention` is empty.
    """

    width: int
    depth: int
    attends: bool = True

    @abstractmethod
    def fit(self, student: EncoderConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        """See frames at the side that gives as many patches as the student has.

        Args:
            student: Of it, image and patch size, and whether it has a CLS token.
            mean, std: Statistics that the student's pixels are normalised with.
        """

    @abstractmethod
    def forward(self, frames: Tensor, layers: int = 1) -> TeacherOutput:
        """Encode frames (B, T, 3, H, W), normalised for the student; keep the tokens of the last `layers` blocks."""

    def _check_layers(self, layers: int) -> None:
        if not 1 <= layers <= self.depth:
            raise ValueError(f"the teacher has {self.depth} layers, {layers} were asked for")


class ClipTeacher(FrameTeacher):
    """A CLIP image tower as OpenAI's; it sees the student's pixels as they are, as in the releases.

    Args:
        state: The tensors of CLIP's visual tower as open_clip names them.
        quick_gelu: OpenAI's x * sigmoid(1.702 x) instead of GELU.
        post_norm: Tokens pass `ln_post` before the projection, as UMT's do and VideoMamba's do not.
        image_size: The side at which it sees frames of another size, resized without antialiasing; 0: as they come.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        heads: int,
        quick_gelu: bool,
        *,
        post_norm: bool = False,
        image_size: int = 0,
    ) -> None:
        super().__init__()
        for name, value in state.items():
            self.register_buffer(name.replace(".", "__"), value.detach().clone())
        self.heads, self.quick_gelu = heads, quick_gelu
        self.post_norm, self.image_size = post_norm, image_size
        self.width = state["proj"].shape[1]
        self.depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("transformer.resblocks."))

    @classmethod
    def from_open_clip(cls, model: nn.Module, *, post_norm: bool = False, image_size: int = 0) -> ClipTeacher:
        """From an open_clip CLIP with its own ViT as image tower."""
        block = model.get_submodule("visual.transformer.resblocks.0")
        heads = getattr(block.get_submodule("attn"), "num_heads")  # noqa: B009 - of a module, whose attributes have no type
        quick = type(block.get_submodule("mlp.gelu")).__name__ == "QuickGELU"
        return cls(image_tower(model.state_dict()), heads, quick, post_norm=post_norm, image_size=image_size)

    @classmethod
    def from_official(
        cls, state: dict[str, Tensor], heads: int, *, post_norm: bool = False, image_size: int = 0
    ) -> ClipTeacher:
        """From the official layout (`clip_teacher.` prefix already stripped; conv1 is 3-D there)."""
        if state["conv1.weight"].ndim == 5:
            state = {**state, "conv1.weight": state["conv1.weight"].squeeze(2)}
        return cls(state, heads, True, post_norm=post_norm, image_size=image_size)

    def fit(self, student: EncoderConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        """UMT's students are aligned after `ln_post`, VideoMamba's without, each as released."""
        self.image_size = student.image_size // student.patch_size * self._get("conv1.weight").shape[-1]
        self.post_norm = isinstance(student, ViTConfig)

    def _get(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "__"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._get(f"{name}.weight"), self._get(f"{name}.bias")
        return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float()).to(x.dtype)

    @torch.no_grad()
    def forward(self, frames: Tensor, layers: int = 1) -> TeacherOutput:
        self._check_layers(layers)
        batch, count = frames.shape[:2]
        weight = self._get("conv1.weight")
        images = frames.flatten(0, 1).to(weight.dtype)
        if self.image_size and images.shape[-1] != self.image_size:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bicubic", align_corners=False)
        x = F.conv2d(images, weight, stride=weight.shape[-1])
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        cls = self._get("class_embedding").expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], 1) + self._positions(h, w)
        x = self._norm(x, "ln_pre") if hasattr(self, "ln_pre__weight") else x
        attention = x.new_zeros(0)
        kept = []
        for i in range(self.depth):
            last = i == self.depth - 1
            prefix = f"transformer.resblocks.{i}"
            y = self._norm(x, f"{prefix}.ln_1")
            qkv = linear(y, self._get(f"{prefix}.attn.in_proj_weight"), self._get(f"{prefix}.attn.in_proj_bias"))
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
            if last:
                scores = (q[:, :, :1] @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
                attention = scores.float().softmax(-1).mean(1)[:, 0, 1:]
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + linear(y, self._get(f"{prefix}.attn.out_proj.weight"), self._get(f"{prefix}.attn.out_proj.bias"))
            y = linear(
                self._norm(x, f"{prefix}.ln_2"),
                self._get(f"{prefix}.mlp.c_fc.weight"),
                self._get(f"{prefix}.mlp.c_fc.bias"),
            )
            y = y * torch.sigmoid(1.702 * y) if self.quick_gelu else F.gelu(y)
            x = x + linear(y, self._get(f"{prefix}.mlp.c_proj.weight"), self._get(f"{prefix}.mlp.c_proj.bias"))
            if i >= self.depth - layers:
                kept.append(self._tokens(x, batch, count))
        return TeacherOutput(kept[-1], attention, torch.stack(kept))

    def _tokens(self, x: Tensor, batch: int, count: int) -> Tensor:
        x = self._norm(x, "ln_post") if self.post_norm else x
        z = linear(x, self._get("proj").t()).unflatten(0, (batch, count))
        return torch.cat([z[:, :, :1].mean(1), z[:, :, 1:].flatten(1, 2)], 1)

    def _positions(self, h: int, w: int) -> Tensor:
        table = self._get("positional_embedding")
        side = math.isqrt(table.shape[0] - 1)
        if (h, w) == (side, side):
            return table
        grid = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None].float()
        grid = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)[0]
        return torch.cat([table[:1], grid.flatten(1).T.to(table.dtype)])
