"""Pretrain and evaluate in one call on one GPU, and write what it took: docs/results/pretrain.md.

python -m bench.pretrain                                # small, three stages, demo corpus of 50,000 clips
python -m bench.pretrain --model demo --clips 96 --images 48 --batch-size 16 --streams 8 --steps 4 4 4 --allow-cpu --out /tmp/m --data-root /tmp/d --report /tmp/m.md

Called again it continues where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import RESULTS, parsed, save, table
from vtr.errors import VtrError, reports_errors


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """Train on the demo corpus, evaluate, report throughput, memory, data-wait share and R@1."""

    model: str = "small"
    clips: int = 50_000
    images: int = 10_000
    batch_size: int = 128
    steps: tuple[int, int, int] = (200, 600, 1500)
    """Of the masked, multimodal and unmasked stage."""
    streams: int = 32
    lr: float = 4e-4
    workers: int = 12
    out: Path = Path("runs/measure")
    data_root: Path = Path("data/large")
    report: Path = RESULTS / "pretrain.md"
    allow_cpu: bool = False
    """For trying this command out."""


def run(settings: MeasureSettings) -> int:
    """Everything; the exit code."""
    import torch

    if not torch.cuda.is_available() and not settings.allow_cpu:
        raise VtrError("no GPU on this machine: nothing is measured; --allow-cpu tries the command out")
    root = Path(__file__).resolve().parent.parent
    stages = zip(("masked", "multimodal", "unmasked"), settings.steps)
    train: list[Any] = [root / "pretrain" / "run.py", "--corpus", "demo", "--model", settings.model]
    train += ["--text", "scratch", "--demo-clips", settings.clips, "--demo-images", settings.images]
    train += ["--data-root", settings.data_root, "--out", settings.out, "--workers", settings.workers]
    train += ["--resume", "latest", "--log-every", max(1, min(settings.steps) // 20)]
    train += ["--set", f"batch_size={settings.batch_size}", f"optim.lr={settings.lr}", f"streams={settings.streams}"]
    train += [f"{stage}.steps={count}" for stage, count in stages]
    evaluate: list[Any] = [root / "eval" / "zero_shot.py", "--model", settings.out, "--data", "demo"]
    evaluate += ["--data-root", settings.data_root, "--rerank", 32, "--out", settings.out / "results"]
    start = time.perf_counter()
    for words in (train, evaluate):
        done = subprocess.run([sys.executable, *map(str, words)], stdout=sys.stderr)
        if done.returncode:
            raise VtrError(
                f"{words[0]} ended with exit code {done.returncode}; its messages are above; call again to go on"
            )
    result = json.loads((settings.out / "results" / f"{settings.out.name}_demo.json").read_text())
    command = "python -m bench.pretrain " + " ".join(sys.argv[1:])
    text = report(settings.out, result, command.strip(), time.perf_counter() - start)
    if torch.cuda.is_available() or settings.report != MeasureSettings.report:  # on a CPU nothing is measured
        save(settings.report, text)
    print(text)
    return 0


def report(run_folder: Path, result: dict[str, Any], command: str, seconds: float) -> str:
    """pretrain.md of a finished run."""
    import torch

    rows = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    settings = json.loads((run_folder / "run.json").read_text())["settings"]
    lines = [
        f"# Pretraining on a {'GPU: measured' if device != 'CPU' else 'CPU: tried out'}",
        "",
        f"{device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: `{command}` took {seconds:.0f} s in this call.",
        f"Model {settings['model']}, {settings['demo_clips']:,} clips and {settings['demo_images']:,} images of the demo corpus.",
        "",
    ]
    stages = []
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = [r for r in rows if r["stage"] == stage and "samples_per_s" in r]
        steady = own[1:] or own  # the first row holds the start of the workers
        speeds = []
        for media in ("video", "image"):
            found = sorted(r["samples_per_s"] for r in steady if r["media"] == media)
            speeds.append(f"{found[len(found) // 2]:.0f}" if found else "–")
        wait = sum(r["data_wait"] for r in steady) / len(steady)
        memory = max(r["memory_gib"] or 0 for r in own)
        first = min(r["step"] for r in rows if r["stage"] == stage)
        stages.append((stage, f"to {own[-1]['step']} (logged from {first})", *speeds, f"{wait:.1%}", f"{memory:.2f}"))
    lines += [
        table(("stage", "steps", "video clips/s", "images/s", "waiting for data", "memory GiB"), stages),
        "",
        "A row's rate is the median of the logged intervals, named after the media type of their last step.",
        "",
        f"Zero-shot on {result['gallery']} held-out clips (chance R@1 {result['chance_r1']:.1f} %):",
        "",
    ]
    recalls = []
    for way, words in (("t2v", "text to video"), ("v2t", "video to text")):
        for row in ("embedding", "reranked", "combined"):
            m = result[way][row]
            recalls.append((f"{words}, {row}", *(f"{m[k]:.1f}" for k in ("r1", "r5", "r10"))))
    return "\n".join([*lines, table(("", "R@1", "R@5", "R@10"), recalls)]) + "\n"


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.pretrain`."""
    return run(parsed(MeasureSettings, __doc__, argv))


if __name__ == "__main__":
    sys.exit(main())
