"""Runs that are killed and resumed, also on another number of ranks, are the run that nothing happened to.

Short versions of `python -m bench.drills kills|ranks|faults`.
"""

from __future__ import annotations

import pytest

from bench.drills import Lab, difference, kill_drill, largest_difference, log_rows, shrink_drill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    steps = {"masked": 2, "multimodal": 4, "unmasked": 4, "refine": 2, "matching": 4}
    return Lab(tmp_path_factory.mktemp("lab"), steps=steps, more=("optim.lr=4e-4",))


@pytest.mark.parametrize(("ranks", "moments"), [(1, 1), (2, 2)])
def test_a_run_killed_at_random_moments_is_bitwise_the_whole_one(lab: Lab, ranks: int, moments: int) -> None:
    found, lines = kill_drill(lab, ranks, moments, seed=1)
    assert found == ""
    assert len(lines) == moments


def test_two_ranks_and_one_that_takes_over_from_a_sharded_run_compute_what_one_does(lab: Lab) -> None:
    one, two = (lab.folder / f"whole-{n}" for n in (1, 2))  # of the tests above
    if not (one / "model").is_dir() or not (two / "model").is_dir():
        one, two = lab.whole("whole-1", 1), lab.whole("whole-2", 2)
    assert difference(two, one, tolerance=1e-5) == ""
    assert largest_difference(log_rows(two), log_rows(one)) > 0  # two runs, not one twice
    assert difference(shrink_drill(lab, (2, 1), "shrinking", "--fsdp"), one, tolerance=1e-5) == ""
