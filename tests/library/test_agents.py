"""An agent's tools: asked by the protocol's own client."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import av
import pytest
from PIL import Image

from tests.library.serving import make_library

mcp = pytest.importorskip("mcp", reason="pip install -e '.[mcp]'")
from vtr.library.agents import make_server  # noqa: E402 - only where there is the package


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    from vtr.library import Library
    from vtr.library.settings import Work

    place = make_library(folder, 2)
    (folder / "videos" / "clip0.srt").write_text("1\n00:00:01,000 --> 00:00:01,500\nhello agent\n")
    with Library.open(place) as opened:
        opened.sync(folder / "videos", quick=True, work=Work(workers=0))
    return place


@pytest.fixture
def asked(library: Path, tmp_path: Path) -> Iterator[Any]:
    """Calls a tool over the protocol; gives its contents, or the line of its error."""
    server = make_server(library, clips=tmp_path / "clips")

    def ask(name: str, **values: object) -> Any:
        async def call() -> Any:
            async with mcp.Client(server) as client:
                return await client.call_tool(name, values)

        answer = anyio.run(call)
        return answer.content[0].text if answer.is_error else answer.content

    return ask


def test_the_tools_are_described(library: Path) -> None:
    async def listed() -> Any:
        async with mcp.Client(make_server(library)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in anyio.run(listed)}
    assert set(tools) == {"search", "similar", "frames", "clip", "videos"}
    assert tools["search"].input_schema["properties"]["k"]["maximum"] == 100


def test_a_moment_is_found_looked_at_and_cut(asked: Any) -> None:
    [found] = [json.loads(part.text) for part in asked("search", query="hello", by="words")]
    assert (found["name"], found["said"][0]["text"]) == ("clip0.mp4", "hello agent")
    [picture] = asked("frames", segment=found["segment"], count=3)
    assert picture.mime_type == "image/jpeg"
    wide, high = Image.open(io.BytesIO(base64.b64decode(picture.data))).size
    assert wide == 3 * high
    assert asked("frames", segment=found["segment"], count=3, start=2, end=3)[0].data != picture.data
    for ends, lasts in (({}, 2.0), ({"start": found["start"], "end": found["end"]}, 0.5)):
        path = Path(asked("clip", segment=found["segment"], **ends)[0].text)
        with av.open(path) as clip:
            assert clip.duration / 1e6 == pytest.approx(lasts, abs=0.05)


def test_an_answer_without_moments_says_so(asked: Any) -> None:
    assert json.loads(asked("search", query="zebra", by="words")[0].text) == {"found": 0, "notes": []}


def test_a_clip_is_handed_over_where_no_folder_is_named(library: Path) -> None:
    async def call() -> Any:
        async with mcp.Client(make_server(library)) as client:
            return await client.call_tool("clip", {"segment": 1, "exact": False})

    [part] = anyio.run(call).content
    assert part.resource.mime_type == "video/mp4"
    assert base64.b64decode(part.resource.blob)[4:8] == b"ftyp"


def test_videos_are_listed_in_pages_and_filtered(asked: Any) -> None:
    whole = json.loads(asked("videos")[0].text)
    assert (whole["total"], [v["name"] for v in whole["videos"]]) == (2, ["clip0.mp4", "clip1.mp4"])
    assert [v["name"] for v in json.loads(asked("videos", first=1)[0].text)["videos"]] == ["clip1.mp4"]
    assert json.loads(asked("videos", where='path ~ "clip1"')[0].text)["total"] == 1


@pytest.mark.parametrize(
    ("tool", "values", "line"),
    [
        ("search", {"query": "a", "k": 1000}, "less than or equal to 100"),
        ("search", {"query": "a" * 501}, "at most 500 characters"),
        ("search", {"query": "a", "limit": 1}, "limit"),
        ("search", {"query": "a", "then": "b", "moments": 2}, "then and before go with one text"),
        ("search", {"query": "dog", "where": "nope = 1"}, "unknown column"),
        ("search", {"query": ""}, "an empty query"),
        ("frames", {"segment": 999}, "no moment 999 in this library"),
        ("clip", {"segment": -1}, "greater than or equal to 1"),
        ("videos", {"where": "1; DROP TABLE videos"}, "where"),
    ],
)
def test_what_is_not_allowed_is_one_line(asked: Any, tool: str, values: dict[str, object], line: str) -> None:
    said = asked(tool, **values)
    assert isinstance(said, str)
    assert line in said
