"""Moments of a library whose videos show known things at known times."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers import small_model
from vtr.encoders.video_text import TextFeatures, VideoFeatures
from vtr.eval.moments import read_moments
from vtr.library.library import Library
from vtr.models.base import Texts, Videos
from vtr.models.video_text import VideoTextModel
from vtr.moments import main, measure, placed

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class Colours(VideoTextModel):
    """The small model made to know colours alone: a clip's mean colour, a text's word."""

    def encode_video(self, videos: Videos, *args: object, **kwargs: object) -> VideoFeatures:
        assert isinstance(videos, torch.Tensor)
        found = super().encode_video(videos)
        mean = self.normalise(videos).mean((1, 3, 4))
        unit = torch.nn.functional.normalize(torch.nn.functional.pad(mean, (0, 13)), dim=-1)
        return found._replace(embedding=unit, frame_embeddings=unit[:, None])

    def encode_text(self, texts: Texts) -> TextFeatures:
        said = [texts] if isinstance(texts, str) else list(texts)  # type: ignore[arg-type]
        found = super().encode_text(said)
        words = [next(c for c in COLOURS if c in text) for text in said]
        wanted = torch.tensor([COLOURS[w] for w in words]).float() / 127.5 - 1
        unit = torch.nn.functional.normalize(torch.nn.functional.pad(wanted, (0, 13)), dim=-1)
        return found._replace(embedding=unit)


def film(path: Path, *parts: tuple[str, int]) -> None:
    """A colour after the other, each for so many seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=4)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for colour, seconds in parts:
            image = np.full((48, 48, 3), COLOURS[colour], np.uint8)
            for _ in range(4 * seconds):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "v").mkdir()
    film(tmp_path / "v" / "v_one.mp4", ("red", 8), ("green", 8))
    film(tmp_path / "v" / "v_two.mp4", ("green", 4), ("blue", 12))
    model = small_model()
    model.__class__ = Colours
    found = Library.create(tmp_path / "l", model, window=4.0, stride=4.0)
    found.add(tmp_path / "v")
    return found


def annotation(folder: Path) -> Path:
    content = {
        "v_one": {"timestamps": [[0, 4], [8, 12.5]], "sentences": ["a red wall", "a green wall"]},
        "v_two": {"timestamps": [[5, 9]], "sentences": ["a blue wall"]},
    }
    (folder / "val_1.json").write_text(json.dumps(content))
    return folder / "val_1.json"


def test_moments_of_known_times_are_found_as_far_as_the_windows_allow(library: Library, tmp_path: Path) -> None:
    told, missing = placed(library, read_moments(annotation(tmp_path)))
    rows = measure(library, told)
    assert not missing
    # Windows of 4 s: red 0-4 exactly; of 8-12.5 the window 8-12 has 4/4.5; of 5-9 the windows 4-8 and 8-12 have 3/5, 1/7.
    assert rows["  the best window, IoU 0.7"] == pytest.approx(100 * 2 / 3, abs=0.01)
    assert rows["  the best window, IoU 0.5"] == 100.0
    assert rows["own video, mean IoU"] > 30
    assert rows["pooled, right video R@5"] == 100.0


def test_videos_that_the_library_has_not_are_named(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = annotation(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "v_three": content["v_two"]}))
    library.close()
    assert main([str(tmp_path / "l"), str(path)]) == 1
    assert "v_three" in capsys.readouterr().err
