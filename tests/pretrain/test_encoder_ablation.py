"""VideoMamba against a ViT at equal budgets: the same size, both budgets, plain words."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtr.errors import VtrError
from vtr.eval.ablate import main
from vtr.eval.efficiency import Passes
from vtr.pretrain import encoder_ablation
from vtr.pretrain.encoder_ablation import _DEMO, ENCODERS, EncoderSettings, alone, parameters, part_rows, verdict


@pytest.mark.parametrize("pair", [ENCODERS, _DEMO])
def test_both_encoders_have_as_many_parameters(pair: dict) -> None:
    one, other = map(parameters, pair.values())
    assert one == pytest.approx(other, rel=0.05)


def test_the_faster_encoder_gets_the_seconds_of_the_slower_one_and_trainings_are_kept(tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []

    def trial(encoder: str, seed: int, steps: int) -> dict[str, float]:
        asked.append((encoder, seed, steps))
        return {
            "training CPU s": steps * (2.0 if encoder == "ViT" else 1.0),
            "accuracy": 60.0 + (encoder == "ViT") + seed,
        }

    settings = EncoderSettings(seeds=(0, 1), out=tmp_path)
    rows = part_rows("task", 10, settings, trial)
    assert asked == [("VideoMamba", 0, 10), ("ViT", 0, 10), ("VideoMamba", 1, 10), ("ViT", 1, 10), ("VideoMamba", 0, 20), ("VideoMamba", 1, 20)]  # fmt: skip
    assert part_rows("task", 10, settings, trial) == rows
    assert len(asked) == 6
    assert part_rows("task", 10, replace(settings, lr=1e-3), trial) == rows
    assert len(asked) == 12
    assert verdict(rows, "task", "accuracy", "equal steps") == (
        "is behind",
        "- task, accuracy, equal steps: VideoMamba is behind ViT (-1.0; better with 0 of 2 seeds, worse with 2).",
    )


def test_a_training_has_a_process_of_its_own_and_one_that_is_killed_is_one_line() -> None:
    assert alone(os.getpid) != os.getpid()
    with pytest.raises(VtrError, match="killed"):
        alone(os._exit, 9)


def test_the_table_is_made_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(words: list[str]) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == [sys.executable, "-m", "vtr.pretrain.encoder_ablation"]
        return subprocess.CompletedProcess(words, encoder_ablation.main(words[3:]))

    monkeypatch.setattr("vtr.eval.ablate.subprocess", SimpleNamespace(run=call))
    monkeypatch.setattr(encoder_ablation, "alone", lambda function, *given: function(*given))
    monkeypatch.setattr(encoder_ablation, "passes", lambda *given: Passes(2.0, 1.5, 0.25, ""))
    flags = ["--seeds", "0", "--steps", "1", "--demo-steps", "0", "--batch-size", "2", "--tests", "9"]
    assert main(["encoder", *flags, "--out", str(tmp_path)]) == 0
    text = (tmp_path / "encoder.md").read_text()
    for words in ("direction pairs", "order of events", "accuracy, 64 frames", "equal CPU seconds", "training MiB"):
        assert words in text
    assert "| ViT | 64 | 1.500 | 256 |" in text
    assert "At equal steps VideoMamba" in text
    assert f"`python -m vtr.eval.ablate encoder {' '.join(flags)}`" in text


def test_the_comparison_beside_other_tables_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "encoder"]) == 2
    assert "comes alone" in capsys.readouterr().err
