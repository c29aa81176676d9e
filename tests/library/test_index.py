"""The FAISS index: exact while small, IVF with a recall that was measured, filters inside the search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtr.errors import VtrError
from vtr.library import index as indexes


def clustered(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(200, width))
    vectors = centres[random.integers(0, 200, count)] + 0.3 * random.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute(vectors: np.ndarray, query: np.ndarray, count: int) -> list[int]:
    return np.argsort(-(vectors @ query), kind="stable")[:count].tolist()


def test_a_small_index_is_exact_and_keeps_lengths() -> None:
    vectors = clustered(300) * np.linspace(0.2, 1.0, 300, dtype=np.float32)[:, None]  # means of unit vectors
    index, described = indexes.build(vectors, np.arange(300) + 1000)
    query = clustered(1, seed=5)
    scores, ids = indexes.nearest(index, query, 10, None)
    assert described == {"type": "flat", "recall_at_10": 1.0}
    assert (ids - 1000).tolist() == brute(vectors, query[0], 10)
    np.testing.assert_allclose(scores, vectors[ids - 1000] @ query[0], rtol=1e-5)


def test_a_large_index_reaches_the_recall_it_writes_down(tmp_path: Path) -> None:
    vectors = clustered(6000)
    ids = np.arange(6000) * 3
    index, described = indexes.build(vectors, ids, exact_up_to=1000)
    assert described["type"] == "ivf-flat"
    assert described["recall_at_10"] >= indexes.RECALL
    indexes.write(index, tmp_path / "index.faiss")
    loaded = indexes.read(tmp_path / "index.faiss")
    assert loaded is not None
    assert loaded.nprobe == described["nprobe"] < described["lists"]
    queries = clustered(50, seed=9)
    found = [indexes.nearest(loaded, q[None], 10, None)[1] for q in queries]
    recall = np.mean(
        [len({3 * i for i in brute(vectors, q, 10)} & set(f.tolist())) / 10 for q, f in zip(queries, found)]
    )
    assert recall > 0.9


@pytest.mark.parametrize("exact_up_to", [10_000, 1000])
def test_a_rare_filter_still_finds_what_it_allows(exact_up_to: int) -> None:
    vectors = clustered(3000)
    index, _ = indexes.build(vectors, np.arange(3000), exact_up_to=exact_up_to)
    allowed = np.array([7, 1500, 2999])
    scores, ids = indexes.nearest(index, clustered(1, seed=3), 10, allowed)
    assert sorted(ids.tolist()) == allowed.tolist()
    assert (np.diff(scores) <= 0).all()


def test_a_damaged_or_missing_index_file_is_none(tmp_path: Path) -> None:
    assert indexes.read(tmp_path / "index.faiss") is None
    (tmp_path / "index.faiss").write_bytes(b"not an index")
    assert indexes.read(tmp_path / "index.faiss") is None


def test_an_index_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    index, _ = indexes.build(clustered(10), np.arange(10))
    with pytest.raises(VtrError, match="cannot be written") as error:
        indexes.write(index, tmp_path / "gone" / "index.faiss")
    assert "\n" not in str(error.value)
