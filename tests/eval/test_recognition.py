"""Multi-view tests: fair merging, per-view figures, ties."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from vtr.errors import VtrError
from vtr.eval.recognition import ViewScore, merged, metrics, report, write_views

RECIPE = SimpleNamespace(classes=3)


def view(
    name: str, label: int, scores: list[float], *, window: float = 0.0, segment: int = 0, crop: int = 0
) -> ViewScore:
    return ViewScore(name=name, label=label, window=window, segment=segment, crop=crop, scores=torch.tensor(scores))


def test_every_video_has_one_vote_whatever_its_windows_and_files_of_one_name_stay_apart() -> None:
    results = [view("a/x.mp4", 0, [0.9, 0.1, 0.0], window=float(w)) for w in range(5)]
    results += [view("b/x.mp4", 1, [0.9, 0.1, 0.0])]
    names, labels, scores = merged(results)
    assert names == ["a/x.mp4", "b/x.mp4"]
    assert metrics(labels, scores, 3)["top1"] == 50


def test_all_windows_of_a_video_count() -> None:
    # The released merge drops all windows but the first: this video would then be wrong.
    results = [view("a", 1, [0.6, 0.4, 0.0], window=0.0), view("a", 1, [0.0, 0.9, 0.1], window=16.0)]
    assert metrics(*merged(results)[1:], 3)["top1"] == 100


def test_ties_count_as_the_share_they_are_and_a_constant_model_is_at_chance() -> None:
    labels = torch.tensor([0.0, 1.0, 2.0])
    found = metrics(labels, torch.full((3, 3), 0.5), 3)
    assert found["top1"] == pytest.approx(100 / 3)
    assert found.keys() == {"top1"}  # the best five of three would always be right
    assert metrics(labels, torch.full((3, 7), 0.5), 7)["top5"] == pytest.approx(100 * 5 / 7)
    assert metrics(torch.tensor([1.5]), torch.tensor([[1.0]]), 0) == {"mse": 0.25}


def test_single_views_are_reported_beside_the_merged_result(tmp_path: Path) -> None:
    results = [
        view("a", 0, [0.9, 0.1, 0.0], segment=0),
        view("a", 0, [0.2, 0.8, 0.0], segment=1),
    ]
    found = report(results, RECIPE, (2, 1), ["x.mp4: broken"])
    assert found["merged"]["top1"] == 100
    assert found["per_view"]["segment 1, crop 0"]["top1"] == 0
    assert found["unreadable"] == 1
    write_views(tmp_path, results)
    keys = [json.loads(line) for line in (tmp_path / "views.jsonl").read_text().splitlines()]
    assert [k["segment"] for k in keys] == [0, 1]
    assert load_file(tmp_path / "views.safetensors")["scores"].shape == (2, 3)
    with pytest.raises(VtrError, match="no readable video"):
        report([], RECIPE, (2, 1), [])
