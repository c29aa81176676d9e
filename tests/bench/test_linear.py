"""`bench.linear`: torch's linear layers and ours, timed side by side."""

from __future__ import annotations

import json

import pytest

from bench import linear as benchmark


def test_the_benchmark_prints_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", {"one": (30, 8, 12)})
    assert benchmark.main(["--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in report["backends"]] == ["onednn", "torch"]
    (row,) = report["rows"]
    assert (row["rows"], row["k"], row["n"]) == (30, 8, 12)
    assert all(row[f"{part}_{way}"] > 0 for part in ("forward", "both") for way in ("torch", "ours"))
    assert benchmark.main(["--threads", "0"]) == 2
    assert "--threads 0: expected 1 or more" in capsys.readouterr().err
