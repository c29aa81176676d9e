"""Zero-shot text-video retrieval of a trained model.

accelerate launch eval/zero_shot.py --model runs/demo --data demo
accelerate launch eval/zero_shot.py --model runs/5M --data msrvtt didemo --data-root /data --rerank 128
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json
import os
from dataclasses import dataclass
from typing import Any

from vtr.errors import VtrError


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """Evaluate a model on text-video retrieval, in three rows: embedding, re-ranked, combined."""

    model: str
    """A run, a model folder or a hub id."""
    data: tuple[str, ...]
    """Benchmarks by name, or annotation files (.json, .csv)."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    rerank: int = 128
    """Candidates of each query that the cross-modal decoder scores again."""
    out: Path = Path("results")
    """Folder of the result files, one JSON a benchmark."""
    allow_missing: bool = False
    """Go on without videos that are missing or broken; the result then says so."""
    json: bool = False
    """Print the results as JSON."""


def evaluate(model: Any, benchmark: Any, *, top: int = 128, allow_missing: bool = False) -> dict[str, Any]:
    """All rows of one benchmark.

    Raises:
        VtrError: Videos are missing or broken (all are listed) and `allow_missing` is off.
    """
    from vtr.eval.retrieval import direction_pairs, encode, evaluate_retrieval, find_bad

    clips, broken = find_bad(benchmark.videos, model, benchmark.trim_seconds)
    problems = [f"missing: {m}" for m in benchmark.missing] + [f"broken: {b}" for b in broken]
    if problems and not allow_missing:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise VtrError(
            f"{benchmark.name}: {len(problems)} of {benchmark.total} videos can't be used ({shown}); "
            "--allow-missing goes on without them"
        )
    kept = [i for i, clip in enumerate(clips) if clip is not None]
    if not kept:
        raise VtrError(f"{benchmark.name}: none of its {benchmark.total} videos can be used")
    captions: list[str] = []
    text_truth: list[list[int]] = []
    video_truth: list[list[int]] = []
    for place, i in enumerate(kept):
        own = benchmark.video_truth[i]
        video_truth.append(list(range(len(captions), len(captions) + len(own))))
        captions += [benchmark.captions[j] for j in own]
        text_truth += [[place]] * len(own)
    features = encode(model, [clips[i] for i in kept], captions, benchmark.max_text_tokens)
    result = evaluate_retrieval(model, features, text_truth, video_truth, top)
    result["benchmark"], result["protocol"] = benchmark.name, benchmark.protocol_hash
    result["gallery"], result["queries"], result["rerank"] = len(kept), len(captions), min(top, len(kept))
    result["chance_r1"] = round(100 / len(kept), 3)
    if benchmark.ceilings:
        result["ceilings"] = benchmark.ceilings
    if problems:
        result["comparable"] = f"no: {len(kept)} of {benchmark.total} videos"
    if benchmark.pairs is not None and benchmark.pairs.is_file():
        pairs = json.loads(benchmark.pairs.read_text())
        result["direction_pairs"] = direction_pairs(model, pairs, benchmark.pairs.parent / "videos")
    return result


def table(result: dict[str, Any]) -> str:
    """A result as text."""
    lines = [
        f"{result['benchmark']}: {result['gallery']} videos, {result['queries']} captions, protocol {result['protocol']}"
    ]
    if "comparable" in result:
        lines.append(f"NOT COMPARABLE with published numbers ({result['comparable']})")
    lines.append(f"{'':26}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MdR':>7}{'MnR':>8}")
    for direction, words in (("t2v", "text to video"), ("v2t", "video to text")):
        for row, m in result[direction].items():
            lines.append(
                f"{words + ', ' + row:<26}{m['r1']:7.1f}{m['r5']:7.1f}{m['r10']:7.1f}{m['median_rank']:7.1f}{m['mean_rank']:8.1f}"
            )
    lines.append(f"{'chance':<26}{result['chance_r1']:7.1f}")
    for name, value in result.get("ceilings", {}).items():
        lines.append(f"{'ceiling, ' + name.replace('_', ' '):<42}{value:.1f}")
    for name, value in result.get("direction_pairs", {}).items():
        lines.append(f"{'direction pairs, ' + name.replace('_', '/'):<42}{value:.1f}")
    return "\n".join(lines)


def run(settings: ZeroShotSettings) -> int:
    """Evaluate on every benchmark and write the results; returns the exit code."""
    import vtr.model
    from vtr.eval.benchmarks import load_benchmark

    benchmarks = [load_benchmark(name, settings.data_root) for name in settings.data]
    model = vtr.model.load(settings.model)
    fingerprint = model.fingerprint()
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(f"--out {settings.out}: cannot be created ({error.strerror})") from error
    results = []
    for benchmark in benchmarks:
        result = evaluate(model, benchmark, top=settings.rerank, allow_missing=settings.allow_missing)
        result["model"], result["fingerprint"] = settings.model, fingerprint
        path = settings.out / f"{Path(settings.model).name}_{benchmark.name}.json"
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(partial, path)
        results.append(result)
        if not settings.json:
            print(table(result))
        print(f"written: {path}", file=sys.stderr)
    if settings.json:
        print(json.dumps(results))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, evaluate, return the exit code."""
    import tyro

    settings = tyro.cli(ZeroShotSettings, args=argv, description=__doc__)
    try:
        return run(settings)
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vtr: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
