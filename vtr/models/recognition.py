"""RecognitionModel: a VideoMamba encoder by itself, with its classifier where it has one (images, actions).

B batch, T frames, D width.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import VtrError, unknown_name
from vtr.models.base import IMAGENET_MEAN, IMAGENET_STD, load_strictly


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig:
    """Everything that fixes the model's tensors and its inputs."""

    video: VideoMambaConfig = field(default_factory=VideoMambaConfig)
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


class RecognitionModel(nn.Module):
    """A VideoMamba that names what it sees, or only encodes it.

    Args:
        config: Sizes and input statistics.
    """

    _mean: Tensor
    _std: Tensor
    registered: str | None = None  # its name among the official checkpoints

    def __init__(self, config: RecognitionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoMamba(config.video)
        self.register_buffer("_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    def _normalised(self, frames: Tensor) -> Tensor:
        frames = frames.to(self._mean.device)
        return (frames.to(self._mean.dtype) / 255 - self._mean) / self._std if frames.dtype == torch.uint8 else frames

    def features(self, frames: Tensor) -> Tensor:
        """CLS after the final norm (B, D) of frames (B, T, 3, H, W), uint8 or already normalised."""
        return self.encoder(self._normalised(frames)).cls

    def classify(self, frames: Tensor) -> Tensor:
        """Logits (B, classes).

        Raises:
            UsageError: The model has no classifier.
        """
        return self.encoder.classify(self._normalised(frames))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, the weights last, atomically."""
        from safetensors.torch import save_file

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = {"kind": "recognition", **dataclasses.asdict(self.config)}
            (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            partial = folder / f"model.safetensors.{os.getpid()}.tmp"
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, partial)
            os.replace(partial, folder / "model.safetensors")
        except OSError as error:
            raise VtrError(f"{folder}: the model cannot be written ({error.strerror})") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RecognitionModel:
        """Load a folder written by `save_pretrained`.

        Raises:
            VtrError: A file is missing or damaged, or the weights are of other sizes than config.json says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            values: dict[str, Any] = json.loads((folder / "config.json").read_text())
            video = values["video"]
            for key in video:
                if key not in {f.name for f in dataclasses.fields(VideoMambaConfig)}:
                    raise unknown_name(
                        "key in config.json, video:", key, [f.name for f in dataclasses.fields(VideoMambaConfig)]
                    )
            config = RecognitionConfig(
                video=VideoMambaConfig(**video),
                pixel_mean=tuple(values["pixel_mean"]),
                pixel_std=tuple(values["pixel_std"]),
            )
            state = load_file(folder / "model.safetensors")
        except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise VtrError(f"{folder} is not a whole recognition model: {str(error).splitlines()[0]}") from error
        model = cls(config)
        load_strictly(model, state, str(folder / "model.safetensors"))
        return model.eval()
