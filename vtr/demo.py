"""`make demo`: corpus, pretraining, evaluation, index and three queries on one small machine, with a summary."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtr.errors import VtrError, reports_errors
from vtr.files import import_root, write_atomically
from vtr.threads import cores


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Train a search engine from nothing and ask it three questions."""

    out: Path = Path("runs/demo")
    """Run folder; summary.json and hits.html end up here."""
    data_root: Path = Path("data")
    """Where the demo corpus is made (about 60 MB)."""
    rerank: int = 32
    """Candidates that the cross-modal decoder looks at again in the evaluation."""
    ranks: int = 2
    """Processes that train, each on one core: faster than threads for a model as small, and the figures do not depend on
    how many cores there are."""
    clips: int = 8000
    """Clips of the corpus; fewer for a quick look at how it goes."""
    images: int = 2000
    """Images of the corpus."""
    stage: str | None = None
    """Only this stage of the training: masked, multimodal, unmasked, refine or matching."""
    steps: int | None = None
    """Steps of each stage, instead of the recipe's."""
    set: tuple[str, ...] = ()
    """Recipe settings, as in --set unmasked.steps=100."""


class PeakMemory:
    """Samples the memory of this process and all its children (proportional set size: shared pages count once)."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.gib = 0.0
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(self._seconds):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    info = process.memory_full_info()
                    total += getattr(info, "pss", info.rss)
            self.gib = max(self.gib, total / 2**30)


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    print(f"== {name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)


def _call(*words: str | Path) -> str:
    """Run one of our commands as a user would; its progress shows, its standard output is returned."""
    command = ["vtr", *map(str, words)]
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "vtr.cli", *command[1:]], stdout=subprocess.PIPE, text=True, env=_environment()
    )
    if done.returncode:
        raise VtrError(f"`{' '.join(command)}` ended with exit code {done.returncode}; its messages are above")
    return done.stdout


def _environment() -> dict[str, str]:
    # The code runs from a checkout too, where `vtr` may not be installed.
    root = str(import_root())
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(settings: DemoSettings) -> int:
    """Run every step and print the results; returns the exit code."""
    from vtr.data.demo import ensure_demo_corpus

    seconds: dict[str, float] = {}
    out = settings.out
    start = time.perf_counter()
    with PeakMemory() as memory:
        with _timed("corpus", seconds):
            corpus = settings.data_root / "demo"
            ensure_demo_corpus(corpus, clips=settings.clips, images=settings.images)
        with _timed("pretrain", seconds):
            _call(*_training(settings))
        with _timed("evaluate", seconds):
            words = ["--model", out, "--data", "demo", "--data-root", settings.data_root]
            _call("eval", *words, "--rerank", str(settings.rerank), "--out", out / "results")
        library = out / "benchmark.library"
        with _timed("index", seconds):
            words = [corpus / "benchmark" / "videos", "--model", out, "--out", library]
            _call("index", "build", *words, "--metadata", _captions(corpus, out / "captions.csv"))
        with _timed("query", seconds):
            queries = _queries(corpus)
            shown = _search(library, queries, out / "hits.html")
    seconds["total"] = round(time.perf_counter() - start, 1)
    result = json.loads((out / "results" / f"{out.name}_demo.json").read_text())
    summary = {
        **{k: result[k] for k in ("t2v", "v2t", "direction_pairs", "match_direction_pairs")},
        **{k: result[k] for k in ("chance_r1", "ceilings", "gallery")},
        "seconds": seconds,
        "peak_memory_gib": round(memory.gib, 2),
        "machine": _machine(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(_table(summary))
    print(shown)
    print(f"hits as a page: {out / 'hits.html'}\nall numbers: {out / 'summary.json'}")
    return 0


def _training(settings: DemoSettings) -> list[str | Path]:
    """The words of `vtr pretrain`."""
    words: list[str | Path] = ["pretrain", "--corpus", "demo", "--out", settings.out, "--data-root", settings.data_root]
    # A number of threads that followed the cores would round differently with each.
    words += ["--resume", "latest", "--ranks", str(settings.ranks), "--threads", "1"]
    # Each rank decodes for itself: with as many cores as ranks a worker takes from its rank what it gives, and 0.3 GiB more.
    words += ["--workers", "0"]
    words += ["--demo-clips", str(settings.clips), "--demo-images", str(settings.images)]
    words += ["--stage", settings.stage] if settings.stage else []
    words += ["--steps", str(settings.steps)] if settings.steps else []
    return words + (["--set", *settings.set] if settings.set else [])


def _items(corpus: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((corpus / "benchmark" / "test.json").read_text())
    return found


def _captions(corpus: Path, listing: Path) -> Path:
    """The benchmark's captions as a list beside its videos' paths: what the page shows, and offers as examples."""
    folder = (corpus / "benchmark" / "videos").resolve()
    with write_atomically(listing) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "caption"), *((folder / i["video"], i["caption"]) for i in _items(corpus))]
        )
    return listing


def _queries(corpus: Path) -> list[str]:
    """Three captions of the held-out benchmark, spread over it."""
    items = _items(corpus)
    return [items[i]["caption"] for i in (len(items) // 5, len(items) // 2, 4 * len(items) // 5)]


def _search(library: Path, queries: list[str], page: Path) -> str:
    import vtr
    from vtr.library.html import write_contact_sheet

    opened = vtr.Library.open(library)
    answers = [(query, opened.search(query, k=5, rerank=20)) for query in queries]
    write_contact_sheet(page, answers, opened)
    lines = []
    for query, hits in answers:
        lines.append(f'\n"{query}"')
        lines += [f"  {h.score:7.2f}  {h.start:4.1f}-{h.end:.1f}s  {Path(h.path).name}" for h in hits[:3]]
    return "\n".join(lines)


def _table(summary: dict[str, Any]) -> str:
    lines = [
        f"\n{summary['gallery']} held-out videos, {summary['gallery']} captions (chance R@1 {summary['chance_r1']:.1f} %)"
    ]
    lines.append(f"{'':24}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MdR':>6}")
    for direction, words in (("t2v", "text to video"), ("v2t", "video to text")):
        for row in ("embedding", "reranked", "combined"):
            m = summary[direction][row]
            lines.append(f"{words + ', ' + row:<24}{m['r1']:7.1f}{m['r5']:7.1f}{m['r10']:7.1f}{m['median_rank']:6.1f}")
    for words, key in (("embedding", "direction_pairs"), ("match head", "match_direction_pairs")):
        shares = ", ".join(f"{k} {v:.1f} %" for k, v in summary[key].items())
        lines.append(f"direction pairs by the {words}: {shares} (chance 50 %)")
    lines.append("R@1 ceilings: " + ", ".join(f"{k} {v:.1f} %" for k, v in summary["ceilings"].items()))
    lines.append(f"{summary['seconds']['total']:.0f} s in all, peak memory {summary['peak_memory_gib']:.1f} GiB")
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {"processor": name, "cores": cores(), "system": platform.system(), "torch": torch.__version__}


COMMANDS = {"demo": (DemoSettings, run)}


@reports_errors
def main() -> int:
    """Entry of `python -m vtr.demo`."""
    from vtr.settings import parsed

    try:
        return run(parsed(DemoSettings, None, "python -m vtr.demo"))
    except KeyboardInterrupt:
        print("vtr: stopped; call it again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
