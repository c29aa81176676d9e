"""The verbs of the evaluation: protocols listed, videos checked, results as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers import WORDS, write_videos
from vtr.cli import main


def msrvtt(root: Path, videos: int, rows: int) -> None:
    write_videos(root / "msrvtt" / "videos", videos)
    content = [{"video": f"clip{i}.mp4", "caption": WORDS[i % 4]} for i in range(rows)]
    (root / "msrvtt" / "msrvtt_ret_test1k.json").write_text(json.dumps(content))


def test_counts_stand_beside_the_papers_and_a_changed_file_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    msrvtt(tmp_path, 1, 3)
    assert main(["benchmarks", "--data-root", str(tmp_path), "--json"]) == 0
    rows = {row["benchmark"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    row = rows["msrvtt"]
    assert (row["videos"], row["paper_videos"], row["queries"], row["found"]) == (3, 1000, 3, 1)
    assert "videos in this file, 1000 expected: it was cut or changed" in row["note"]
    assert rows["lsmdc"]["annotation"] is None
    assert main(["benchmarks", "msrvtt", "--data-root", str(tmp_path)]) == 0
    assert "msrvtt_ret_test1k.json" in capsys.readouterr().out


def test_a_check_names_what_is_missing_and_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    msrvtt(tmp_path, 2, 3)
    (tmp_path / "msrvtt" / "videos" / "clip1.mp4").write_bytes(b"<html>")
    assert main(["benchmarks", "check", "msrvtt", "--data-root", str(tmp_path), "--json"]) == 1
    row = json.loads(capsys.readouterr().out)
    assert row["missing"] == ["clip2.mp4"]
    assert [Path(p).name for p in row["broken"]] == ["clip1.mp4"]
    assert main(["benchmarks", "check", "msrvtt", "--data-root", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "there    1" in text
    assert "3 (the paper: 1000)" in text


def test_a_check_of_a_whole_benchmark_ends_with_0(tmp_path: Path) -> None:
    msrvtt(tmp_path, 3, 3)
    assert main(["benchmarks", "check", "msrvtt", "--data-root", str(tmp_path)]) == 0


def test_a_check_goes_on_after_a_benchmark_without_annotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    msrvtt(tmp_path, 3, 3)
    assert main(["benchmarks", "check", "lsmdc", "msrvtt", "--data-root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "licence" in out
    assert "there    3" in out
    assert main(["benchmarks", "check", "--data-root", str(tmp_path)]) == 2


def result(model: str, r1: float, **more: object) -> dict[str, object]:
    row = {"r1": r1, "r5": 60.0, "r10": 70.0, "median_rank": 3.0, "mean_rank": 20.0}
    return {
        "benchmark": "msrvtt",
        "model": model,
        "protocol": "0123",
        "t2v": {"embedding": row, "combined": {**row, "r1": r1 + 5}},
        "v2t": {"embedding": row, "combined": row},
        "mean_recall": {"embedding": 50.0, "combined": 51.0},
        "published": [{"model": "UMT 5M", "row": "reranked", "t2v": [29.6, 52.8, 61.9]}],
        **more,
    }


def test_results_of_many_runs_are_one_table_and_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.json").write_text(json.dumps(result("runs/a", 31.5)))
    (tmp_path / "2.json").write_text(json.dumps(result("<b>", 11.0, comparable="no: 2 of 3 videos")))
    (tmp_path / "other.json").write_text("[1]")
    assert main(["results", str(tmp_path), "--plot", str(tmp_path / "p.svg")]) == 0
    out = capsys.readouterr().out
    assert "36.5" in out
    assert out.count("UMT 5M, published") == 1
    assert "[1] 2 of 3 videos" in out
    picture = ElementTree.parse(tmp_path / "p.svg").getroot()
    titles = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert "runs/a, combined: 36.5" in titles
    assert "<b>, embedding: 11" in titles
    assert main(["results", str(tmp_path), "--row", "combined", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["row"] for row in rows} == {"combined"}
    assert main(["results", str(tmp_path), "--row", "combnied"]) == 2


def test_no_results_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(tmp_path)]) == 1
    assert main(["results", str(tmp_path / "none")]) == 1
    (tmp_path / "x.json").write_text("{}")
    assert main(["results", str(tmp_path / "x.json")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
