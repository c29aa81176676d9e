"""Queries: texts with + and −, files and hits as examples, metadata, moments, re-ranking with kept tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import small_model, video_bytes, write_videos
from vtr.errors import UsageError, VtrError
from vtr.library import Library
from vtr.library.commands import COMMANDS
from vtr.library.search import Searcher
from vtr.library.tokens import TokenCache
from vtr.library.wanted import MINUS


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_videos(tmp_path / "videos", 5)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "videos" / "red.png")
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    return library


@pytest.fixture
def long(tmp_path: Path) -> Library:
    """Three videos of several moments."""
    write_videos(tmp_path / "videos", 3, frames=40)
    library = Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0)
    library.add(tmp_path / "videos")
    return library


def vector(library: Library, path: str) -> np.ndarray:
    row = library.store.db.execute(
        "SELECT row FROM segments JOIN videos ON videos.id = video WHERE path = ?", (path,)
    ).fetchone()
    return np.array(library.store.vectors()[row[0]])


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def text(library: Library, words: str) -> np.ndarray:
    return library.model.encode_text([words]).embedding[0].detach().numpy()


def test_a_file_finds_itself_first_and_bytes_and_frames_do_so_too(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "videos" / "clip3.mp4"
    by_path = library.search(like=file)
    assert by_path[0].path == str(file)
    assert by_path[0].score == pytest.approx(1, abs=1e-4)
    assert (by_path[0].measure, by_path[0].match) == ("likeness", pytest.approx(1, abs=1e-4))
    assert library.search(like=file.read_bytes()) == by_path
    assert library.search(like=library.frames_of(file)) == by_path
    assert library.search("", like=[file]) == by_path


def test_an_image_finds_itself_first(library: Library, tmp_path: Path) -> None:
    hit = library.search(like=tmp_path / "videos" / "red.png", k=1)[0]
    assert Path(hit.path).name == "red.png"
    assert hit.start == hit.end


def test_texts_and_examples_are_averaged_and_what_is_not_wanted_is_taken_off(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "videos" / "clip1.mp4"
    hits = library.search(["a dog runs", "a red square moves left"], like=file, minus=["a blue circle moves right"])
    words = (text(library, "a dog runs") + text(library, "a red square moves left")) / 3
    words = words - MINUS * text(library, "a blue circle moves right")
    example = unit(vector(library, str(file))) / 3
    assert {h.path: round(h.score, 3) for h in hits} == {
        h.path: round(float(words @ v + example @ unit(v)), 3) for h in hits for v in [vector(library, h.path)]
    }
    assert len(hits) == 6


def test_more_like_a_hit_leaves_its_own_video_out(long: Library) -> None:
    hit = long.search("a dog runs", k=1)[0]
    more = long.search(more=hit.segment)
    assert hit.path not in {h.path for h in more}
    assert len(more) == 2
    others = long.search(more=hit.segment, all_moments=True, k=100, unmerged=True)
    assert hit.segment not in {h.segment for h in others}
    assert len(others) == long.store.segments() - 1


def test_more_like_what_is_not_there_is_one_line(library: Library) -> None:
    with pytest.raises(VtrError, match="no segment 999"):
        library.search(more=999)


def test_an_example_that_cannot_be_read_is_one_line(library: Library, tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>")
    for bad in (tmp_path / "page.mp4", tmp_path / "gone.mp4", b"junk"):
        with pytest.raises((VtrError, OSError)) as error:
            library.search(like=bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 10**9}, "k=1000000000"),
        ({"rerank": -1}, "rerank=-1"),
        ({"moments": 0}, "moments=0"),
        ({"moments": 2, "all_moments": True}, "exclude"),
        ({"minus": "x", "text": ()}, "empty query"),
        ({"minus": " "}, "empty query"),
        ({"text": [], "more": 1, "rerank": 3}, "needs a text"),
    ],
)
def test_queries_that_make_no_sense_are_usage_errors(library: Library, words: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        library.search(**{"text": "a dog runs", **words})
    assert "\n" not in str(error.value)


def test_moments_of_a_video_stand_together_best_first(long: Library) -> None:
    single = long.search("a dog runs", k=3)
    hits = long.search("a dog runs", k=3, moments=2, unmerged=True)
    assert [h.path for h in hits if h.moment == 1] == [h.path for h in single]
    assert [(h.rank, h.moment) for h in hits] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    for first, second in zip(hits[::2], hits[1::2]):
        assert first.path == second.path
        assert first.score >= second.score


def test_moments_of_a_video_keep_to_the_filter(long: Library) -> None:
    hits = long.search("a dog runs", k=3, moments=5, where="start >= 2", unmerged=True)
    assert len(hits) > 3
    assert all(h.start >= 2 for h in hits)


# -- metadata and dates -------------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path: Path) -> Library:
    videos = write_videos(tmp_path / "videos", 3)
    for day, video in enumerate(videos, 1):
        os.utime(video, (1704067200 + day * 86400, 1704067200 + day * 86400))  # from 2024-01-02 UTC on
    library = Library.create(tmp_path / "lib", small_model())
    metadata = [
        {"views": 10, "channel": "Zoo"},
        {"views": 200, "channel": "zoo two", "upload day": "x"},
        {"views": "10"},
    ]
    library.add(tmp_path / "videos", metadata={str(v): m for v, m in zip(videos, metadata)})
    return library


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("views < 100", {0}),
        ('views = "10"', {2}),  # a text is not a number
        ("views != 10", {1}),
        ('channel ~ "ZOO"', {0, 1}),
        ('channel = "Zoo" or views > 100', {0, 1}),
        ('not channel ~ "zoo"', {2}),
        ('`upload day` = "x"', {1}),
        ("meta.views = 10", {0}),
        ('channel >= "a"', {1}),
    ],
)
def test_metadata_columns_filter(described: Library, where: str, expected: set[int]) -> None:
    hits = described.search("a dog runs", where=where)
    assert {int(Path(h.path).stem[-1]) for h in hits} == expected


def test_dates_filter_by_year_day_and_minute(tmp_path: Path) -> None:
    import datetime

    videos = write_videos(tmp_path / "videos", 2)
    for video, when in zip(videos, (datetime.datetime(2023, 12, 31, 23, 59), datetime.datetime(2024, 1, 1, 0, 0))):
        os.utime(video, (when.timestamp(), when.timestamp()))
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    for where, expected in {
        'date >= "2024"': {1},
        'date = "2023"': {0},
        'date < "2024-01-01"': {0},
        'date <= "2024-01-01"': {0, 1},
        'date > "2023-12"': {1},
        'date != "2023-12-31"': {1},
        'date = "2023-12-31 23:59"': {0},
    }.items():
        assert {int(Path(h.path).stem[-1]) for h in library.search("a dog", where=where)} == expected, where
    for bad in ('date = "yesterday"', 'date = "2024-13"', "date < 2024", 'date ~ "2024"'):
        with pytest.raises(UsageError, match="date"):
            library.search("a dog", where=bad)


def test_metadata_comes_with_the_hit_and_is_kept_when_the_file_changes(described: Library, tmp_path: Path) -> None:
    hit = described.search("a dog runs", where="views = 200")[0]
    assert hit.metadata == {"views": 200, "channel": "zoo two", "upload day": "x"}
    Path(hit.path).write_bytes(video_bytes(77))
    described.add(tmp_path / "videos")
    assert described.search("a dog runs", where="views = 200")[0].metadata == hit.metadata


def test_new_metadata_replaces_the_old_without_encoding_again(described: Library, tmp_path: Path) -> None:
    video = tmp_path / "videos" / "clip0.mp4"
    before = described.search("a dog runs", where="views = 10")[0].segment
    report = described.add(tmp_path / "videos", metadata={str(video): {"views": 11}})
    assert (report.added, report.unchanged) == (0, 3)
    again = described.search("a dog runs", where="views = 11")[0]
    assert (again.segment, again.metadata) == (before, {"views": 11})
    assert described.search("a dog runs", where="views = 10") == []


def test_an_unknown_column_names_the_nearest(described: Library) -> None:
    with pytest.raises(UsageError, match="'views'"):
        described.search("a dog", where="view > 3")


@pytest.mark.parametrize("evil", ["x'); DROP TABLE videos; --", '$."a', "a' OR '1'='1"])
def test_a_columns_name_never_becomes_sql(tmp_path: Path, evil: str) -> None:
    videos = write_videos(tmp_path / "videos", 1)
    library = Library.create(tmp_path / "lib", small_model())
    if '"' in evil:
        with pytest.raises(UsageError, match="without quotes"):
            library.add(videos, metadata={str(videos[0]): {evil: 1}})
        return
    library.add(videos, metadata={str(videos[0]): {evil: 1}})
    assert len(library.search("a dog", where=f"`{evil}` = 1")) == 1
    assert library.search("a dog", where=f"`{evil}` = 2") == []


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_listings_of_metadata_are_read(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path / "videos", 2)
    small_model().save_pretrained(tmp_path / "model")
    rows: list[dict[str, Any]] = [
        {"path": "videos/clip0.mp4", "views": 12, "title": "a, b", "rate": 1.5},
        {"path": "videos/clip1.mp4", "views": None, "title": "007"},
    ]
    if suffix == "jsonl":
        lines = [json.dumps(r) for r in rows]
    else:
        sign = "," if suffix == "csv" else "\t"
        lines = [sign.join(["path", "views", "title", "rate"])]
        lines += [
            sign.join(["videos/clip0.mp4", "12", '"a, b"', "1.5"]),
            sign.join(["videos/clip1.mp4", "", "007", ""]),
        ]
    (tmp_path / f"list.{suffix}").write_text("\n".join(lines))
    assert run("index build", tmp_path / "videos", "--model", tmp_path / "model", "--out", tmp_path / "lib",
               "--metadata", tmp_path / f"list.{suffix}") == 0  # fmt: skip
    library = Library.open(tmp_path / "lib")
    found = {Path(h.path).stem: h.metadata for h in library.search("a dog")}
    assert found == {"clip0": {"views": 12, "title": "a, b", "rate": 1.5}, "clip1": {"title": "007"}}


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "likes,views\nx,1"), ("a.jsonl", "{"), ("a.csv", b"\xff\xfe\0")]
)
def test_a_listing_that_cannot_be_read_is_one_line(library: Library, tmp_path: Path, name: str, content: Any) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VtrError, match="metadata ") as error:
        run("index add", library.path, tmp_path / "videos", "--metadata", tmp_path / name)
    assert "\n" not in str(error.value)


# -- re-ranking ---------------------------------------------------------------------------------------------------------


def test_reranking_mixes_videos_and_images(library: Library) -> None:
    hits = library.search("a dog runs", rerank=6)
    assert [h.reranked for h in hits] == [True] * 6
    assert any(h.start == h.end for h in hits)


def test_reranking_of_several_texts_adds_their_odds(library: Library, tmp_path: Path) -> None:
    from vtr.models.base import combined_scores

    best = library.search(["a dog runs", "a red square moves left"], minus="a green star", rerank=6, k=6)[0]
    model = library.model
    video = model.encode_video(library.segment_frames(best.path, best.start, best.end)[None])
    odds = []
    for words in ("a dog runs", "a red square moves left", "a green star"):
        features = model.encode_text([words])
        logits = model.match(features.tokens, features.mask, video.tokens)[0]
        odds.append(float(logits[1] - logits[0]))
    total = (odds[0] + odds[1]) / 2 - MINUS * odds[2]
    expected = combined_scores(torch.tensor(best.similarity), torch.tensor([0.0, total]), float(model.temp.detach()))
    assert best.score == pytest.approx(float(expected.detach()), abs=1e-3)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_tokens_that_are_kept_spare_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    write_videos(tmp_path / "videos", 3)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "videos" / "red.png")
    library = Library.create(tmp_path / "lib", small_model(), token_cache=limit or None)
    library.add(tmp_path / "videos")
    first = library.search("a dog runs", rerank=4)
    if limit:  # another process
        assert len(list((tmp_path / "lib" / "tokens").iterdir())) == 4
        library = Library.open(tmp_path / "lib", small_model())
    else:
        assert not (tmp_path / "lib" / "tokens").exists()
    monkeypatch.setattr(Searcher, "segment_frames", lambda *_: pytest.fail("decoded again"))
    second = library.search("a dog runs", rerank=4)
    assert [h.path for h in second] == [h.path for h in first]
    assert [h.score for h in second] == pytest.approx([h.score for h in first], abs=0.02)  # kept as float16


def test_kept_tokens_stay_within_their_limit_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "tokens", 3000)
    tokens = np.ones((10, 50), np.float16)  # 1000 bytes and a header
    for segment in range(5):
        cache.put(segment, tokens)
        os.utime(tmp_path / "tokens" / f"{segment}.npy", (segment, segment))
    cache.trim()
    kept = sorted(p.name for p in (tmp_path / "tokens").iterdir())
    assert kept == ["3.npy", "4.npy"]
    (tmp_path / "tokens" / "3.npy").write_bytes(b"junk")
    np.save(tmp_path / "tokens" / "4.npy", np.ones(3))
    fresh = TokenCache(tmp_path / "tokens", 3000)
    assert [fresh.get(segment) for segment in (0, 3, 4)] == [None, None, None]


@pytest.mark.parametrize("limit", [0, 1, 3000])
def test_files_that_are_no_tokens_are_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "mine.npy").write_text("keep")
    (tmp_path / "7.npy").write_text("older")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()) if limit else (tmp_path, Path(), None):
        cache = TokenCache(folder, limit)
        cache.put(1, np.ones((10, 50), np.float16))
        cache.trim()
    assert {p.name for p in tmp_path.iterdir()} >= {"mine.txt", "mine.npy"}
    assert (tmp_path / "7.npy").exists() == (limit != 1)


# -- the command line ---------------------------------------------------------------------------------------------------


def run(verb: str, *words: object) -> int:
    from vtr.cli import run as cli

    return cli([*verb.split(), *map(str, words)])


def test_every_verb_of_the_library_is_on_the_command_line() -> None:
    from vtr.cli import VERBS

    assert set(COMMANDS) <= set(VERBS)


def test_search_prints_one_json_object_a_line(library: Library, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small_model().save_pretrained(tmp_path / "model")
    model = ["--model", tmp_path / "model"]
    assert run("search", library.path, "a dog runs", "a cat", "--minus", "a star", "-k", 2, "--json", *model) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rank"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "score", "path", "start", "end", "duration", "segment", "rank", "similarity", "reranked", "moment", "metadata",
        "measure", "match", "copies", "near_copies", "keyframes", "confidence", "weak", "refined", "steps",
        "by", "words", "said",
    }  # fmt: skip
    assert run("search", library.path, "--more", lines[0]["segment"], "--like", lines[1]["path"], *model) == 0
    out = capsys.readouterr().out
    assert Path(lines[0]["path"]).name not in out
    assert f"#{lines[1]['segment']} " in out


def test_a_query_that_names_no_file_or_nothing_is_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="no such file"):
        run("search", library.path, "--like", tmp_path / "none.mp4")
    with pytest.raises(UsageError, match="empty query"):
        run("search", library.path)


def test_a_search_in_words_imports_no_more_than_it_needs(library: Library, tmp_path: Path, repo: Path) -> None:
    import subprocess
    import sys

    small_model().save_pretrained(tmp_path / "model")
    script = (
        "import sys; from vtr.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'transformers', 'torchvision', 'open_clip', 'av', 'decord', 'PIL', 'accelerate', 'pymilvus'}; "
        "print(sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    words = ["search", str(library.path), "a dog runs", "--model", str(tmp_path / "model"), "--where", "duration < 9"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
