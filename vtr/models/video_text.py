"""VideoTextModel: a video encoder and BERT with their words and pixels; encode, compare, match, save and load.

B batch, T frames, L tokens, E joint width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vtr.data.cleaning import clean_caption
from vtr.data.text import TokenBatch, Tokenizer
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import BertConfig
from vtr.encoders.registry import config_from_dict, config_to_dict
from vtr.encoders.video_text import VideoTextNetwork
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.models.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TextFeatures,
    Texts,
    VideoFeatures,
    Videos,
    encoder_facts,
    joined,
    tokens_of,
)
from vtr.models.folder import SavedModel
from vtr.models.rank import ComparesVideos


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the model's tensors and its inputs."""

    video: EncoderConfig = field(default_factory=VideoMambaConfig)
    text: BertConfig = field(default_factory=BertConfig)
    embed_dim: int = 512
    temperature: float = 0.07
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    max_text_tokens: int = 32
    memory: str = "patches"  # what the decoder reads of a video, one of vtr.encoders.video_text.MEMORIES
    antialias: bool = False  # of the resize before encoding; the official numbers were made without

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """From the content of config.json; unknown keys are errors that name the nearest one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown_name("key in config.json:", key, known)
        text = values.get("text", {})
        if not isinstance(text, Mapping):
            raise UsageError(f"config.json, text: expected an object of sizes, got {text!r}")
        of_text = [f.name for f in dataclasses.fields(BertConfig)]
        for key in text:
            if key not in of_text:
                raise unknown_name("key in config.json, text:", key, of_text)
        read = {**values, "video": config_from_dict(values.get("video", {})), "text": BertConfig(**text)}
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in read.items()})  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """The content of config.json."""
        values = {**dataclasses.asdict(self), "video": config_to_dict(self.video)}
        if self.memory == "patches":
            del values["memory"]  # as configurations were before there was a choice: fingerprints stay what they are
        return values


class VideoTextModel(ComparesVideos, SavedModel, VideoTextNetwork):
    """The whole video-text model.

    Args:
        config: Sizes and input statistics.
        tokenizer: Its vocabulary must be the text side's; None where only tensors are compared.
    """

    files = ("config.json", "model.safetensors", "tokenizer.json")
    reranks = True

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
        if tokenizer is not None and tokenizer.vocab_size > config.text.vocab_size:
            raise VtrError(f"the tokenizer has {tokenizer.vocab_size} words, the model {config.text.vocab_size}")
        VideoTextNetwork.__init__(self, config.video, config.text, config.embed_dim, config.temperature, config.memory)
        self.config = config
        self._tokenizer = tokenizer
        self._keep_statistics(config.pixel_mean, config.pixel_std)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's words."""
        if self._tokenizer is None:
            raise UsageError("this model was built without a tokenizer: it takes token ids, and cannot be saved")
        return self._tokenizer

    def encode_video(self, videos: Videos, mask: Tensor | None = None, keep_temporal: bool = True) -> VideoFeatures:
        """Encode videos.

        Args:
            videos: Frames (B, T, 3, H, W), uint8 or already normalised, T = 1 is an image; the path of a video or an
                image; or a list of paths. Files are read as `vtr search` and `vtr index` read whole videos.
            mask: (B, 1 + T*P) bool, True = dropped (training).
            keep_temporal: One pooled vector a frame, not one a video.

        Returns:
            `embedding` (B, E), the mean of unit vectors; one video is a batch of one. `frame_embeddings` (B, F, E),
            `tokens` (B, Lv, D), `pooled` (B, F, D).

        Raises:
            UsageError: It is none of these.
            DecodeError: A file is missing or no video.

        >>> import vtr
        >>> vtr.load("runs/demo").encode_video(["a.mp4", "b.mp4"]).embedding.shape
        torch.Size([2, 16])
        """
        with self._inference(videos):
            frames = self._frames(videos, self.config.video, self.config.antialias)
            return joined([self.encode_pixels(self.normalise(part), mask, keep_temporal) for part in frames])

    def encode_text(self, texts: Texts) -> TextFeatures:
        """Encode texts, cleaned as in training (`clean_caption`).

        Args:
            texts: A text, a list of texts, or what `tokenise` made of them.

        Returns:
            `embedding` (B, E), unit vectors; one text is a batch of one. `tokens` (B, L, H), `mask` and `ids` (B, L).

        Raises:
            UsageError: It is none of these.

        >>> import vtr
        >>> vtr.load("runs/demo").encode_text(["a dog", "a cat"]).embedding.shape
        torch.Size([2, 16])
        """
        batch = tokens_of(texts, self.tokenise)
        with self._inference(texts):
            return self.encode_ids(batch.ids.to(self.device), batch.mask.to(self.device))

    def text_limit(self, most: int | None = None) -> int:
        """Tokens of the longest text: `most`, but no more than there are positions."""
        return min(most or self.config.max_text_tokens, self.config.text.max_positions)

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> TokenBatch:
        """Token ids (B, L) of texts, cleaned, cut at `text_limit(most)`."""
        return self.tokenizer([clean_caption(text) for text in texts], self.text_limit(most))

    def cut(self, texts: Sequence[str], most: int | None = None) -> int:
        """How many texts `tokenise` cuts, where `most` tokens are asked for."""
        limit = self.text_limit(most)
        full = (self.tokenise(texts, limit).mask.sum(1) == limit).nonzero()[:, 0].tolist()
        return sum(len(self.tokenizer.tokens(clean_caption(texts[i]))) + 2 > limit for i in full)

    def _values(self) -> dict[str, object]:
        return self.config.to_dict()

    @classmethod
    def _from_values(cls, values: dict[str, object], folder: Path) -> VideoTextModel:
        return cls(ModelConfig.from_dict(values), Tokenizer.load(folder / "tokenizer.json"))

    def _save_words(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")

    def _facts(self) -> str:
        video = self.config.video
        words = f", {self._tokenizer.vocab_size} words" if self._tokenizer is not None else ""
        return f"{encoder_facts(video)}, {self.config.text.layers} text layers{words}"
