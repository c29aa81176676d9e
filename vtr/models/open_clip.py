"""OpenClipModel: any open_clip model as a dual encoder of videos, through the same door as our own models.

A video's embedding is the mean of its frames' unit vectors, normalised again; there is no re-ranking. B batch, T frames,
E joint width.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor

from vtr.data.text import TokenBatch
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.models import hub
from vtr.models.base import TextFeatures, Texts, VideoFeatures, Videos, joined, tokens_of
from vtr.models.peer import PeerConfig, PeerModel, PeerVideoConfig
from vtr.models.registry import OPEN_CLIP

_IMAGES = 64  # encoded at once


class ClipTokenizer(Protocol):
    """open_clip's tokenizers: texts and a context length to ids (B, L)."""

    context_length: int

    def __call__(self, texts: Sequence[str], context_length: int, /) -> Tensor: ...


class OpenClipModel(PeerModel):
    """An open_clip model that encodes videos frame by frame.

    Args:
        clip: The open_clip model.
        tokenizer: open_clip's for it: texts and a context length to ids.
        name: As in "open_clip:ViT-B-16/openai".
    """

    def __init__(self, clip: open_clip.CLIP, tokenizer: ClipTokenizer, name: str) -> None:
        super().__init__(name)
        self.clip, self.tokenizer = clip, tokenizer
        pixels = open_clip.get_model_preprocess_cfg(clip)
        size = pixels["size"]
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise VtrError(f"{name}: its images are {height}x{width}; only square ones are supported")
        self._keep_statistics(pixels["mean"], pixels["std"])
        self.context = int(getattr(clip, "context_length", None) or tokenizer.context_length)
        with torch.inference_mode():
            width = clip.encode_text(tokenizer(["a"], self.context)).shape[-1]
        self.config = PeerConfig(
            video=PeerVideoConfig(image_size=height), embed_dim=width, max_text_tokens=self.context
        )

    @classmethod
    def load(cls, name: str, device: str | torch.device | None = None) -> OpenClipModel:
        """Load "open_clip:MODEL/PRETRAINED" (a tag of open_clip, or a file) or "open_clip:hf-hub:OWNER/NAME".

        Args:
            device: Where to put it; default: a GPU if there is one.

        Raises:
            UsageError: The name is none of open_clip's.
            VtrError: The weights are neither in the cache nor downloadable, or damaged.
        """
        identifier = name.removeprefix(OPEN_CLIP)
        model, pretrained = identifier, None
        quick_gelu = False
        if not identifier.startswith(("hf-hub:", "local-dir:")):
            model, _, pretrained = identifier.partition("/")
            quick_gelu = quick_gelu_needed(model, pretrained)
        try:
            with hub.offline_if_unreachable(), quiet():
                clip = open_clip.create_model(
                    model, pretrained, require_pretrained=True, weights_only=True, force_quick_gelu=quick_gelu
                )
        except Exception as error:  # open_clip raises many kinds: no network, damaged file, other sizes
            text = " ".join(str(error).split())
            if "ownload" in text or "HF Hub" in text:
                raise VtrError(
                    f"{name}: its weights are neither in the Hugging Face cache ({_cache()}) nor downloadable: load it once "
                    f"on a machine with a network and copy that folder here, or name a file: {OPEN_CLIP}{model}/PATH"
                ) from error
            raise VtrError(f"{name} cannot be loaded: {text[:300]}") from error
        built = cls(clip.eval(), _tokenizer(model, name), name).eval()
        return built.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def temp(self) -> Tensor:
        """The contrastive temperature: what cosines are divided by."""
        return 1 / self.clip.logit_scale.exp()

    def encode_video(self, videos: Videos) -> VideoFeatures:
        """Encode frames (B, T, 3, S, S), uint8 or already normalised; or the path of a file, or a list of paths."""
        with self._inference(videos):
            frames = self._frames(videos, self.config.video, self.config.antialias)
            return joined([self._encoded(part) for part in frames])

    def _encoded(self, frames: Tensor) -> VideoFeatures:
        parts = [
            F.normalize(self.clip.encode_image(self.normalise(part)).float(), dim=-1)
            for part in frames.flatten(0, 1).split(_IMAGES)
        ]
        unit = torch.cat(parts).unflatten(0, frames.shape[:2])
        return VideoFeatures(F.normalize(unit.mean(1), dim=-1), unit, unit, unit, None)

    def encode_text(self, texts: Texts) -> TextFeatures:
        """Encode a text, several texts, or ready tokens; `tokens` of the result is the embedding again."""
        batch = tokens_of(texts, self.tokenise)
        ids = batch.ids.to(self.device)
        with self._inference(texts):
            unit = F.normalize(self.clip.encode_text(ids).float(), dim=-1)
        return TextFeatures(unit, unit[:, None], batch.mask.to(self.device), ids)

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> TokenBatch:
        """The model's own tokens (B, L) of texts as they are, cut at its context length, whatever `most` asks for."""
        ids = self.tokenizer(list(texts), self.context)
        return TokenBatch(ids=ids, mask=(ids != ids[:, -1:]).long().flip(1).cummax(1).values.flip(1))

    def cut(self, texts: Sequence[str], most: int | None = None) -> int:
        """How many texts are longer than the context, whatever `most` asks for."""
        short = self.tokenizer([""], self.context + 1)[0, -1]  # what a text that ends before has there
        return int((self.tokenizer(list(texts), self.context + 1)[:, -1] != short).sum())

    def visual_shape(self, frames: int) -> tuple[int, int]:
        """One vector a frame."""
        return frames, self.config.embed_dim

    def _facts(self) -> str:
        video = self.config.video
        return f"{self.name}, {video.num_frames} frames of {video.image_size} px, {self.config.embed_dim} dimensions"


def quick_gelu_needed(model: str, pretrained: str) -> bool:
    """Whether the weights need QuickGELU where the architecture's name does not say so (open_clip only warns of that).

    Raises:
        UsageError: There is no such architecture or tag, or they don't belong together.
    """
    if model not in open_clip.list_models():
        raise unknown_name("open_clip model", model, open_clip.list_models())
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise UsageError(f"{OPEN_CLIP}{model} names no weights: add /TAG, one of {', '.join(tags) or 'a file'}")
    config = open_clip.get_pretrained_cfg(model, pretrained)
    if not config:
        if Path(pretrained).is_file():
            return False
        raise unknown_name(
            f"weights of {model}", pretrained, open_clip.list_pretrained_tags_by_model(model) or ["(a file)"]
        )
    wants = bool(config.get("quick_gelu", False))
    if not wants and (open_clip.get_model_config(model) or {}).get("quick_gelu", False):
        plain = model.removesuffix("-quickgelu")
        raise UsageError(
            f"{pretrained} was trained without QuickGELU, {model} has it: use {OPEN_CLIP}{plain}/{pretrained}"
        )
    return wants


def _tokenizer(model: str, name: str) -> ClipTokenizer:
    """open_clip's for a model; that of SigLIP and some others is on the hub.

    Raises:
        VtrError: It is neither in the cache nor downloadable.
    """
    try:
        with hub.offline_if_unreachable(), quiet():
            tokenizer: ClipTokenizer = open_clip.get_tokenizer(model)
            return tokenizer
    except Exception as error:  # no network, gated, damaged: many kinds
        wanted = (open_clip.get_model_config(model) or {}).get("text_cfg", {}).get("hf_tokenizer_name", model)
        raise VtrError(
            f"{name}: its tokenizer {wanted} is neither in the Hugging Face cache ({_cache()}) nor downloadable: load it "
            "once on a machine with a network and copy that folder here"
        ) from error


def _cache() -> str:
    return constants.HF_HUB_CACHE


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without open_clip's log lines: what matters in them is said in one line, or settled (QuickGELU)."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
