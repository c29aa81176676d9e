"""Videos at addresses: indexed and embedded as files are, where the command line names them, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import small_model, video_bytes, write_videos
from tests.web import Web, web
from vtr.cli import main
from vtr.data.uri import Access
from vtr.library import Library
from vtr.library.embed import embed
from vtr.library.imports import build_from
from vtr.library.verify import verify

HERE = Access(private=True, timeout=1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    with web() as running:
        running.files = {f"clip{i}.mp4": video_bytes(i) for i in range(3)}
        yield running


def test_addresses_are_indexed_as_files_are_whatever_their_server_is_like(server: Web, tmp_path: Path) -> None:
    clips = write_videos(tmp_path / "v", 1)
    clips[0].write_bytes(server.files["clip0.mp4"])
    good = [f"{server.url}/{way}clip0.mp4" for way in ("", "plain/", "drop/", "moved/")]
    bad = [f"{server.url}/{way}" for way in ("stall/clip0.mp4", "500/clip0.mp4", "none.mp4")]
    begun = time.monotonic()
    with Library.create(tmp_path / "lib", small_model(), window=1.0, stride=1.0) as library:
        library.add(clips)
        report = library.add([*good, *bad], access=HERE)
        assert (report.added, len(report.failed)) == (4, 3)
        assert all(line.startswith(server.url) and "\n" not in line for line in report.failed)
        hits = library.search("a dog", k=20, all_moments=True, unmerged=True)
        scores = {(h.path, h.start): h.score for h in hits}
        own = [(h.start, h.score) for h in hits if h.path == str(clips[0])]
        for uri in good:
            assert [(s, scores[uri, s]) for s, _ in own] == [(s, pytest.approx(x, abs=1e-5)) for s, x in own]
        assert verify(library) == []
        again = library.add([*good, *bad], access=HERE)
        assert (again.added, again.unchanged) == (0, 4)
        reranked = library.search("a dog", k=20, rerank=20)
        assert "not for a search" in " ".join(reranked.notes)
        assert library.remove([good[0]]) == 1
    assert time.monotonic() - begun < 60


def test_the_command_line_takes_addresses_and_refuses_those_of_this_machine(
    server: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "lib")]
    server.asked.clear()
    assert main(["index", "build", f"{server.url}/clip1.mp4", *flags]) == 1
    assert "--allow-private" in capsys.readouterr().err
    assert server.asked == []
    assert main(["index", "build", f"{server.url}/clip1.mp4", *flags, "--allow-private"]) == 0
    assert "1 added (1 segments)" in capsys.readouterr().err


def test_a_list_fetches_only_where_the_command_line_says_so(server: Web, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    write_videos(tmp_path, 1)
    listing.write_text(f"path,views\n{server.url}/clip1.mp4,7\nclip0.mp4,8\n")
    server.asked.clear()
    report = embed([str(listing)], tmp_path / "e", small_model(), access=HERE)
    assert server.asked == []
    assert report.videos == 1
    assert "list.csv, line 2" in report.failed[0]
    assert "--uris" in report.failed[0]
    report = embed([], tmp_path / "e", small_model(), uris=[listing], access=HERE)
    assert (report.videos, report.failed) == (1, [])
    with build_from(tmp_path / "e", tmp_path / "lib") as library:
        library._accept(small_model())
        paths = {h.path: h.metadata for h in library.search("a dog")}
        assert paths == {f"{server.url}/clip1.mp4": {"views": 7}, str(tmp_path / "clip0.mp4"): {"views": 8}}


def test_an_address_that_could_not_be_had_is_tried_again(server: Web, tmp_path: Path) -> None:
    with web() as other:
        other.files["late.mp4"] = server.files["clip2.mp4"]
        uris = [f"{other.url}/500/late.mp4", f"{server.url}/clip2.mp4"]
        report = embed(uris, tmp_path / "e", small_model(), access=HERE)
        assert (report.videos, len(report.failed)) == (2, 1)
        report = embed(uris, tmp_path / "e", small_model(), access=HERE)
        assert len(report.failed) == 1  # asked again
        assert embed([uris[1]], tmp_path / "e", small_model(), access=HERE).parts == 0  # there already
