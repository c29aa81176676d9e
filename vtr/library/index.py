"""The FAISS index of a library: exact while it is small, IVF with a measured recall above."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vtr.errors import VtrError

EXACT_UP_TO = 50_000  # segments; exact search takes about 10 ms on one core there
RECALL = 0.95  # recall@10 against exact search that nprobe is raised to


def build(vectors: np.ndarray, ids: np.ndarray, *, exact_up_to: int = EXACT_UP_TO) -> tuple[Any, dict[str, Any]]:
    """Inner-product index over vectors (n, width) with these ids (n,); returns it and a description.

    Above `exact_up_to` vectors it is an IVF index whose nprobe is the smallest power of two that reaches RECALL for
    recall@10, measured with means of two random vectors of the library as queries.
    """
    import faiss

    count, width = vectors.shape
    data = np.ascontiguousarray(vectors, dtype=np.float32)
    if count <= exact_up_to:
        index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        if count:
            index.add_with_ids(data, ids)
        return index, {"type": "flat", "recall_at_10": 1.0}
    lists = max(16, int(4 * count**0.5))
    random = np.random.default_rng(0)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(data[np.sort(random.choice(count, min(count, 40 * lists), replace=False))])
    index.add_with_ids(data, ids)
    # Texts lie between the videos rather than on them: the mean of two vectors is a harder, fairer query than one.
    queries = data[random.choice(count, 256, replace=False)] + data[random.choice(count, 256, replace=False)]
    _, exact = faiss.knn(queries, data, 10, metric=faiss.METRIC_INNER_PRODUCT)
    truth = ids[exact]
    probes, recall = 1, 0.0
    while True:
        index.nprobe = probes
        found = index.search(queries, 10)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(truth, found)]) / 10)
        if recall >= RECALL or probes >= lists:
            break
        probes = min(2 * probes, lists)
    return index, {"type": "ivf-flat", "lists": lists, "nprobe": probes, "recall_at_10": round(recall, 4)}


def write(index: Any, path: Path) -> None:
    """Write the index atomically."""
    import faiss

    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        faiss.write_index(index, str(partial))
        os.replace(partial, path)
    except (RuntimeError, OSError) as error:  # FAISS raises RuntimeError when the disk is full
        partial.unlink(missing_ok=True)
        raise VtrError(
            f"{path} cannot be written ({str(error).splitlines()[-1][:200]}); the vectors are safe"
        ) from error


def read(path: Path) -> Any | None:
    """The index, or None where the file is missing or damaged: it can be derived again."""
    import faiss

    if not path.is_file():
        return None
    try:
        return faiss.read_index(str(path))
    except RuntimeError:
        return None


def nearest(index: Any, vector: np.ndarray, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` (scores, ids) for one vector (1, width), best first, among `allowed` ids where given."""
    import faiss

    count = min(count, index.ntotal if allowed is None else len(allowed))
    if count == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    parameters: Any = None
    if allowed is not None:
        chosen = faiss.IDSelectorBatch(allowed)
        if isinstance(index, faiss.IndexIVF):
            # Few of the allowed ones may lie in the nearest lists: the rarer they are, the more lists are looked at.
            probes = min(index.nlist, int(index.nprobe * max(1.0, index.ntotal / max(len(allowed), 1))))
            parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=probes)  # type: ignore[call-arg]
        else:
            parameters = faiss.SearchParameters(sel=chosen)  # type: ignore[call-arg]
    scores, ids = index.search(np.ascontiguousarray(vector, np.float32), count, params=parameters)
    real = ids[0] >= 0
    return scores[0][real], ids[0][real]
