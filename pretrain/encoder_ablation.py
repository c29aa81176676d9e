"""VideoMamba against UMT's ViT of the same number of parameters, at equal steps and at equal CPU seconds.

python -m vtr.eval.ablate encoder                          # three seeds; the demo corpus below --data-root
python -m vtr.pretrain.encoder_ablation --seeds 0 --steps 20 --demo-steps 0 --out /tmp/try     # a moment, to try it

Two parts, everything but the encoder the same. The generated action task (`vtr.data.motion`): accuracy, direction pairs (left or
right, up or down), order of events (white or black first), and the model trained on 8 frames tested on 8, 16, 32, 64. The demo
corpus with its own recipe's `unmasked` stage: retrieval, and clips against their reversal. Finished trainings are kept.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vtr.data.demo import ensure_demo_corpus
from vtr.data.manifests import load_corpus
from vtr.data.motion import CLASSES, PAIRS, MotionTask
from vtr.encoders.base import EncoderConfig, VideoEncoder
from vtr.encoders.registry import build_encoder
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.encoders.vit import ViTConfig
from vtr.errors import UsageError, reports_errors
from vtr.eval.benchmarks import load_benchmark
from vtr.eval.evaluate import Options, evaluate
from vtr.eval.trials import _TEST, Budget, _set_rate, _Source, pixels
from vtr.eval.zero_shot import peak_memory
from vtr.files import write_atomically
from vtr.models.load import load_encoder
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.build import build_model
from vtr.pretrain.recipes import recipe
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.train import train
from vtr.pretrain.warmup import warm_up
from vtr.settings import parsed

LENGTHS = (8, 16, 32, 64)
ENCODERS: Mapping[str, EncoderConfig] = {
    "VideoMamba": VideoMambaConfig(
        image_size=48, patch_size=16, num_frames=8, dim=64, depth=5, num_classes=len(CLASSES), pool="avg"
    ),
    "ViT": ViTConfig(image_size=48, patch_size=16, num_frames=8, dim=64, depth=4, heads=4, num_classes=len(CLASSES), pool="avg"),
}  # fmt: skip
_DEMO: Mapping[str, EncoderConfig] = {
    "VideoMamba": VideoMambaConfig(
        image_size=64, patch_size=16, num_frames=8, dim=96, depth=4, pool="cls+avg", pool_norm=True, align_dim=64, init="official"
    ),
    "ViT": ViTConfig(image_size=64, patch_size=16, num_frames=8, dim=96, depth=3, heads=4, pool="avg", pool_norm=True, align_dim=64),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Train both encoders, over several seeds, at equal steps and at equal CPU seconds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One training of every row for each."""
    steps: int = 500
    """Of the action task."""
    demo_steps: int = 1200
    """Of the demo corpus; 0 = without that part."""
    batch_size: int = 16
    """Clips of a step of the action task."""
    lr: float = 2e-3
    """Peak learning rate of the action task."""
    tests: int = 180
    """Clips of its test."""
    threads: int = 2
    """Threads of torch."""
    data_root: Path = Path("data")
    """Where the demo corpus is, or is made."""
    out: Path = Path("runs/ablate")
    """encoder.md and encoder.json; encoder/ holds what is finished."""


def parameters(config: EncoderConfig) -> float:
    """Millions, without the classifier's."""
    return sum(p.numel() for n, p in build_encoder(config).named_parameters() if not n.startswith("head.")) / 1e6


def motion_trial(config: EncoderConfig, settings: EncoderSettings, seed: int, steps: int) -> dict[str, float]:
    """One training on the action task, and its tests."""
    torch.manual_seed(seed)
    model, task = build_encoder(config), MotionTask(size=config.image_size)
    budget = Budget(steps=steps, batch_size=settings.batch_size, labelled=0, tests=settings.tests, lr=settings.lr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.lr, betas=(0.9, 0.98), weight_decay=0.05)
    source, began = _Source(task, budget, seed), time.process_time()
    model.train()
    for step in range(steps):
        _set_rate(optimizer, budget.lr, step, steps)
        clips, labels = source(step)
        loss = F.cross_entropy(model.classify(pixels(clips)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    found = {"steps": float(steps), "training CPU s": time.process_time() - began}
    for frames in LENGTHS:
        found |= _tested(model.eval(), replace(task, frames=frames), settings.tests, frames)
    return {**found, "process GiB": peak_memory()}


@torch.no_grad()
def _tested(model: VideoEncoder, task: MotionTask, tests: int, frames: int) -> dict[str, float]:
    clips, labels = task.draw(tests, _TEST)
    began = time.process_time()
    scores = torch.cat([model.classify(pixels(part)) for part in clips.split(30)])
    seconds = time.process_time() - began
    found = {f"accuracy, {frames} frames": 100 * float((scores.argmax(1) == labels).float().mean()),
             f"inference CPU ms a clip, {frames} frames": 1000 * seconds / tests}  # fmt: skip
    if frames == LENGTHS[0]:
        for name, pairs in (("direction pairs", PAIRS[:2]), ("order of events", PAIRS[2:])):
            right = [float(scores[i, a] > scores[i, b]) for one in pairs for a, b in (one, one[::-1])
                     for i in (labels == a).nonzero()[:, 0].tolist()]  # fmt: skip
            found[name] = 100 * statistics.fmean(right) if right else 0.0
    return found


def demo_trial(
    config: EncoderConfig, settings: EncoderSettings, seed: int, steps: int, folder: Path
) -> dict[str, float]:
    """One training on the demo corpus from an untrained model with this encoder, and its evaluation."""
    began = time.process_time()
    chosen = replace(recipe("clean", "demo"), seed=seed)
    torch.manual_seed(seed)
    corpus = load_corpus("demo", settings.data_root / "demo")
    like = build_model("demo", corpus, settings.data_root, chosen)
    text = replace(like.config.text, vision_width=config.dim)
    model = VideoTextModel(replace(like.config, video=config, text=text), like.tokenizer)
    warm_up(model, chosen)
    model.save_pretrained(folder / "start")
    trained = train(
        RunSettings(
            corpus="demo", data_root=settings.data_root, init=str(folder / "start"), stage="unmasked", steps=steps, seed=seed,
            out=folder / "run", threads=settings.threads, resume="latest" if (folder / "run" / "checkpoints").is_dir() else None,
        )
    )  # fmt: skip
    found = {"steps": float(steps), "training CPU s": time.process_time() - began}
    ready = load_encoder(str(trained))
    retrieval = evaluate(ready, load_benchmark("demo", settings.data_root), Options()).figures.t2v
    order = evaluate(ready, load_benchmark("demo_reversed", settings.data_root), Options()).figures.order
    found |= {f"retrieval R@1, {row}": values["r1"] for row, values in retrieval.items()}
    return found | {f"reversed, {row}": values["all"] for row, values in order.items()}


Trial = Callable[[str, int, int], dict[str, float]]
"""Encoder, seed, steps to figures."""


def part_rows(name: str, steps: int, settings: EncoderSettings, trial: Trial) -> dict[str, list[dict[str, float]]]:
    """All trainings of a part by row: both encoders at equal steps, then each at the CPU seconds of the slower one."""
    kept = settings.out / "encoder"

    def done(encoder: str, seed: int, count: int) -> dict[str, float]:
        content = {
            k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "data_root", "seeds", "threads")
        }
        path = kept / f"{name}-{encoder}-{seed}-{count}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            if found["settings"] == content:
                return found["figures"]
        figures = {k: round(v, 3) for k, v in trial(encoder, seed, count).items()}
        print(f"{name}, {encoder}, seed {seed}, {count} steps: {figures}", file=sys.stderr)
        kept.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            partial.write_text(json.dumps({"settings": content, "figures": figures}) + "\n")
        return figures

    rows = {f"{name}, {e}, equal steps": [done(e, s, steps) for s in settings.seeds] for e in ENCODERS}
    spent = [statistics.fmean(t["training CPU s"] for t in found) for found in rows.values()]
    for encoder, seconds in zip(ENCODERS, spent):
        count = max(1, round(steps * max(spent) / max(seconds, 1e-9)))
        rows[f"{name}, {encoder}, equal CPU seconds"] = [done(encoder, s, count) for s in settings.seeds]
    return rows


def verdict(rows: Mapping[str, Sequence[Mapping[str, float]]], part: str, figure: str) -> list[str]:
    """Which encoder is ahead in a figure, seed by seed, at both budgets."""
    said = []
    for budget in ("equal steps", "equal CPU seconds"):
        one, other = ([t[figure] for t in rows[f"{part}, {e}, {budget}"]] for e in ENCODERS)
        gain, wins = statistics.fmean(one) - statistics.fmean(other), sum(a > b for a, b in zip(one, other))
        losses = sum(a < b for a, b in zip(one, other))
        word = (
            "is ahead of"
            if wins == len(one)
            else "is behind"
            if losses == len(one)
            else "does not differ reliably from"
        )
        said.append(f"- {part}, {figure}, {budget}: VideoMamba {word} ViT ({gain:+.1f}; better with {wins} of {len(one)} seeds, worse with {losses}).")  # fmt: skip
    return said


def report(parts: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """The tables and what they say."""
    lines = ["# VideoMamba and ViT at equal budgets", ""]
    lines.append("; ".join(f"{e}: {parameters(c):.3f} M parameters" for e, c in ENCODERS.items()) + " (action task)")
    for part, rows in parts.items():
        figures = list(next(iter(rows.values()))[0])
        lines += ["", f"| {part} | {' | '.join(figures)} |", f"| --- {'| --- ' * len(figures)}|"]
        for name, trials in rows.items():
            cells = [f"{statistics.fmean(t[f] for t in trials):.1f}" + _spread([t[f] for t in trials]) for f in figures]
            lines.append(f"| {name.removeprefix(f'{part}, ')} | {' | '.join(cells)} |")
        lines.append("")
        for figure in figures:
            if figure.startswith(("accuracy", "direction", "order", "retrieval", "reversed")):
                lines += verdict(rows, part, figure)
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""


def run(settings: EncoderSettings) -> int:
    """Train what is not finished, print and write the table."""
    if not settings.seeds or min(settings.steps, settings.batch_size, settings.tests, settings.threads) < 1:
        raise UsageError("--seeds, --steps, --batch-size, --tests, --threads: expected positive numbers")
    torch.set_num_threads(settings.threads)

    def motion(encoder: str, seed: int, steps: int) -> dict[str, float]:
        return motion_trial(ENCODERS[encoder], settings, seed, steps)

    def demo(encoder: str, seed: int, steps: int) -> dict[str, float]:
        return demo_trial(_DEMO[encoder], settings, seed, steps, settings.out / "encoder" / f"{encoder}-{seed}-{steps}")

    parts = {"action task": part_rows("action task", settings.steps, settings, motion)}
    if settings.demo_steps:
        ensure_demo_corpus(settings.data_root / "demo")
        parts["demo"] = part_rows("demo", settings.demo_steps, settings, demo)
    text = report(parts)
    print(text)
    for name, content in (("encoder.md", text), ("encoder.json", json.dumps(parts, indent=1) + "\n")):
        with write_atomically(settings.out / name) as partial:
            partial.write_text(content)
    return 0


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(parsed(EncoderSettings, argv, "python -m vtr.pretrain.encoder_ablation", __doc__ or ""))


if __name__ == "__main__":
    sys.exit(main())
