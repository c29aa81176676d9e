"""What all models share: what evaluation, libraries and search ask of one, its pixels, its files' strict loading.

B batch, T frames, F pooled vectors, L tokens, Lv visual tokens, D and H widths of video and text, E joint width.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from vtr.data.decode import read_frames
from vtr.data.sampling import middle_frames
from vtr.data.text import TokenBatch
from vtr.data.transforms import eval_frames
from vtr.data.uri import is_uri, shown_uri
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import KeysValues
from vtr.encoders.video_text import TextFeatures, VideoFeatures
from vtr.errors import UsageError, VtrError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Model",
    "ModelFacts",
    "TextFeatures",
    "Texts",
    "VideoFacts",
    "VideoFeatures",
    "VideoTextEncoder",
    "Videos",
    "combined_scores",
    "encoder_facts",
    "joined",
    "load_strictly",
    "tokens_of",
]

_FILES = 8  # read and encoded at once
_NORMALISED = 30.0  # no pixel is so far from the mean in any model's statistics; 255 is

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Videos: TypeAlias = "Tensor | str | Path | Sequence[str | Path]"
"""Frames (B, T, 3, H, W), uint8 or already normalised; or the file, or the files, to read them from."""
Texts: TypeAlias = "str | Sequence[str] | TokenBatch"
"""A text, texts, or ready tokens."""


class VideoFacts(Protocol):
    """What reading a video for a model needs to know."""

    @property
    def image_size(self) -> int: ...
    @property
    def num_frames(self) -> int: ...


class ModelFacts(Protocol):
    """What evaluation and libraries ask of a model's configuration."""

    @property
    def video(self) -> VideoFacts: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def max_text_tokens(self) -> int: ...
    @property
    def antialias(self) -> bool: ...


_E = TypeVar("_E", bound="VideoTextEncoder")


class VideoTextEncoder(Protocol):
    """What evaluation, libraries and search ask of a model: ours, open_clip's, or anybody's that has these.

    Attributes:
        registered: Its name among the official checkpoints, None elsewhere.
        reranks: Whether `match` and `visual_memory` work; without, they raise UsageError.
    """

    registered: str | None
    reranks: bool

    @property
    def config(self) -> ModelFacts: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def temp(self) -> Tensor:
        """The contrastive temperature: what cosines are divided by."""

    def encode_video(self, videos: Videos, /) -> VideoFeatures:
        """Encode B videos."""

    def encode_text(self, texts: Texts, /) -> TextFeatures:
        """Encode B texts."""

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> TokenBatch:
        """Token ids of texts, cleaned as the model was trained, cut at `text_limit(most)`."""

    def cut(self, texts: Sequence[str], most: int | None = None) -> int:
        """How many texts `tokenise` cuts."""

    def text_limit(self, most: int | None = None) -> int:
        """Tokens of the longest text, where `most` are asked for; default: what the model was trained with."""

    def visual_shape(self, frames: int) -> tuple[int, int]:
        """Lv and D: the visual tokens of a video of so many frames."""

    def visual_memory(self, visual: Tensor) -> list[KeysValues]:
        """What `match` reads of visual tokens (B, Lv, D), to be used for many texts."""

    def match(self, text_tokens: Tensor, text_mask: Tensor, visual: Tensor | list[KeysValues]) -> Tensor:
        """Match logits (N, 2), index 1 = match, of N pairs; see `VideoTextNetwork.match`."""

    def fingerprint(self) -> str:
        """A hash of the configuration and every weight, in hex."""

    def eval(self: _E) -> _E:
        """Switch dropout off."""


class Model(nn.Module):
    """What models have in common, whatever network they hold."""

    registered: str | None = None  # its name among the official checkpoints
    _mean: Tensor
    _std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._mean.device

    def _keep_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 (…, 3, H, W) to the statistics the encoder was trained with; float input passes unchanged."""
        if frames.dtype != torch.uint8:
            return frames
        return (frames.to(self._mean.dtype) / 255 - self._mean) / self._std

    @contextlib.contextmanager
    def _inference(self, given: object) -> Iterator[None]:
        """Gradients are for tensors and tokens, and for a model in training: files and words are asked to be encoded."""
        keep = self.training or isinstance(given, Tensor | TokenBatch)
        with torch.set_grad_enabled(keep and torch.is_grad_enabled()):
            yield

    def _frames(self, videos: Videos, facts: VideoFacts, antialias: bool) -> Iterator[Tensor]:
        """Frames on the model's device, those of a few files at a time, read as evaluation and libraries read them."""
        if isinstance(videos, Tensor):
            _check_frames(videos, values=not self.training)
            yield videos.to(self.device)
            return
        paths = paths_of(
            videos, "encode_video: expected frames (B, T, 3, H, W) as a tensor, the path of a video, or a list of paths"
        )
        for start in range(0, len(paths), _FILES):
            clips = [
                read_frames(path, lambda n: middle_frames(n, facts.num_frames)).frames
                for path in paths[start : start + _FILES]
            ]
            yield torch.stack([eval_frames(clip, facts.image_size, antialias=antialias) for clip in clips]).to(
                self.device
            )

    def _identity(self) -> str:
        """What a fingerprint covers beside the weights."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every weight, in hex."""
        digest = hashlib.sha256(self._identity().encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _facts(self) -> str:
        """What the model holds, in a few words."""
        raise NotImplementedError

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        return f"{type(self).__name__}({self._facts()}, {millions:.1f} M parameters, on {self.device})"


def _check_frames(frames: Tensor, *, values: bool) -> None:
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise UsageError(f"encode_video: expected frames (B, T, 3, H, W), got a tensor {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise UsageError(f"encode_video: expected frames as uint8 (0 to 255) or normalised floats, got {frames.dtype}")
    if values and frames.is_floating_point() and frames.numel() and float(frames.detach().amax()) > _NORMALISED:
        raise UsageError(
            f"encode_video: floats are taken as normalised already, these go up to {float(frames.detach().amax()):g}: give "
            "frames of 0 to 255 as uint8"
        )


def paths_of(videos: object, expected: str) -> list[str | Path]:
    """A path, or each of a list of paths.

    Args:
        videos: As it was given.
        expected: The message where it is neither.

    Raises:
        UsageError: It is neither, or holds an address: nothing is fetched unasked.
    """
    given = [videos] if isinstance(videos, bytes) or not isinstance(videos, Sequence) else list(videos)
    paths: list[str | Path] = []
    for path in [videos] if isinstance(videos, str) else given:
        if not isinstance(path, str | Path):
            raise UsageError(f"{expected}; got {type(path).__name__}{'' if path is videos else ' in the list'}")
        if isinstance(path, str) and is_uri(path):
            raise UsageError(
                f"{shown_uri(path)} is an address, and nothing is fetched here: give a file, or put the video into a "
                "library (Library.add fetches)"
            )
        paths.append(path)
    if not paths:
        raise UsageError(f"{expected}; got an empty list")
    return paths


def tokens_of(texts: Texts, tokenise: Callable[[Sequence[str]], TokenBatch]) -> TokenBatch:
    """Ready tokens as they are, else those of a text or texts.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(texts, TokenBatch):
        return texts
    several = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Sequence) else [texts]
    wrong = [type(text).__name__ for text in several if not isinstance(text, str)]
    if wrong or not several:
        raise UsageError(
            f"encode_text: expected a text or a list of texts, got {wrong[0] if wrong else 'an empty list'}"
        )
    return tokenise(several)


def joined(parts: Sequence[VideoFeatures]) -> VideoFeatures:
    """Features of batches as those of one."""
    if len(parts) == 1:
        return parts[0]
    embedding, frames, tokens, pooled, aligned = zip(*parts)
    teacher = None if aligned[0] is None else torch.cat(aligned, 1)
    return VideoFeatures(torch.cat(embedding), torch.cat(frames), torch.cat(tokens), torch.cat(pooled), teacher)


def encoder_facts(video: EncoderConfig) -> str:
    """A video encoder in a few words."""
    frames = f"{video.num_frames} frame{'s' * (video.num_frames > 1)}"
    kind = type(video).__name__.removesuffix("Config")
    return f"{kind} {video.depth}x{video.dim}, {frames} of {video.image_size} px"


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
