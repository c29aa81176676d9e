"""The command that trains the demo by seeds: what it calls, and the table it makes of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import demo_seeds

_R1 = {"embedding": {"r1": 80.0}, "reranked": {"r1": 84.0}, "combined": {"r1": 86.0}}


def test_each_seed_is_trained_and_evaluated_on_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(*words: str | Path) -> None:
        called.append([str(w) for w in words])
        if words[0] == "eval":
            seed = int(str(words[2])[-1])
            rows = {row: {"r1": figures["r1"] + seed} for row, figures in _R1.items()}
            pairs = {"all": 100.0 - seed}
            folder = Path(words[-1])
            folder.mkdir(parents=True)
            found = {"t2v": rows, "v2t": _R1, "direction_pairs": pairs, "match_direction_pairs": pairs}
            (folder / "found.json").write_text(json.dumps(found))

    monkeypatch.setattr(demo_seeds, "_call", call)
    words = [
        "--seeds",
        "0",
        "2",
        "--set",
        "unmasked.steps=3",
        "--out",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path),
    ]
    assert demo_seeds.main(words) == 0
    assert [words[0] for words in called] == ["pretrain", "eval", "eval"] * 2
    assert called[3][-2:] == ["--set", "unmasked.steps=3"]
    assert "--resume" in called[3]
    page = (tmp_path / "demo_seeds.md").read_text()
    assert "| benchmark | text to video, reranked | 85.0 | 1.4 | 84.0 | 86.0 |" in page
    assert "| validation | video to text, combined | 86.0 | 0.0 | 86.0 | 86.0 |" in page
    assert "| direction | match head, all | 99.0 | 1.4 | 100.0 | 98.0 |" in page
