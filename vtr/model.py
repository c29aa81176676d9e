"""VideoTextModel: VideoMamba and BERT with their projections; encode, compare, match, save and load.

B batch, T frames, F pooled vectors of a video, L tokens, E joint width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vtr.encoders.bert import Bert, BertConfig, KeysValues
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.kernels.linear import Linear

if TYPE_CHECKING:
    from vtr.data.text import TokenBatch, Tokenizer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


class VideoFeatures(NamedTuple):
    """A batch of encoded videos."""

    embedding: Tensor  # (B, E) fp32: mean over F of unit vectors, so that dot(text, embedding) is the mean cosine
    frame_embeddings: Tensor  # (B, F, E) unit vectors
    tokens: Tensor  # (B, Lv, D) visual tokens for the cross-modal decoder
    pooled: Tensor  # (B, F, D)
    aligned: Tensor | None  # (K, B, 1 + Lv, C)


class TextFeatures(NamedTuple):
    """A batch of encoded texts."""

    embedding: Tensor  # (B, E) unit vectors
    tokens: Tensor  # (B, L, H) states after the text layers
    mask: Tensor  # (B, L)
    ids: Tensor  # (B, L)


def combined_scores(similarity: Tensor, match_logits: Tensor, temperature: float, weight: float = 1.0) -> Tensor:
    """What search ranks by: the contrastive logit plus the matching head's log-odds.

    Args:
        similarity: (…) cosine similarities.
        match_logits: (…, 2) logits of the matching head.
        temperature: The contrastive temperature.
        weight: Of the log-odds.
    """
    odds = match_logits[..., 1].float() - match_logits[..., 0].float()
    return similarity.float() / temperature + weight * odds


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


def load_strictly(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load `state` or raise one line that names the first difference and the number of them."""
    own = module.state_dict()
    wrong = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    wrong += [f"{k} is missing" for k in own if k not in state] + [f"{k} is unexpected" for k in state if k not in own]
    if wrong:
        raise VtrError(
            f"{origin}: {wrong[0]}" + (f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else "")
        )
    module.load_state_dict(state)


def load(name: str | Path, device: str | torch.device | None = None, *, file: str | Path | None = None) -> Any:
    """Load a trained model for inference.

    Args:
        name: A run folder (its `model/`), a model folder, an official checkpoint (`vtr models`, as in
            "videomamba_middle.25m_f8"), "open_clip:MODEL/PRETRAINED", or a hub id `owner/name`.
        device: Where to put it; default: a GPU if there is one.
        file: The file of an official checkpoint, where it is on this machine already.

    Returns:
        A VideoTextModel; a RecognitionModel for official checkpoints without text; an OpenClipModel.
    """
    path = Path(name)
    if str(name).startswith("open_clip:"):
        from vtr.baseline import OpenClipModel

        return OpenClipModel.load(str(name), device)
    if not path.is_dir():
        from vtr.checkpoints import is_registered, load_checkpoint

        if is_registered(str(name)):
            return load_checkpoint(str(name), file=file, device=device)
    if file is not None:
        raise UsageError(f"a file belongs to the name of an official checkpoint (vtr models), not to {str(name)!r}")
    if (path / "model").is_dir():
        path = path / "model"
    elif path.is_dir() and (path / "checkpoints").is_dir():
        raise VtrError(f"{path}: the run has no final model yet; finish it with --resume latest")
    if not path.is_dir():
        if str(name).count("/") == 1 and not str(name).startswith((".", "/", "runs/")):
            from huggingface_hub import snapshot_download

            try:
                path = Path(snapshot_download(str(name)))
            except Exception as error:  # no network, unknown id, gated: many kinds
                raise VtrError(
                    f"model {str(name)!r}: no such folder, and not on the hub ({type(error).__name__})"
                ) from error
        else:
            raise VtrError(
                f"model {str(name)!r}: no such folder; expected a run, a model folder, an official checkpoint "
                "(vtr models), open_clip:MODEL/PRETRAINED or a hub id owner/name"
            )
    if _kind(path) == "recognition":
        from vtr.recognition import RecognitionModel

        model: Any = RecognitionModel.from_pretrained(path)
    else:
        model = VideoTextModel.from_pretrained(path)
    with contextlib.suppress(OSError, ValueError, KeyError):  # where it is no official checkpoint
        model.registered = json.loads((path / "source.json").read_text())["name"]
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def needs_text(model: Any, name: object) -> None:
    """Refuse a model that has no text side.

    Raises:
        UsageError: It recognises images or actions, or is half of a pretraining.
    """
    if not hasattr(model, "encode_text"):
        raise UsageError(
            f"model {str(name)!r} has no text side: retrieval and search need a video-text model (vtr models)"
        )


def _kind(path: Path) -> str:
    try:
        return str(json.loads((path / "config.json").read_text()).get("kind", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # from_pretrained says what is wrong
