"""VideoTextModel: VideoMamba and BERT with their projections; encode, compare, match, save and load.

B batch, T frames, F pooled vectors of a video, L tokens, E joint width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vtr.encoders.bert import Bert, BertConfig, KeysValues
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import VtrError, unknown_name
from vtr.kernels.linear import Linear
from vtr.models.base import IMAGENET_MEAN, IMAGENET_STD, TextFeatures, VideoFeatures, load_strictly

if TYPE_CHECKING:
    from vtr.data.text import TokenBatch, Tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the model's tensors and its inputs."""

    video: VideoMambaConfig = field(default_factory=VideoMambaConfig)
    text: BertConfig = field(default_factory=BertConfig)
    embed_dim: int = 512
    temperature: float = 0.07
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    max_text_tokens: int = 32
    antialias: bool = False  # of the resize before encoding; the official numbers were made without

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From the content of config.json; unknown keys are errors that name the nearest one."""
        values = dict(values)
        for name, kind in (("video", VideoMambaConfig), ("text", BertConfig)):
            inner = values.get(name, {})
            for key in inner:
                if key not in {f.name for f in dataclasses.fields(kind)}:
                    raise unknown_name(f"key in config.json, {name}:", key, [f.name for f in dataclasses.fields(kind)])
            values[name] = kind(**inner)
        for key in values:
            if key not in {f.name for f in dataclasses.fields(cls)}:
                raise unknown_name("key in config.json:", key, [f.name for f in dataclasses.fields(cls)])
        for key in ("pixel_mean", "pixel_std"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


class _Undrawn(TorchFunctionMode):
    """Weights that are about to be loaded are not drawn at random first: that takes longer than all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0].zero_()  # trunc_normal_ draws again what is out of bounds
        return func(*args, **kwargs)


class VideoTextModel(nn.Module):
    """The whole video-text model.

    Args:
        config: Sizes and input statistics.
        tokenizer: Its vocabulary must be the text side's.
    """

    _mean: Tensor
    _std: Tensor
    registered: str | None = None  # its name among the official checkpoints

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        if tokenizer is not None and tokenizer.vocab_size > config.text.vocab_size:
            raise VtrError(f"the tokenizer has {tokenizer.vocab_size} words, the model {config.text.vocab_size}")
        self.config = config
        self.tokenizer: Any = tokenizer  # None where only tensors are compared
        self.vision_encoder = VideoMamba(config.video)
        self.text_encoder = Bert(config.text)
        self.vision_proj = Linear(config.video.dim, config.embed_dim)
        self.text_proj = Linear(config.text.hidden, config.embed_dim)
        self.itm_head = Linear(config.text.hidden, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.register_buffer("_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.temp.device

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 (…, 3, H, W) to the statistics the encoder was trained with; float input passes unchanged."""
        if frames.dtype != torch.uint8:
            return frames
        return (frames.to(self._mean.dtype) / 255 - self._mean) / self._std

    def encode_video(self, frames: Tensor, mask: Tensor | None = None, keep_temporal: bool = True) -> VideoFeatures:
        """Encode frames (B, T, 3, H, W), uint8 or already normalised; T = 1 is an image."""
        out = self.vision_encoder(self.normalise(frames.to(self.device)), mask, keep_temporal and mask is None)
        unit = F.normalize(self.vision_proj(out.pooled).float(), dim=-1)
        return VideoFeatures(unit.mean(1), unit, out.tokens, out.pooled, out.aligned)

    def encode_text(self, texts: Sequence[str] | TokenBatch) -> TextFeatures:
        """Encode captions or ready tokens."""
        batch = texts if hasattr(texts, "ids") else self.tokenizer(list(texts), self.config.max_text_tokens)
        ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)  # type: ignore[union-attr]
        states = self.text_encoder.encode_text(ids, mask)
        return TextFeatures(F.normalize(self.text_proj(states[:, 0]).float(), dim=-1), states, mask, ids)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Cosine similarities (texts, videos), averaged over a video's pooled vectors; temperature 1."""
        return text.embedding @ video.embedding.T

    def match(self, text_tokens: Tensor, text_mask: Tensor, visual: Tensor | list[KeysValues]) -> Tensor:
        """Match logits (N, 2), index 1 = match, of N pairs.

        Args:
            text_tokens: (N, L, H) text states.
            text_mask: (N, L).
            visual: (N, Lv, D) visual tokens; or (1, Lv, D) or `text_encoder.visual_memory` of it, one video for all.
        """
        return self.itm_head(self.text_encoder.fuse(text_tokens, text_mask, visual, first_only=True)[:, 0])

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every weight, in hex."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and tokenizer.json; the weights last, each atomically."""
        from safetensors.torch import save_file

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.tokenizer.save(folder / "tokenizer.json")
            (folder / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
            partial = folder / f"model.safetensors.{os.getpid()}.tmp"
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, partial)
            os.replace(partial, folder / "model.safetensors")
        except OSError as error:
            raise VtrError(f"{folder}: the model cannot be written ({error.strerror})") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoTextModel:
        """Load a folder written by `save_pretrained`.

        Raises:
            VtrError: A file is missing or damaged, or the weights are of other sizes than config.json says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from vtr.data.text import Tokenizer

        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise VtrError(f"{folder}: {name} is missing; expected a model folder or a run that has finished")
        try:
            config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise VtrError(f"{folder}/config.json is not a model configuration: {error}") from error
        with _Undrawn():
            model = cls(config, Tokenizer.load(folder / "tokenizer.json"))
        try:
            state = load_file(folder / "model.safetensors")
        except (SafetensorError, OSError) as error:
            raise VtrError(f"{folder}/model.safetensors is damaged: {str(error).splitlines()[0]}") from error
        load_strictly(model, state, str(folder / "model.safetensors"))
        return model.eval()
