"""The FAISS index: type by size and memory, recall that was measured, filters inside the search, its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtr.errors import UsageError, VtrError
from vtr.library import index as indexes
from vtr.library.wanted import Wanted

FLAT_MEMORY = 1 << 30  # enough for the vectors themselves
WIDTH = 32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of a few thousand vectors, as they are of many."""
    monkeypatch.setattr(indexes, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(indexes, "_BLOCK", 700 * WIDTH * 4)  # several blocks


def clustered(count: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(200, width))
    vectors = centres[random.integers(0, 200, count)] + 0.3 * random.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute(vectors: np.ndarray, query: np.ndarray, count: int) -> list[int]:
    return np.argsort(-(vectors @ query), kind="stable")[:count].tolist()


def pairs_of(count: int, step: int = 3) -> np.ndarray:
    """Ids and rows: ids are not rows."""
    return np.stack([1 + step * np.arange(count), np.arange(count)], axis=1)


def snapshot(
    index: indexes.Index | None, vectors: np.ndarray, pairs: np.ndarray
) -> tuple[indexes.Snapshot, dict[int, int]]:
    last = index.description["last"] if index else 0
    return indexes.Snapshot(index, pairs[pairs[:, 0] > last], vectors, 0, 0), dict(pairs.tolist())


def found(
    index: indexes.Index | None, vectors: np.ndarray, pairs: np.ndarray, query: np.ndarray, allowed: Any = None
) -> list[int]:
    """Rows of the nearest ten."""
    shot, rows = snapshot(index, vectors, pairs)
    looked_up = lambda ids: np.array([rows.get(int(i), -1) for i in ids], np.int64)  # noqa: E731
    scores, ids = shot.nearest(Wanted(words=query), 10, allowed, looked_up)
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(scores, vectors[[rows[int(i)] for i in ids]] @ query, atol=1e-5)
    return [rows[int(i)] for i in ids]


def recall(index: indexes.Index, vectors: np.ndarray, pairs: np.ndarray) -> float:
    queries = clustered(100, seed=9)
    kept = vectors[pairs[:, 1]]
    hits = [
        len({int(pairs[i, 1]) for i in brute(kept, q, 10)} & set(found(index, vectors, pairs, q))) / 10 for q in queries
    ]
    return float(np.mean(hits))


@pytest.mark.parametrize(
    ("count", "memory", "kind"),
    [
        (1000, 1 << 20, "flat"),
        (1_000_000, 8 << 30, "ivf-flat"),
        (1_000_000, 2 << 30, "ivf-int8"),
        (1_000_000, 1 << 30, "ivf-pq"),
        (10_000_000, 8 << 30, "ivf-pq"),
    ],
)
def test_the_type_follows_size_and_memory(count: int, memory: int, kind: str) -> None:
    assert indexes.plan(count, 512, memory)["type"] == kind


def test_less_memory_gives_smaller_codes_and_too_little_is_one_line() -> None:
    sizes = [indexes.plan(10_000_000, 512, memory << 28)["code_bytes"] for memory in (32, 16, 6)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    with pytest.raises(VtrError, match=r"max_memory=100M is too little .* at least \d+M") as error:
        indexes.plan(10_000_000, 512, 100 << 20)
    assert "\n" not in str(error.value)
    least = int(str(error.value).split("at least ")[1].removesuffix("M"))
    assert indexes.plan(10_000_000, 512, least << 20)["type"] == "ivf-pq"


@pytest.mark.parametrize(("text", "size"), [("4G", 4 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("100", 100)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert indexes.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "four", "1X", "nan", "inf", "1e400G"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        indexes.parse_size(text)


def test_without_an_index_search_is_exact_and_keeps_lengths() -> None:
    vectors = clustered(3000) * np.linspace(0.2, 1.0, 3000, dtype=np.float32)[:, None]  # means of unit vectors
    query = clustered(1, seed=5)[0]
    assert found(None, vectors, pairs_of(3000), query) == brute(vectors, query, 10)


def test_exact_search_takes_rows_in_any_order_and_fewer_than_asked_for() -> None:
    vectors = clustered(3000)
    rows = np.array([2999, 5, 1700])
    scores, places = indexes.exact(vectors[[1700]], vectors, rows, 10)
    assert rows[places[0]][0] == 1700
    assert sorted(places[0].tolist()) == [0, 1, 2]
    assert (np.diff(scores[0]) <= 0).all()


@pytest.mark.parametrize(("memory", "kind"), [(FLAT_MEMORY, "ivf-flat"), (1 << 20, "ivf-int8"), (1 << 19, "ivf-pq")])
def test_an_index_reaches_the_recall_it_writes_down(tmp_path: Path, memory: int, kind: str) -> None:
    vectors, pairs = clustered(6000), pairs_of(6000)
    index = indexes.build(vectors, pairs, max_memory=memory)
    assert index.description["type"] == kind
    assert index.description["recall_at_10"] >= indexes.RECALL
    indexes.write(index, tmp_path / "index.faiss")
    loaded = indexes.read(tmp_path / "index.faiss")
    assert loaded is not None
    assert {k: v for k, v in loaded.description.items() if k not in ("crc", "bytes")} == index.description
    assert loaded.faiss.nprobe == index.description["nprobe"]
    assert recall(loaded, vectors, pairs) > 0.9


def test_recall_is_raised_by_looking_at_more_lists() -> None:
    vectors, pairs = np.random.default_rng(0).normal(size=(4000, WIDTH)).astype(np.float32), pairs_of(4000)
    index = indexes.build(vectors, pairs, max_memory=FLAT_MEMORY)  # no clusters: neighbours are in many lists
    assert index.description["nprobe"] > 8
    assert index.description["recall_at_10"] >= indexes.RECALL


@pytest.mark.parametrize("memory", [FLAT_MEMORY, 1 << 19])
def test_later_segments_are_found_before_and_after_they_are_put_into_the_index(memory: int) -> None:
    vectors, pairs = clustered(5000), pairs_of(5000)
    index = indexes.build(vectors, pairs[:4000], max_memory=memory)
    query = vectors[4500]
    assert found(index, vectors, pairs, query)[0] == 4500  # in the tail
    indexes.extend(index, vectors, pairs[4000:])
    assert (index.description["count"], index.description["last"]) == (5000, int(pairs[-1, 0]))
    assert found(index, vectors, pairs, query)[0] == 4500
    assert sorted(indexes.ids_of(index.faiss).tolist()) == pairs[:, 0].tolist()


def test_removed_segments_leave_the_index() -> None:
    vectors, pairs = clustered(3000), pairs_of(3000)
    index = indexes.build(vectors, pairs, max_memory=FLAT_MEMORY)
    indexes.remove(index, pairs[:100, 0])
    assert index.description["count"] == 2900
    assert not np.isin(indexes.ids_of(index.faiss), pairs[:100, 0]).any()
    assert all(row >= 100 for row in found(index, vectors, pairs[100:], vectors[0]))


@pytest.mark.parametrize("memory", [FLAT_MEMORY, 1 << 19])
@pytest.mark.parametrize("every", [1000, 2])
def test_a_filter_finds_what_it_allows_rare_or_not(monkeypatch: pytest.MonkeyPatch, memory: int, every: int) -> None:
    vectors, pairs = clustered(6000), pairs_of(6000)
    index = indexes.build(vectors, pairs[:5000], max_memory=memory)
    allowed = pairs[::every]
    hits = []
    for query in clustered(30, seed=3):
        got = found(index, vectors, pairs, query, allowed)
        assert all(row % every == 0 for row in got)
        hits.append(len(set(got) & {every * i for i in brute(vectors[::every], query, 10)}) / min(10, len(allowed)))
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("memory", [FLAT_MEMORY, 1 << 19])
def test_as_many_as_are_asked_for_are_found_though_they_lie_in_many_lists(memory: int) -> None:
    vectors, pairs = clustered(4000), pairs_of(4000)
    index = indexes.build(vectors, pairs, max_memory=memory)
    shot, rows = snapshot(index, vectors, pairs)
    looked_up = lambda ids: np.array([rows[int(i)] for i in ids])  # noqa: E731
    assert index.description["nprobe"] * 4 < index.description["lists"]
    every = shot.nearest(Wanted(words=vectors[0]), 4000, None, looked_up)[1]
    assert sorted(every.tolist()) == pairs[:, 0].tolist()
    half = shot.nearest(Wanted(words=vectors[0]), 4000, pairs[:2000], looked_up)[1]
    assert sorted(half.tolist()) == pairs[:2000, 0].tolist()
    best = shot.nearest(Wanted(words=vectors[0]), 400, None, looked_up)[1]
    assert len(best) == 400
    assert len({rows[int(i)] for i in best} & set(brute(vectors, vectors[0], 400))) > 360


def test_no_index_is_read_from_a_missing_foreign_or_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    assert indexes.read(path) is None
    path.write_bytes(b"not an index")
    assert indexes.read(path) is None
    vectors, pairs = clustered(2000), pairs_of(2000)
    indexes.write(indexes.build(vectors, pairs, max_memory=FLAT_MEMORY), path)
    whole = path.read_bytes()
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        b"\0" * 100 + whole[100:],
        whole[:5000] + b"?" + whole[5001:],
    ):
        path.write_bytes(damaged)
        assert indexes.read(path) is None
        assert indexes.read(path, mapped=False) is None
    path.write_bytes(whole)
    assert indexes.read(path) is not None


def test_a_mapped_index_outlives_its_replacement(tmp_path: Path) -> None:
    path, vectors, pairs = tmp_path / "index.faiss", clustered(3000), pairs_of(3000)
    indexes.write(indexes.build(vectors, pairs, max_memory=FLAT_MEMORY), path)
    held = indexes.read(path)
    assert held is not None
    expected = found(held, vectors, pairs, vectors[7])
    indexes.write(indexes.build(vectors[:2000], pairs[:2000], max_memory=FLAT_MEMORY), path)
    assert found(held, vectors, pairs, vectors[7]) == expected


def test_an_index_that_cannot_be_written_is_one_line_and_leaves_the_old_one(tmp_path: Path) -> None:
    index = indexes.build(clustered(2000), pairs_of(2000), max_memory=FLAT_MEMORY)
    with pytest.raises(VtrError, match="cannot be written") as error:
        indexes.write(index, tmp_path / "gone" / "index.faiss")
    assert "\n" not in str(error.value)
    assert "Library.compact" in str(error.value)


def test_faiss_gpu_trains_the_index_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    asked = []

    def on_gpus(index: Any) -> Any:  # what faiss-gpu would move to the GPUs
        asked.append(type(index).__name__)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", on_gpus, raising=False)
    vectors, pairs = clustered(3000), pairs_of(3000)
    index = indexes.build(vectors, pairs, max_memory=FLAT_MEMORY)
    assert asked == ["IndexFlatIP"]
    assert recall(index, vectors, pairs) > 0.9
