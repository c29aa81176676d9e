"""A clip finds itself, by cosine; copies are one hit; windows that overlap are one moment; what a score is called."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, video_bytes, write_videos
from vtr.library import Hit, Library
from vtr.library import index as indexes
from vtr.library.found import Found, distinct, hit_dict, hit_lines, moments_of
from vtr.library.wanted import Wanted, match, unit

WIDTH = 16


def segment(start: float, score: float, number: int = 0, content: str = "c", path: str = "p") -> Found:
    return Found(score, score, False, number, path, start, start + 8.0, 100.0, {}, content)


# -- by cosine ------------------------------------------------------------------------------------------------------------


def test_words_score_by_the_papers_similarity_and_examples_by_cosine() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, WIDTH)).astype(np.float32) * random.uniform(0.3, 1, (50, 1)).astype(np.float32)
    text, clip = unit(random.normal(size=(1, WIDTH))), random.normal(size=(2, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(Wanted.of(text, text[:0], []).scores(vectors), vectors @ text[0], atol=1e-6)
    best = (unit(vectors) @ unit(clip).T).max(1)
    np.testing.assert_allclose(Wanted.of(text[:0], text[:0], [clip]).scores(vectors), best, atol=1e-5)
    both = Wanted.of(text, text, [clip]).scores(vectors)
    np.testing.assert_allclose(both, vectors @ text[0] / 2 - 0.5 * (vectors @ text[0]) + best / 2, atol=1e-5)


@pytest.mark.parametrize("memory", [1 << 30, 1 << 19])
@pytest.mark.parametrize("older", [False, True])
def test_a_vector_finds_itself_first_in_an_index_whatever_its_length(
    monkeypatch: pytest.MonkeyPatch, memory: int, older: bool
) -> None:
    monkeypatch.setattr(indexes, "EXACT_UP_TO", 500)
    random = np.random.default_rng(0)
    vectors = unit(random.normal(size=(4000, 32)))
    vectors *= np.linspace(0.5, 1.0, 4000, dtype=np.float32)[:, None]
    pairs = np.stack([np.arange(4000) + 1, np.arange(4000)], axis=1)
    if older:  # an index of before there were lengths holds the vectors as they are
        monkeypatch.setattr(indexes, "_UNIT", 10.0)
    index = indexes.build(vectors, pairs, max_memory=memory)
    assert index.description["lengths"] is not older
    if older:
        del index.description["lengths"]
    shot = indexes.Snapshot(index, pairs[:0], vectors, 0, 0)
    first = []
    for row in range(0, 4000, 200):
        wanted = Wanted.of(np.zeros((0, 32)), np.zeros((0, 32)), [vectors[[row]]])
        scores, ids = shot.nearest(wanted, 5, None, lambda ids: ids - 1)
        first.append(ids[0] == row + 1 and abs(scores[0] - 1) < 1e-4)
    assert np.mean(first) == 1.0
    words = unit(random.normal(size=(20, 32)))
    hits = [
        len(
            set(shot.nearest(Wanted(words=w), 10, None, lambda ids: ids - 1)[1])
            & set(np.argsort(-(vectors @ w))[:10] + 1)
        )
        for w in words
    ]
    assert np.mean(hits) / 10 >= 0.9


def test_each_file_finds_itself_first_with_a_score_of_1(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 4, frames=40)  # 5 s: several windows each
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "v")
        for video in videos:
            hit = library.search(like=video, k=2)[0]
            assert (hit.path, hit.measure) == (str(video), "likeness")
            assert hit.score > 0.999
            assert library.search(like=video.read_bytes(), k=2)[0] == hit


def test_a_long_example_is_looked_at_in_places_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtr.library import encode

    monkeypatch.setattr(encode, "EXAMPLE_WINDOWS", 3)
    [video] = write_videos(tmp_path / "v", 1, frames=80)  # 10 s
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "v")
        hits = library.search(like=video)
        assert hits[0].score > 0.99
        assert "3 of its 9 windows, evenly spread, stand for it" in hits.notes[0]


def test_the_windows_of_an_upload_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.library import encode

    [video] = write_videos(tmp_path / "v", 1, frames=80)
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "v")
        frames, notes = library.example_frames(video.read_bytes(), isolated=True)
        assert (len(frames), notes) == (9, [])
        assert np.allclose(library.encoded(frames), library.store.vectors(), atol=1e-5)
        assert library.search(like=frames, k=1)[0].score > 0.999
        monkeypatch.setattr(encode, "EXAMPLE_WINDOWS", 3)
        frames, notes = library.example_frames(video.read_bytes(), isolated=True)
        assert len(frames) == 3
        assert notes[0].startswith("upload: 3 of its 9 windows")


# -- one hit --------------------------------------------------------------------------------------------------------------


def test_files_of_equal_content_are_one_hit_that_names_its_copies(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 2)
    for n in range(30):
        (tmp_path / "v" / f"copy{n:02d}.mp4").write_bytes(videos[0].read_bytes())
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "v")
        hits = library.search("a dog runs", k=10)
        assert len(hits) == 2
        assert sorted(len(h.copies) for h in hits) == [0, 30]
        many = max(hits, key=lambda h: len(h.copies))
        assert many.path not in many.copies
        assert f"(= {Path(many.copies[0]).name} and 29 more)" in "\n".join(hit_lines(hits))
        assert len(library.search("a dog runs", k=100, unmerged=True)) == 32
        assert len(library.search("a dog runs", k=10, all_moments=True)) == 2
        more = library.search(more=many.segment)
        assert [h.path for h in more] == [h.path for h in hits if h is not many]


def test_each_segment_of_a_content_is_kept_once_the_best_first() -> None:
    found = [segment(0, 3, 1), segment(4, 2, 2), segment(0, 3, 3, path="q"), segment(0, 1, 4, content="d")]
    assert [f.segment for f in distinct(found)] == [1, 2, 4]


def test_windows_that_overlap_and_score_alike_are_one_moment_and_the_rest_is_its_edge() -> None:
    scene = [segment(20, 0.61, 1), segment(24, 0.609, 2), segment(16, 0.40, 3), segment(60, 0.30, 4)]
    assert [(m.best.segment, m.start, m.end) for m in moments_of(scene)] == [(1, 20, 32), (4, 60, 68)]


def test_a_window_between_two_that_score_alike_joins_them() -> None:
    scene = [segment(0, 0.610, 1), segment(8, 0.609, 2), segment(4, 0.608, 3)]
    assert [(m.best.segment, m.start, m.end) for m in moments_of(scene)] == [(1, 0, 16)]


def test_images_of_a_video_never_overlap() -> None:
    stills = [segment(0, 1, 1)._replace(end=0.0), segment(0, 1, 2)._replace(end=0.0)]
    assert len(moments_of(stills)) == 2


def test_moments_of_a_video_never_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.mp4").write_bytes(video_bytes(8, frames=80))
    monkeypatch.setattr("vtr.library.found.CLOSE", -1.0)
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "long.mp4")
        for hits in (library.search("a dog", k=20, all_moments=True), library.search("a dog", moments=9)):
            spans = sorted((h.start, h.end) for h in hits)
            assert len(spans) > 2
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


# -- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["similarity", "likeness", "mixed", "combined"])
def test_a_match_lies_between_0_and_1_and_grows_with_the_score(measure: str) -> None:
    scores = np.linspace(-50, 50, 201) if measure == "combined" else np.linspace(-1, 1.01, 201)
    matches = [match(float(s), measure, 0.07) for s in scores]  # type: ignore[arg-type]
    assert 0 <= min(matches) <= max(matches) <= 1
    assert (np.diff(matches) >= 0).all()
    if measure != "combined":
        assert match(0.5, measure) == 0.5  # type: ignore[arg-type]


def test_a_printed_score_has_a_name_and_a_hit_and_a_library_tell_what_they_are(tmp_path: Path) -> None:
    [video, *_] = write_videos(tmp_path / "v", 2)
    with Library.create(tmp_path / "lib", small_model(), model_path="/runs/m") as library:
        library.add(tmp_path / "v")
        hits = library.search(like=video, k=1)
        assert hit_lines(hits)[0].startswith("likeness 1.000  0.0-1.5s")
        assert repr(hits[0]) == f"<Hit 1: likeness 1.000, {video} 0.0-1.5s, #1>"
        assert repr(library) == f"<Library {tmp_path / 'lib'}: 2 videos, 2 segments, 3 seconds; model /runs/m>"
        reranked = library.search("a dog runs", rerank=1)[0]
        assert reranked.measure == "combined"
        assert 0 <= reranked.match <= 1
    assert repr(library) == f"<Library {tmp_path / 'lib'}: closed>"


def test_a_cosine_below_nought_is_not_printed_as_nought() -> None:
    hit = Hit(
        score=-0.03, path="/a.mp4", start=0.0, end=8.0, duration=8.0, segment=1, rank=1, match=match(-0.03, "likeness")
    )
    assert hit_lines([hit]) == ["similarity    <0  0.0-8.0s  #1      /a.mp4"]
    assert repr(hit).startswith("<Hit 1: similarity <0, ")
    assert hit_dict(hit)["score"] == -0.03
    assert "0.000" in hit_lines([replace(hit, score=0.0001)])[0]


def test_what_could_not_be_looked_at_again_is_said(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 3)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "v")
        videos[0].unlink()
        [note] = library.search("a dog runs", rerank=3).notes
        assert note.startswith("1 of 3 moments could not be looked at again and follow by similarity (")
        assert "clip0.mp4" in note
        assert library.search("a dog runs").notes == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"k": "3"}, "k='3': expected a whole number"),
        ({"text": 5}, "expected a text"),
        ({"text": None}, "expected a text"),
    ],
)
def test_arguments_of_the_wrong_kind_are_one_line(tmp_path: Path, words: dict[str, object], says: str) -> None:
    from vtr.errors import UsageError

    with Library.create(tmp_path / "lib", small_model()) as library, pytest.raises(UsageError, match=says):
        library.search(**{"text": "a", **words})  # type: ignore[arg-type]


def test_a_hit_made_by_hand_needs_no_more_than_before() -> None:
    hit = Hit(score=1, path="/x/y.mp4", start=0, end=1, duration=1, segment=1)
    assert repr(hit) == "<Hit 0: similarity 0.000, /x/y.mp4 0.0-1.0s, #1>"
