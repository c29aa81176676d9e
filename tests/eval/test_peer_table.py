"""Encoders side by side: what is known is shown, what is not is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtr.eval.commands import ResultsSettings, results
from vtr.eval.peer_table import Measured, entries, measure, measure_all, peer_rows, peer_table


def result(folder: Path, model: str, benchmark: str, value: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": benchmark, "model": model, "protocol": "p", "order": {"embedding": {"all": value}}}
    (folder / f"{Path(model).name}_{benchmark}.json").write_text(json.dumps(content))


def test_the_table_joins_published_figures_results_and_measurements(tmp_path: Path) -> None:
    result(tmp_path / "r", "open_clip:PE-Core-B-16/meta", "rtime", 50.0)
    result(tmp_path / "r", "runs/demo", "demo_reversed", 98.5)
    measured = tmp_path / "peers.json"
    measured.write_text(json.dumps({"PE-Core-B/16": Measured(93.2, 1.5, 0.9, "here")._asdict()}))
    rows = {row.name: row for row in peer_rows([tmp_path / "r"], measured)}
    assert rows["PE-Core-B/16"].gaps() == []
    assert rows["runs/demo"].gaps() == ["published R@1", "speed, memory and parameters"]
    text = peer_table(list(rows.values()))
    assert "| PE-Core-B/16 | embedding | 47.6 |" in text
    assert "| rtime 50.0 | 1.5 | 0.90 | 93 |" in text
    assert "not known: direction accuracy" in text


def test_every_encoder_has_a_source_and_is_measured_by_an_architecture_that_exists() -> None:
    for entry in entries():
        assert entry["source"]
        assert set(entry["published"]) <= {"msrvtt", "didemo", "anet", "lsmdc", "msvd", "vatex"}
    found = measure("tiny", repeats=1)
    assert 6 < found.parameters < 8
    assert found.hours > 0


def test_measurements_that_are_there_are_kept_and_those_that_fail_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"one": Measured(1, 2, 3, "there")._asdict()}))
    listed = [{"name": "one", "build": "tiny"}, {"name": "two", "build": "no such encoder"}, {"name": "three"}]
    monkeypatch.setattr("vtr.eval.peer_table.entries", lambda: listed)
    measure_all(path)
    assert list(json.loads(path.read_text())) == ["one"]
    assert "two:" in capsys.readouterr().err


def test_the_table_is_made_without_any_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results(ResultsSettings(paths=(tmp_path / "none",), peers=True, measured=tmp_path / "none.json")) == 0
    assert "VideoMamba-M 25M" in capsys.readouterr().out
