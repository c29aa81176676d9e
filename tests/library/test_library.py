"""The search library: life cycle, crashes, filters, pages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.media import film, scenes
from tests.helpers import small_model, write_videos
from vtr.cli import main
from vtr.errors import UsageError, VtrError
from vtr.library import Hit, Library
from vtr.library import index as indexes
from vtr.library.html import write_contact_sheet
from vtr.library.verify import verify
from vtr.library.where import parse_where


def indexed_above(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """An index.faiss as large libraries have one."""
    monkeypatch.setattr(indexes, "EXACT_UP_TO", count)
    monkeypatch.setattr(indexes, "TAIL_UP_TO", 0)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_videos(tmp_path / "videos", 3)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    return library


def test_added_videos_are_found_best_first_with_the_protocols_similarity(library: Library) -> None:
    hits = library.search("a red square moves left", k=5)
    assert len(hits) == 3
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    model = library.model
    text = model.encode_text(["a red square moves left"]).embedding
    frames = library.segment_frames(hits[0].path, 0, 0)
    expected = float((text[0] @ model.encode_video(frames[None]).embedding[0]).detach())
    assert hits[0].score == pytest.approx(expected, abs=1e-4)


def test_adding_again_changes_nothing_and_a_changed_file_is_done_again(library: Library, tmp_path: Path) -> None:
    before = library.info()
    assert library.add(tmp_path / "videos").unchanged == 3
    assert library.info() == before
    (tmp_path / "videos" / "clip0.mp4").write_bytes((tmp_path / "videos" / "clip1.mp4").read_bytes() + b"\0")
    report = library.add(tmp_path / "videos")
    assert (report.added, report.unchanged) == (1, 2)
    assert library.info()["segments"] == 3


def test_a_touched_file_is_not_embedded_again(library: Library, tmp_path: Path) -> None:
    os.utime(tmp_path / "videos" / "clip0.mp4", (1, 1))
    assert library.add(tmp_path / "videos").unchanged == 3


def test_long_videos_become_overlapping_windows(tmp_path: Path) -> None:
    write_videos(tmp_path / "v", 1, frames=30)  # 3.75 s
    library = Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0)
    library.add(tmp_path / "v")
    moments = library.search("a dog runs", k=10, all_moments=True, unmerged=True)
    assert len(moments) >= 3
    assert all(0 <= m.start < m.end <= 3.8 for m in moments)
    assert len(library.search("a dog runs", k=10)) == 1


def test_unreadable_files_are_listed_and_the_rest_goes_in(tmp_path: Path) -> None:
    write_videos(tmp_path / "v", 1)
    (tmp_path / "v" / "page.mp4").write_text("<html>404</html>")
    (tmp_path / "v" / "empty.mkv").write_bytes(b"")
    library = Library.create(tmp_path / "lib", small_model())
    report = library.add(tmp_path / "v")
    assert report.added == 1
    assert report.failed is not None
    assert len(report.failed) == 2
    assert all("\n" not in line for line in report.failed)
    assert len(library.info()["unreadable"]) == 2


def test_a_film_that_is_cut_off_goes_in_as_far_as_it_goes_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v").mkdir()
    whole = film(scenes(), fmt="matroska")
    (tmp_path / "v" / "whole.mkv").write_bytes(whole)
    (tmp_path / "v" / "half.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "v" / "same.mkv").write_bytes(whole[: len(whole) // 2])
    library = Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0)
    first, again = library.add(tmp_path / "v"), library.add(tmp_path / "v")
    assert (first.added, first.known, first.failed) == (3, 1, [])
    assert len(first.cut_off) == 2
    assert all("of its" in line and "bytes are missing" in line for line in first.cut_off)
    assert sorted(first.cut_off) == sorted(again.cut_off) == library.info()["cut_off"]
    assert max(m.end for m in library.search("a", k=99, all_moments=True) if "whole" not in m.path) < 11
    assert main(["index", "info", str(tmp_path / "lib")]) == 0
    assert "cut off     2, indexed as far as they go" in capsys.readouterr().out


def test_removed_videos_are_never_found_again(library: Library, tmp_path: Path) -> None:
    library.remove([tmp_path / "videos" / "clip1.mp4"])
    assert all("clip1" not in h.path for h in library.search("a dog runs"))
    with pytest.raises(VtrError, match="not in"):
        library.remove([tmp_path / "videos" / "clip1.mp4"])


def test_a_crash_between_vectors_and_database_loses_nothing_else(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path / "more", 5)
    real = library.store.append

    def killed(vectors: np.ndarray, *more: np.ndarray) -> int:
        real(vectors, *more)
        raise KeyboardInterrupt

    monkeypatch.setattr(library.store, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        library.add(tmp_path / "more")
    again = Library.open(tmp_path / "lib", small_model())
    assert again.info()["segments"] == 3
    assert again.add(tmp_path / "more").added == 5
    rows = [r[0] for r in again.store.db.execute("SELECT row FROM segments ORDER BY row")]
    assert rows == list(range(8))
    assert again.store.vectors().shape[0] == 8


@pytest.mark.parametrize("content", [None, b"", b"not an index", "flipped"])
def test_a_missing_or_damaged_index_changes_no_answer_and_compact_mends_it(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    expected = library.search("a dog runs")
    assert not (tmp_path / "lib" / "index.faiss").exists()  # exact search needs none
    indexed_above(monkeypatch, 2)
    library.compact()
    path = tmp_path / "lib" / "index.faiss"
    assert library.search("a dog runs") == expected
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:200] + b"flipped" + whole[207:] if isinstance(content, str) else content)
    again = Library.open(tmp_path / "lib", small_model())
    assert again.search("a dog runs") == expected
    assert any("vtr index compact" in line for line in verify(again))
    again.compact()
    assert verify(again) == []
    assert again.search("a dog runs") == expected


def test_another_model_is_refused_in_one_line(library: Library, tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="another model") as error:
        Library.open(tmp_path / "lib", small_model(seed=1))
    assert "\n" not in str(error.value)


def test_a_second_writer_is_told_to_wait(library: Library, tmp_path: Path) -> None:
    other = Library.open(tmp_path / "lib", small_model())
    with library.store.writing(), pytest.raises(VtrError, match="another process"):
        other.add(tmp_path / "videos")


def test_filters_run_before_the_search(library: Library) -> None:
    hits = library.search("a dog runs", k=1, where='path ~ "CLIP2" and duration < 10')
    assert [Path(h.path).name for h in hits] == ["clip2.mp4"]
    assert library.search("a dog runs", where="duration > 100") == []
    assert len(library.search("a dog runs", where='not (path ~ "clip2" or path ~ "clip1")')) == 1


@pytest.mark.parametrize(
    "text",
    [
        "1=1",
        "path ~",
        "dur < 3",
        "duration < 3 or",
        "(duration < 3",
        "duration < 3; drop table videos",
        "path = __import__",
    ],
)
def test_a_bad_filter_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_where(text)


def test_a_filters_values_are_parameters_never_sql() -> None:
    condition, values = parse_where('path = "x\' OR 1=1 --"')
    assert "OR" not in condition
    assert values == ["x' OR 1=1 --"]


def test_an_empty_query_is_refused(library: Library) -> None:
    with pytest.raises(UsageError, match="empty query"):
        library.search("  ")


def test_a_file_that_has_gone_cannot_be_reranked_and_comes_last(library: Library, tmp_path: Path) -> None:
    (tmp_path / "videos" / "clip0.mp4").unlink()
    hits = library.search("a dog runs", rerank=3)
    assert [h.reranked for h in hits] == [True, True, False]
    assert Path(hits[-1].path).name == "clip0.mp4"


def test_the_page_escapes_what_it_shows_and_needs_no_other_file(library: Library, tmp_path: Path) -> None:
    page = tmp_path / "hits.html"
    bad = Hit(score=1, path="/x/<script>alert(1)</script>'.mp4", start=0, end=1, duration=1, segment=1)
    write_contact_sheet(page, [("<b>query", [*library.search("a dog runs"), bad])], library)
    text = page.read_text()
    assert "<script" not in text
    assert "<b>query" not in text
    assert text.count("data:image/jpeg;base64,") == 9
    assert "http" not in text


def test_a_folder_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("keep")
    with pytest.raises(VtrError, match="not a library"):
        Library.open(tmp_path / "x")
    with pytest.raises(VtrError, match="not empty"):
        Library.create(tmp_path / "x", small_model())


def test_settings_on_disk_name_the_model_and_windows(library: Library, tmp_path: Path) -> None:
    values = json.loads((tmp_path / "lib" / "library.json").read_text())
    assert values["fingerprint"] == small_model().fingerprint()
    assert (values["window"], values["stride"]) == (8.0, 4.0)


def test_a_folder_is_removed_with_all_that_is_in_it_and_nothing_more(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 2)
    write_videos(tmp_path / "ab", 1)
    library = Library.create(tmp_path / "lib", small_model())
    library.add([tmp_path / "a", tmp_path / "ab"])
    assert library.remove([tmp_path / "a"]) == 2
    assert [Path(h.path).parent.name for h in library.search("a dog runs")] == ["ab"]


def test_a_library_in_a_read_only_place_can_be_searched(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = library.search("a dog runs")
    library.close()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with Library.open(library.path, small_model()) as again:
        assert again.search("a dog runs") == expected
        with pytest.raises(VtrError, match="cannot be written") as error:
            again.remove([expected[0].path])
    assert "\n" not in str(error.value)


def test_what_is_no_file_or_has_no_utf8_name_is_listed_not_opened(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    os.mkfifo(tmp_path / "v" / "pipe.mp4")
    (tmp_path / "v" / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path / "v") + b"/bad\xff.mp4")).write_bytes(b"x")
    (tmp_path / "v" / "two\nlines.mp4").write_bytes(b"x")
    library = Library.create(tmp_path / "lib", small_model())
    failed = library.add(tmp_path / "v").failed
    assert len(failed) == 4
    assert all("\n" not in line and line.isprintable() for line in failed)
    write_videos(tmp_path / "v", 1)
    (tmp_path / "v" / "dangling.mp4").unlink()
    (tmp_path / "v" / "clip0.mp4").rename(tmp_path / "v" / "dangling.mp4")
    assert library.add(tmp_path / "v").added == 1  # mended since


def test_windows_are_fixed_with_the_first_video(tmp_path: Path) -> None:
    write_videos(tmp_path / "v", 1, frames=30)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "v", window=2.0, stride=1.0)
    assert Library.open(tmp_path / "lib").info()["segments"] == 3
    with pytest.raises(VtrError, match="windows of 2 s every 1 s"):
        library.add(tmp_path / "v", window=4.0)
    with pytest.raises(UsageError, match="positive"):
        library.add(tmp_path / "v", window=0.0)


def test_many_moments_of_one_video_do_not_hide_the_others(tmp_path: Path) -> None:
    write_videos(tmp_path / "v", 4)
    write_videos(tmp_path / "long", 1, frames=120)
    library = Library.create(tmp_path / "lib", small_model(), window=1.0, stride=0.25)
    library.add([tmp_path / "v", tmp_path / "long"])
    hits = library.search("a dog runs", k=5)
    assert len({h.path for h in hits}) == 5
    assert [h.rank for h in hits] == [1, 2, 3, 4, 5]


def test_reranked_moments_come_first_by_the_combined_score(library: Library) -> None:
    from vtr.models.base import combined_scores

    hits = library.search("a dog runs", rerank=2)
    assert [h.reranked for h in hits] == [True, True, False]
    model, best = library.model, hits[0]
    text = model.encode_text(["a dog runs"])
    video = model.encode_video(library.segment_frames(best.path, best.start, best.end)[None])
    logits = model.match(text.tokens, text.mask, video.tokens)
    expected = combined_scores((text.embedding @ video.embedding.T)[0], logits, float(model.temp.detach()))
    assert best.score == pytest.approx(float(expected[0].detach()), abs=1e-3)
