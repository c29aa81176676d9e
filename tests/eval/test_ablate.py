"""Ablations: trials repeat and are kept, tables hold every row and seed, verdicts are plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtr.data.motion import MotionTask
from vtr.errors import UsageError
from vtr.eval.ablate import _BUILDERS, TABLES, AblateSettings, _Teachers, main, run_table, verdicts
from vtr.eval.trials import SMALL, Budget, classifier, image_teacher, pretrain_masked, train

QUICK = ["--steps", "2", "--pretrain-steps", "2", "--task-steps", "1", "--seeds", "0", "--threads", "1"]
TINY = Budget(steps=2, pretrain_steps=2, batch_size=9, labelled=18, tests=18)


def test_a_trial_is_a_function_of_its_seed() -> None:
    task = MotionTask(size=48)
    one, again = (train(classifier(SMALL, 3), task, TINY, 3) for _ in range(2))
    assert one[:4] == again[:4]


def test_a_masked_model_starts_the_classifier() -> None:
    task = MotionTask(size=48)
    teacher = image_teacher(task, steps=1)
    encoder, _, visible = pretrain_masked(SMALL, task, TINY, 0, teacher, mask="attention", ratio=0.8)
    assert visible == pytest.approx(2 / 9)
    model = classifier(SMALL, 0, encoder)
    assert torch.equal(model.layers[0].mixer.D, encoder.layers[0].mixer.D)
    assert model.head.weight.shape[0] == 9


def test_a_table_is_trained_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *QUICK, "--batch-size", "4", "--labelled", "16", "--out", str(tmp_path)]) == 0
    first = (tmp_path / "distill.json").read_text()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").iterdir()}
    assert len(times) == 4
    assert main(["distill", *QUICK, "--batch-size", "4", "--labelled", "16", "--out", str(tmp_path)]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").iterdir()} == times
    assert json.loads(first)["rows"] == json.loads((tmp_path / "distill.json").read_text())["rows"]
    assert (tmp_path / "distill.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "distill.md").read_text()
    assert "large, distilled" in text
    assert "`python -m vtr.eval.ablate distill" in text
    capsys.readouterr()


def test_every_table_has_the_papers_rows_and_figures() -> None:
    settings = AblateSettings(tables=("all",))
    tables = {name: _BUILDERS[name](settings, _Teachers(settings)) for name in TABLES}
    assert [r.paper for r in tables["scan"].rows] == [65.1, 62.4, 63.9, 64.2, 64.0, 64.1, 65.1]
    assert [r.paper for r in tables["mask"].rows if r.paper] == [67.4, 66.3, 68.2, 67.8, 68.5]
    assert [r.paper for r in tables["align"].rows] == [68.5, 68.4, 68.2, 67.7]
    assert [r.paper for r in tables["ratio"].rows] == [68.1, 68.4, 68.5, 68.2]
    assert [r.paper for r in tables["droppath"].rows] == [68.0, 68.2, 68.4, 68.5]


def test_the_row_that_several_tables_share_is_one_training(tmp_path: Path) -> None:
    from vtr.eval.ablate import trial_path

    settings = AblateSettings(tables=("all",))
    rows = {n: _BUILDERS[n](settings, _Teachers(settings)).rows for n in ("mask", "align", "ratio")}
    paths = {trial_path(tmp_path, r, 0) for r in (rows["mask"][-1], rows["align"][0], rows["ratio"][2])}
    assert len(paths) == 1
    assert trial_path(tmp_path, rows["mask"][-1], 1) not in paths
    assert run_table.__doc__


def test_verdicts_say_plainly_what_beats_scratch() -> None:
    def row(name: str, *values: float) -> dict:
        return {"name": name, "trials": [{"accuracy": v} for v in values]}

    lines = verdicts({"rows": [row("from scratch", 50, 52), row("a", 60, 61), row("b", 55, 51), row("c", 40, 41)]})
    assert "a beats" in lines[0]
    assert "b does not reliably beat" in lines[1]
    assert "c does not beat" in lines[2]


def test_wrong_flags_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skan"]) == 2
    assert "did you mean 'scan'" in capsys.readouterr().err
    assert main(["scan", "--seeds", "0", "0"]) == 2
    assert issubclass(UsageError, Exception)
