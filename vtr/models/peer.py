"""What models of other projects share: they embed texts and videos, and have no cross-modal decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtr.encoders.bert import KeysValues
from vtr.errors import UsageError
from vtr.models.base import Model
from vtr.models.rank import ComparesVideos

_FRAMES = 8  # as many as the published retrieval models see


@dataclass(frozen=True, kw_only=True)
class PeerVideoConfig:
    """What reading a video for it needs to know."""

    image_size: int
    num_frames: int = _FRAMES


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """The part of a ModelConfig that evaluation and libraries ask for."""

    video: PeerVideoConfig
    embed_dim: int
    max_text_tokens: int
    antialias: bool = True  # as CLIP models were trained, and as other models' processors resize


class PeerModel(ComparesVideos, Model):
    """A model of another project behind the protocol `VideoTextEncoder`.

    Attributes:
        name: What it is loaded by, with its prefix.
        config: Set by the model's own constructor.
    """

    reranks = False
    config: PeerConfig

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def text_limit(self, most: int | None = None) -> int:
        """Its longest text: these models know no other."""
        return self.config.max_text_tokens

    def visual_memory(self, visual: Tensor) -> list[KeysValues]:
        """Refused with a UsageError: there is no cross-modal decoder."""
        raise UsageError(f"{self.name} has no cross-modal decoder: it cannot re-rank")

    def match(self, text_tokens: Tensor, text_mask: Tensor, visual: Tensor | list[KeysValues]) -> Tensor:
        """Refused with a UsageError: there is no cross-modal decoder to give logits (N, 2), as in `VideoTextNetwork.match`."""
        raise UsageError(f"{self.name} has no cross-modal decoder: it cannot re-rank")

    def _identity(self) -> str:
        return self.name
