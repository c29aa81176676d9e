"""What every video encoder has: its configuration, its outputs, and what training and evaluation ask of it.

B batch, T frames, P patches of a frame, Lv visible patch tokens, D width, C width of the teacher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What the configurations of all encoders hold; each family adds its own."""

    image_size: int = 224
    patch_size: int = 16
    stem: int = 0  # channels of a first convolution over quarters of a patch's side; 0 = pixels go straight to tokens
    num_frames: int = 8
    tubelet: int = 1  # frames of one token
    dim: int = 192
    depth: int = 24
    drop_path: float = 0.0
    num_classes: int = 0
    pool: str = "cls+avg"  # cls | avg | cls+avg
    pool_norm: bool = False
    align_dim: int = 0  # width of the teacher's tokens; 0 = no alignment branch
    align_layers: int = 1
    align_interval: int = 1  # the last layer, then every so many before it
    init: str = "clean"  # clean | official
    checkpointing: bool = False


class VideoOutput(NamedTuple):
    """What an encoder returns."""

    tokens: Tensor  # (B, Lv, D) visible patch tokens after the final norm, without CLS
    pooled: Tensor  # (B, 1 or T, D)
    cls: Tensor  # (B, D) one vector a clip: CLS after the final norm; the mean of the tokens where there is no CLS
    aligned: Tensor | None  # (K, B, prefix + Lv, C) student features for the teacher, not normalised


class VideoEncoder(nn.Module, ABC):
    """A network from normalised frames to tokens. Training, sharding, layer decay and evaluation know no more of it.

    An abstract class and not a Protocol, for an encoder is also an `nn.Module`, and a type cannot say both.

    Attributes:
        prefix: Tokens before the patches in `features`, `aligned` and masks' use: 1 with a CLS token, 0 without.
        config: What it was built from.
        checkpointing: Trade compute for memory in training.
    """

    prefix: ClassVar[int]
    config: EncoderConfig
    checkpointing: bool

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = config.checkpointing

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers in order: what is sharded, and what a learning rate falls along."""

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """The layer that a parameter belongs to by its name: 0 the embeddings, 1 … depth, depth + 1 norms and heads."""

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """Set a linear schedule of stochastic depth: 0 in the first layer, `rate` in the last."""

    @abstractmethod
    def features(self, video: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, int]:
        """Normed tokens (B, prefix + Lv, D), aligned features, and the number of (tubelet) frames."""

    @abstractmethod
    def forward(self, video: Tensor, mask: Tensor | None = None, keep_temporal: bool = False) -> VideoOutput:
        """Encode normalised frames.

        Args:
            video: (B, T, 3, H, W); T = 1 is an image.
            mask: (B, 1 + T*P) bool as `vtr.encoders.masking.make_mask` draws it, True = dropped, column 0 (CLS, used by
                encoders that have one) False; equal counts in every row.
            keep_temporal: Pool each frame by itself; needs an unmasked or per-frame-equal mask.
        """

    @abstractmethod
    def classify(self, video: Tensor) -> Tensor:
        """Logits (B, classes).

        Raises:
            UsageError: The encoder was built without a classifier.
        """

    def pooled_vectors(self, frames: int) -> int:
        """How many vectors `forward` pools of so many frames, each by itself."""
        return self.grid(frames)[0]

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Patch tokens of `frames` frames of the configured size, along time, height and width."""
        side = self.config.image_size // self.config.patch_size
        return max(1, frames // self.config.tubelet), side, side
