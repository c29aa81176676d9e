"""Moments: overlaps and recalls worked out by hand, and annotations with times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtr.errors import VtrError
from vtr.eval.moments import Answer, Span, Told, moment_rows, overlap, read_moments


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (("a", 0, 8), ("a", 4, 12), 4 / 12),  # 4 s of 12 in common
        (("a", 4, 12), ("a", 0, 8), 4 / 12),
        (("a", 0, 10), ("a", 2, 7), 5 / 10),  # inside
        (("a", 0, 4), ("a", 4, 8), 0.0),  # they touch
        (("a", 0, 4), ("a", 6, 8), 0.0),  # apart: not below 0
        (("a", 3, 5), ("a", 3, 5), 1.0),
        (("a", 3, 5), ("b", 3, 5), 0.0),  # of another video
    ],
)
def test_the_overlap_of_two_spans_is_their_intersection_over_their_union(
    one: tuple, other: tuple, value: float
) -> None:
    assert overlap(Span(*one), Span(*other)) == pytest.approx(value)


def test_recalls_of_moments_are_those_counted_by_hand() -> None:
    told = [Told(span=Span("a", 0, 10), sentence="one"), Told(span=Span("b", 20, 30), sentence="two")]
    answers = [
        Answer(  # own: 6 of 10 s; in the pool b comes first, then the right window of a (8 of 10)
            told=told[0], own=Span("a", 0, 6), pooled=[Span("b", 0, 9), Span("a", 0, 8)],
            windows=[Span("a", 0, 6), Span("a", 4, 12), Span("a", 8, 16), Span("a", 12, 20)],
        ),
        Answer(  # own: 4 of 14 s; the right video is first, by a wrong window
            told=told[1], own=Span("b", 16, 24), pooled=[Span("b", 16, 24)], windows=[Span("b", 16, 24), Span("b", 20, 28)],
        ),
    ]  # fmt: skip
    rows = moment_rows(answers)
    assert [rows[f"own video R@1, IoU {t}"] for t in (0.3, 0.5, 0.7)] == [50.0, 50.0, 0.0]
    assert rows["own video, mean IoU"] == pytest.approx(100 * (0.6 + 4 / 14) / 2, abs=0.01)
    # Windows of the first: 0.6, 6/12, 2/16, 0; of the second: 4/14, 8/10.
    assert rows["  a window at random, IoU 0.5"] == 100 * (2 / 4 + 1 / 2) / 2
    assert [rows[f"  the best window, IoU {t}"] for t in (0.5, 0.7)] == [100.0, 50.0]
    assert [rows[f"pooled, right window R@{k}"] for k in (1, 5)] == [0.0, 50.0]
    assert [rows[f"pooled, right video R@{k}"] for k in (1, 5)] == [50.0, 100.0]


def test_times_are_read_from_activitynets_release_and_from_rows(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(
        json.dumps({"v_x": {"duration": 9.5, "timestamps": [[0.5, 9], [7, 3]], "sentences": ["A man.", "  He sits. "]}})
    )
    (tmp_path / "r.csv").write_text("video,start,end,sentence\nv_x,0.5,9,A man.\nv_x,3,7,He sits.\n")
    assert read_moments(tmp_path / "v.json") == read_moments(tmp_path / "r.csv")
    assert read_moments(tmp_path / "v.json")[1] == Told(span=Span("v_x", 3, 7), sentence="He sits.")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("video,start,end,sentence\na,5,5,x y\n", "line 2.*start < end"),
        ("video,start,end,sentence\na,one,5,x y\n", "line 2.*times are"),
        ("video,caption\na,x y\n", "expected video, start, end"),
        ('{"a": {"timestamps": [[0, 1]], "sentences": []}}', "not as many timestamps"),
    ],
)
def test_times_that_are_no_span_are_refused_with_their_place(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.json" if content.startswith("{") else "a.csv")
    path.write_text(content)
    with pytest.raises(VtrError, match=says):
        read_moments(path)


def test_activitynets_published_times_are_read_whole(shared: Path) -> None:
    found = read_moments(shared / "data" / "annotations" / "activitynet" / "val_1.json")
    assert (len(found), len({t.span.video for t in found})) == (17505, 4917)
