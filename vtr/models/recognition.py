"""RecognitionModel: a video encoder by itself, with its classifier where it has one (images, actions).

B batch, T frames, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from vtr.encoders.base import EncoderConfig
from vtr.encoders.registry import build_encoder, config_from_dict, config_to_dict
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import UsageError, unknown_name
from vtr.models.base import IMAGENET_MEAN, IMAGENET_STD, Videos, encoder_facts
from vtr.models.folder import SavedModel

KIND = "recognition"
"""What config.json names such a folder by."""


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig:
    """Everything that fixes the model's tensors and its inputs."""

    video: EncoderConfig = field(default_factory=VideoMambaConfig)
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    class_names: tuple[str, ...] = ()  # of the classes by number, where they have names


class RecognitionModel(SavedModel):
    """A video encoder that names what it sees, or only encodes it.

    Args:
        config: Sizes and input statistics.
    """

    def __init__(self, config: RecognitionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.video)
        self._keep_statistics(config.pixel_mean, config.pixel_std)

    def features(self, videos: Videos) -> Tensor:
        """One vector a clip (B, D): CLS after the final norm, or the mean of the tokens where there is none.

        Args:
            videos: Frames (B, T, 3, H, W), uint8 or already normalised; or the path of a file, or a list of paths.
        """
        with self._inference(videos):
            return torch.cat([self.encoder(pixels).cls for pixels in self._pixels(videos)])

    def classify(self, videos: Videos) -> Tensor:
        """Logits (B, classes) of videos as `features` takes them.

        Raises:
            UsageError: The model has no classifier.
        """
        with self._inference(videos):
            return torch.cat([self.encoder.classify(pixels) for pixels in self._pixels(videos)])

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Refused: there are no words to compare with."""
        raise UsageError(
            f"{self!r} has no text side: `features` and `classify` are what it has; texts need a video-text model (vtr models)"
        )

    encode_text = encode_video = similarity = rank = _refuse

    def _pixels(self, videos: Videos) -> Iterator[Tensor]:
        return map(self.normalise, self._frames(videos, self.config.video, antialias=False))

    def _values(self) -> dict[str, object]:
        return {"kind": KIND, **dataclasses.asdict(self.config), "video": config_to_dict(self.config.video)}

    @classmethod
    def _from_values(cls, values: dict[str, object], folder: Path) -> RecognitionModel:
        known = [f.name for f in dataclasses.fields(RecognitionConfig)]
        read: dict[str, object] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "kind"}
        for key in read:
            if key not in known:
                raise unknown_name("key in config.json:", key, known)
        read["video"] = config_from_dict(values.get("video", {}))
        return cls(RecognitionConfig(**read))  # type: ignore[arg-type]

    def _facts(self) -> str:
        classes = self.config.video.num_classes
        return f"{encoder_facts(self.config.video)}, {f'{classes} classes' if classes else 'no classifier'}"
