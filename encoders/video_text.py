"""VideoTextNetwork: a video encoder and BERT with their projections and the matching head; tensors in, tensors out.

B batch, T frames, F pooled vectors of a video, L tokens, Lv visual tokens, D and H widths of video and text, E joint width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import Bert, BertConfig, KeysValues
from vtr.encoders.registry import build_encoder
from vtr.errors import unknown_name
from vtr.kernels.linear import Linear

# What the cross-modal decoder reads of a video. The official models read patches; a shallow decoder cannot gather from
# them what the embedding is made of (direction of motion), which the pooled vectors hold.
MEMORIES = ("patches", "patches+pooled")


class VideoFeatures(NamedTuple):
    """A batch of encoded videos."""

    embedding: Tensor  # (B, E) fp32: mean over F of unit vectors, so that dot(text, embedding) is the mean cosine
    frame_embeddings: Tensor  # (B, F, E) unit vectors
    tokens: Tensor  # (B, Lv, D) what the cross-modal decoder reads: patches, and the pooled vectors where it has them
    pooled: Tensor  # (B, F, D)
    aligned: Tensor | None  # (K, B, prefix + patches, C)


class TextFeatures(NamedTuple):
    """A batch of encoded texts."""

    embedding: Tensor  # (B, E) unit vectors
    tokens: Tensor  # (B, L, H) states after the text layers
    mask: Tensor  # (B, L)
    ids: Tensor  # (B, L)


class VideoTextNetwork(nn.Module):
    """The tensors of a video-text model; the names are the official ones.

    Args:
        video, text: Configurations of the two encoders.
        embed_dim: E.
        temperature: Of the contrastive loss, at first.
        memory: What the decoder reads, one of MEMORIES.
    """

    def __init__(
        self,
        video: EncoderConfig,
        text: BertConfig,
        embed_dim: int,
        temperature: float = 0.07,
        memory: str = "patches",
    ) -> None:
        super().__init__()
        if memory not in MEMORIES:
            raise unknown_name("memory", memory, MEMORIES)
        self.memory = memory
        self.vision_encoder = build_encoder(video)
        self.text_encoder = Bert(text)
        self.vision_proj = Linear(video.dim, embed_dim)
        self.text_proj = Linear(text.hidden, embed_dim)
        self.itm_head = Linear(text.hidden, 2)
        self.temp = nn.Parameter(torch.tensor(temperature))

    def encode_pixels(self, video: Tensor, mask: Tensor | None = None, keep_temporal: bool = True) -> VideoFeatures:
        """Encode normalised frames.

        Args:
            video: (B, T, 3, H, W); T = 1 is an image.
            mask, keep_temporal: As in `VideoTextModel.encode_video`.
        """
        out = self.vision_encoder(video, mask, keep_temporal and mask is None)
        unit = F.normalize(self.vision_proj(out.pooled).float(), dim=-1)
        tokens = out.tokens
        if self.memory == "patches+pooled":
            tokens = torch.cat([tokens, out.pooled.to(tokens.dtype)], 1)
        return VideoFeatures(unit.mean(1), unit, tokens, out.pooled, out.aligned)

    def visual_shape(self, frames: int) -> tuple[int, int]:
        """Lv and D: the visual tokens of a video of so many frames, each pooled by itself."""
        encoder = self.vision_encoder
        time, height, width = encoder.grid(frames)
        pooled = encoder.pooled_vectors(frames) if self.memory == "patches+pooled" else 0
        return time * height * width + pooled, encoder.config.dim

    def encode_ids(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Encode token ids and their mask, (B, L) each."""
        states = self.text_encoder.encode_text(ids, mask)
        return TextFeatures(F.normalize(self.text_proj(states[:, 0]).float(), dim=-1), states, mask, ids)

    def visual_memory(self, visual: Tensor) -> list[KeysValues]:
        """What `match` reads of visual tokens (B, Lv, D), to be used for many texts."""
        return self.text_encoder.visual_memory(visual)

    def match(self, text_tokens: Tensor, text_mask: Tensor, visual: Tensor | list[KeysValues]) -> Tensor:
        """Match logits (N, 2), index 1 = match, of N pairs.

        Args:
            text_tokens: (N, L, H) text states.
            text_mask: (N, L).
            visual: (N, Lv, D) visual tokens; or (1, Lv, D) or `visual_memory` of it, one video for all.
        """
        return self.itm_head(self.text_encoder.fuse(text_tokens, text_mask, visual, first_only=True)[:, 0])
