"""The re-ranking benchmark: both ways agree, and are timed."""

from __future__ import annotations

import pytest

from bench.rerank import main


def test_both_ways_give_the_same_match_logits(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--texts", "6", "--videos", "7", "--k", "2", "--tokens", "8", "--words", "4", "--threads", "1"]
    assert main(sizes) == 0  # 1 where they differ
    said = capsys.readouterr().out
    assert "6 texts x 7 videos, k = 2" in said
    assert "x as fast" in said
