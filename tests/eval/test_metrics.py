"""Retrieval metrics on matrices small enough to check by hand, and on a published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtr.errors import VtrError
from vtr.eval.metrics import main, ranks, retrieval_metrics


def test_ranks_of_a_small_matrix() -> None:
    scores = np.array([[3.0, 1, 2], [1, 2, 3], [1, 2, 0]])
    assert ranks(scores).tolist() == [1, 2, 3]
    m = retrieval_metrics(scores)
    assert m.r1 == pytest.approx(100 / 3)
    assert (m.r5, m.median_rank, m.mean_rank) == (100, 2, 2)


def test_a_model_that_scores_everything_alike_gets_the_middle_rank() -> None:
    m = retrieval_metrics(np.zeros((101, 101)))
    assert (m.r1, m.median_rank) == (0, 51)


def test_the_best_of_several_right_answers_counts() -> None:
    assert ranks(np.array([[5.0, 9, 7, 8]]), [[0, 2]]).tolist() == [3]


def test_nan_is_refused_not_ranked() -> None:
    with pytest.raises(VtrError, match="NaN"):
        ranks(np.array([[np.nan]]))


def test_a_published_matrix_gives_its_published_recalls(shared: Path) -> None:
    matrix = np.load(shared / "data" / "misc" / "msrvtt_1kA_dgl_vitb16_sim_matrix.npy")
    m = retrieval_metrics(matrix)
    assert (round(m.r1, 1), round(m.r5, 1), round(m.r10, 1), m.median_rank, round(m.mean_rank, 2)) == (
        48.0,
        71.3,
        81.4,
        2,
        13.65,
    )


def test_the_command_refuses_what_is_no_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"no")
    assert main([str(path)]) == 1
    assert "x.npy" in capsys.readouterr().err
