"""The watcher: a cause, a silence or a lost store ends every rank; an orderly end ends none."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch.distributed import HashStore

from vtr.pretrain.watch import Watch


class Rank:
    """A watcher whose end is noted instead of ending the process."""

    def __init__(self, rank: int, store: Any, silence: float) -> None:
        self.cause: str | None = None
        self.ended = threading.Event()
        self.watch = Watch(rank, 2, store, beat=0.05, silence=silence, leave=self._leave)
        self.watch.start()

    def _leave(self, cause: str) -> None:
        self.cause = cause
        self.ended.set()


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Any:
    """Two of them, that no pause of a busy machine makes silent for each other unless the test says how long that takes."""
    store, silence = HashStore(), getattr(request, "param", 120.0)
    made = [Rank(0, store, silence), Rank(1, store, silence)]
    yield made
    for rank in made:
        rank.watch.stop()


def test_a_failing_rank_ends_the_others_with_its_cause(ranks: list[Rank]) -> None:
    ranks[1].watch.fail("the disk is full")
    assert ranks[0].ended.wait(60)
    assert ranks[0].cause is not None
    assert "rank 1" in ranks[0].cause
    assert "the disk is full" in ranks[0].cause
    assert not ranks[1].ended.is_set()


@pytest.mark.parametrize("ranks", [0.5], indirect=True)
def test_a_silent_rank_is_gone(ranks: list[Rank]) -> None:
    ranks[1].watch._done.set()  # as if it were stopped: no heartbeat, no farewell
    assert ranks[0].ended.wait(60)
    assert ranks[0].cause is not None
    assert "rank 1 has not been heard of" in ranks[0].cause


@pytest.mark.parametrize("ranks", [0.5], indirect=True)
def test_a_rank_that_is_done_is_not_missed(ranks: list[Rank]) -> None:
    ranks[1].watch.stop()
    assert not ranks[0].ended.wait(1.0)
    assert ranks[0].watch.gone(60.0) == []


def test_it_names_the_ranks_whose_heart_has_stopped(ranks: list[Rank]) -> None:
    assert ranks[0].watch.gone(60.0) == []
    ranks[1].watch._done.set()
    assert ranks[1].watch._thread is not None
    ranks[1].watch._thread.join()
    assert ranks[0].watch.gone(0.3) == [1]


class Broken:
    """The store of a rank 0 that has died."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("connection refused")


def test_a_store_that_no_longer_answers_is_the_end_of_rank_0(ranks: list[Rank]) -> None:
    ranks[1].watch._store = Broken()
    assert ranks[1].ended.wait(60)
    assert ranks[1].cause is not None
    assert "rank 0 is gone" in ranks[1].cause


def test_a_single_process_watches_nothing() -> None:
    alone = Watch(0, 1).start()
    assert not alone.active
    alone.fail("something")
    alone.stop()
