"""The CPU benchmark of the kernels."""

from __future__ import annotations

import json

import pytest

from bench import kernels as bench
from vtr.kernels.bimamba import backend_info

HAS_C = next(row for row in backend_info() if row.name == "c").available


def test_the_bench_reports_every_backend_and_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "REPEATS", {"c": 2, "eager": 1, "loop": 1})
    assert bench.main(["--widths", "16", "--length", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = {"loop", "eager", "c"} if HAS_C else {"loop", "eager"}
    assert {(r["pass"], r["backend"]) for r in rows} == {(p, n) for p in ("forward", "forward+backward") for n in names}
    assert all(r["times_faster_than_loop"] == 1 for r in rows if r["backend"] == "loop")
