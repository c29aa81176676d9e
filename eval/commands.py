"""The verbs of the evaluation: `vtr benchmarks`, `vtr benchmarks check` and `vtr results`."""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import tyro

from vtr.data.remote import open_remote
from vtr.errors import UsageError, VtrError
from vtr.eval.benchmarks import Benchmark, benchmark_names, load_benchmark, load_protocol
from vtr.files import write_atomically

_SHOWN = 10  # names of missing or broken videos without --all


@dataclass(frozen=True, kw_only=True)
class BenchmarksSettings:
    """List the evaluation protocols and what of them is under the data root (vtr benchmarks check: every video)."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Benchmarks, NAME=FILE or annotation files; default: all that come with vtr."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    json: bool = False
    """One JSON object a line."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Say which videos of benchmarks are there, missing, broken; exit code 1 where one cannot be evaluated whole."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Benchmarks, NAME=FILE or annotation files."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    workers: int = 4
    """Threads that decode."""
    no_decode: bool = False
    """Only look for the files."""
    all: bool = False
    """Name every missing and broken video, not only the first ten."""
    json: bool = False
    """One JSON object a line."""


def benchmarks(settings: BenchmarksSettings) -> int:
    """`vtr benchmarks`; exit code 1 where the file of one cannot be meant."""
    rows, bad = [], 0
    for name in settings.names or benchmark_names():
        try:
            protocol = load_protocol(name.partition("=")[0] if "=" in name else name)
        except VtrError as error:
            if settings.names:
                raise
            print(f"vtr: {' '.join(str(error).split())}", file=sys.stderr)
            bad = 1
            continue
        row: dict[str, Any] = {"benchmark": protocol.name, "rule": protocol.captions, "frames": protocol.frames}
        row |= {"paper_videos": protocol.paper_videos, "paper_queries": protocol.paper_queries}
        try:
            row |= _facts(load_benchmark(name, settings.data_root))
        except VtrError as error:
            nothing_yet = settings.data_root == Path("data") and not settings.data_root.exists()
            if isinstance(error, UsageError) and not nothing_yet:
                raise
            row["annotation"] = None
            row["note"] = str(error)
        rows.append(row)
    if settings.json:
        for row in rows:
            print(json.dumps(row))
        return bad
    print(f"{'benchmark':<16}{'rule':<11}{'videos':>8}{'paper':>8}{'queries':>9}{'paper':>8}{'found':>8}  annotation")
    notes = []
    for row in rows:
        numbers = [row.get(k) for k in ("videos", "paper_videos", "queries", "paper_queries", "found")]
        cells = "".join(f"{'' if n is None else n:>{w}}" for n, w in zip(numbers, (8, 8, 9, 8, 8)))
        print(f"{row['benchmark']:<16}{row['rule']:<11}{cells}  {row['annotation'] or 'not here'}")
        if row["annotation"] and row.get("note"):
            notes.append(f"{row['benchmark']}: {row['note']}")
    for note in notes:
        print(note)
    return bad


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    """Counts of what the annotation holds and what was found, and why they are not the paper's."""
    protocol, expected = benchmark.protocol, benchmark.expected
    queries = benchmark.queries
    notes = [expected.note] if expected and expected.note else []
    if expected and expected.videos not in (None, benchmark.total):
        notes.append(f"{benchmark.total} videos in this file, {expected.videos} expected: it was cut or changed")
    if expected and expected.queries not in (None, queries):
        notes.append(f"{queries} queries in this file, {expected.queries} expected: it was cut or changed")
    if not notes and protocol.paper_videos not in (None, benchmark.total):
        notes.append(f"another list of videos than the paper's {protocol.paper_videos}")
    return {
        "annotation": benchmark.annotation.name,
        "format": benchmark.format,
        "protocol": benchmark.protocol_hash,
        "videos": benchmark.total,
        "queries": queries,
        "found": len(benchmark.videos),
        "note": "; ".join(notes),
    }


def check(settings: CheckSettings) -> int:
    """`vtr benchmarks check`."""
    if not settings.names:
        raise UsageError(
            "no benchmark: vtr benchmarks check NAME …, as in: vtr benchmarks check msrvtt --data-root /data"
        )
    if settings.workers < 1:
        raise UsageError(f"--workers {settings.workers}: expected 1 or more")
    whole = True
    for name in settings.names:
        try:
            benchmark = load_benchmark(name, settings.data_root)
        except UsageError:
            raise
        except VtrError as error:
            whole = False
            if settings.json:
                print(json.dumps({"benchmark": name.partition("=")[0], "annotation": None, "note": str(error)}))
            else:
                print(f"{error}")
            continue
        broken = {} if settings.no_decode else _broken(benchmark, settings.workers)
        whole = whole and not benchmark.missing and not broken
        protocol = benchmark.protocol
        row = {
            "benchmark": benchmark.name,
            **_facts(benchmark),
            "paper_videos": protocol.paper_videos,
            "paper_queries": protocol.paper_queries,
            "decoded": not settings.no_decode,
            "missing": benchmark.lacking,
            "searched": [str(folder) for folder in benchmark.searched],
            "broken": broken,
        }
        print(json.dumps(row) if settings.json else _report(row, protocol.obtain, settings), flush=True)
    return 0 if whole else 1


def _broken(benchmark: Benchmark, workers: int) -> dict[str, str]:
    """Videos that give no frames as the evaluation reads them, each with its reason."""
    from tqdm import tqdm

    from vtr.data.decode import DecodeError, read_frames
    from vtr.data.sampling import middle_frames
    from vtr.data.whole import cut_off

    protocol = benchmark.protocol

    def reason(path: Path) -> str | None:
        why = cut_off(path)
        if why:
            return f"{path}: {why}"
        try:
            read_frames(path, lambda n: middle_frames(n, protocol.frames), end=protocol.trim_seconds)
        except (DecodeError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        found = tqdm(
            pool.map(reason, benchmark.videos),
            benchmark.name,
            len(benchmark.videos),
            False,
            file=sys.stderr,
            unit="video",
        )
        return {str(path): why for path, why in zip(benchmark.videos, found) if why is not None}


def _report(row: dict[str, Any], obtain: str, settings: CheckSettings) -> str:
    def beside(ours: int, paper: int | None) -> str:
        return f"{ours}" if paper is None else f"{ours} (the paper: {paper})"

    lines = [
        f"{row['benchmark']}: {row['annotation']}, {row['format']}, protocol {row['protocol']}",
        f"  videos   {beside(row['videos'], row['paper_videos'])}",
        f"  queries  {beside(row['queries'], row['paper_queries'])}",
    ]
    if row["note"]:
        lines.append(f"  note     {row['note']}")
    lines.append(f"  there    {row['found'] - len(row['broken'])}" + ("" if row["decoded"] else " (not decoded)"))
    for what, names in (
        ("missing", row["missing"]),
        ("broken", list(row["broken"].values())),
    ):
        lines.append(f"  {what:<8} {len(names)}")
        shown = names if settings.all else names[:_SHOWN]
        lines += [f"    {name}" for name in shown]
        if len(shown) < len(names):
            lines.append(f"    and {len(names) - len(shown)} more (--all)")
    if row["missing"]:
        lines.append(f"  looked   under {', '.join(row['searched'])} (--data-root)")
        lines.append(f"  obtain   {obtain}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """Fetch annotations that do not come with vtr from where their authors keep them, below the data root."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Benchmarks: vitatecs_msrvtt, vitatecs_vatex, rtime, cia_ssv2."""
    data_root: Path = Path("data")
    """Where the annotations are put."""


def fetch(settings: FetchSettings) -> int:
    """`vtr benchmarks fetch`; files that are there are left alone."""
    if not settings.names:
        raise UsageError(
            "no benchmark: vtr benchmarks fetch NAME …, as in: vtr benchmarks fetch rtime --data-root /data"
        )
    wanted: dict[Path, str] = {}
    for name in settings.names:
        protocol = load_protocol(name)
        sources = [entry for entry in protocol.annotation if entry.source]
        if not sources:
            raise UsageError(f"{name}: its annotation is not fetched by vtr. {protocol.obtain}")
        for entry in sources:
            first = settings.data_root / entry.file
            wanted |= {first.with_name(n): f"{entry.source}/{n}" for n in (first.name, *entry.more)}
    for path, address in wanted.items():
        if path.exists():
            print(f"there:   {path}", file=sys.stderr)
            continue
        try:
            with open_remote(address) as remote:
                content = remote.read()
        except (OSError, HTTPException) as error:
            raise VtrError(f"{address}: broke off ({error}); call it again") from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise VtrError(f"{path}: cannot be written ({error.strerror})") from error
        print(f"fetched: {path} from {address}", file=sys.stderr)
    return 0


@dataclass(frozen=True, kw_only=True)
class ResultsSettings:
    """A table of evaluation results, and a plot of them."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = (Path("results"),)
    """Result files, or folders that are searched for them."""
    benchmark: tuple[str, ...] = ()
    """Only these benchmarks."""
    row: tuple[str, ...] = ()
    """Only these rows: embedding, reranked, combined."""
    plot: Path | None = None
    """Write the recalls at 1 as an SVG picture."""
    peers: bool = False
    """Encoders side by side instead: published R@1, direction accuracy of the results, speed, memory, parameters."""
    measure: bool = False
    """With --peers: measure speed and memory here first, of what was not measured yet."""
    measured: Path = Path("results/peers.json")
    """With --peers: the file of those measurements."""
    json: bool = False
    """One JSON object a line."""


def _peers(settings: ResultsSettings) -> int:
    from vtr.eval.peer_table import measure_all, peer_rows, peer_table

    if settings.measure:
        measure_all(settings.measured)
    rows = peer_rows(settings.paths, settings.measured)
    if settings.json:
        for row in rows:
            print(json.dumps({**dataclasses.asdict(row), "gaps": row.gaps()}))
    else:
        print(peer_table(rows))
    return 0


def results(settings: ResultsSettings) -> int:
    """`vtr results`."""
    if settings.peers:
        return _peers(settings)
    if settings.measure:
        raise UsageError("--measure goes with --peers")
    from vtr.eval.results import find_results, lines_of, plot_svg, text_table

    lines = [line for result in find_results(settings.paths) for line in lines_of(result)]
    known = {"benchmark": sorted({line.benchmark for line in lines}), "row": sorted({line.row for line in lines})}
    for what, names in (("benchmark", settings.benchmark), ("row", settings.row)):
        for name in names:
            if name not in known[what]:
                raise UsageError(f"--{what} {name}: no result has it; there are {', '.join(known[what])}")
    chosen = [
        line
        for line in lines
        if (not settings.benchmark or line.benchmark in settings.benchmark)
        and (not settings.row or line.row in settings.row)
    ]
    if settings.plot is not None:
        try:
            settings.plot.write_text(plot_svg(chosen), encoding="utf-8")
        except OSError as error:
            raise VtrError(f"--plot {settings.plot}: cannot be written ({error.strerror})") from error
        print(f"written: {settings.plot}", file=sys.stderr)
    if settings.json:
        for line in chosen:
            print(json.dumps(line.to_dict()))
    else:
        print(text_table(chosen))
    return 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "benchmarks": (BenchmarksSettings, benchmarks),
    "benchmarks check": (CheckSettings, check),
    "benchmarks fetch": (FetchSettings, fetch),
    "results": (ResultsSettings, results),
}
