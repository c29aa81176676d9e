"""The report of the pretraining measurement."""

from __future__ import annotations

import json
from pathlib import Path

from bench.pretrain import report


def test_the_report_gives_rates_waits_and_recalls_of_each_stage(tmp_path: Path) -> None:
    rows = [
        {"stage": "masked", "step": step, "media": media, "samples_per_s": rate, "data_wait": 0.5, "memory_gib": 1.5}
        for step, media, rate in ((1, "video", 1.0), (2, "video", 100.0), (3, "video", 120.0), (4, "image", 300.0))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": "small", "demo_clips": 1000, "demo_images": 200}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    recall = {"r1": 10.0, "r5": 20.0, "r10": 30.0}
    ways = {way: dict.fromkeys(("embedding", "reranked", "combined"), recall) for way in ("t2v", "v2t")}
    text = report(tmp_path, {"gallery": 500, "chance_r1": 0.2, **ways}, "python -m bench.pretrain", 61.0)
    assert "`python -m bench.pretrain` took 61 s" in text
    # The first row, in which the workers start, does not count.
    assert "| masked | to 4 (logged from 1) | 120 | 300 | 50.0% | 1.50 |" in text
    assert "| video to text, combined | 10.0 | 20.0 | 30.0 |" in text
