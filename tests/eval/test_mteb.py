"""MTEB's protocol of encoders, on a task of local data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("mteb", reason="the extra mteb is not installed")

from tests.helpers import WORDS, small_model, write_videos
from vtr.errors import VtrError
from vtr.eval.benchmarks import load_benchmark
from vtr.eval.evaluate import Options, evaluate
from vtr.eval.mteb import MtebModel, local_task, main, scores


def list_of(folder: Path, count: int = 4) -> Path:
    write_videos(folder / "v", count)
    rows = [{"video": f"clip{i}.mp4", "caption": WORDS[i % 4]} for i in range(count)]
    (folder / "local.json").write_text(json.dumps(rows))
    return folder / "local.json"


def test_a_local_task_has_the_recalls_of_our_own_evaluation(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(list_of(tmp_path)), tmp_path)
    found = scores(MtebModel(small_model(), "runs/small"), [local_task(benchmark)])["LocalLocal"]
    ours = evaluate(small_model(), benchmark, Options(rerank=0)).figures.t2v["embedding"]
    assert (found["recall_at_1"], found["recall_at_5"]) == (ours["r1"], ours["r5"])
    assert found["main_score"] == found["ndcg_at_10"]


def test_the_command_says_that_its_scores_are_not_those_of_published_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "model")
    path = list_of(tmp_path)
    assert main(["--model", str(tmp_path / "model"), "--data", str(path), "--data-root", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "not the R@1 of 1k-A" in said["note"]
    assert set(said["scores"]) == {"LocalLocal"}


def test_missing_videos_are_refused_and_no_task_is_bad_usage(tmp_path: Path) -> None:
    path = list_of(tmp_path)
    (tmp_path / "v" / "clip1.mp4").unlink()
    with pytest.raises(VtrError, match=r"1 of 4 videos.*clip1"):
        local_task(load_benchmark(str(path), tmp_path))
    assert main(["--model", "x"]) == 2
    assert main(["--model", "x", "--tasks", "NoSuchTask"]) == 2
