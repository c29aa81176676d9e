"""VideoMamba against UMT's ViT of the same number of parameters, at equal steps and at equal CPU seconds.

python -m vtr.eval.ablate encoder                          # three seeds; the demo corpus below --data-root
python -m vtr.eval.ablate encoder --seeds 0 --steps 20 --demo-steps 0 --out /tmp/try     # a moment, to try it

Everything but the encoder is the same. The generated action task (`vtr.data.motion`): accuracy, direction pairs (left or right, up
or down), order of events (white or black first), and the model trained on 8 frames tested on 8, 16, 32, 64. The demo corpus with
its recipe's `unmasked` stage, contrast of videos and texts alone: retrieval by embedding, direction pairs, clips against their
reversal. Inference of one clip of 224 pixels. Each training and each point has a process of its own; finished trainings are kept.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

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
from vtr.errors import UsageError, VtrError, reports_errors
from vtr.eval.ablate import here, spread
from vtr.eval.benchmarks import load_benchmark
from vtr.eval.efficiency import passes, resident
from vtr.eval.evaluate import Options, evaluate
from vtr.eval.trials import TEST, Budget, Source, once, pixels, set_rate
from vtr.files import write_atomically
from vtr.models.load import load_encoder
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.build import build_model
from vtr.pretrain.optim import AdamW
from vtr.pretrain.recipes import recipe
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.train import train
from vtr.pretrain.warmup import warm_up
from vtr.settings import parsed

LENGTHS = (8, 16, 32, 64)
PIXELS = 224  # of the clips that inference is measured with
BUDGETS = ("equal steps", "equal CPU seconds")
_AHEAD, _BEHIND, _EVEN = "is ahead of", "is behind", "does not differ reliably from"
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


_CONTRAST = ("unmasked.vtm=0", "unmasked.mlm=0")  # two thirds of a step's time, and no row of this table is of them
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Train both encoders, over several seeds, at equal steps and at equal CPU seconds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One training of every row for each."""
    steps: int = 500
    """Of the action task."""
    demo_steps: int = 300
    """Of the demo corpus; 0 = without that part."""
    batch_size: int = 16
    """Clips of a step of the action task."""
    lr: float = 2e-3
    """Peak learning rate of the action task."""
    tests: int = 180
    """Clips of its test."""
    threads: int = 1
    """Threads of torch."""
    data_root: Path = Path("data")
    """Where the demo corpus is, or is made."""
    out: Path = Path("runs/ablate")
    """encoder.md and encoder.json; encoder/ holds what is finished."""


def parameters(config: EncoderConfig) -> float:
    """Millions, without the classifier's."""
    return sum(p.numel() for n, p in build_encoder(config).named_parameters() if not n.startswith("head.")) / 1e6


def untrained(config: EncoderConfig, frames: int, pixels: int) -> VideoEncoder:
    """The encoder for clips of another length and size."""
    return build_encoder(replace(config, num_frames=frames, image_size=pixels))


def alone(function: Callable[..., T], *given: object) -> T:
    """What a function returns in a process of its own, whose peak of memory is its alone.

    Raises:
        VtrError: The process was ended from outside, as the system does that has no memory left.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(function, *given).result()
        except BrokenProcessPool as error:
            raise VtrError("a training's process was killed (out of memory?); the same command continues") from error


class _Spent:
    """CPU seconds and memory of a training, from here on."""

    def __init__(self) -> None:
        self.began, self.base = time.process_time(), resident("VmRSS")

    def figures(self, steps: int) -> dict[str, float]:
        return {
            "steps": float(steps),
            "training CPU s": time.process_time() - self.began,
            "training MiB": 1024 * max(0.0, resident("VmHWM") - self.base),
        }


def motion_trial(config: EncoderConfig, settings: EncoderSettings, seed: int, steps: int) -> dict[str, float]:
    """One training on the action task, and its tests."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(seed)
    task = MotionTask(size=config.image_size)
    build_encoder(config).classify(pixels(task.draw(1, 0)[0]))  # libraries and kernels are loaded
    spent = _Spent()
    model = build_encoder(config).train()
    budget = Budget(steps=steps, batch_size=settings.batch_size, labelled=0, tests=settings.tests, lr=settings.lr)
    optimizer = AdamW(model.parameters(), lr=budget.lr, betas=(0.9, 0.98), weight_decay=0.05)
    source = Source(task, budget, seed)
    for step in range(steps):
        set_rate(optimizer, budget.lr, step, steps)
        clips, labels = source(step)
        loss = F.cross_entropy(model.classify(pixels(clips)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    found = spent.figures(steps)
    for frames in LENGTHS:
        found |= _tested(model.eval(), replace(task, frames=frames), settings.tests, frames)
    return found


@torch.no_grad()
def _tested(model: VideoEncoder, task: MotionTask, tests: int, frames: int) -> dict[str, float]:
    clips, labels = task.draw(tests, TEST)
    scores = torch.cat([model.classify(pixels(part)) for part in clips.split(30)])
    found = {f"accuracy, {frames} frames": 100 * float((scores.argmax(1) == labels).float().mean())}
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
    torch.set_num_threads(settings.threads)
    shutil.rmtree(folder, ignore_errors=True)  # a run that was stopped: the seconds of its first part are not known
    chosen = replace(recipe("clean", "demo"), seed=seed)
    torch.manual_seed(seed)
    corpus = load_corpus("demo", settings.data_root / "demo")
    like = build_model("demo", corpus, settings.data_root, chosen)
    text = replace(like.config.text, vision_width=config.dim)
    model = VideoTextModel(replace(like.config, video=config, text=text), like.tokenizer)
    warm_up(model, chosen)
    model.save_pretrained(folder / "start")
    spent = _Spent()
    trained = train(
        RunSettings(
            corpus="demo", data_root=settings.data_root, init=str(folder / "start"), stage="unmasked", steps=steps, seed=seed,
            out=folder / "run", threads=settings.threads, set=_CONTRAST,
        )
    )  # fmt: skip
    found, ready = spent.figures(steps), load_encoder(str(trained))
    own, backwards = (
        evaluate(ready, load_benchmark(name, settings.data_root), Options(rerank=0))
        for name in ("demo", "demo_reversed")
    )
    found["retrieval R@1"] = own.figures.t2v["embedding"]["r1"]
    found["direction pairs"] = statistics.fmean(own.direction_pairs.values())
    found["reversed"] = backwards.figures.order["embedding"]["all"]
    shutil.rmtree(folder)
    return found


Trial = Callable[[str, int, int], dict[str, float]]
"""Encoder, seed, steps to figures."""


def part_rows(name: str, steps: int, settings: EncoderSettings, trial: Trial) -> dict[str, list[dict[str, float]]]:
    """All trainings of a part by row: both encoders at equal steps, then each at the CPU seconds of the slower one."""
    of = {k: v for k, v in asdict(settings).items() if k not in ("out", "data_root", "seeds", "steps", "demo_steps")}

    def done(encoder: str, seed: int, count: int) -> dict[str, float]:
        path = settings.out / "encoder" / f"{name}-{encoder}-{seed}-{count}.json"
        found = once(path, of, partial(trial, encoder, seed, count))
        print(f"{name}, {encoder}, seed {seed}, {count} steps: {found}", file=sys.stderr)
        return found

    first = [{e: done(e, seed, steps) for e in ENCODERS} for seed in settings.seeds]
    rows = {f"{name}, {e}, equal steps": [trials[e] for trials in first] for e in ENCODERS}
    spent = {e: statistics.fmean(trials[e]["training CPU s"] for trials in first) for e in ENCODERS}
    for encoder, seconds in spent.items():
        count = max(1, round(steps * max(spent.values()) / max(seconds, 1e-9)))
        rows[f"{name}, {encoder}, equal CPU seconds"] = [done(encoder, s, count) for s in settings.seeds]
    return rows


def inference() -> list[list[object]]:
    """Encoder, frames, CPU seconds and MiB of a pass over one clip."""
    rows: list[list[object]] = []
    for frames in LENGTHS:
        for encoder, config in ENCODERS.items():
            found = passes(partial(untrained, config), frames, PIXELS)
            if found.cpu is None or found.memory is None:
                raise VtrError(f"inference of {encoder} with {frames} frames: {found.note}")
            rows.append([encoder, frames, f"{found.cpu:.3f}", f"{1024 * found.memory:.0f}"])
            print(f"inference: {rows[-1]}", file=sys.stderr)
    return rows


def verdict(rows: Mapping[str, Sequence[Mapping[str, float]]], part: str, figure: str, budget: str) -> tuple[str, str]:
    """Which encoder is ahead in a figure, seed by seed, at a budget: in a word, and in a line."""
    one, other = ([t[figure] for t in rows[f"{part}, {e}, {budget}"]] for e in ENCODERS)
    gain, wins = statistics.fmean(one) - statistics.fmean(other), sum(a > b for a, b in zip(one, other))
    losses = sum(a < b for a, b in zip(one, other))
    word = _AHEAD if wins == len(one) else _BEHIND if losses == len(one) else _EVEN
    return word, f"- {part}, {figure}, {budget}: VideoMamba {word} ViT ({gain:+.1f}; better with {wins} of {len(one)} seeds, worse with {losses})."  # fmt: skip


def report(parts: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], cost: Sequence[Sequence[object]]) -> str:
    """What the tables say, the tables, and figure by figure which encoder is ahead."""
    sizes = "; ".join(
        f"{e} {parameters(ENCODERS[e]):.3f} (action task), {parameters(_DEMO[e]):.3f} (demo)" for e in ENCODERS
    )
    tables: list[str] = []
    lines: list[str] = []
    words: dict[str, list[str]] = {budget: [] for budget in BUDGETS}
    for part, rows in parts.items():
        figures = list(next(iter(rows.values()))[0])
        cells = [
            [name.removeprefix(f"{part}, "), *(spread([t[f] for t in trials]) for f in figures)]
            for name, trials in rows.items()
        ]
        tables += ["", _table([part, *figures], cells)]
        for figure in figures:
            if figure.startswith(("accuracy", "direction", "order", "retrieval", "reversed")):
                for budget in BUDGETS:
                    word, line = verdict(rows, part, figure, budget)
                    words[budget].append(word)
                    lines.append(line)
    said = "; ".join(
        f"at {budget} VideoMamba {', '.join(f'{word} ViT in {found.count(word)}' for word in (_AHEAD, _BEHIND, _EVEN))} of {len(found)} figures"
        for budget, found in words.items()
    )
    tables += ["", _table(["inference, one clip", "frames", "CPU s", "MiB"], cost)] if cost else []
    return "\n".join(
        ["# VideoMamba and ViT at equal budgets", "", f"{said[0].upper()}{said[1:]} (reliably: with every seed).",
         "", f"Parameters, millions: {sizes}. Mean and standard deviation over the seeds; memory is over the process's own; inference "
         f"at {PIXELS} pixels with the action task's encoder.", *tables, "", *lines]
    ) + "\n"  # fmt: skip


def _table(titles: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def run(settings: EncoderSettings) -> int:
    """Train what is not finished, print and write the table."""
    if not settings.seeds or min(settings.steps, settings.batch_size, settings.tests, settings.threads) < 1:
        raise UsageError("--seeds, --steps, --batch-size, --tests, --threads: expected positive numbers")
    torch.set_num_threads(settings.threads)

    def motion(encoder: str, seed: int, steps: int) -> dict[str, float]:
        return alone(motion_trial, ENCODERS[encoder], settings, seed, steps)

    def demo(encoder: str, seed: int, steps: int) -> dict[str, float]:
        folder = settings.out / "encoder" / f"{encoder}-{seed}-{steps}"
        return alone(demo_trial, _DEMO[encoder], settings, seed, steps, folder)

    parts = {"action task": part_rows("action task", settings.steps, settings, motion)}
    if settings.demo_steps:
        ensure_demo_corpus(settings.data_root / "demo")
        parts["demo"] = part_rows("demo", settings.demo_steps, settings, demo)
    cost = inference()
    changed = [
        f"--{f.name.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
        for f in fields(settings)
        if f.name not in ("data_root", "out") and (v := getattr(settings, f.name)) != f.default
    ]
    command = " ".join(["python -m vtr.eval.ablate encoder", *changed])
    text = f"{report(parts, cost)}\n`{command}`, {here()}\n"
    print(text)
    content = json.dumps({"parts": parts, "inference": cost, "command": command}, indent=1) + "\n"
    for name, said in (("encoder.md", text), ("encoder.json", content)):
        with write_atomically(settings.out / name) as unfinished:
            unfinished.write_text(said, encoding="utf-8")
    return 0


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(parsed(EncoderSettings, argv, "python -m vtr.eval.ablate encoder", __doc__ or ""))


if __name__ == "__main__":
    sys.exit(main())
