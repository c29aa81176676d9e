"""Curves of runs: read, smoothed, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtr.cli import main
from vtr.pretrain.plot import plot_runs, read_curves, smoothed, ticks


def write_log(folder: Path, rows: int, level: float = 1.0) -> Path:
    folder.mkdir()
    lines = []
    for step in range(1, rows + 1):
        row = {"step": step, "stage": "masked" if step < 5 else "unmasked", "loss": level / step, "batch": "x"}
        lines.append(json.dumps(row | ({"vtc": 2.0} if step >= 5 else {})))
    lines.append(json.dumps({"step": rows, "stage": "unmasked", "validation": {"t2v_r1": 12.5}}))
    (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 10, "lo')  # killed while it wrote
    return folder


def test_a_log_becomes_curves_and_the_begin_of_each_stage(tmp_path: Path) -> None:
    found = read_curves(write_log(tmp_path / "a", 9))
    assert found.curves["loss"][1] == (2, 0.5)
    assert found.curves["validation t2v_r1"] == [(9, 12.5)]
    assert found.stages == ((1, "masked"), (5, "unmasked"))
    assert "batch" not in found.curves


def test_two_runs_are_drawn_in_two_colours_with_a_panel_for_each_curve(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / "a", 9), write_log(tmp_path / "b", 60, 3.0)]
    names = plot_runs(runs, tmp_path / "out" / "curves.png")
    assert names == ["loss", "vtc", "validation t2v_r1"]
    pixels = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB"))[:340, :620].reshape(-1, 3)
    for colour in ((31, 119, 180), (214, 39, 40)):
        assert (pixels == colour).all(1).sum() > 50


def test_a_run_without_a_log_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "plot", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 1
    assert "log.jsonl" in capsys.readouterr().err


def test_smoothing_keeps_a_constant_and_ticks_are_round() -> None:
    assert smoothed([(i, 3.0) for i in range(5)]) == [(i, pytest.approx(3.0)) for i in range(5)]
    assert ticks(0.13, 1.02) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(5, 5) == [5]


def test_a_stage_begins_where_the_one_before_has_ended_not_at_its_first_logged_step(tmp_path: Path) -> None:
    rows = [{"step": s, "stage": "a" if s <= 20 else "b", "loss": 1.0} for s in (10, 20, 30, 40)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_curves(tmp_path).stages == ((1, "a"), (21, "b"))
