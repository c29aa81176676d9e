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
from vtr.errors import VtrError
from vtr.eval.moments import read_moments
from vtr.library.library import Library
from vtr.models.base import Texts, Videos
from vtr.models.video_text import VideoTextModel
from vtr.moments import check_times, main, measure, placed

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
    film(tmp_path / "v" / "v_one.mp4", ("red", 4), ("green", 4))
    film(tmp_path / "v" / "v_two.mp4", ("blue", 4), ("red", 4))
    model = small_model()
    model.__class__ = Colours
    found = Library.create(tmp_path / "l", model, window=4.0, stride=4.0)
    found.add(tmp_path / "v")
    return found


def annotation(folder: Path) -> Path:
    content = {
        "v_one": {"timestamps": [[0, 4], [4, 8.5]], "sentences": ["a red wall", "a green wall"]},
        "v_two": {"timestamps": [[1, 5]], "sentences": ["a blue wall"]},
    }
    (folder / "val_1.json").write_text(json.dumps(content))
    return folder / "val_1.json"


def test_moments_of_known_times_are_found_as_far_as_the_windows_allow(library: Library, tmp_path: Path) -> None:
    told, missing = placed(library, read_moments(annotation(tmp_path)))
    rows = measure(library, told)
    assert not missing
    # Windows of 4 s: red is 0-4, exactly as told; green 4-8, of 4-8.5 told; blue 0-4, of 1-5 told: 3 s of 5.
    assert rows["own video, mean IoU"] == pytest.approx(100 * (1 + 4 / 4.5 + 3 / 5) / 3, abs=0.01)
    assert [rows[f"own video R@1, IoU {t}"] for t in (0.3, 0.5, 0.7)] == [100.0, 100.0, 66.67]
    assert rows["  the best window, IoU 0.7"] == 66.67
    # The other window of each video: 0 of 0-4; 0 of 4-8.5; of 1-5 1 s of 7.
    assert rows["  a window at random, IoU 0.5"] == 50.0
    assert (rows["pooled, right window R@5"], rows["pooled, right video R@5"]) == (100.0, 100.0)


def test_videos_that_the_library_has_not_are_named(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = annotation(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "v_three": content["v_two"]}))
    library.close()
    assert main([str(tmp_path / "l"), str(path)]) == 1
    assert "v_three" in capsys.readouterr().err


def test_times_that_are_no_seconds_of_the_videos_are_refused(library: Library, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text(
        "video,start,end,sentence\nv_one,0,4000,a red wall\nv_one,4000,8000,a green wall\nv_two,1,4,blue\n"
    )
    told, _ = placed(library, read_moments(listing))
    with pytest.raises(
        VtrError, match=r"1 of 3 sentences begin where .* \(first: 4000 in .*v_one.mp4, which lasts 8.00 s\)"
    ):
        check_times(library, told, listing)
    check_times(library, [t for t in told if t.span.start < 8], listing)
