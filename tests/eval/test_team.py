"""Ranks that work together: one failure ends all, and is told once."""

from __future__ import annotations

import pytest

from vtr.errors import VtrError
from vtr.eval.team import OtherRankFailed, Team


class Ranks(Team):
    """One rank's view, where the count of failures is given."""

    def __init__(self, rank: int, size: int, failed: int) -> None:
        super().__init__()
        self.rank, self.size, self.failed = rank, size, failed

    def _count(self, flag: bool) -> int:
        return self.failed


def fails() -> None:
    raise VtrError("the reason")


def test_a_rank_alone_returns_or_raises_what_its_work_does() -> None:
    assert Team().together(lambda: 7) == 7
    with pytest.raises(VtrError, match="the reason"):
        Team().together(fails)


def test_a_rank_that_did_not_fail_stops_when_another_did() -> None:
    with pytest.raises(OtherRankFailed, match="1 of 3 ranks failed"):
        Ranks(0, 3, 1).together(lambda: 7)


def test_a_rank_that_failed_tells_its_reason() -> None:
    with pytest.raises(VtrError, match="the reason"):
        Ranks(2, 3, 1).together(fails)


def test_a_failure_of_all_ranks_is_told_by_the_first() -> None:
    with pytest.raises(VtrError, match="the reason"):
        Ranks(0, 3, 3).together(fails)
    with pytest.raises(OtherRankFailed):
        Ranks(1, 3, 3).together(fails)
