"""The benchmark of indexing runs, and its figures belong to each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.indexing import Row, main, page


def test_ratios_are_to_the_lower_of_the_two_limits_and_to_both_by_turns() -> None:
    limits = {"decode": 100.0, "encode": 300.0, "spread": 400.0}
    row = Row(how="vtr", model="demo", film="720p-h264", cores=2, ours=90.0, cpu=1.0, **limits)
    assert row.ratio == pytest.approx(0.9)
    assert row.turns == pytest.approx(90 / 80)
    assert "| 0.90 | 1.12 |" in page([row], "here", "it")
    plain = Row(how="plain script", model="x", film="y", cores=1, ours=1.0, cpu=1.0)
    assert (plain.ratio, plain.turns) == (None, None)


@pytest.mark.slow
def test_a_quick_run_leaves_its_results(tmp_path: Path) -> None:
    """Run it with `pytest -m slow tests/bench/test_indexing.py`."""
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "indexing.json").read_text())
    assert [row["how"] for row in found["rows"]] == ["vtr"]
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in found["rows"])
    assert "720p" not in (tmp_path / "indexing.md").read_text()
