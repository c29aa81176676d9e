"""The paper's ablations on a generated, motion-sensitive task, with the paper's figures beside.

python -m vtr.eval.ablate task                    # does the model see motion, where single frames tell nothing?
python -m vtr.eval.ablate scan                    # Fig. 7a: scan orders
python -m vtr.eval.ablate mask|align|ratio|droppath   # Table 5: masked pretraining
python -m vtr.eval.ablate distill                 # Fig. 6: self-distillation, with and without early stopping
python -m vtr.eval.ablate long                    # trained on 64 frames, tested on 64, 256 and 1024
python -m vtr.eval.ablate encoder                 # VideoMamba against a ViT of its size, at equal steps and CPU seconds
python -m vtr.eval.ablate all --threads 1 --out runs/ablate   # stop and call again: finished trainings are kept
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from vtr.errors import UsageError, VtrError, reports_errors, unknown_name
from vtr.settings import parsed

TABLES = ("task", "scan", "mask", "align", "ratio", "droppath", "distill", "long")


@dataclass(frozen=True, kw_only=True)
class AblateSettings:
    """Train the rows of ablation tables, over several seeds."""

    tables: tyro.conf.Positional[tuple[str, ...]]
    """task, scan, mask, align, ratio, droppath, distill, long, or all of these; encoder, with flags of its own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training of every row for each."""
    out: Path = Path("runs/ablate")
    """`{table}.json`, `.md` and `.png`; trials/ holds what is finished, and is not done again."""
    steps: int = 500
    """Labelled steps of every row."""
    pretrain_steps: int = 300
    """Unlabelled steps of masked pretraining."""
    task_steps: int = 300
    """Steps of the table `task`, whose model is VideoMamba-Ti itself."""
    labelled: int = 2000
    """Labelled clips; 0 = fresh ones at every step."""
    batch_size: int = 16
    """Clips of a step."""
    lr: float = 2e-3
    """Peak learning rate (VideoMamba-Ti: half of it)."""
    threads: int = 2
    """Threads of torch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: what is trained, and what the paper has for it."""

    name: str
    run: Callable[[int, Any], dict[str, float]]  # (seed, tell) -> figures of one training
    paper: float | None = None
    identity: dict[str, Any] = field(default_factory=dict)  # what the figures depend on, beside the seed


@dataclass(frozen=True, kw_only=True)
class Table:
    """An ablation."""

    title: str
    source: str  # where the paper has it
    rows: tuple[Row, ...]
    note: str = ""


class _Teachers:
    """Teachers that rows share, trained when first asked for."""

    def __init__(self, settings: AblateSettings) -> None:
        self.settings = settings
        self._image: Any = None
        self._video: dict[int, tuple[Any, float]] = {}

    def image(self) -> Any:
        """The single-frame teacher of masked pretraining."""
        from vtr.eval.trials import image_teacher

        if self._image is None:
            print("training the image teacher", file=sys.stderr)
            self._image = image_teacher(_task())
        return self._image

    def video(self, seed: int) -> Any:
        """A small trained classifier, the teacher of self-distillation, and its accuracy."""
        from vtr.eval.trials import SMALL, classifier, train

        if seed not in self._video:
            print(f"training the small teacher, seed {seed}", file=sys.stderr)
            model = classifier(SMALL, seed)
            found = train(model, _task(), budget(self.settings, steps=2 * self.settings.steps), seed)
            self._video[seed] = (model, found.accuracy)
        return self._video[seed]


def _task() -> Any:
    from vtr.data.motion import MotionTask
    from vtr.eval.trials import SMALL

    return MotionTask(size=SMALL.image_size)


def budget(settings: AblateSettings, **changes: Any) -> Any:
    """The training budget that the flags ask for."""
    from vtr.eval.trials import Budget

    plain = Budget(
        steps=settings.steps,
        pretrain_steps=settings.pretrain_steps,
        batch_size=settings.batch_size,
        labelled=settings.labelled,
        lr=settings.lr,
    )
    return replace(plain, **changes)


def _scratch(
    config: Any, settings: AblateSettings, name: str, paper: float | None = None, task: Any = None, **changes: Any
) -> Row:
    """A row that trains a classifier from scratch."""
    from vtr.eval.trials import classifier, middle_frame, train

    view = changes.pop("view", "clip")
    spent = budget(settings, **changes)
    task = task or _task()

    def run(seed: int, tell: Any) -> dict[str, float]:
        from vtr.data.motion import shuffled_frames

        views = {"clip": lambda c: c, "middle frame": middle_frame, "shuffled": lambda c: shuffled_frames(c, seed)}
        return train(classifier(config, seed), task, spent, seed, view=views[view], tell=tell)._asdict()

    identity = {"config": config, "budget": spent, "view": view, "task": task}
    return Row(name=name, run=run, paper=paper, identity=identity)


def _table_task(settings: AblateSettings, teachers: _Teachers) -> Table:
    from vtr.data.motion import CLASSES, MotionTask
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES

    task = MotionTask(size=32)
    tiny = replace(VIDEOMAMBA_SIZES["tiny"], image_size=32, num_classes=len(CLASSES), pool="cls")
    more: dict[str, Any] = {"task": task, "steps": settings.task_steps, "labelled": 0, "lr": settings.lr / 2}
    return Table(
        title="Motion task, VideoMamba-Ti (24 layers, width 192) on 8 frames of 32 pixels",
        source="the task is ours; chance is 11.1 %, 50 % between a class and its reversal",
        rows=(
            _scratch(tiny, settings, "8 frames", **more),
            _scratch(tiny, settings, "middle frame only", view="middle frame", **more),
        ),
        note="`frames shuffled`: the same trained model on test clips whose frames are in random order; what only the order of "
        "frames tells (left or right, up or down, white or black first) is then a guess.",
    )


def _table_scan(settings: AblateSettings, teachers: _Teachers) -> Table:
    from vtr.encoders.scans import SCANS
    from vtr.eval.trials import SMALL

    rows = [_scratch(replace(SMALL, scan=s), settings, f"{s}: {words}", top1) for s, (words, top1) in SCANS.items()]
    return Table(
        title="Scan orders",
        source="Fig. 7a, SthSthV2, VideoMamba-Ti from ImageNet",
        rows=tuple(rows),
        note="The paper's models start from an image model, which favours spatial-first; these start from scratch. "
        "In temporal-first order the CLS token stands beside a corner of the picture, far from what happens.",
    )


def _masked(settings: AblateSettings, teachers: _Teachers, name: str, paper: float | None, **how: Any) -> Row:
    """A row that pretrains with masks, then fine-tunes."""
    from vtr.eval.trials import SMALL, classifier, pretrain_masked, train

    config = replace(SMALL, **{k: how.pop(k) for k in ("align_layers", "align_interval") if k in how})
    how = {"mask": "attention", "ratio": 0.8, "drop_path": 0.0, **how}
    spent, task = budget(settings), _task()

    def run(seed: int, tell: Any) -> dict[str, float]:
        teacher = teachers.image()
        encoder, seconds, visible = pretrain_masked(config, task, spent, seed, teacher, tell=tell, **how)
        found = train(classifier(SMALL, seed, encoder), task, spent, seed, tell=tell)
        return {**found._asdict(), "pretrain_seconds": seconds, "visible": 100 * visible}

    return Row(name=name, run=run, paper=paper, identity={"config": config, "budget": spent, "how": how, "task": task})


def _references(settings: AblateSettings) -> tuple[Row, ...]:
    """From scratch: with the labelled steps alone, and with as many tokens as pretraining reads on top."""
    from vtr.eval.trials import SMALL

    patches = (SMALL.image_size // SMALL.patch_size) ** 2
    visible = patches - int(patches * 0.8)
    share = (1 + SMALL.num_frames * visible) / (1 + SMALL.num_frames * patches)
    more = settings.steps + math.ceil(settings.pretrain_steps * share)
    return (
        _scratch(SMALL, settings, "from scratch"),
        _scratch(
            SMALL, settings, f"from scratch, {more} labelled steps (the tokens of attention 80 % + tuning)", steps=more
        ),
    )


_TABLE5 = "Table 5, SthSthV2, VideoMamba-M distilled from CLIP-ViT-B for 200 epochs"
_MASK_NOTE = (
    "Every row: the same unlabelled and labelled steps; the teacher is an image model of single frames, which trains in "
    "15 s and is not counted. On 9 patches a frame 80 % leaves 2 patches (attention, tube, random) or 1 row of 3."
)


def _table_mask(settings: AblateSettings, teachers: _Teachers) -> Table:
    paper = {"random": 67.4, "tube": 66.3, "clip_row": 68.2, "frame_row": 67.8, "attention": 68.5}
    rows = [_masked(settings, teachers, kind, top1, mask=kind) for kind, top1 in paper.items()]
    return Table(title="Mask types, 80 %", source=_TABLE5, rows=(*_references(settings), *rows), note=_MASK_NOTE)


def _table_align(settings: AblateSettings, teachers: _Teachers) -> Table:
    paper = ((1, 1, 68.5), (2, 1, 68.4), (4, 1, 68.2), (2, 2, 67.7))
    words = {(1, 1): "last 1", (2, 1): "last 2", (4, 1): "last 4 of 4 (paper: 6 of 32)"}
    rows = [
        _masked(
            settings,
            teachers,
            words.get((n, i), f"last {n}, every {i}nd (paper: 6, every 2nd)"),
            top1,
            align_layers=n,
            align_interval=i,
        )
        for n, i, top1 in paper
    ]
    return Table(title="Aligned layers, attention mask 80 %", source=_TABLE5, rows=tuple(rows), note=_MASK_NOTE)


def _table_ratio(settings: AblateSettings, teachers: _Teachers) -> Table:
    paper = {0.5: 68.1, 0.65: 68.4, 0.8: 68.5, 0.9: 68.2}
    rows = [_masked(settings, teachers, f"{ratio:.0%}", top1, ratio=ratio) for ratio, top1 in paper.items()]
    return Table(title="Mask ratio, attention mask", source=_TABLE5, rows=tuple(rows), note=_MASK_NOTE)


def _table_droppath(settings: AblateSettings, teachers: _Teachers) -> Table:
    paper = {0.1: 68.0, 0.2: 68.2, 0.3: 68.4, 0.4: 68.5}
    rows = [_masked(settings, teachers, f"{rate:g}", top1, drop_path=rate) for rate, top1 in paper.items()]
    return Table(
        title="Drop path in pretraining, attention mask 80 %", source=_TABLE5, rows=tuple(rows), note=_MASK_NOTE
    )


def _table_distill(settings: AblateSettings, teachers: _Teachers) -> Table:
    from vtr.eval.trials import SMALL, classifier, train

    large = replace(SMALL, dim=3 * SMALL.dim // 2, depth=3 * SMALL.depth // 2)
    spent, task = budget(settings), _task()

    def distilled(name: str, until: float) -> Row:
        def run(seed: int, tell: Any) -> dict[str, float]:
            teacher, accuracy = teachers.video(seed)
            found = train(classifier(large, seed), task, spent, seed, teacher=teacher, teacher_until=until, tell=tell)
            return {**found._asdict(), "teacher_accuracy": accuracy}

        return Row(name=name, run=run, identity={"config": large, "budget": spent, "until": until, "task": task})

    return Table(
        title="Self-distillation: a student 1.5 times as wide and deep, guided by a small teacher",
        source="Fig. 6 (curves, no figures); Table 2: VideoMamba-M 82.8 with it, VideoMamba-S 81.2",
        rows=(
            _scratch(SMALL, settings, "small, from scratch"),
            _scratch(large, settings, "large, from scratch"),
            distilled("large, distilled", 1.0),
            distilled("large, distilled for the first half (early stopping)", 0.5),
        ),
        note="The teacher is a small model trained for twice the steps on the same labelled clips.",
    )


def _table_long(settings: AblateSettings, teachers: _Teachers) -> Table:
    from vtr.data.motion import MotionTask
    from vtr.eval.trials import SMALL, classifier, score, train

    config = replace(SMALL, image_size=32, num_frames=64)
    spent = budget(settings, tests=90, labelled=0)
    trained: dict[int, tuple[Any, float]] = {}

    def model_of(seed: int, tell: Any) -> tuple[Any, float]:
        if seed not in trained:
            model = classifier(config, seed)
            trained[seed] = (model, train(model, MotionTask(frames=64), spent, seed, tell=tell).seconds)
        return trained[seed]

    def tested_at(frames: int) -> Row:
        def run(seed: int, tell: Any) -> dict[str, float]:
            model, seconds = model_of(seed, tell)
            start = time.perf_counter()
            found = score(model, MotionTask(frames=frames), spent, seconds=seconds, at_once=2)
            return {**found._asdict(), "test_seconds": time.perf_counter() - start}

        identity = {"config": config, "budget": spent, "tested at": frames}
        return Row(name=f"tested on {frames} frames", run=run, identity=identity)

    return Table(
        title="Long videos: trained on 64 frames, tested on more (time positions interpolated)",
        source="the task is ours; the paper trains and tests on up to 64 frames",
        rows=tuple(tested_at(n) for n in (64, 256, 1024)),
        note="90 test clips; each shows the same action, the slower the more frames it has. Cost and memory at 224 pixels: "
        "python -m vtr.eval.efficiency --long 64 256 1024.",
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def trial_path(out: Path, row: Row, seed: int) -> Path:
    """Where a finished training is kept: its name is a hash of everything the figures depend on."""
    text = json.dumps({"seed": seed, **{k: _plain(v) for k, v in row.identity.items()}}, sort_keys=True, default=str)
    return out / "trials" / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.json"


def run_table(table: Table, settings: AblateSettings) -> dict[str, Any]:
    """Train what is not finished yet; returns the rows with the figures of each seed."""
    from tqdm import tqdm

    rows = []
    for row in table.rows:
        found = []
        for seed in settings.seeds:
            path = trial_path(settings.out, row, seed)
            if path.is_file():
                found.append(json.loads(path.read_text()))
                continue
            bar = tqdm(desc=f"{row.name[:40]}, seed {seed}", file=sys.stderr, unit="step", leave=False)

            def tell(done: int, of: int, bar: Any = bar) -> None:
                bar.total = of
                bar.update(done - bar.n)

            figures = {k: round(v, 3) for k, v in row.run(seed, tell).items()}
            bar.close()
            _write(path, json.dumps({"row": row.name, "seed": seed, **figures}) + "\n")
            print(f"{table.title}: {row.name}, seed {seed}: {figures}", file=sys.stderr)
            found.append(json.loads(path.read_text()))
        rows.append({"name": row.name, "paper": row.paper, "trials": found})
    return {"title": table.title, "source": table.source, "note": table.note, "rows": rows}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise VtrError(f"{path} cannot be written: {error.strerror}") from error


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def markdown(result: dict[str, Any], command: str, where: str) -> str:
    """The table as text."""
    lines = [f"# {result['title']}", "", f"Paper: {result['source']}.", ""]
    lines += [
        "| row | accuracy, % | each seed | class or reversal, % | frames shuffled, % (class or reversal) | s | paper |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        t = row["trials"]
        seconds = statistics.fmean(x["seconds"] + x.get("pretrain_seconds", 0.0) for x in t)
        lines.append(
            f"| {row['name']} | {spread([x['accuracy'] for x in t])} | {' '.join(format(x['accuracy'], '.1f') for x in t)} "
            f"| {spread([x['pairs'] for x in t])} | {spread([x['shuffled'] for x in t])} "
            f"({spread([x['shuffled_pairs'] for x in t])}) | {seconds:.0f} "
            f"| {row['paper'] if row['paper'] is not None else ''} |"
        )
    lines += ["", *([result["note"], ""] if result["note"] else []), *verdicts(result), f"`{command}`, {where}"]
    return "\n".join(lines) + "\n"


def verdicts(result: dict[str, Any]) -> list[str]:
    """Plain words on whether what was tried beats training from scratch, seed by seed."""
    by_name = {row["name"]: [x["accuracy"] for x in row["trials"]] for row in result["rows"]}
    scratch = [n for n in by_name if "from scratch" in n and not n.startswith("small")]
    if not scratch:
        return []
    lines = []
    reference = max(scratch, key=lambda n: statistics.fmean(by_name[n]))
    for name, values in by_name.items():
        if "from scratch" in name:
            continue
        wins = sum(a > b for a, b in zip(values, by_name[reference]))
        gain = statistics.fmean(values) - statistics.fmean(by_name[reference])
        word = (
            "beats" if gain > 0 and wins == len(values) else "does not reliably beat" if gain > 0 else "does not beat"
        )
        lines.append(f"- {name} {word} “{reference}”: {gain:+.1f} points, better with {wins} of {len(values)} seeds.")
    return [*lines, ""]


def here() -> str:
    """Device, date and versions, as every result carries them."""
    import platform

    import torch

    from vtr import __version__

    model = platform.processor() or platform.machine()
    try:
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    except OSError:
        pass
    return (
        f"{model}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"vtr {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def run(settings: AblateSettings) -> int:
    """Train, print and write the tables."""
    names = TABLES if "all" in settings.tables else settings.tables
    if not names:
        raise UsageError(f"name a table: {', '.join(TABLES)}, all")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise UsageError("--seeds: expected different numbers, as in --seeds 0 1 2")
    for flag in ("steps", "pretrain_steps", "task_steps", "batch_size", "threads"):
        if getattr(settings, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(settings, flag)}: expected a positive number")
    for name in names:
        if name == "encoder":
            raise UsageError("encoder has flags of its own and comes alone: python -m vtr.eval.ablate encoder")
        if name not in TABLES:
            raise unknown_name("table", name, (*TABLES, "encoder", "all"))
    import torch

    from vtr.data.motion import CLASSES
    from vtr.eval.figures import bars

    torch.set_num_threads(settings.threads)
    teachers = _Teachers(settings)
    for name in names:
        result = run_table(_BUILDERS[name](settings, teachers), settings)
        changed = [
            f"--{f.name.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
            for f in dataclasses.fields(settings)
            if f.name not in ("tables", "out") and (v := getattr(settings, f.name)) != f.default
        ]
        command = " ".join([f"python -m vtr.eval.ablate {name}", *changed])
        text = markdown(result, command, here())
        print(text)
        _write(settings.out / f"{name}.md", text)
        _write(settings.out / f"{name}.json", json.dumps({**result, "command": command, "where": here()}, indent=1))
        bars(
            settings.out / f"{name}.png",
            result["title"],
            [r["name"].split(":")[0][:54] for r in result["rows"]],
            [[t["accuracy"] for t in r["trials"]] for r in result["rows"]],
            [r["paper"] for r in result["rows"]],
            chance=100 / len(CLASSES),
            caption="accuracy, %; bar: mean, dots: seeds, red: chance",
        )
    return 0


_BUILDERS: dict[str, Callable[[AblateSettings, _Teachers], Table]] = {
    "task": _table_task,
    "scan": _table_scan,
    "mask": _table_mask,
    "align": _table_align,
    "ratio": _table_ratio,
    "droppath": _table_droppath,
    "distill": _table_distill,
    "long": _table_long,
}


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["encoder"]:  # it pretrains, and pretraining builds on evaluation: in a process of its own
            return subprocess.run([sys.executable, "-m", "vtr.pretrain.encoder_ablation", *words[1:]]).returncode
        return run(parsed(AblateSettings, argv, "python -m vtr.eval.ablate", __doc__ or ""))
    except KeyboardInterrupt:
        print("vtr: stopped; finished trainings are kept, the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
