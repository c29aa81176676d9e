"""Nearest segments of a library: exact while it is small, IVF-flat, -int8 or -PQ in index.faiss above, recall measured.

index.faiss holds the segments up to an id (`last`); later ones, its tail, are searched exactly from the file of
vectors, so that a library can be searched at any moment of an `add`. The description of the index (JSON) stands behind
FAISS's own bytes in the same file: both are replaced at once, and FAISS does not read that far.
n vectors, w their width, Q queries.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically
from vtr.library.index_types import TYPES, Description, index_type
from vtr.library.wanted import Wanted, lengths, unit
from vtr.library.where import Node

if TYPE_CHECKING:
    import faiss

EXACT_UP_TO = 50_000  # segments; exact search of 512-d vectors takes about 5 ms on two cores there
TAIL_UP_TO = 25_000  # segments behind an index before they are put into it
RECALL = 0.95  # recall@10 against exact search that nprobe and the re-scoring are raised to
SAMPLE_OF_LIST = 64  # vectors of the training sample for each list
ITERATIONS = 10  # of k-means: more gives no measurable recall
_REFINES = (1, 2, 4, 8, 16, 32, 64)  # candidates for each hit that are re-scored exactly, where the index holds codes
_QUERIES = 256  # half of them to choose by, half to measure with
_BLOCK = 32 << 20  # bytes of vectors that are handled at a time
_OLDER = 16  # candidates of an example for each hit, where an older index holds vectors of other lengths than 1
_UNIT = 1e-4  # lengths that differ by less from 1 are 1
_CHOICE = 4  # segments looked at for each that is wanted
_MAGIC = b"vtrindex"


@dataclass
class Index:
    """index.faiss in memory or mapped, with its description."""

    faiss: faiss.IndexIVF
    description: Description


def default_memory() -> int:
    """Bytes an index may take unless told otherwise: half of the machine's."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 4G or 1.5GiB (powers of 1024).

    Raises:
        UsageError: It is none.
    """
    words = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(words[-1:], 0)
    with contextlib.suppress(ValueError, OverflowError):
        size = int(float(words[:-1] if unit else words) * (unit or 1))
        if size > 0:
            return size
    raise UsageError(f"{text!r} is no size: expected as in 512M or 4G")


def plan(count: int, width: int, max_memory: int) -> Description:
    """Type and sizes of the index for `count` vectors, within `max_memory` bytes while it is built and searched."""
    if count <= EXACT_UP_TO:
        return {"type": "flat"}
    for kind in TYPES.values():
        found = kind.sizes(count, width, max_memory)
        if found is not None:
            return {**found, "lists": max(1, int(2 * count**0.5))}
    need = (min(kind.least(count, width) for kind in TYPES.values()) >> 20) + 1
    raise VtrError(
        lambda say: (
            f"{say.given('max_memory', f'{max_memory >> 20}M')} is too little for an index of {count} segments: "
            f"at least {need}M"
        )
    )


def build(vectors: np.ndarray, pairs: np.ndarray, *, max_memory: int | None = None) -> Index:
    """Train and fill an IVF index.

    Args:
        vectors: (rows, w) float32, usually memory-mapped; read in blocks.
        pairs: (n, 2) ids and rows of the segments, by id; more than EXACT_UP_TO.
        max_memory: Bytes; see `plan`.
    """
    import faiss

    budget = max_memory or default_memory()
    count, width = len(pairs), vectors.shape[1]
    described = plan(count, width, budget)
    random = np.random.default_rng(0)
    size = int(min(count, SAMPLE_OF_LIST * described["lists"], max(1024, budget // 4 // (width * 4))))
    described["lists"] = max(1, min(described["lists"], size // 16))
    index = index_type(described["type"]).make(faiss.IndexFlatIP(width), width, described)
    index.cp.niter = ITERATIONS
    index.cp.min_points_per_centroid = 1  # a smaller sample is the memory's wish: no warning
    on_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    if on_gpu:  # faiss-gpu: k-means there, it is most of the work
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(width))
    sample = np.sort(random.choice(count, size, replace=False))
    taken = _taken(vectors, pairs[sample, 1])
    described["lengths"] = bool(np.abs(lengths(taken) - 1).max() > _UNIT)
    index.train(unit(taken) if described["lengths"] else taken)
    built = Index(index, {**described, "trained_on": count, "sample": size, "count": 0, "last": 0})
    extend(built, vectors, pairs)
    tune(built, vectors, pairs)
    return built


def extend(index: Index, vectors: np.ndarray, pairs: np.ndarray) -> None:
    """Add segments (n, 2) ids and rows, all with ids above the index's last one."""
    for start, block in _blocks(vectors, pairs[:, 1]):
        block = unit(block) if index.description.get("lengths") else block
        index.faiss.add_with_ids(block, np.ascontiguousarray(pairs[start : start + len(block), 0]))
    if len(pairs):
        index.description["last"] = int(pairs[-1, 0])
    index.description["count"] = int(index.faiss.ntotal)


def ids_of(index: faiss.IndexIVF) -> np.ndarray:
    """All ids (n,) in an IVF index, in no order."""
    import faiss

    lists = index.invlists
    assert lists is not None
    parts = []
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            pointer = lists.get_ids(number)
            parts.append(faiss.rev_swig_ptr(pointer, size).copy())
            lists.release_ids(number, pointer)  # type: ignore[attr-defined]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def remove(index: Index, ids: np.ndarray) -> None:
    """Take ids out of an index that is in memory."""
    import faiss

    if len(ids):
        index.faiss.remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(ids)))
    index.description["count"] = int(index.faiss.ntotal)


def tune(index: Index, vectors: np.ndarray, pairs: np.ndarray) -> None:
    """Choose the smallest nprobe (and re-scoring) with recall@10 >= RECALL against exact search; write it down.

    Queries are means of two random vectors of the library: texts lie between the videos rather than on them, which is
    harder than a vector itself. Half of them choose, the other half measures; both must reach RECALL.

    Args:
        index: Holds exactly the segments `pairs`.
        vectors: (rows, w).
        pairs: (n, 2) ids and rows, by id.
    """
    random = np.random.default_rng(1)
    number = min(_QUERIES, len(pairs))
    picks = [np.sort(random.choice(len(pairs), number, replace=False)) for _ in range(2)]
    queries = _taken(vectors, pairs[picks[0], 1]) + _taken(vectors, pairs[random.permutation(picks[1]), 1])
    top = min(10, len(pairs))
    truth = pairs[exact(queries, vectors, pairs[:, 1], top)[1], 0]
    lists = index.faiss.nlist
    coded = not index_type(index.description["type"]).exact or index.description.get("lengths", False)
    index.faiss.parallel_mode = 0  # many queries: a thread for each
    probes, refine, recalls = 1, 1, np.zeros(2)
    while True:
        index.faiss.nprobe = probes
        for refine in _REFINES if coded else (1,):
            found = index.faiss.search(queries, top * refine)[1]
            if coded:
                found = _rescored(queries, found, vectors, pairs, top)
            hits = np.array([len(np.intersect1d(a, b)) / top for a, b in zip(truth, found)])
            recalls = np.array([hits[0::2].mean(), hits[1::2].mean()])
            if recalls.min() >= RECALL:
                break
        if recalls.min() >= RECALL or probes >= lists:
            break
        probes = min(2 * probes, lists)
    chosen: Description = {"nprobe": probes, "refine": refine, "recall_at_10": round(float(recalls[1]), 4)}
    index.description.update({**chosen, "measured_on": len(pairs)})


def _rescored(
    queries: np.ndarray, found: np.ndarray, vectors: np.ndarray, pairs: np.ndarray, count: int
) -> list[np.ndarray]:
    out = []
    for number, (query, ids) in enumerate(zip(queries, found)):
        if number % 16 == 0:
            _release(vectors)
        ids = ids[ids >= 0]
        rows = pairs[np.searchsorted(pairs[:, 0], ids), 1]
        scores = vectors[rows] @ query
        out.append(ids[np.argsort(-scores, kind="stable")[:count]])
    _release(vectors)
    return out


# -- exact search -----------------------------------------------------------------------------------------------------


def exact(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` of the given rows for each query: scores and places in `rows`, (Q, count), best first."""
    import faiss

    count = min(count, len(rows))
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    places = np.zeros((len(queries), 0), np.int64)
    for start, block in _blocks(vectors, rows):
        best, own = faiss.knn(queries, block, min(count, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, best], axis=1)
        places = np.concatenate([places, own + start], axis=1)
        if scores.shape[1] > count:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, places = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
    return scores, places


def _step(vectors: np.ndarray) -> int:
    return max(1, _BLOCK // (vectors.shape[1] * 4))


def _blocks(vectors: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, vectors) of runs of rows; neighbours in the file are not copied."""
    step = _step(vectors)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if part[-1] - part[0] == len(part) - 1 and (len(part) < 2 or bool((np.diff(part) == 1).all())):
            yield start, np.asarray(vectors[part[0] : part[-1] + 1])
        else:
            yield start, np.ascontiguousarray(vectors[part])
        if len(rows) > step:
            _release(vectors)


def _taken(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of these rows, read in blocks."""
    out = np.empty((len(rows), vectors.shape[1]), np.float32)
    step = _step(vectors)
    for start in range(0, len(rows), step):
        out[start : start + step] = vectors[rows[start : start + step]]
        if len(rows) > step:
            _release(vectors)
    return out


def _release(vectors: np.ndarray) -> None:
    """Let go of the pages of a mapped file that were read: they would count as this process's memory."""
    mapped = getattr(vectors, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


# -- the file ---------------------------------------------------------------------------------------------------------


def write(index: Index, path: Path) -> None:
    """Write index and description atomically and durably.

    Raises:
        VtrError: It cannot be written; the index that was there stays.
    """
    import faiss

    try:
        with write_atomically(path) as partial:
            faiss.write_index(index.faiss, str(partial))
            size, crc = partial.stat().st_size, _crc(partial)
            text = json.dumps({**index.description, "crc": crc}).encode()
            with partial.open("ab") as file:
                file.write(text + struct.pack("<QQ8s", size, len(text), _MAGIC))
    except (RuntimeError, OSError) as error:  # FAISS raises RuntimeError when the disk is full
        said = str(error).splitlines()[-1][-200:]
        raise VtrError(
            lambda say: (
                f"{path} cannot be written ({said}); the vectors are safe and searched exactly, "
                f"make room and call: {say.call('index compact')}"
            )
        ) from error


def _crc(path: Path, size: int | None = None) -> int:
    crc = 0
    with path.open("rb") as file:
        left = path.stat().st_size if size is None else size
        while left > 0 and (part := file.read(min(left, 1 << 22))):
            crc, left = zlib.crc32(part, crc), left - len(part)
    return crc


def describe(path: Path) -> Description | None:
    """The description in index.faiss; None where the file is missing, cut short or none of ours."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 24))
            size, length, magic = struct.unpack("<QQ8s", file.read(24))
            if magic != _MAGIC or size + length + 24 != end:
                return None
            file.seek(size)
            described = json.loads(file.read(length))
    except (OSError, ValueError, struct.error):
        return None
    if not isinstance(described, dict) or described.get("type") not in TYPES:
        return None  # of a kind that this vtr does not know: as if there were none
    known = cast(Description, described)
    known["bytes"] = size
    return known


def intact(path: Path, described: Description) -> bool:
    """Whether the bytes of index.faiss are those that were written."""
    try:
        return _crc(path, described["bytes"]) == described.get("crc")
    except OSError:
        return False


def read(path: Path, *, mapped: bool = True) -> Index | None:
    """The index, memory-mapped or (to be changed) in memory; None where it is missing or damaged: it can be derived.

    Files up to 256 MB, and those read into memory, have their checksum compared first; a larger mapped one would have
    to be read whole for that, which `vtr index verify` does.
    """
    import faiss

    described = describe(path)
    if described is None:
        return None
    if (not mapped or described["bytes"] <= 256 << 20) and not intact(path, described):
        return None
    try:
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0
        index = faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError):
        return None
    assert isinstance(index, faiss.IndexIVF)
    if mapped:
        # FAISS starts threads to read ahead; for one query at a time that costs ten times what it saves.
        lists = faiss.downcast_InvertedLists(index.invlists)  # type: ignore[arg-type]
        lists.prefetch_nthread = 0  # type: ignore[attr-defined]
    index.nprobe = described["nprobe"]
    index.parallel_mode = 1  # one query: its lists are shared among the threads
    return Index(index, described)


# -- searching --------------------------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """What a reader searches: an index or none, and the segments behind it.

    Attributes:
        base: index.faiss, or None.
        tail: (n, 2) ids and rows of the segments with ids above base's last one, by row.
        vectors: (rows, w).
        generation, part: Of the database.
        damaged: index.faiss is there and cannot be used.
        filters: Ids and rows of what a filter allows, of those that were asked for last.
    """

    base: Index | None
    tail: np.ndarray
    vectors: np.ndarray
    generation: int
    part: int
    damaged: bool = False
    filters: dict[Node, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tail) + (self.base.faiss.ntotal if self.base else 0)

    def nearest(
        self,
        wanted: Wanted,
        count: int,
        allowed: np.ndarray | None,
        rows_of: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids of the best `count` segments, best first.

        Args:
            wanted: The query.
            count: Ids that have been removed since the index was made may be among them.
            allowed: (n, 2) ids and rows, by id, of the segments that a filter allows; None: all.
            rows_of: Gives the row of each id, -1 where it is no more.
        """
        if allowed is not None and (self.base is None or len(allowed) <= EXACT_UP_TO):
            allowed = allowed[np.argsort(allowed[:, 1], kind="stable")]
            return _ordered([self._exact(wanted, allowed, count)], count)
        tail = self.tail
        if allowed is not None:
            tail = tail[np.isin(tail[:, 0], allowed[:, 0])]
        parts = [self._exact(wanted, tail, count)]
        if self.base is not None:
            parts.append(self._indexed(self.base, wanted, count, allowed, rows_of))
        return _ordered(parts, count)

    def _exact(self, wanted: Wanted, pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if not wanted.examples:
            scores, places = exact(wanted.directions, self.vectors, pairs[:, 1], count)
            return scores[0], pairs[places[0], 0]
        parts = [
            (wanted.scores(block), pairs[at : at + len(block), 0]) for at, block in _blocks(self.vectors, pairs[:, 1])
        ]
        return _ordered(parts, count) if parts else (np.zeros(0, np.float32), np.zeros(0, np.int64))

    def _indexed(
        self,
        base: Index,
        wanted: Wanted,
        count: int,
        allowed: np.ndarray | None,
        rows_of: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        chosen: faiss.IDSelector | None = None
        inside, lists = base.faiss.ntotal, base.faiss.nlist
        possible = inside
        if allowed is not None:
            bits = np.zeros(int(allowed[-1, 0]) + 1, bool)
            bits[allowed[:, 0]] = True
            chosen = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))  # type: ignore[call-arg, arg-type]
            possible = min(inside, int(np.searchsorted(allowed[:, 0], base.description["last"], side="right")))
        final, factor = _scoring(base.description, wanted)
        looked_for = min(count * factor, possible)
        if not looked_for:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        # nprobe was chosen for ten hits. Where more are wanted, or few of the nearest lists' are allowed, so many lists
        # are looked at that there is something to choose from.
        share = max(1.0, inside / max(1, possible))
        probes = int(share * max(base.faiss.nprobe, _CHOICE * looked_for * lists / max(1, inside)))
        while True:
            probes = min(probes, lists)
            parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=probes)  # type: ignore[call-arg]
            scores, ids = base.faiss.search(wanted.directions, looked_for, params=parameters)
            scores, ids = scores[ids >= 0], ids[ids >= 0]
            if len(ids) == looked_for * len(wanted.directions) or probes == lists:
                break
            probes *= 4
        if not final:
            ids = np.unique(ids)  # several directions may lead to the same segment
            rows = rows_of(ids)
            ids, rows = ids[rows >= 0], rows[rows >= 0]
            scores = wanted.scores(self.vectors[rows])
        return scores, ids


def _scoring(description: Description, wanted: Wanted) -> tuple[bool, int]:
    """Whether the index's own scores are those of the query; candidates for each hit, where they are not."""
    varied = description.get("lengths")
    if wanted.examples:
        final = varied is not None and wanted.words is None and wanted.plain and wanted.weight == 1
        older = varied is None or wanted.words is not None
    else:
        final, older = not varied, False
    return final and index_type(description["type"]).exact, max(description["refine"], _OLDER if older else 1)


def _ordered(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([p[0] for p in parts])
    ids = np.concatenate([p[1] for p in parts])
    order = np.argsort(-scores, kind="stable")[:count]
    return scores[order], ids[order]
