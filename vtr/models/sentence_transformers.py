"""SentenceTransformerModel: a sentence-transformers model that takes images or videos, through the same door as our own.

Of a model that takes videos, a video is one vector; of one that takes images, the mean of its frames' unit vectors. There is
no re-ranking. B batch, T frames, F vectors of a video, E joint width, L bytes of the longest text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from vtr.data.text import TokenBatch
from vtr.errors import UsageError, VtrError
from vtr.files import install_command
from vtr.models import hub
from vtr.models.base import TextFeatures, Texts, VideoFeatures, Videos, joined, tokens_of
from vtr.models.peer import PeerConfig, PeerModel, PeerVideoConfig
from vtr.models.registry import SENTENCE_TRANSFORMERS

_EXTRA = "sentence-transformers"

try:
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise VtrError(f"{SENTENCE_TRANSFORMERS}… needs {_EXTRA}: {install_command(_EXTRA)}") from error

_BATCH = 32  # images, videos or texts encoded at once
_WORDS = 512  # of a model that names no longest text
_SIDE = 224  # of a model whose processor names none
_LARGEST = 1024  # a "size" above is a number of pixels, not a side


class SentenceTransformerModel(PeerModel):
    """A sentence-transformers model of texts and images or videos.

    Args:
        inner: The model.
        name: As in "sentence-transformers:OWNER/NAME".

    Raises:
        UsageError: It takes texts alone.
    """

    def __init__(self, inner: SentenceTransformer, name: str) -> None:
        super().__init__(name)
        takes = [str(kind) for kind in inner.modalities]
        if "text" not in takes or not {"image", "video"} & set(takes):
            raise UsageError(f"{name} takes {', '.join(takes)}: expected a model of texts and images or videos")
        self.inner = inner
        self.takes_videos, self._takes_images = "video" in takes, "image" in takes
        self._keep_statistics((0.0,) * 3, (1.0,) * 3)  # pixels are its processor's affair
        self.register_buffer("_temp", _temperature(inner), persistent=False)
        self.config = PeerConfig(
            video=PeerVideoConfig(image_size=_side(getattr(inner[0], "processor", None))),
            embed_dim=self.encode_text("a").embedding.shape[-1],
            max_text_tokens=inner.max_seq_length or _WORDS,
        )

    @classmethod
    def load(cls, name: str, device: str | torch.device | None = None) -> SentenceTransformerModel:
        """Load "sentence-transformers:OWNER/NAME" of the hub, or "sentence-transformers:FOLDER"; its code is never run.

        Raises:
            UsageError: It takes texts alone.
            VtrError: It is neither in the cache nor downloadable, or damaged.
        """
        source = name.removeprefix(SENTENCE_TRANSFORMERS)
        place = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            with hub.offline_if_unreachable():
                inner = SentenceTransformer(source, device=place, trust_remote_code=False)
        except Exception as error:  # no network, unknown, gated, damaged, with code of its own: many kinds
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise VtrError(
                f"{name} cannot be loaded: {text}; expected a folder of a model, or a name of the hub that is in the cache or "
                "downloadable"
            ) from error
        return cls(inner.eval(), name).eval()

    @property
    def temp(self) -> Tensor:
        """The contrastive temperature: what cosines are divided by."""
        temperature: Tensor = self._temp  # type: ignore[assignment]
        return temperature

    def encode_video(self, videos: Videos) -> VideoFeatures:
        """Encode frames (B, T, 3, S, S), uint8; or the path of a file, or a list of paths.

        Raises:
            UsageError: The frames are normalised already: this model does that itself.
        """
        return joined([self._features(part) for part in self._frames(videos, self.config.video, self.config.antialias)])

    def _features(self, frames: Tensor) -> VideoFeatures:
        if frames.dtype != torch.uint8:
            raise UsageError(f"{self.name}: expected frames as uint8, got {frames.dtype}; it normalises them itself")
        frames = frames.cpu()
        if self.takes_videos and (frames.shape[1] > 1 or not self._takes_images):
            clips: list[object] = [{"video": {"array": clip, "video_metadata": None}} for clip in frames]
            unit = self._encoded(clips, query=False)[:, None]
        else:
            images: list[object] = [{"image": to_pil_image(frame)} for frame in frames.flatten(0, 1)]
            unit = self._encoded(images, query=False).unflatten(0, frames.shape[:2])
        return VideoFeatures(F.normalize(unit.mean(1), dim=-1), unit, unit, unit, None)

    def encode_text(self, texts: Texts) -> TextFeatures:
        """Encode a text, several texts, or what `tokenise` made of them; `tokens` of the result is the embedding again."""
        batch = tokens_of(texts, self.tokenise)
        words = [bytes(row[:n].tolist()).decode() for row, n in zip(batch.ids.cpu(), batch.mask.sum(1).tolist())]
        # By name: a text that looks like the path of a picture is a text.
        unit = self._encoded([{"text": text} for text in words], query=True)
        return TextFeatures(unit, unit[:, None], batch.mask.to(self.device), batch.ids.to(self.device))

    def _encoded(self, inputs: list[object], *, query: bool) -> Tensor:
        """Unit vectors (N, E)."""
        encode = self.inner.encode_query if query else self.inner.encode_document
        found = encode(inputs, batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False)
        return F.normalize(found.float(), dim=-1)

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> TokenBatch:
        """The texts' bytes (B, L): prompts, templates and tokens are made when they are encoded, by the model itself."""
        rows = [torch.tensor(list(text.encode()), dtype=torch.int64) for text in texts]
        mask = [torch.ones_like(row) for row in rows]
        return TokenBatch(ids=_padded(rows), mask=_padded(mask))

    def cut(self, texts: Sequence[str], most: int | None = None) -> int:
        """How many texts are longer than it reads."""
        limit, tokenizer = self.inner.max_seq_length, getattr(self.inner[0], "tokenizer", None)
        if limit is None or not callable(tokenizer):
            return 0
        return sum(len(ids) > limit for ids in tokenizer(list(texts), truncation=False)["input_ids"])

    def visual_shape(self, frames: int) -> tuple[int, int]:
        """One vector a video, or one a frame."""
        return (1 if self.takes_videos else frames), self.config.embed_dim

    def _facts(self) -> str:
        video = self.config.video
        how = "one vector a video" if self.takes_videos else "the mean of its frames"
        return f"{self.name}, {video.num_frames} frames of {video.image_size} px, {how}"


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _temperature(inner: SentenceTransformer) -> Tensor:
    """Of the contrastive loss that it was trained with, where the model says; else CLIP's final one."""
    scales = [value.detach() for name, value in inner.named_parameters() if name.endswith("logit_scale")]
    return 1 / scales[0].exp().float() if scales else torch.tensor(0.01)


def _side(processor: object) -> int:
    """The side of the images that a processor makes."""
    images = getattr(processor, "image_processor", processor)
    for size in (getattr(images, "crop_size", None), getattr(images, "size", None)):
        for key in ("height", "shortest_edge"):
            value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
            if isinstance(value, int) and 0 < value <= _LARGEST:
                return value
    return _SIDE
