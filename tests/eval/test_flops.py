"""Parameters and multiply-adds against the paper's tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
from vtr.eval.flops import PRINTED, Printed, agrees, attention_cost, config_of, cost, parameters


@pytest.mark.parametrize("row", PRINTED, ids=lambda r: f"{r.size}-{r.frames}x{r.pixels}")
def test_every_printed_figure_follows_from_the_papers_rule_but_for_its_misprint(row: Printed) -> None:
    assert agrees(row) == (not row.note)
    count = parameters(config_of(row))
    # The printed millions are rounded, and do not count longer tables of positions.
    assert count == pytest.approx(row.params, abs=0.6)
    if row.exact_params:
        assert count == pytest.approx(row.exact_params, abs=5e-4)


def test_cost_is_linear_in_frames_and_attention_is_not() -> None:
    tiny = VIDEOMAMBA_SIZES["tiny"]
    assert cost(tiny, 64).total / cost(tiny, 32).total == pytest.approx(2, rel=1e-3)
    assert attention_cost(192, 12, 64) / attention_cost(192, 12, 32) > 3


def test_the_scan_is_counted_beside_the_papers_rule() -> None:
    middle = cost(VIDEOMAMBA_SIZES["middle"], 1)
    assert middle.scan == pytest.approx(2.09, abs=0.01)
    assert middle.total == pytest.approx(16.3, abs=0.05)
    assert cost(replace(VIDEOMAMBA_SIZES["middle"], d_state=32), 1).scan == pytest.approx(2 * middle.scan)
