"""RecognitionModel: save and load, input statistics, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vtr
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import UsageError, VtrError
from vtr.models.recognition import RecognitionConfig, RecognitionModel


def model(classes: int = 5) -> RecognitionModel:
    torch.manual_seed(0)
    video = VideoMambaConfig(image_size=32, dim=32, depth=2, num_frames=4, num_classes=classes)
    return RecognitionModel(RecognitionConfig(video=video)).eval()


def frames() -> torch.Tensor:
    return torch.randint(0, 255, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_saved_model_loads_to_the_same_logits(tmp_path: Path) -> None:
    first = model()
    first.save_pretrained(tmp_path)
    again = vtr.load(tmp_path, "cpu")
    assert isinstance(again, RecognitionModel)
    assert again.config == first.config
    assert torch.equal(again.classify(frames()), first.classify(frames()))
    assert again.classify(frames()).shape == (2, 5)


@torch.no_grad()
def test_bytes_are_normalised_with_the_models_statistics() -> None:
    whole = model()
    mean, std = (torch.tensor(getattr(whole.config, k)).view(3, 1, 1) for k in ("pixel_mean", "pixel_std"))
    ready = (frames() / 255 - mean) / std
    torch.testing.assert_close(whole.features(frames()), whole.features(ready), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_classifier_says_so() -> None:
    with pytest.raises(UsageError, match="no classifier"):
        model(classes=0).classify(frames())


@pytest.mark.parametrize("what", ["missing", "cut", "other sizes", "unknown key"])
def test_a_bad_folder_is_one_clear_line(what: str, tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", json.loads((tmp_path / "config.json").read_text())
    if what == "missing":
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-50])
    else:
        config["video"]["dpeth" if what == "unknown key" else "depth"] = 3
        (tmp_path / "config.json").write_text(json.dumps(config))
    says = {
        "missing": "model.safetensors is missing",
        "cut": "is damaged",
        "other sizes": "is missing",
        "unknown key": "depth",
    }[what]
    with pytest.raises(VtrError, match=says) as error:
        vtr.load(tmp_path)
    assert "\n" not in str(error.value)


def test_words_are_refused_in_one_line() -> None:
    model = RecognitionModel(RecognitionConfig(video=VideoMambaConfig(image_size=32, dim=32, depth=1)))
    for ask in (lambda: model.encode_text("a dog"), lambda: model.rank("a dog", ["a.mp4"])):
        with pytest.raises(UsageError, match="has no text side"):
            ask()
