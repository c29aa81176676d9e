"""Video encoders by name, and what every one of them has to have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vtr
from tests.helpers import WORDS, small_model
from vtr.encoders import registry
from vtr.encoders.base import EncoderConfig, VideoEncoder, VideoOutput
from vtr.encoders.masking import make_mask
from vtr.errors import UsageError
from vtr.models.video_text import ModelConfig, VideoTextModel


def small(family: str, **changes: object) -> EncoderConfig:
    """A configuration of that family which runs in milliseconds."""
    config = next(iter(registry.FAMILIES[family].sizes.values()))
    sizes = {"image_size": 32, "dim": 64, "depth": 3, "num_frames": 4, "pool": "avg"}
    return dataclasses.replace(config, **{**sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_an_encoder_gives_tokens_pooled_and_aligned_features(family: str) -> None:
    torch.manual_seed(0)
    encoder = registry.build_encoder(small(family, align_dim=16, align_layers=2, num_classes=5)).eval()
    video = torch.randn(2, 4, 3, 32, 32)
    out = encoder(video, None, True)
    assert encoder.grid(4) == (4, 2, 2)
    assert out.tokens.shape == (2, 16, 64)
    assert out.pooled.shape == (2, 4, 64)
    assert out.cls.shape == (2, 64)
    assert encoder.classify(video).shape == (2, 5)
    mask = make_mask("random", 2, 4, 2, 2, 0.5, torch.Generator().manual_seed(0))
    masked = encoder(video, mask)
    assert masked.tokens.shape == (2, 8, 64)
    assert masked.pooled.shape == (2, 1, 64)
    assert masked.aligned is not None
    assert masked.aligned.shape == (2, 2, encoder.prefix + 8, 16)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_an_encoders_layers_can_be_told_from_its_parameters_names(family: str) -> None:
    encoder = registry.build_encoder(small(family, align_dim=16, num_classes=5))
    assert len(encoder.blocks) == 3
    inside = {id(p): i + 1 for i, block in enumerate(encoder.blocks) for p in block.parameters()}
    for name, parameter in encoder.named_parameters():
        number = encoder.layer_of(name)
        assert number == inside.get(id(parameter), number), name
        assert 0 <= number <= 4
    assert {encoder.layer_of(name) for name, _ in encoder.named_parameters()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_a_configuration_is_read_back_as_it_was_written(family: str) -> None:
    config = small(family, drop_path=0.1)
    assert registry.config_from_dict(registry.config_to_dict(config)) == config


def test_no_two_families_share_a_name() -> None:
    assert len(registry.named_encoders()) == sum(len(family.sizes) for family in registry.FAMILIES.values())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"family": "vidomamba"}, "did you mean 'videomamba'"),
        ({"dpeth": 3}, "did you mean 'depth'"),
        ([1, 2], "expected an object of sizes"),
    ],
)
def test_a_wrong_configuration_names_what_would_have_been_right(values: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        registry.config_from_dict(values)


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'middle'"):
        registry.find_encoder("midle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ToyConfig(EncoderConfig):
    gain: float = 1.0


class _Toy(VideoEncoder):
    """What somebody's first encoder might be: the mean colour of each patch."""

    prefix = 0
    config: _ToyConfig

    def __init__(self, config: _ToyConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([nn.Linear(3, config.dim)])

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    def layer_of(self, parameter: str) -> int:
        return 1

    def set_drop_path(self, rate: float) -> None:
        pass

    def features(self, video: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, int]:
        colours = nn.functional.avg_pool2d(video.flatten(0, 1), self.config.patch_size).flatten(2).transpose(1, 2)
        tokens = self.layers[0](colours).unflatten(0, video.shape[:2]).flatten(1, 2) * self.config.gain
        return tokens, None, video.shape[1]

    def forward(self, video: Tensor, mask: Tensor | None = None, keep_temporal: bool = False) -> VideoOutput:
        tokens, aligned, frames = self.features(video, mask)
        pooled = tokens.unflatten(1, (frames if keep_temporal else 1, -1)).mean(2)
        return VideoOutput(tokens, pooled, tokens.mean(1), aligned)

    def classify(self, video: Tensor) -> Tensor:
        raise UsageError("no classifier")


@torch.no_grad()
def test_a_new_encoder_is_a_class_and_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "toy", registry.Family(_ToyConfig, _Toy, {"toy": _ToyConfig(dim=32)}))
    like = small_model()
    video = dataclasses.replace(registry.find_encoder("toy"), image_size=32, num_frames=4, depth=1)
    config = ModelConfig(video=video, text=like.config.text, embed_dim=16)
    model = VideoTextModel(config, like.tokenizer).eval()
    model.save_pretrained(tmp_path)
    again = vtr.load(tmp_path, "cpu")
    assert isinstance(again, VideoTextModel)
    assert again.config == config
    assert again.fingerprint() == model.fingerprint()
    frames = torch.randint(0, 255, (2, 4, 3, 32, 32), dtype=torch.uint8)
    scores = again.similarity(again.encode_text(WORDS), again.encode_video(frames))
    assert scores.shape == (4, 2)
    assert again.visual_shape(4) == (16, 32)
