"""The contact sheet: one file that needs nothing else and shows what it says."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers import small_model, write_videos
from vtr.errors import VtrError
from vtr.library import Hit, Hits, Library
from vtr.library.found import match_text
from vtr.library.html import _clock, write_contact_sheet


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_videos(tmp_path / "a dog's <i>videos</i>", 2, frames=30)
    library = Library.create(tmp_path / "lib", small_model(), model_path="/runs/m", window=2.0, stride=1.0)
    library.add(tmp_path / "a dog's <i>videos</i>")
    return library


def test_queries_moments_scores_paths_and_the_model_are_shown(library: Library, tmp_path: Path) -> None:
    hits = library.search("a dog runs", rerank=1)
    write_contact_sheet(tmp_path / "x.html", [("a dog runs", hits), ("no such thing", [])], library)
    text = (tmp_path / "x.html").read_text()
    for words in ("<h2>a dog runs</h2>", "<h2>no such thing</h2>", "Nothing found", "/runs/m", "clip0.mp4"):
        assert words in text
    for hit in hits:
        assert f"{hit.rank}. {Path(hit.path).name}" in text
        assert f"{hit.measure} {html.escape(match_text(hit))}" in text
        assert f"#{hit.segment}" in text
        assert f"{_clock(hit.start)} \u2013 {_clock(hit.end)}" in text
    assert list(tmp_path.glob("*.tmp")) == []


def test_links_jump_to_the_moment_and_pictures_are_inside(library: Library, tmp_path: Path) -> None:
    hits = library.search("a dog runs", all_moments=True, unmerged=True)
    write_contact_sheet(tmp_path / "x.html", [("q", hits)], library)
    page = Elements((tmp_path / "x.html").read_text())
    links = [str(a["href"]) for a in page.of("a")]
    assert len(links) == len(hits) == 6
    for link, hit in zip(links, hits):
        assert re.fullmatch(r"file:///[A-Za-z0-9/%._~-]+#t=\d+\.\d{3}", link)
        assert 0 < float(link.split("#t=")[1]) - hit.start < 0.002
    pictures = page.of("img")
    assert len(pictures) == 3 * len(hits)
    assert all(str(p["src"]).startswith("data:image/jpeg;base64,") for p in pictures)
    assert not page.of("script") + page.of("link") + page.of("iframe") + page.of("i")


def test_a_vanished_file_and_hostile_names_are_only_text(library: Library, tmp_path: Path) -> None:
    bad = Hit(score=1, path="/x/'><script>alert(1)</script>\n.mp4", start=0, end=1, duration=1, segment=1)
    write_contact_sheet(tmp_path / "x.html", [("'\"><img src=x onerror=alert(1)>", [bad])], library)
    page = Elements((tmp_path / "x.html").read_text())
    assert page.of("script") == []
    assert page.of("img") == []
    assert "No picture: no such file" in (tmp_path / "x.html").read_text()


def test_a_page_that_cannot_be_written_is_one_line(library: Library, tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="cannot be written") as error:
        write_contact_sheet(tmp_path / "none" / "x.html", [], library)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.0"), (59.97, "1:00.0"), (75.25, "1:15.2"), (3661, "1:01:01.0")]
)
def test_times_are_clock_times(seconds: float, shown: str) -> None:
    assert _clock(seconds) == shown


def test_a_notebook_shows_hits_as_a_table_with_pictures_and_nothing_is_markup(tmp_path: Path) -> None:
    [path] = write_videos(tmp_path, 1)
    hit = Hit(score=-0.1, path=str(path), start=0.0, end=1.5, duration=1.5, segment=1, rank=1)
    lost = replace(hit, path="/nowhere/<script>.mp4", rank=2)
    shown = Hits([hit, lost], ["a <note>"])._repr_html_()
    assert shown.count("<tr>") == 2
    assert shown.count("src='data:image/jpeg;base64,") == 1
    assert "<script>" not in shown
    assert "a &lt;note&gt;" in shown
    assert hit._repr_html_().count("<tr>") == 1
    assert "Nothing found" in Hits()._repr_html_()
