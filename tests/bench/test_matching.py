"""The command that compares the match head's remedies: equal processor seconds, and the draw as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench import matching
from vtr.pretrain.objectives.matching import hard_negatives


def test_every_arm_gets_the_steps_that_its_processor_seconds_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(words: Sequence[str], call: str) -> None:
        called.append([*words, call])
        out = Path(words[words.index("--out") + 1])
        if words[0] == "eval":
            out.mkdir(parents=True)
            rows = {row: {"r1": 50.0} for row in ("embedding", "reranked", "combined")}
            (out / "r.json").write_text(json.dumps({"t2v": rows, "v2t": rows, "match_direction_pairs": {"all": 90.0}}))
            return
        (out / "model").mkdir(parents=True)
        (out / "model" / "config.json").write_text('{"memory": "patches"}')
        slow = 2 if "matching" in words else 1
        entry = json.dumps({"cpu_s_per_s": 0.5, "samples_per_s": 32 / slow})  # half a second a step, or a whole one
        (out / "log.jsonl").write_text(f"{entry}\n{entry}\n")

    monkeypatch.setattr(matching, "_run", run)
    words = ["--seeds", "3", "--budget", "20", "--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert matching.main(words) == 0
    page = (tmp_path / "matching.md").read_text()
    assert "| old | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 90 | 40 | 20 |" in page
    assert (
        "| all | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 90 | 32 | 20 |" in page
    )  # 24 whole steps, then 8 dearer ones
    pooled = next(c for c in called if "runs/pooled_refine3" in c[3])
    assert "base3_pooled" in pooled[pooled.index("--init") + 1]
    assert "draw=False, pooled=True" in pooled[-1]
    before = len(called)
    assert matching.main(words) == 0
    assert len(called) == before  # all of it is there


def test_the_old_draw_is_uniform_where_the_right_answer_leads() -> None:
    """What the first remedy mends: with the right one in the softmax, the floor decides among the wrong ones."""
    similarity = torch.tensor([[60.0, 30.0, 10.0, 10.0]]).repeat(4000, 1)
    allowed = torch.tensor([[False, True, True, True]]).repeat(4000, 1)
    uniform = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    old = matching.floored_draw(similarity, allowed, uniform)
    new = hard_negatives(similarity, allowed, uniform)
    assert 0.3 < float((old == 1).float().mean()) < 0.37
    assert bool((new == 1).all())
