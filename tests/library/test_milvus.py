"""Milvus (Lite): what is pushed answers as the library does, with the same filters; only differences are sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import small_model, video_bytes, write_videos
from vtr.cli import main, run
from vtr.errors import UsageError, VtrError
from vtr.library import Library
from vtr.library.where import parse

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install -e '.[milvus]'")
pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed: pip install 'pymilvus[milvus-lite]'")

from vtr.library.milvus import MilvusLibrary, _parsed, is_address, push, to_milvus


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that was pushed: 6 videos of several moments."""
    folder = tmp_path_factory.mktemp("milvus")
    small_model().save_pretrained(folder / "model")
    videos = write_videos(folder / "videos", 6, frames=24)
    for number, video in enumerate(videos):
        os.utime(video, (1.7e9 + 86400 * number, 1.7e9 + 86400 * number))
    metadata = [{"views": 10 * i, "title": f"Ein Hund, {i}%" if i % 2 else "KATZE"} for i in range(5)] + [
        {"views": "30"}
    ]
    with Library.create(folder / "lib", small_model(), model_path=str(folder / "model"), window=1.0, stride=0.5) as lib:
        lib.add(videos, metadata={str(v): m for v, m in zip(videos, metadata)})
        assert push(lib, address(folder)) == {"written": lib.store.segments(), "unchanged": 0, "removed": 0}
    return folder


def address(folder: Path, name: str = "clips") -> str:
    return f"milvus://{folder}/m.db/{name}"


@pytest.fixture(scope="module")
def both(place: Path) -> tuple[Library, MilvusLibrary]:
    return Library.open(place / "lib", small_model()), MilvusLibrary(address(place), small_model())


def same(one: list, other: list) -> bool:
    return [(h.path, h.start, h.end, h.segment, h.rank, h.moment, h.metadata) for h in one] == [
        (h.path, h.start, h.end, h.segment, h.rank, h.moment, h.metadata) for h in other
    ] and [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        {"text": "a dog runs", "k": 3},
        {"text": "a dog runs", "k": 100, "all_moments": True},
        {"text": ["a dog runs", "a red square moves left"], "minus": "a green star", "k": 6},
        {"text": "a dog runs", "k": 2, "moments": 3},
        {"text": "a dog runs", "k": 3, "rerank": 4},
        {"more": 5, "k": 5},
        {"text": "a dog runs", "more": 5, "k": 5, "all_moments": True},
    ],
)
def test_queries_give_the_hits_of_the_library(both: tuple[Library, MilvusLibrary], words: dict) -> None:
    expected = both[0].search(**words)
    assert len(expected) >= words["k"] or words["k"] == 100
    assert same(both[1].search(**words), expected)


def test_a_file_as_example_gives_the_hits_of_the_library(both: tuple[Library, MilvusLibrary], place: Path) -> None:
    file = place / "videos" / "clip3.mp4"
    assert same(both[1].search(like=file, k=6), both[0].search(like=file, k=6))


@pytest.mark.parametrize(
    "where",
    [
        'path ~ "CLIP2"',
        "start >= 1 and end < 2.6",
        "duration > 1 and not (start = 0.5 or start > 1)",
        "views < 25",
        "views != 20",
        'views = "30"',
        'title ~ "hund"',
        'title = "KATZE" or views > 35',
        'title >= "F"',
        'date >= "2023-11-17"',
        'date != "2023-11-15" and date < "2024"',
        'path = "x\' or 1 == 1"',
        'title = "\\" or id > 0 or title == \\""'.replace("\\", ""),
    ],
)
def test_filters_allow_what_they_allow_in_the_library(both: tuple[Library, MilvusLibrary], where: str) -> None:
    try:
        parse(where, both[0].columns())
    except UsageError:
        with pytest.raises(UsageError):
            both[1].search("a dog runs", where=where)
        return
    expected = both[0].search("a dog runs", k=50, all_moments=True, where=where)
    assert same(both[1].search("a dog runs", k=50, all_moments=True, where=where), expected)
    assert (len(expected) > 0) == ("or 1 == 1" not in where)


def test_an_unknown_column_and_what_milvus_cannot_look_for_are_usage_errors(
    both: tuple[Library, MilvusLibrary],
) -> None:
    with pytest.raises(UsageError, match="unknown column"):
        both[1].search("a dog", where="colour = 3")
    with pytest.raises(UsageError, match="cannot look for"):
        both[1].search("a dog", where='title ~ "1%"')


def test_texts_of_a_filter_stay_literals() -> None:
    expression = to_milvus(parse('path = "a\\ or id > 0" and title = \'"] or true\'', ["title"]))
    assert json.loads(expression.split("path == ")[1].split(") and")[0]) == "a\\ or id > 0"
    assert '\\"] or true' in expression


def test_only_what_differs_is_sent(place: Path, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", 3)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(videos)
    to = address(tmp_path)
    assert push(library, to)["written"] == 3
    assert push(library, to) == {"written": 0, "unchanged": 3, "removed": 0}
    library.remove([videos[0]])
    videos[1].write_bytes(video_bytes(66))
    library.add(videos[1:], metadata={str(videos[2]): {"views": 1}})
    assert push(library, to) == {"written": 2, "unchanged": 0, "removed": 2}
    remote = MilvusLibrary(to, small_model())
    assert same(remote.search("a dog runs"), library.search("a dog runs"))
    assert [h.path for h in remote.search("a dog", where="views = 1")] == [str(videos[2])]


def test_another_library_another_model_and_a_foreign_collection_are_refused(place: Path, tmp_path: Path) -> None:
    from pymilvus import MilvusClient

    other = Library.create(tmp_path / "lib", small_model())
    with pytest.raises(VtrError, match="holds another library"):
        push(other, address(place))
    with pytest.raises(VtrError, match="was made with another model"):
        MilvusLibrary(address(place), small_model(seed=1)).search("a dog")
    MilvusClient(str(tmp_path / "m.db")).create_collection("theirs", dimension=8)
    with pytest.raises(VtrError, match="not a library of vtr"):
        push(other, address(tmp_path, "theirs"))
    with pytest.raises(VtrError, match="has no collection none"):
        MilvusLibrary(address(place, "none"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("milvus://host:19530/clips", ("http://host:19530", "clips")),
        ("milvus+https://1.2.3.4:443/clips_2", ("https://1.2.3.4:443", "clips_2")),
        ("milvus:///a/b/m.db/clips", ("/a/b/m.db", "clips")),
        ("milvus:/host:19530/clips", ("http://host:19530", "clips")),  # as a Path writes it
    ],
)
def test_addresses_are_read(text: str, expected: tuple[str, str]) -> None:
    assert is_address(text)
    assert _parsed(text) == expected


@pytest.mark.parametrize(
    "text", ["milvus://host/clips", "milvus://host:1", "milvus://u:p@host:1/x", "milvus://h:1/a b", "milvus://h:1/x?y"]
)
def test_wrong_addresses_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        _parsed(text)


def test_a_server_that_cannot_be_reached_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "push", str(place / "lib"), "--to", "milvus://127.0.0.1:1/clips"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith("vtr: Milvus at http://127.0.0.1:1: ")


def test_push_and_search_on_the_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = address(tmp_path)
    assert run(["index", "push", str(place / "lib"), "--to", to]) == 0
    assert "segments written, 0 unchanged, 0 removed" in capsys.readouterr().err
    flags = ["a dog runs", "-k", "2", "--where", "views < 25", "--json"]
    assert run(["search", to, *flags]) == 0
    remote = capsys.readouterr().out
    assert run(["search", str(place / "lib"), *flags]) == 0
    local = capsys.readouterr().out
    assert [json.loads(line)["segment"] for line in remote.splitlines()] == [
        json.loads(line)["segment"] for line in local.splitlines()
    ]
    assert len(remote.splitlines()) == 2
    assert run(["search", to, "a dog", "--html", str(tmp_path / "x.html")]) == 0
    assert "data:image/jpeg" in (tmp_path / "x.html").read_text()
