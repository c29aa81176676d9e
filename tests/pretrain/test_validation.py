"""Validation during training: what is wrong with it is said before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import write_videos
from vtr.data.manifests import load_corpus
from vtr.errors import VtrError
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.build import build_model
from vtr.pretrain.recipes import recipe
from vtr.pretrain.validation import Validation
from vtr.ranks import Ranks


@pytest.fixture(scope="module")
def model(demo_root: Path) -> VideoTextModel:
    return build_model("demo", load_corpus("demo", demo_root / "demo"), demo_root, recipe("clean", "demo"))


def annotation(folder: Path, captions: list[list[str]]) -> Path:
    write_videos(folder, len(captions))
    path = folder / "own.json"
    path.write_text(json.dumps([{"video": f"clip{i}.mp4", "caption": c} for i, c in enumerate(captions)]))
    return path


def test_every_rank_gets_the_figures_of_both_ways(model: VideoTextModel, tmp_path: Path) -> None:
    path = annotation(tmp_path, [["a dog"], ["a cat", "an animal"], ["a bird"]])
    found = Validation(model, str(path), tmp_path, 2, Ranks())
    assert [v.name for v in found.videos] == ["clip0.mp4", "clip2.mp4"]  # spread evenly
    assert set(found()) == {f"{way}_r{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)}


def test_a_missing_caption_and_a_broken_video_are_said_before_the_first_step(
    model: VideoTextModel, tmp_path: Path
) -> None:
    path = annotation(tmp_path / "few", [["a dog"], []])
    with pytest.raises(VtrError, match="no caption"):
        Validation(model, str(path), path.parent, 10, Ranks())
    path = annotation(tmp_path / "broken", [["a dog"], ["a cat"]])
    (path.parent / "clip1.mp4").write_bytes(b"no video")
    with pytest.raises(VtrError, match=r"validation .*clip1\.mp4"):
        Validation(model, str(path), path.parent, 10, Ranks())
