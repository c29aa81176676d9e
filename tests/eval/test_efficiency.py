"""The efficiency figure: peers agree with each other, points are measured in processes of their own, tables and PNG."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtr.eval.efficiency import EfficiencySettings, Point, compare, draw, main, predicted_memory
from vtr.eval.peers import TimeSformer, TimeSformerConfig


def test_naive_and_fused_attention_are_the_same_function() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "num_frames": 2, "dim": 48, "depth": 2, "heads": 3, "num_classes": 5}
    fused, naive = TimeSformer(TimeSformerConfig(**sizes)), TimeSformer(TimeSformerConfig(**sizes, fused=False))
    naive.load_state_dict(fused.state_dict())
    clip = torch.randn(2, 2, 3, 32, 32)
    assert torch.allclose(fused.classify(clip), naive.classify(clip), atol=1e-5)


def test_the_peer_is_a_vit_of_the_published_size() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in TimeSformer(TimeSformerConfig(num_classes=1000, num_frames=1)).parameters())
    assert count / 1e6 == pytest.approx(5.72, abs=0.01)  # DeiT-Ti: 5.717 M, and one row of time positions


def test_a_small_run_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--frames", "1", "2", "--pixels", "32", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    assert main([*flags, "--models", "videomamba", "naive", "--out", str(tmp_path)]) == 0
    assert "VideoMamba, Ti" in capsys.readouterr().out
    points = json.loads((tmp_path / "efficiency.json").read_text())["points"]
    assert len(points) == 4
    assert all(p["seconds"] > 0 for p in points)
    assert (tmp_path / "efficiency.png").read_bytes()[:4] == b"\x89PNG"


def test_what_would_not_fit_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predicted_memory("naive", "tiny", 64, 224, 1) == pytest.approx(3.5, abs=0.1)
    assert predicted_memory("fused", "tiny", 64, 224, 1) < 0.5
    flags = ["--frames", "64", "--models", "naive", "--max-memory", "0.5", "--device", "cpu", "--out", str(tmp_path)]
    assert main(flags) == 0
    assert "needs more than 4 GiB" in capsys.readouterr().out


def test_the_table_gives_the_ratios_to_videomamba() -> None:
    points = [
        Point(model="videomamba", size="tiny", frames=64, seconds=3.0, cpu=2.0, memory=0.25),
        Point(model="naive", size="tiny", frames=64, seconds=70.0, cpu=50.0, memory=6.0),
    ]
    assert "| 25.0× | 24.0× |" in compare(points, EfficiencySettings())


def test_nonsense_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--sizes", "tinny"]) == 2
    assert main(["--pixels", "225"]) == 2
    assert main(["--frames", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    draw(tmp_path / "empty.png", [], EfficiencySettings(), "nowhere")
    assert (tmp_path / "empty.png").is_file()
