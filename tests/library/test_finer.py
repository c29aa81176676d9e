"""Segments along shots, vectors of frames, finer ends, curves, sure hits, and things in order."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, write_videos
from vtr.errors import UsageError, VtrError
from vtr.library import Library
from vtr.library.calibrate import LEAST, confidence, unrelated_texts
from vtr.library.commands import COMMANDS
from vtr.library.curve import Curve, curve_of, cuts_of, refined
from vtr.library.found import Found, Hit
from vtr.library.frame_vectors import packed, read_rows, unpacked, write_rows
from vtr.library.pairs import best_chain
from vtr.library.rows import Span
from vtr.library.settings import Work
from vtr.library.verify import verify
from vtr.library.wanted import Wanted


def made(folder: Path, *, workers: int = 0, count: int = 4, **more: object) -> Library:
    if not (folder / "videos").exists():
        write_videos(folder / "videos", count, frames=30)
    library = Library.create(folder / f"lib{workers}", small_model(), window=1.0, stride=0.5, **more)  # type: ignore[arg-type]
    library.add(folder / "videos", work=Work(workers=workers))
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Four clips, 28 segments, with vectors of frames; searched, never changed."""
    return made(tmp_path_factory.mktemp("finer"), frame_vectors=True)


def found(start: float, end: float, similarity: float, segment: int = 0) -> Found:
    return Found(similarity, similarity, False, segment, "/v.mp4", start, end, 100.0, {}, None)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_frames_vectors_survive_a_byte_a_number() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
    vectors[1, 2] = 0
    again = unpacked(packed(vectors), 16)
    assert np.abs(again - vectors).max() <= np.abs(vectors).max() / 254 + 1e-6
    assert not again[1, 2].any()


def test_rows_that_were_never_written_are_unknown(tmp_path: Path) -> None:
    rows = np.arange(1, 13, dtype=np.uint8).reshape(2, 6)
    write_rows(tmp_path / "f", 2, rows)
    assert read_rows(tmp_path / "f", np.array([3, 0, 9, 2]), 6).tolist() == [
        rows[1].tolist(),
        [0] * 6,
        [0] * 6,
        rows[0].tolist(),
    ]
    assert not read_rows(tmp_path / "none", np.array([0]), 6).any()


def test_a_library_along_shots_with_frames_is_the_same_whatever_works_on_it(tmp_path: Path) -> None:
    kept = []
    for workers in (0, 2):
        with made(tmp_path, workers=workers, segments="shots", frame_vectors=True) as library:
            assert verify(library) == []
            rows = library.store.pairs()[:, 1]
            frames = library.store.frame_rows(rows)
            assert frames is not None
            kept.append(
                (library.store.spans_of(1), np.array(library.store.vectors()), unpacked(frames, library.settings.width))
            )
    assert kept[0][0] == kept[1][0]
    assert np.abs(kept[0][1] - kept[1][1]).max() <= 1e-6
    assert np.abs(kept[0][2] - kept[1][2]).max() <= 1e-2


def test_segments_are_the_mean_of_their_frames_also_of_copies_and_after_compaction(tmp_path: Path) -> None:
    library = made(tmp_path, frame_vectors=True)
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "videos" / "clip1.mp4").read_bytes())
    library.add(tmp_path / "copy.mp4", work=Work(workers=0))
    library.remove([tmp_path / "videos" / "clip0.mp4"])
    for _ in range(2):
        rows = library.store.pairs()[:, 1]
        frames = library.store.frame_rows(rows)
        assert frames is not None
        assert np.abs(unpacked(frames, library.settings.width).mean(1) - library.store.vectors()[rows]).max() < 0.01
        library.compact()
    assert len(list(library.path.glob("frames*.i8"))) == 1


def test_how_a_library_was_cut_is_remembered_and_another_way_is_refused(tmp_path: Path) -> None:
    made(tmp_path, segments="shots").close()
    assert Library.create(tmp_path / "lib0", small_model(), window=1.0, stride=0.5).settings.cutting == "shots"
    with pytest.raises(VtrError, match=r"segments='?shots.*windows"):
        Library.create(tmp_path / "lib0", small_model(), window=1.0, stride=0.5, segments="windows")
    with pytest.raises(VtrError, match="frame_vectors"):
        Library.create(tmp_path / "lib0", small_model(), window=1.0, stride=0.5, frame_vectors=True)
    with pytest.raises(UsageError, match="segments"):
        Library.create(tmp_path / "other", small_model(), segments="scenes")


def test_a_library_of_before_opens_and_stays_cut_into_windows(tmp_path: Path) -> None:
    made(tmp_path, segments="windows").close()
    file = tmp_path / "lib0" / "library.json"
    assert "cutting" not in json.loads(file.read_text())
    library = Library.open(tmp_path / "lib0", small_model())
    library.store.db.execute("DROP TABLE unrelated")
    library.store.db.commit()
    assert library.settings.cutting == "windows"
    assert library.search("a dog", 1)[0].confidence is None


# -- curves and ends --------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_of_what_overlaps() -> None:
    spans = [Span(0.0, 4.0), Span(2.0, 6.0)]
    curve = curve_of("/v", spans, np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 5.0, np.nan]], np.float32), exact=True)
    at = {round(float(t), 2): float(s) for t, s in zip(curve.times, curve.scores)}
    assert at[0.25] == 1.0
    assert at[3.25] == 2.0
    assert at[4.25] == 5.0
    assert np.isnan(at[5.25])


def test_ends_are_found_inside_a_hit_and_across_its_neighbours() -> None:
    times = np.arange(0, 60, 0.5)
    rng = np.random.default_rng(0)

    def bump(start: float, end: float) -> Curve:
        scores = np.where((times >= start) & (times < end), 0.8, 0.2) + rng.normal(0, 0.02, len(times))
        return Curve(path="/v", start=0.0, step=0.5, scores=scores.astype(np.float32), exact=True)

    whole = Span(0.0, 60.0)
    assert refined(bump(22.0, 25.0), Span(20.0, 28.0), whole) == pytest.approx((22.0, 25.0), abs=0.5)
    assert refined(bump(12.0, 40.0), Span(20.0, 28.0), whole) == pytest.approx((12.0, 40.0), abs=0.5)
    assert refined(bump(12.0, 40.0), Span(20.0, 28.0), Span(18.0, 60.0))[0] == 18.0
    assert refined(bump(22.0, 25.0), Span(20.0, 28.0), whole, [21.8])[0] == 21.8
    assert refined(bump(99.0, 99.0), Span(20.0, 28.0), whole) == (20.0, 28.0)


def test_cuts_are_where_segments_meet_and_none_goes_on() -> None:
    assert cuts_of([Span(0, 8), Span(4, 12), Span(12, 15), Span(15, 23), Span(19, 27)]) == [0, 12, 15, 27]


def test_finer_hits_of_a_video_stay_apart_and_inside_it(library: Library) -> None:
    hits = library.search("a dog runs", 20, all_moments=True)
    for path in {h.path for h in hits}:
        own = sorted((h for h in hits if h.path == path), key=lambda h: h.start)
        assert all(0 <= h.start < h.end <= h.duration for h in own)
        assert all(a.end <= b.start for a, b in pairwise(own))
    assert not any(h.refined for h in library.search("a dog runs", 20, all_moments=True, unrefined=True))


def test_the_curve_of_a_video_is_printed_and_written(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "model")
    settings, run = COMMANDS["search"]
    video = library.search("a dog", 1)[0].path
    asked = {"library": library.path, "text": ("a dog",), "model": str(tmp_path / "model"), "curve": video}
    assert run(settings(**asked)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["exact"] is True
    assert said["step"] * len(said["scores"]) == pytest.approx(3.75, abs=0.01)
    assert run(settings(**asked, curve_out=tmp_path / "c.png")) == 0
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match=r"\.png or \.json"):
        run(settings(**asked, curve_out=tmp_path / "c.gif"))
    with pytest.raises(UsageError, match="leave out --then, --min-score"):
        run(settings(**asked, then="a cat", min_score=0.5))
    with pytest.raises(VtrError, match=f"such.mp4 is not in {library.path}$"):
        library.curve("/no/such.mp4", "a dog")
    with pytest.raises(VtrError, match=f"of that name it has {video}$"):
        library.curve(Path(video).name, "a dog")
    with pytest.raises(UsageError, match="expected UTF-8"):
        library.search("a \udcff dog")


def test_what_is_said_is_never_called_unlike(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"score": 0.5, "path": "/v", "start": 0.0, "end": 1.0, "duration": 1.0, "segment": 1}
    hits = [Hit(**facts, by=("picture", "words")), Hit(**facts, confidence=0.2)]
    monkeypatch.setattr(library, "_judged", lambda wanted, hits: hits)
    for found, said in ((hits, 0), (hits[1:], 1)):
        notes: list[str] = []
        assert library._sure(Wanted(), found, None, notes) == found
        assert len(notes) == said


# -- how sure ---------------------------------------------------------------------------------------------------------


def test_confidence_grows_with_the_score_between_nought_and_one() -> None:
    unrelated = np.array([0.1, 0.2, 0.3, 0.4])
    values = [confidence(s, unrelated) for s in np.linspace(-1, 1, 200)]
    assert all(a < b for a, b in pairwise(values))
    assert 0 < values[0] < values[-1] < 1
    assert confidence(0.25, unrelated) == pytest.approx(0.5)


def test_unrelated_texts_are_many_and_each_once() -> None:
    assert len(set(unrelated_texts())) == len(unrelated_texts()) > 100


def test_hits_say_how_sure_they_are_and_unsure_ones_can_be_left_out(library: Library) -> None:
    assert library.store.segments() >= LEAST
    hits = library.search("a dog runs", 4)
    values = [h.confidence for h in hits]
    assert None not in values
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    least = float(values[1])  # type: ignore[arg-type]
    assert [h.path for h in library.search("a dog runs", 4, min_score=least)] == [h.path for h in hits[:2]]
    none = library.search("a dog runs", 4, min_score=1.0)
    assert list(none) == []
    assert "nothing like that" in none.notes[-1]
    with pytest.raises(UsageError, match="min_score"):
        library.search("a dog", min_score=1.5)


def test_few_segments_cannot_tell_and_say_so(tmp_path: Path) -> None:
    library = made(tmp_path, count=1)
    hits = library.search("a dog", min_score=0.9)
    assert [h.confidence for h in hits] == [None]
    assert "nothing is left out" in hits.notes[-1]


# -- things in order --------------------------------------------------------------------------------------------------


def test_the_best_chain_is_in_order_and_near() -> None:
    first = [found(0, 4, 0.5, 1), found(4, 8, 0.9, 2), found(20, 24, 0.6, 3)]
    second = [found(0, 4, 0.9, 1), found(4, 8, 0.8, 2), found(8, 12, 0.7, 4), found(100, 104, 0.95, 5)]
    score, chain = best_chain([first, second], 60.0) or (0.0, [])
    assert [f.segment for f in chain] == [2, 4]
    assert score == pytest.approx(0.8)
    far = best_chain([first, second], 100.0)
    assert far is not None
    assert [f.segment for f in far[1]] == [2, 5]
    assert best_chain([[found(8, 12, 1.0)], [found(0, 4, 1.0)]], 60.0) is None
    assert best_chain([[found(0, 4, 1.0)], []], 60.0) is None


def test_what_follows_and_what_came_before_are_the_same_pair_seen_from_either_side(library: Library) -> None:
    after = library.search("a dog runs", 2, then="a red car", within=2.0)
    before = library.search("a red car", 2, before="a dog runs", within=2.0)
    assert len(after) == len(before) == 2
    for one, other in zip(after, before):
        assert [(s.text, s.segment) for s in one.steps] == [(s.text, s.segment) for s in other.steps]
        assert (one.start, other.start) == (one.steps[0].start, one.steps[1].start)
        assert one.steps[0].end <= one.steps[1].start + 1e-3
        assert one.score == pytest.approx(sum(s.similarity for s in one.steps) / 2)
    with pytest.raises(UsageError, match="go with one text"):
        library.search(["a", "b"], then="c")
    with pytest.raises(UsageError, match="within"):
        library.search("a", then="c", within=-1.0)
    with pytest.raises(UsageError, match="within is about then and before"):
        library.search("a", within=60.0)
