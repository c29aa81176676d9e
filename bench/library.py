"""Times a library of generated vectors: build, memory, recall@10, latency, and the same with FAISS called directly.

python -m bench.library --out /tmp/bench                               # a million vectors of width 512
python -m bench.library --out /tmp/bench --max-memory 1G --threads 2 --json
python -m bench.library --out /tmp/small --count 3000 --queries 20     # a moment, to try it

Vectors are unit vectors around random centres (`--cluster` of them to a centre, cosine to it about 0.7), so that
neighbours exist, as in embeddings of videos, and as they do not in random vectors. Queries are new vectors of the same
kind. The text encoder of the full query is BERT-base with random weights: its time is that of a trained one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.command import parsed
from vtr.errors import UsageError, reports_errors


@dataclass(frozen=True, kw_only=True)
class LibrarySettings:
    """Build and query a library of generated vectors."""

    out: Path
    """A folder; embeddings that are there are used again."""
    count: int = 1_000_000
    """Vectors."""
    width: int = 512
    """Of a vector."""
    cluster: int = 100
    """Vectors to a centre."""
    max_memory: str | None = None
    """As of vtr index build: 1G."""
    threads: int = 2
    """Of FAISS and torch."""
    queries: int = 1000
    """Latency is the median of so many, recall their mean."""
    json: bool = False
    """Print the figures as JSON."""


_PART = 10_000  # vectors of a generated shard
_MOMENTS = 10  # segments of a generated video
_QUESTION = "a dog catches a frisbee on a meadow"


def vectors(number: int, count: int, width: int, centres: int) -> np.ndarray:
    """Part `number` of the generated vectors (count, width): seeded, unit length."""
    middle = np.random.default_rng(0).standard_normal((centres, width), dtype=np.float32)
    random = np.random.default_rng(number + 1)
    out = middle[random.integers(0, centres, count)] + random.standard_normal((count, width), dtype=np.float32)
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def _model(width: int, folder: Path) -> Any:
    """An untrained model with BERT-base as its text side."""
    import torch

    from vtr.data.text import Tokenizer
    from vtr.encoders.bert import BertConfig
    from vtr.encoders.videomamba import VideoMambaConfig
    from vtr.models.video_text import ModelConfig, VideoTextModel

    torch.manual_seed(0)
    video = VideoMambaConfig(dim=576, depth=32, pool_norm=True)  # the middle size
    model = VideoTextModel(
        ModelConfig(video=video, text=BertConfig(), embed_dim=width), Tokenizer.train([_QUESTION], 200)
    ).eval()
    model.save_pretrained(folder)
    return model


def generate(out: Path, count: int, width: int, cluster: int) -> None:
    """Write embeddings as `vtr embed` does, and a model they claim to be of."""
    from vtr.library.parts import Part, PartVideo, write_part
    from vtr.library.rows import Span

    out.mkdir(parents=True, exist_ok=True)
    model = _model(width, out / "model")
    origin = {"model": str(out / "model"), "fingerprint": model.fingerprint(), "width": width}
    origin |= {"window": 8.0, "stride": 4.0, "frames": 8}
    (out / "embeddings").mkdir(exist_ok=True)
    for number, first in enumerate(range(0, count, _PART)):
        size = min(_PART, count - first)
        videos = [
            PartVideo(
                path=f"/videos/{number:05d}/{v:05d}.mp4",
                duration=44.0,
                metadata={"views": v * 7919 % 1000, "channel": f"channel {v % 50}"},
                spans=[Span(m * 4.0, m * 4.0 + 8.0) for m in range(min(_MOMENTS, size - v * _MOMENTS))],
            )
            for v in range(-(-size // _MOMENTS))
        ]
        made = Part(videos=videos, vectors=vectors(number, size, width, max(1, count // cluster)))
        write_part(out / "embeddings" / f"{number:05d}.parquet", made, origin=origin)
    (out / "embeddings" / "embeddings.json").write_text(json.dumps(origin))


class _Memory:
    """Most memory this process has while it runs, MiB: of its own, and with the pages of mapped files that it shares."""

    def __enter__(self) -> _Memory:
        self.own, self.resident = 0.0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.own = max(self.own, int(values["RssAnon"].split()[0]) / 1024)
            self.resident = max(self.resident, int(values["VmRSS"].split()[0]) / 1024)


def _timed(owner: Any, name: str, wall: dict[str, float], cpu: dict[str, float]) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start, spent = time.perf_counter(), time.process_time()
        try:
            return real(*args, **kwargs)
        finally:
            wall[name] = wall.get(name, 0.0) + time.perf_counter() - start
            cpu[name] = cpu.get(name, 0.0) + time.process_time() - spent

    setattr(owner, name, wrapped)


def _build(out: Path, memory: str | None) -> dict[str, Any]:
    """Import and index, in a process of its own."""
    from vtr.library import index as indexes
    from vtr.library.imports import build_from

    wall: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for name in ("build", "tune", "write"):
        _timed(indexes, name, wall, cpu)
    limit, start = indexes.parse_size(memory) if memory else None, time.perf_counter()
    with _Memory() as most:
        library = build_from(out / "embeddings", out / "library", max_memory=limit)
    total = time.perf_counter() - start
    library.store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {
        "build_s": total,
        "import_s": total - wall.get("build", 0.0) - wall.get("write", 0.0),
        "train_add_write_s": wall.get("build", 0.0) + wall.get("write", 0.0) - wall.get("tune", 0.0),
        "train_add_write_cpu_s": cpu.get("build", 0.0) + cpu.get("write", 0.0) - cpu.get("tune", 0.0),
        "tune_s": wall.get("tune", 0.0),
        "memory_mib": most.own,
        "memory_with_mapped_mib": most.resident,
        "index": library.settings.index,
        "index_mib": _size(out / "library" / "index.faiss"),
        "vectors_mib": _size(library.store.vectors_file()),
        "database_mib": _size(out / "library" / "library.db"),
    }


def _size(path: Path) -> float:
    return path.stat().st_size / (1 << 20) if path.exists() else 0.0


def _raw(out: Path) -> dict[str, Any]:
    """The same index made by FAISS alone of vectors in memory, in a process of its own."""
    import faiss

    from vtr.library import index as indexes
    from vtr.library.library import Library

    library = Library.open(out / "library")
    described = library.settings.index
    if described["type"] == "flat":
        return {}
    data = np.array(library.store.vectors())
    width = data.shape[1]
    start, spent = time.perf_counter(), time.process_time()
    coarse = faiss.IndexFlatIP(width)
    index: Any
    if described["type"] == "ivf-flat":
        index = faiss.IndexIVFFlat(coarse, width, described["lists"], faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(
            coarse, width, described["lists"], described["code_bytes"], 8, faiss.METRIC_INNER_PRODUCT
        )
    index.cp.niter = indexes.ITERATIONS
    index.train(data[np.random.default_rng(0).choice(len(data), described["sample"], replace=False)])
    index.add(data)
    faiss.write_index(index, str(out / "raw.faiss"))
    return {
        "raw_train_add_write_s": time.perf_counter() - start,
        "raw_train_add_write_cpu_s": time.process_time() - spent,
    }


def _latency(*functions: Callable[[int], object], count: int) -> list[dict[str, float]]:
    """Milliseconds of each, called in turn, so that what else the machine does falls on all of them."""
    for function in functions:
        for i in range(min(50, count)):
            function(i)
    times = np.zeros((len(functions), count))
    for i in range(count):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function(i)
            times[number, i] = (time.perf_counter() - start) * 1e3
    return [{"p50_ms": float(np.percentile(t, 50)), "p99_ms": float(np.percentile(t, 99))} for t in times]


def _query(out: Path, count: int, cluster: int, repeats: int) -> dict[str, Any]:
    """Recall and latency, in a process of its own."""
    from vtr.library import index as indexes
    from vtr.library.library import Library
    from vtr.library.wanted import Wanted
    from vtr.library.where import parse

    library = Library.open(out / "library")
    asked = vectors(10**9, repeats, library.settings.width, max(1, count // cluster))
    result: dict[str, Any] = {}
    with _Memory() as most:
        start = time.perf_counter()
        library._nearest(Wanted(words=asked[0]), 10, None)
        result["first_query_ms"] = (time.perf_counter() - start) * 1e3
        [result["hits"]] = _latency(lambda i: library._nearest(Wanted(words=asked[i]), 40, None), count=repeats)
        for name, where in (("where_half", "views < 500"), ("where_rare", 'channel = "channel 7" and views < 50')):
            node = parse(where, library.columns())
            start = time.perf_counter()
            library._nearest(Wanted(words=asked[0]), 40, node)
            first = (time.perf_counter() - start) * 1e3
            [times] = _latency(
                lambda i, node=node: library._nearest(Wanted(words=asked[i]), 40, node), count=min(100, repeats)
            )  # type: ignore[misc]
            result[name] = {"first_ms": first, **times}
    result["query_memory_mib"], result["query_memory_with_mapped_mib"] = most.own, most.resident
    pairs = library.store.pairs()
    truth = pairs[indexes.exact(asked, library.store.vectors(), pairs[:, 1], 10)[1], 0]
    found = [[f.segment for f in library._nearest(Wanted(words=q), 10, None)[0]] for q in asked]
    result["recall_at_10"] = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.tolist(), found)]))
    library.search(_QUESTION)
    whole, encoding = _latency(
        lambda i: library.search(_QUESTION),
        lambda i: library.model.encode_text([_QUESTION]),
        count=min(200, repeats),
    )
    return {**result, "text_query": whole, "text_encoding": encoding}


def _against_raw(out: Path, count: int, cluster: int, repeats: int) -> dict[str, Any]:
    """One query's ids and scores by the library, and by FAISS itself of index and vectors in memory, in turn."""
    import faiss

    from vtr.library.library import Library
    from vtr.library.wanted import Wanted

    library = Library.open(out / "library")
    asked = vectors(10**9, repeats, library.settings.width, max(1, count // cluster))
    snapshot = library.read(library.snapshot)
    if snapshot.base is None:
        return {}
    described = snapshot.base.description
    raw = faiss.read_index(str(library.path / "index.faiss"))
    raw.nprobe, raw.parallel_mode = described["nprobe"], 1
    if described["type"] != "ivf-flat":  # FAISS's own re-scoring; ids of generated segments are their rows + 1
        flat = faiss.IndexFlat(library.settings.width, faiss.METRIC_INNER_PRODUCT)
        flat.add(np.ascontiguousarray(library.store.vectors()))
        raw = _Refined(raw, flat, described["refine"])
    rows_of = library.store.rows_of
    own, plain = _latency(
        lambda i: snapshot.nearest(Wanted(words=asked[i]), 10, None, rows_of),
        lambda i: raw.search(asked[i : i + 1], 10),
        count=repeats,
    )
    return {"ids": own, "raw_ids": plain}


class _Refined:
    """FAISS's search, and its exact distances of the candidates."""

    def __init__(self, base: Any, flat: Any, refine: int) -> None:
        self.base, self.flat, self.refine = base, flat, refine

    def search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        rows = self.base.search(query, count * self.refine)[1] - 1
        scores = np.empty(rows.shape, np.float32)
        self.flat.compute_distance_subset(
            1, faiss.swig_ptr(query), rows.shape[1], faiss.swig_ptr(scores), faiss.swig_ptr(rows)
        )
        order = np.argsort(-scores, axis=1)[:, :count]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _cold(out: Path, repeats: int = 5) -> dict[str, Any]:
    """Wall time of whole `vtr search` processes."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vtr.cli", "search", str(out / "library"), _QUESTION],
            check=True,
            capture_output=True,
        )
        times.append(time.perf_counter() - start)
    return {"cold_search_s": sorted(times)[len(times) // 2], "cold_search_most_s": max(times)}


def _apart(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call in a fresh process: its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    args = parsed(LibrarySettings, __doc__, argv)
    for name in ("count", "width", "cluster", "threads", "queries"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: expected 1 or more")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    made = args.out / f"made-{args.count}-{args.width}-{args.cluster}"
    if not made.exists():
        shutil.rmtree(args.out / "embeddings", ignore_errors=True)
        print("generating vectors", file=sys.stderr)
        _apart(_generated, args.out, args.count, args.width, args.cluster)
        made.touch()
    shutil.rmtree(args.out / "library", ignore_errors=True)
    result: dict[str, Any] = {"count": args.count, "width": args.width, "threads": args.threads}
    result |= {"max_memory": args.max_memory}
    result |= _apart(_build, args.out, args.max_memory)
    result |= _apart(_raw, args.out)
    result |= _apart(_query, args.out, args.count, args.cluster, args.queries)
    result |= _apart(_against_raw, args.out, args.count, args.cluster, args.queries)
    result |= _cold(args.out)
    if result.get("raw_train_add_write_s"):
        for name in ("train_add_write_s", "train_add_write_cpu_s"):
            result[f"{name}_to_raw"] = result[name] / result[f"raw_{name}"]
        result["ids_p50_to_raw"] = result["ids"]["p50_ms"] / result["raw_ids"]["p50_ms"]
    if args.json:
        print(json.dumps(result))
        return 0
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
        print(f"{key:<30}{_short(value)}")
    return 0


def _generated(out: Path, count: int, width: int, cluster: int) -> dict[str, Any]:
    generate(out, count, width, cluster)
    return {}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
