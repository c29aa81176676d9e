"""Zero-shot evaluation of a trained model: retrieval, multiple choice, classification.

accelerate launch eval/zero_shot.py --model runs/demo --data demo
accelerate launch eval/zero_shot.py --model videomamba_middle.25m_f8 --data msrvtt didemo anet lsmdc msvd --data-root /data
accelerate launch eval/zero_shot.py --model open_clip:ViT-B-16/openai --data msrvtt --data-root /data
torchrun --nproc_per_node 2 eval/zero_shot.py --model runs/demo --data demo        # two ranks on a CPU
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from vtr.threads import wait_asleep

    wait_asleep()  # before torch is loaded

import dataclasses
import json
import os
import time
from dataclasses import dataclass

import vtr
from vtr.errors import UsageError, VtrError, reports_errors, unknown_name
from vtr.eval.benchmarks import Benchmark, load_benchmark
from vtr.eval.evaluate import COMPAT, Options, evaluate
from vtr.eval.report import Result, Run, compared, published_rows, table, write
from vtr.models.load import load_encoder
from vtr.ranks import Ranks, report
from vtr.settings import parsed
from vtr.threads import choose


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """Evaluate a model zero-shot, in up to three rows: embedding, re-ranked, combined."""

    model: str
    """A run, a model folder, a hub id, an official checkpoint (`vtr models`), open_clip:MODEL/PRETRAINED or
    sentence-transformers:OWNER/NAME."""
    data: tuple[str, ...]
    """Benchmarks by name (`vtr benchmarks`), NAME=FILE to choose the annotation, or annotation files."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    rerank: int = 128
    """Candidates of each query that the cross-modal decoder scores again; 0: none."""
    frames: int | None = None
    """Frames of a video; default: the model's."""
    compat: tuple[str, ...] = ()
    """Reproduction switches: antialias, match-logit, ties-won, paragraph."""
    published: tuple[str, ...] = ()
    """Published rows to compare with, or `all`; default: that of the model itself."""
    precision: str = "auto"
    """fp32, bf16, or auto: bf16 on a GPU."""
    workers: int = 2
    """Threads of a rank that decode videos."""
    threads: int = 0
    """Threads of a rank's computing (0 = its share of the cores, or OMP_NUM_THREADS where you have set it)."""
    out: Path = Path("results")
    """Folder of the result files, one JSON a benchmark."""
    work: Path | None = None
    """Where features are kept until a benchmark is done; all ranks must see it. Default: OUT/.work."""
    keep_features: bool = False
    """Leave the features there afterwards."""
    allow_missing: bool = False
    """Go on without videos that are missing or broken; the result then says so."""
    json: bool = False
    """Print the results as JSON."""


def run(settings: ZeroShotSettings, ranks: Ranks | None = None) -> int:
    """Evaluate on every benchmark and write the results; returns the exit code."""
    _check(settings)
    ranks = ranks or Ranks()
    benchmarks = ranks.together(lambda: _prepared(settings))
    model = ranks.together(lambda: load_encoder(settings.model))
    ranks.say(f"device: {model.device}")
    options = Options(
        rerank=settings.rerank,
        allow_missing=settings.allow_missing,
        frames=settings.frames,
        compat=settings.compat,
        bf16=settings.precision == "bf16" or (settings.precision == "auto" and model.device.type == "cuda"),
        workers=settings.workers,
        work=settings.work or settings.out / ".work",
        keep_features=settings.keep_features,
    )
    fingerprint = model.fingerprint()
    results: list[Result] = []
    for benchmark in benchmarks:
        start = time.perf_counter()
        result = evaluate(model, benchmark, options, ranks)
        result = dataclasses.replace(
            result,
            published=compared(result.figures, published_rows(benchmark, settings.published, model.registered)),
            model=settings.model,
            fingerprint=fingerprint,
            run=Run(
                ranks=ranks.size,
                seconds=round(time.perf_counter() - start, 1),
                peak_memory_gib=peak_memory(),
                date=time.strftime("%Y-%m-%dT%H:%M:%S"),
                vtr=vtr.__version__,
            ),
        )
        results.append(result)
        if ranks.main:
            write(result, settings.out, settings.frames)
            if not settings.json:
                print(table(result), flush=True)
    if settings.json and ranks.main:
        print(json.dumps([result.to_dict() for result in results]))
    return 0


def _prepared(settings: ZeroShotSettings) -> list[Benchmark]:
    """The benchmarks; a wrong name or folder is said now, not after hours."""
    paragraph = "paragraph" in settings.compat
    found = [load_benchmark(name, settings.data_root, paragraph=paragraph) for name in settings.data]
    for benchmark in found:
        published_rows(benchmark, settings.published)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(f"--out {settings.out}: cannot be created ({error.strerror})") from error
    return found


def _check(settings: ZeroShotSettings) -> None:
    for name in settings.compat:
        if name not in COMPAT:
            raise unknown_name("--compat switch", name, COMPAT)
    if settings.precision not in ("auto", "fp32", "bf16"):
        raise unknown_name("--precision", settings.precision, ("auto", "fp32", "bf16"))
    if settings.threads < 0:
        raise UsageError(f"--threads {settings.threads}: expected 0 or more")
    if settings.rerank < 0 or settings.workers < 1 or (settings.frames is not None and settings.frames < 1):
        raise UsageError("--rerank is 0 or more, --workers and --frames are 1 or more")


def peak_memory() -> float:
    """The most memory this process has had so far, in GiB; files mapped into it included."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Parse the flags, evaluate, return the exit code."""
    return start(parsed(ZeroShotSettings, argv, header=__doc__ or ""))


def start(settings: ZeroShotSettings) -> int:
    """Evaluate as one rank; returns the exit code."""
    ranks = None
    try:
        _check(settings)
        ranks = Ranks.join() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Ranks()
        ranks.compute_with(choose(settings.threads))
        return run(settings, ranks)
    except VtrError as error:
        return report(error)
    except KeyboardInterrupt:
        print("vtr: stopped; call it again to continue", file=sys.stderr)
        return 130
    finally:
        if ranks is not None:
            ranks.end()


if __name__ == "__main__":
    sys.exit(main())
