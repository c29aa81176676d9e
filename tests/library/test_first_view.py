"""What the server tells of a library before anything was asked, and lists of hits that leave it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import small_model, write_videos
from vtr.library import Library

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("httpx", reason="pip install -e '.[dev]'")

from fastapi.testclient import TestClient

from vtr.library.serve import make_app
from vtr.library.serve.first_view import trained_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lib` of three clips, the second the newest, one with a caption, one with subtitles."""
    folder = tmp_path_factory.mktemp("first_view")
    videos = folder / "videos"
    write_videos(videos, 3, frames=30)
    (videos / "clip2.srt").write_text("1\n00:00:00,500 --> 00:00:02,000\nThe rabbit wakes up.\n")
    for number, time in enumerate((1_000_000, 3_000_000, 2_000_000)):
        os.utime(videos / f"clip{number}.mp4", (time, time))
    with Library.create(folder / "lib", small_model(), window=2.0, stride=1.0) as library:
        caption = {"caption": "a dog catches a frisbee. Filmed in 2019.", "title": "Frisbee"}
        library.add(videos, metadata={str(videos / "clip0.mp4"): caption})
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(make_app(folder / "lib", small_model()), base_url="http://127.0.0.1") as client:
        yield client


def test_videos_come_newest_first_with_a_picture_in_pages_and_filtered(client: TestClient) -> None:
    answer = client.get("/api/videos", params={"limit": 2}).json()
    assert answer["total"] == 3
    assert [v["title"] for v in answer["videos"]] == ["clip1", "clip2"]
    assert client.get(f"/api/segments/{answer['videos'][0]['segment']}/thumbnail.jpg").status_code == 200
    rest = client.get("/api/videos", params={"first": 2}).json()
    assert [(v["title"], v["name"], v["kind"]) for v in rest["videos"]] == [("Frisbee", "clip0.mp4", "video")]
    assert client.get("/api/videos", params={"where": 'caption ~ "dog"'}).json()["total"] == 1


def test_examples_are_of_the_librarys_captions_and_subtitles(client: TestClient) -> None:
    found = client.get("/api/examples").json()["examples"]
    assert [(e["q"], e["by"]) for e in found] == [
        ("a dog catches a frisbee", "picture"),
        ("The rabbit wakes up", "words"),
    ]
    for example in found:
        assert client.get("/api/search", params={"q": example["q"], "by": example["by"]}).json()["hits"]
    assert len(client.get("/api/examples", params={"limit": 1}).json()["examples"]) == 1


def test_info_says_what_the_library_can_be_asked(client: TestClient) -> None:
    info = client.get("/api/info").json()
    assert (info["words"], info["frame_vectors"], info["confidence"]) == (True, False, False)
    assert info["columns"] == ["caption", "title"]
    assert info["trained"] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("open_clip:ViT-B-32/laion2b", (True, "laion2b")),
        ("open_clip:ViT-B-32", (False, None)),
        ("umt_base.25m", (True, "25m")),
        ("RUN", (True, "demo")),
        ("RUN/model", (True, "demo")),
        ("nowhere", (None, None)),
    ],
)
def test_what_a_model_was_trained_on_is_known_by_its_name_or_its_run(
    name: str, expected: tuple[bool | None, str | None], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"corpus": "demo"}}))
    found = trained_on(name.replace("RUN", str(tmp_path)))
    assert found[0] == expected[0]
    assert (found[1] or "").lower() == (expected[1] or "")


def test_a_list_of_hits_is_asked_for_as_a_search_is(client: TestClient) -> None:
    params = {"q": "a dog", "k": 2, "moments": 2, "unmerged": True, "minus": "a cat", "where": "start < 1.5"}
    hits = client.get("/api/search", params=params).json()["hits"]
    rows = list(csv.DictReader(io.StringIO(client.get("/api/export", params={**params, "format": "csv"}).text)))
    assert [int(row["segment"]) for row in rows] == [hit["segment"] for hit in hits]
    assert client.get("/api/export", params={**params, "format": "csv", "mins": 1}).status_code == 400
