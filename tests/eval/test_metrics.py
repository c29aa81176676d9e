"""Retrieval metrics on matrices small enough to check by hand, and on a published one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vtr.errors import VtrError
from vtr.eval.metrics import main, ranks, recalls, retrieval_metrics, tied_queries


def test_ranks_of_a_small_matrix() -> None:
    scores = np.array([[3.0, 1, 2], [1, 2, 3], [1, 2, 0]])
    assert ranks(scores).tolist() == [1, 2, 3]
    m = retrieval_metrics(scores)
    assert m.r1 == pytest.approx(100 / 3)
    assert (m.r5, m.median_rank, m.mean_rank) == (100, 2, 2)


def test_a_model_that_scores_everything_alike_gets_the_middle_rank() -> None:
    m = retrieval_metrics(np.zeros((101, 101)))
    assert (m.r1, m.r10, m.median_rank) == (pytest.approx(100 / 101), pytest.approx(1000 / 101), 51)


def test_the_best_of_several_right_answers_counts() -> None:
    assert ranks(np.array([[5.0, 9, 7, 8]]), [[0, 2]]).tolist() == [3]


def test_nan_is_refused_not_ranked() -> None:
    with pytest.raises(VtrError, match="NaN"):
        ranks(np.array([[np.nan]]))


def test_tied_answers_count_as_in_random_order_of_them() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (6, 12)).astype(float)
    truth = [[0], [1, 2], [3], [4, 5, 6], [7], [8, 11]]
    shuffled, found = [], []
    for _ in range(4000):
        order = scores + 0.5 * rng.random(scores.shape)  # breaks ties, moves nothing else
        shuffled.append(ranks(order, truth))
    for k in (1, 5, 10):
        found.append(100 * float((np.stack(shuffled) <= k).mean()))
    assert recalls(scores, truth) == pytest.approx(found, abs=1.5)
    np.testing.assert_allclose(ranks(scores, truth), np.stack(shuffled).mean(0), atol=0.15)


def test_a_right_answer_wins_or_loses_its_ties_when_asked() -> None:
    scores = np.array([[1.0, 1, 1, 0]])
    assert [float(ranks(scores, [[1]], ties)[0]) for ties in ("won", "fair", "lost")] == [1, 2, 3]
    assert recalls(scores, [[1]], (1, 2), "won") == [100, 100]
    assert recalls(scores, [[1]], (1, 2)) == pytest.approx([100 / 3, 200 / 3])


def test_a_huge_score_among_the_wrong_answers_makes_no_ties() -> None:
    scores = np.array([[0.5, 0.4, -1e9, 0.3], [0.2, 0.6, 1e9, 0.1], [-1e9, 0.2, 0.3, 0.1]], dtype=np.float32)
    assert ranks(scores, [[0], [1], [2]]).tolist() == [1, 2, 1]


def test_scores_apart_by_rounding_alone_are_tied() -> None:
    apart = np.array([[0.5, 0.5 + 6e-8, 0.1], [0.3, 0.2, 0.1], [0.0, 0.1, 0.9]], dtype=np.float32)
    alike = np.array([[0.5, 0.5, 0.1], [0.3, 0.2, 0.1], [0.0, 0.1, 0.9]], dtype=np.float32)
    assert ranks(apart).tolist() == ranks(alike).tolist() == [1.5, 2, 1]
    assert ranks(np.array([[0.5, 0.5 + 1e-4], [0.0, 1.0]], dtype=np.float32)).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("transposed", "stated"), [(False, (48.0, 71.3, 81.4, 2.0, 13.65)), (True, (46.9, 74.9, 83.7, 2.0, 9.78))]
)
def test_a_published_matrix_gives_its_stated_figures_where_ties_are_won(
    transposed: bool, stated: tuple[float, ...], shared: Path
) -> None:
    matrix = np.load(shared / "data" / "misc" / "msrvtt_1kA_dgl_vitb16_sim_matrix.npy")
    m = retrieval_metrics(matrix.T if transposed else matrix, ties="won")
    assert (round(m.r1, 1), round(m.r5, 1), round(m.r10, 1), m.median_rank, round(m.mean_rank, 2)) == stated
    assert tied_queries(matrix.T if transposed else matrix) == (9 if transposed else 0)


def test_the_command_refuses_what_is_no_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"no")
    assert main([str(path)]) == 1
    assert "x.npy" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.longdouble, np.int8, np.uint8, np.int64, np.bool_])
def test_every_real_type_is_measured_as_its_numbers_are(kind: type) -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 120, (40, 40)).astype(kind)
    assert retrieval_metrics(scores) == retrieval_metrics(scores.astype(float))


def test_bfloat16_of_torch_is_measured_as_floats() -> None:
    scores = torch.randn(30, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert retrieval_metrics(scores.float().numpy()) == retrieval_metrics(scores)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (np.eye(3) * 1j, "complex numbers"),
        (np.array([["a"]]), "<U1 values"),
        (np.array([[None]]), "objects"),
        (np.zeros((2, 2), "V2"), "save float32"),
        ([[1.0], [1.0, 2.0]], "not a matrix of numbers"),
        (np.zeros((0, 3)), "0x3 matrix has no scores"),
        (np.zeros((2, 3)), "2x3 matrix is not square"),
        (np.zeros(3), "two dimensions, this one 1"),
    ],
)
def test_what_is_no_matrix_of_real_numbers_is_refused_in_one_line(scores: object, says: str) -> None:
    with pytest.raises(VtrError, match=says) as error:
        retrieval_metrics(scores)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("truth", "says"),
    [([[0]], "1 queries for a matrix of 2"), ([[0], []], "query 1 has no"), ([[0], [3]], "no right answer 3 among 3")],
)
def test_right_answers_that_do_not_fit_are_refused(truth: list[list[int]], says: str) -> None:
    with pytest.raises(VtrError, match=says):
        ranks(np.zeros((2, 3)), truth)


def test_the_command_takes_the_right_columns_of_a_matrix_that_is_not_square(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.repeat(np.eye(3), 5, 0)[:, [0, 1, 2, 0]] + np.array([0, 0, 0, -0.5])
    np.save(tmp_path / "m.npy", scores)
    (tmp_path / "truth.json").write_text(json.dumps([i // 5 for i in range(15)]))
    assert main([str(tmp_path / "m.npy")]) == 1
    assert "--truth FILE.json" in capsys.readouterr().err
    assert main([str(tmp_path / "m.npy"), "--truth", str(tmp_path / "truth.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows_to_columns"]["r1"], found["columns_to_rows"]["r1"]) == (100, 100)
    (tmp_path / "truth.json").write_text("{")
    assert main([str(tmp_path / "m.npy"), "--truth", str(tmp_path / "truth.json")]) == 1


def test_several_arrays_in_one_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "m.npz", first=np.eye(2), second=np.eye(3))
    assert main([str(tmp_path / "m.npz")]) == 1
    assert "several arrays (first, second)" in capsys.readouterr().err
