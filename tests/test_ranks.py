"""Ranks that work together: one failure ends all, and is told once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest

from vtr.errors import UsageError, VtrError
from vtr.ranks import OtherRankFailed, Ranks, report

R = TypeVar("R")


class Team(Ranks):
    """One rank's view, where what the others say is given."""

    def __init__(self, rank: int, said: Sequence[str | None]) -> None:
        super().__init__()
        self.rank, self.size, self.said = rank, len(said), said

    def sums(self, values: Sequence[float]) -> list[float]:
        return [float(sum(text is not None for text in self.said)), *values[1:]]

    def gathered(self, value: R) -> list[R]:
        return list(self.said)  # type: ignore[arg-type]


def fails() -> None:
    raise VtrError("the reason")


def test_a_rank_alone_returns_or_raises_what_its_work_does() -> None:
    assert Ranks().together(lambda: 7) == 7
    with pytest.raises(VtrError, match="the reason"):
        Ranks().together(fails)


def test_a_rank_that_did_not_fail_stops_with_the_others_reason() -> None:
    with pytest.raises(OtherRankFailed, match="rank 1: the disk is full"):
        Team(0, [None, "the disk is full", None]).together(lambda: 7)


def test_a_rank_that_failed_tells_its_reason() -> None:
    with pytest.raises(VtrError, match="the reason"):
        Team(2, [None, None, "the reason"]).together(fails)


def test_a_failure_of_all_ranks_is_told_by_the_first() -> None:
    said = ["the reason"] * 3
    with pytest.raises(VtrError, match=r"^the reason$"):
        Team(0, said).together(fails)
    with pytest.raises(OtherRankFailed):
        Team(1, said).together(fails)


def test_what_fails_on_the_main_process_fails_everywhere_and_nothing_runs_on_the_others() -> None:
    with pytest.raises(OtherRankFailed, match="rank 0: full"):
        Team(1, ["full", None]).main_only(fails)
    Team(1, [None, None]).main_only(fails)


def test_numbers_are_summed_beside_the_exchange_of_failures() -> None:
    assert Ranks().settle(None, [2.0, 3.0]) == [2.0, 3.0]


def test_an_error_is_said_once_a_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vtr.ranks.time.sleep", lambda seconds: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    said: list[str | None] = [None, "full", None, None]
    for rank, error, expected in (
        (1, VtrError("full"), "vtr: full"),  # its own
        (0, OtherRankFailed(said), ""),  # the first machine has said it
        (2, OtherRankFailed(said), "vtr: rank 2 stops: rank 1: full"),
        (3, OtherRankFailed(said), ""),
        (0, UsageError("no such flag"), "vtr: no such flag"),
        (1, UsageError("no such flag"), ""),
    ):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        assert report(error) == error.exit_code
        assert capsys.readouterr().err.strip() == expected
