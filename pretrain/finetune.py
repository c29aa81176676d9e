"""Fine-tune VideoMamba on images or videos with labels, test it on many views; or a video-text model for retrieval.

accelerate launch pretrain/finetune.py --task k400 --data data/k400 --init videomamba_tiny.in1k_res224 --model tiny
accelerate launch pretrain/finetune.py --task lvu-relation --data data/lvu --init k400_f32.pth --model tiny --resume latest
accelerate launch pretrain/finetune.py --task imagenet --data data/imagenet --model middle --teacher runs/small
accelerate launch pretrain/finetune.py --task ssv2 --data data/ssv2 --dry-run               # recipe, files, a few steps
accelerate launch pretrain/finetune.py --task retrieval --data msrvtt --init runs/5M        # then zero-shot evaluation
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there (see run.py).
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import vtr.settings
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.pretrain.run import guarded
from vtr.pretrain.tasks import TuneRecipe, load_task, task_names, tune_recipe
from vtr.pretrain.watch import Watch


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Fine-tune on a recognition task, or for retrieval."""

    task: str
    """imagenet, k400, ssv2, breakfast, coin, lvu-relation|speak|scene|director|genre|writer|year|like|view, retrieval."""
    data: str | None = None
    """Folder of the data set (default data/TASK); of retrieval: msrvtt, didemo, anet, lsmdc or msvd."""
    train: Path | None = None
    """List `path label` of the training split, instead of the data set's own layout."""
    val: Path | None = None
    """List of the validation split."""
    test: Path | None = None
    """List of the test split."""
    model: str | None = None
    """tiny (default), small, middle, base, or demo: narrow, 64 pixels. Retrieval: that of --init."""
    recipe: str = "paper"
    """paper (Tables III to VI) or released (the scripts, where they differ)."""
    masked: bool = False
    """The recipe for a model from masked pretraining (M†)."""
    init: str | None = None
    """Weights to start from: an official name (`vtr models`), a run, a model folder, or a checkpoint file."""
    scratch: bool = False
    """Start from random weights although the recipe starts from a trained model."""
    teacher: str | None = None
    """Self-distillation: a trained, smaller model of the same task."""
    distill_until: float = 1.0
    """Share of the steps after which the teacher stops guiding (early stopping)."""
    frames: int | None = None
    """Frames of a clip, instead of the recipe's."""
    pixels: int | None = None
    """Side of a frame, instead of the recipe's."""
    out: Path | None = None
    """Run folder (default runs/TASK): log.jsonl, checkpoints/, model/, results.json, views.*"""
    data_root: Path = Path("data")
    """Where data/TASK is looked for, and the benchmarks of retrieval."""
    resume: str | None = None
    """`latest`, `best`, or a checkpoint file of this run."""
    accept_changes: bool = False
    """Resume although recipe or data differ from the checkpoint's: no longer the same run."""
    test_only: bool = False
    """Only the multi-view test, of --init (or of the run's best checkpoint with --resume best)."""
    dry_run: bool = False
    """Print the recipe, look at every file, run two steps and two test clips, write nothing."""
    allow_missing: bool = False
    """Go on without files that are listed but not there; the result then says so."""
    steps: int | None = None
    """Steps, instead of the recipe's epochs."""
    validate_every: int = 0
    """Steps between validations (0 = once an epoch)."""
    micro_batch: int = 0
    """Clips encoded at once on each rank; the gradient stays that of the whole batch (0 = all)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 on a GPU."""
    workers: int = 2
    """Data worker processes of each rank."""
    seed: int | None = None
    """Seed of order, augmentation and new weights (default: the recipe's)."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 2
    """Latest checkpoints kept, beside the best (0 = all)."""
    max_bad_fraction: float = 0.05
    """Share of unreadable files among those read so far at which the run stops."""
    report_to: tuple[str, ...] = ()
    """Trackers of accelerate: tensorboard, wandb, …"""
    set: tuple[str, ...] = ()
    """Recipe settings, as in --set lr=1e-3 epochs=3 batch_size=16."""


SIZES = ("tiny", "small", "middle", "base", "demo")
DRY_STEPS = 2


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, fine-tune, return the exit code."""
    import tyro

    settings = tyro.cli(TuneSettings, args=argv, description=__doc__)
    if settings.task == "retrieval":
        from vtr.pretrain.tune_retrieval import tune_retrieval

        try:
            return tune_retrieval(settings)
        except VtrError as error:
            print(f"vtr: {error}", file=sys.stderr)
            return error.exit_code
    return guarded(lambda watch: tune(settings, watch))


def resolve(settings: TuneSettings) -> tuple[Any, TuneRecipe]:
    """The task, and its recipe with all overrides."""
    size = settings.model or "tiny"
    if size not in SIZES:
        raise unknown_name("model", size, SIZES)
    task = load_task(settings.task)
    size = "tiny" if size == "demo" else size
    chosen = tune_recipe(
        task, settings.recipe, size, frames=settings.frames, pixels=settings.pixels, masked=settings.masked
    )
    if settings.model == "demo" and settings.pixels is None:
        chosen = dataclasses.replace(chosen, pixels=64)
    chosen = vtr.settings.apply_overrides(chosen, settings.set)
    if settings.seed is not None:
        chosen = dataclasses.replace(chosen, seed=settings.seed)
    for name in ("batch_size", "repeats", "frames", "pixels"):
        if getattr(chosen, name) < 1:
            raise UsageError(f"{name} {getattr(chosen, name)}: expected a positive number")
    if settings.steps is not None and settings.steps < 1:
        raise UsageError(f"--steps {settings.steps}: expected a positive number")
    if not 0 <= settings.distill_until <= 1:
        raise UsageError(f"--distill-until {settings.distill_until}: expected a share between 0 and 1")
    return task, chosen


def tune(settings: TuneSettings, watch: Watch | None = None) -> Path:
    """Fine-tune and test; returns the run folder."""
    task, chosen = resolve(settings)
    out = settings.out or Path("runs") / settings.task
    from vtr.pretrain import run as machinery

    if not settings.dry_run:
        machinery._check_out(out)
    import torch
    from accelerate.utils import set_seed

    accelerator = machinery._accelerator(settings, out)  # type: ignore[arg-type]
    if watch is not None:
        watch.start()
    splits = _splits(settings, task, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(describe(settings, task, chosen, splits), file=sys.stdout if settings.dry_run else sys.stderr)
    set_seed(chosen.seed)
    model = build_model(settings.model or "tiny", chosen)
    said = _initialise(model, settings, chosen)
    if accelerator.is_main_process:
        for line in said:
            print(line, file=sys.stderr)
    model.to(accelerator.device)
    model.encoder.checkpointing = settings.checkpointing
    run = _Tuning(settings=settings, recipe=chosen, model=model, accelerator=accelerator, out=out, splits=splits)
    accelerator.init_trackers("vtr", config=None)
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)
    if not settings.test_only:
        run.fit()
    elif settings.resume:
        run.restore(run.checkpoint())
    if not settings.dry_run or "test" in splits:
        run.test()
    if watch is not None:
        watch.stop()
    accelerator.end_training()
    return out


def build_model(size: str, recipe: TuneRecipe) -> Any:
    """An untrained `RecognitionModel` of a named size for a recipe."""
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMambaConfig
    from vtr.models.recognition import RecognitionConfig, RecognitionModel

    base = VideoMambaConfig(dim=96, depth=4, image_size=64) if size == "demo" else VIDEOMAMBA_SIZES[size]
    if recipe.pixels % base.patch_size:
        raise UsageError(f"pixels {recipe.pixels}: expected a multiple of the patch size {base.patch_size}")
    video = dataclasses.replace(
        base,
        image_size=recipe.pixels,
        num_frames=recipe.frames,
        temporal=recipe.frames > 1,
        num_classes=recipe.classes or 1,
        drop_path=recipe.drop_path,
        pool="cls",
    )
    return RecognitionModel(RecognitionConfig(video=video))


def initial_weights(name: str) -> dict[str, Any]:
    """Encoder tensors, by our names, of an official model, a run, a model folder or a checkpoint file."""
    import vtr.models.load
    from vtr.encoders.official import read_checkpoint, to_ours

    path = Path(name)
    if path.is_file():
        state = to_ours(read_checkpoint(path))
    else:
        state = dict(vtr.models.load.load(name, "cpu").state_dict())
    for prefix in ("vision_encoder.", "encoder."):
        if any(k.startswith(prefix) for k in state):
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def load_initial(encoder: Any, state: dict[str, Any], origin: str) -> list[str]:
    """Load weights of an image, masked, video or video-text model into an encoder with a classifier; strict.

    Positions of other sizes are interpolated as their tensors say; a 2-D patch embedding is put in the middle of the
    tube; a head of other classes and what only pretraining needs are left out.

    Returns:
        Lines that say what is new or was left out.

    Raises:
        VtrError: Anything else is missing, unexpected or of another shape.
    """
    import torch

    from vtr.encoders.official import load_official

    own = encoder.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(("clip_decoder.", "pool_norm."))}
    said = [
        f"{origin}: without {k.split('.')[0]}" for k in sorted({k.split(".")[0] + "." for k in state if k not in kept})
    ]
    if "head.weight" in kept and kept["head.weight"].shape != own["head.weight"].shape:
        said.append(f"{origin}: its head of {len(kept['head.weight'])} classes is left out, the new one is random")
        kept = {k: v for k, v in kept.items() if not k.startswith("head.")}
    elif "head.weight" not in kept:
        said.append(f"{origin}: no head in it, the new one is random")
    if "temporal_pos_embedding" in kept and "temporal_pos_embedding" not in own:
        kept.pop("temporal_pos_embedding")
        said.append(f"{origin}: a video model made an image model, without its temporal positions")
    if "temporal_pos_embedding" in own and "temporal_pos_embedding" not in kept:
        kept["temporal_pos_embedding"] = torch.zeros_like(own["temporal_pos_embedding"])
        said.append(f"{origin}: an image model inflated to {own['temporal_pos_embedding'].shape[1]} frames")
    patch = kept.get("patch_embed.proj.weight")
    tube = own["patch_embed.proj.weight"].shape[2]
    if patch is not None and patch.ndim == 5 and patch.shape[2] == 1 and tube > 1:
        wide = torch.zeros(*patch.shape[:2], tube, *patch.shape[3:], dtype=patch.dtype)
        wide[:, :, tube // 2] = patch[:, :, 0]
        kept["patch_embed.proj.weight"] = wide
    load_official(encoder, kept, origin, optional=("head.",))
    return said


def _initialise(model: Any, settings: TuneSettings, recipe: TuneRecipe) -> list[str]:
    if settings.init is None:
        if recipe.start != "scratch" and not settings.scratch and not settings.dry_run and settings.resume is None:
            raise UsageError(
                f"this recipe starts from {recipe.start}: give it with --init, or --scratch to start from random weights"
            )
        return []
    return load_initial(model.encoder, initial_weights(settings.init), settings.init)


def _splits(settings: TuneSettings, task: Any, say: bool) -> dict[str, Any]:
    """train, val and test as far as they are there; val and test stand in for each other."""
    from vtr.data.recognition import load_split

    root = Path(settings.data) if settings.data else settings.data_root / settings.task
    lists = {"train": settings.train, "val": settings.val, "test": settings.test}
    part = settings.task.partition("-")[2]
    wanted = ("test",) if settings.test_only else ("train", "val", "test")
    found: dict[str, Any] = {}
    for name in wanted:
        try:
            found[name] = load_split(task.layout, root, name, file=lists[name], part=part)
        except VtrError:
            if name == "train" or lists[name] is not None:
                raise
    if not set(found) & {"val", "test"}:
        raise VtrError(f"{root}: neither a val nor a test split of {task.layout}; give --val LIST or --test LIST")
    found.setdefault("val", found.get("test"))
    found.setdefault("test", found["val"])
    for name, split in found.items():
        if split.missing and not settings.allow_missing:
            raise VtrError(
                f"{name} ({split.source}): {len(split.missing)} of {len(split.missing) + len(split.items)} files are "
                f"missing, first {split.missing[0]}; --allow-missing goes on without them"
            )
        if not split.items:
            raise VtrError(f"{name} ({split.source}): none of its files is there, first {split.missing[0]}")
        worst = max((i.label for i in split.items), default=0)
        bad = [i for i in split.items if task.classes and not (0 <= i.label < task.classes and i.label == int(i.label))]
        if bad:
            raise VtrError(
                f"{name} ({split.source}): {bad[0].name} has label {bad[0].label:g}; {settings.task} has classes 0 to "
                f"{task.classes - 1} (highest label in the list: {worst:g})"
            )
    return found


def describe(settings: TuneSettings, task: Any, recipe: TuneRecipe, splits: dict[str, Any]) -> str:
    """What will be done, as text: data found, recipe, where the paper and the released scripts differ."""
    lines = [f"{settings.task}: {task.about}; {settings.model or 'tiny'}, recipe {settings.recipe} ({task.sources})"]
    for name, split in splits.items():
        missing = f", {len(split.missing)} missing" if split.missing else ""
        named = f", {split.classes} classes named" if split.classes else ""
        lines.append(f"  {name:<6} {len(split.items)} items{missing}{named}, from {split.source}")
    values = dataclasses.asdict(recipe)
    if settings.recipe == "paper":
        _, other = resolve(dataclasses.replace(settings, recipe="released"))
    else:
        _, other = resolve(dataclasses.replace(settings, recipe="paper"))
    others = dataclasses.asdict(other)
    word = "released" if settings.recipe == "paper" else "paper"
    for key, value in values.items():
        differs = f"   ({word}: {others[key]})" if others[key] != value else ""
        lines.append(f"  {key:<14} {value}{differs}")
    lines.append(
        f"  learning rate  {recipe.lr * recipe.scale:.3g} for {recipe.batch_size} x {recipe.repeats} clips a step"
    )
    return "\n".join(lines)


class _Clips:
    """Map-style data set of one split: (epoch, index) -> augmented clips of one item, or why there are none."""

    def __init__(self, items: list[Any], recipe: TuneRecipe, mean: Any, std: Any) -> None:
        from vtr.data.recognition import Augment

        self.items, self.recipe, self.mean, self.std = items, recipe, mean, std
        self.augment = Augment(
            recipe.pixels,
            policy=recipe.augment,
            order=recipe.order,
            scale=recipe.crop_scale,
            flip=recipe.flip,
            erase=recipe.erase,
        )

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, float, list[int], str]:
        import numpy as np
        import torch

        from vtr.data.decode import DecodeError
        from vtr.data.recognition import read_item, sample_train

        epoch, index = key
        item, recipe = self.items[index], self.recipe
        seeds = [_seed(recipe.seed, epoch, index, r) for r in range(recipe.repeats)]
        rng = np.random.default_rng(seeds[0])
        try:
            frames = read_item(item, lambda n: sample_train(recipe.sampling, n, recipe.frames, rng))
        except (DecodeError, OSError) as error:
            return torch.empty(0), item.label, seeds, str(error)
        clips = [self.augment(frames, seed, self.mean, self.std) for seed in seeds]
        return torch.stack(clips), item.label, seeds, ""


def _seed(*numbers: int) -> int:
    """63 bits from whole numbers."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch meets the items: a function of (seed, epoch), the same on all ranks."""
    import numpy as np

    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]


class _Order:
    """Batches of (epoch, index) of one rank from a step on."""

    def __init__(self, count: int, batch: int, seed: int, rank: int, world: int, first: int, last: int) -> None:
        self.count, self.batch, self.seed, self.rank, self.world = count, batch, seed, rank, world
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.count // self.batch
        known = (-1, [0])
        for step in range(self.first, self.last):
            epoch, place = divmod(step, per_epoch)
            if known[0] != epoch:
                known = (epoch, epoch_order(self.count, epoch, self.seed))
            whole = known[1][place * self.batch : (place + 1) * self.batch]
            yield [(epoch, i) for i in whole[self.rank :: self.world]]

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(kw_only=True)
class _Tuning:
    """A fine-tuning in progress."""

    settings: TuneSettings
    recipe: TuneRecipe
    model: Any
    accelerator: Any
    out: Path
    splits: dict[str, Any]
    progress: dict[str, float] = field(default_factory=lambda: {"seen": 0, "bad": 0})
    best: float = -math.inf

    def items(self, split: str) -> list[Any]:
        """The items of a split; long videos in windows where the recipe has them."""
        from vtr.data.recognition import windows

        return [w for i in self.splits[split].items for w in windows(i, self.recipe.window, self.recipe.window_stride)]

    def identity(self) -> dict[str, Any]:
        """What makes the run this run."""
        train = self.splits["train"]
        return {
            "task": self.settings.task,
            "recipe": dataclasses.asdict(self.recipe),
            "model": dataclasses.asdict(self.model.config.video),
            "data": {"source": train.source, "items": len(train.items)},
            "teacher": self.settings.teacher,
            "steps": self.settings.steps,
        }

    def checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from, checked against this run."""
        from vtr.pretrain.run import _changes, _gathered
        from vtr.pretrain.state import checkpoints, find_checkpoint, read_checkpoint

        folder, settings = self.out / "checkpoints", self.settings
        if settings.resume is None:
            if checkpoints(folder):
                raise VtrError(
                    f"{self.out} holds a run with checkpoints: continue it with --resume latest, or choose another --out"
                )
            return None
        path = _gathered(find_checkpoint(folder, settings.resume), self.accelerator)[0]
        if path is None:
            if self.accelerator.is_main_process:
                print(f"--resume latest: no checkpoint in {folder}, starting from the beginning", file=sys.stderr)
            if settings.init is None and self.recipe.start != "scratch" and not settings.scratch:
                raise UsageError(f"this recipe starts from {self.recipe.start}: give it with --init, or --scratch")
            return None
        state = read_checkpoint(path)
        changes = [] if settings.test_only else _changes(state["identity"], self.identity())
        if changes and not settings.accept_changes:
            raise VtrError(
                f"{path} is of another run: {'; '.join(changes[:5])}; give the same settings, or --accept-changes"
            )
        if self.accelerator.is_main_process:
            print(f"resume: {path}", file=sys.stderr)
        return state

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take over the model of a checkpoint."""
        if state is not None:
            self.model.load_state_dict(state["model"])

    def fit(self) -> None:
        """Train to the end."""
        import torch
        from torch.utils.data import DataLoader
        from tqdm import tqdm

        from vtr.pretrain.layer_decay import parameter_groups
        from vtr.pretrain.loop import RunLog, everyone, memory_gib
        from vtr.pretrain.state import mark_best, save_checkpoint

        settings, recipe, model, accelerator = self.settings, self.recipe, self.model, self.accelerator
        device, main = accelerator.device, accelerator.is_main_process
        items = self.items("train")
        batch = min(recipe.batch_size, len(items))
        world = accelerator.num_processes
        if batch < world:
            raise UsageError(f"a batch of {batch} is too small for {world} ranks")
        per_epoch = len(items) // batch
        steps = settings.steps or max(1, round(recipe.epochs * per_epoch))
        guide = _Guide.load(settings, recipe, model, device) if settings.teacher else None
        groups = parameter_groups(
            model.encoder,
            depth=model.config.video.depth,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            rule=recipe.decay_rule,
        )
        if guide is not None:
            groups.append({"params": list(guide.head.parameters()), "scale": 1.0, "weight_decay": recipe.weight_decay})
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
        state = None if settings.dry_run else self.checkpoint()
        first = 0
        log = RunLog(self.out / "log.jsonl" if main and not settings.dry_run else None)
        if state is not None:
            self.restore(state)
            optimizer.load_state_dict(state["optimizer"])
            if guide is not None:
                guide.head.load_state_dict(state["guide"])
            first, self.progress, self.best = state["step"], state["progress"], state["best"]
            log.cut(state["log_bytes"])
        elif not settings.dry_run:
            log.cut(0)
        if not settings.dry_run and main:
            self._record()
        last = min(steps, first + DRY_STEPS) if settings.dry_run else steps
        data = _Clips(items, recipe, model._mean.cpu(), model._std.cpu())
        loader: Any = DataLoader(
            data,  # type: ignore[arg-type]
            batch_sampler=_Order(len(items), batch, recipe.seed, accelerator.process_index, world, first, last),
            num_workers=settings.workers,
            collate_fn=list,
            worker_init_fn=_one_thread,
            pin_memory=False,
        )
        every = settings.validate_every or per_epoch
        parameters = [p for group in groups for p in group["params"]]
        loss_of = _Losses(self, guide, batch)
        bar = tqdm(total=steps, initial=first, desc=settings.task, file=sys.stderr, unit="step", disable=not main)
        start, saved = time.perf_counter(), None

        def save(done: int) -> Path:
            found = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "guide": guide.head.state_dict() if guide is not None else {},
                "step": done,
                "progress": self.progress,
                "best": self.best,
                "log_bytes": log.size(),
                "identity": self.identity(),
            }
            path = self.out / "checkpoints" / f"step-{done:08d}.pt"
            self._main_only(lambda: save_checkpoint(path.parent, done, found, settings.keep))
            return path

        model.train()
        for step, rows in enumerate(_failing_well(loader), start=first):
            bad = [r[3] for r in rows if r[3]]
            seen, wrong, count = everyone(
                None, device, [float(len(rows)), float(len(bad)), float(len(rows) - len(bad))]
            )
            self.progress["seen"] += seen
            self.progress["bad"] += wrong
            for line in bad:
                print(f"unreadable, left out: {line}", file=sys.stderr)
            if self.progress["bad"] > max(1.0, settings.max_bad_fraction * self.progress["seen"]) or not count:
                raise VtrError(
                    f"{self.progress['bad']:.0f} of {self.progress['seen']:.0f} files could not be read, more than "
                    f"--max-bad-fraction {settings.max_bad_fraction:g}; {bad[0] if bad else '(see the other ranks)'}"
                )
            rate = _rate(step, steps, per_epoch, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.zero_grad(set_to_none=True)
            distilling = guide is not None and step < settings.distill_until * steps
            losses = loss_of([r for r in rows if not r[3]], count, step, distilling)
            _reduce(parameters, world)
            limit = recipe.clip_grad if recipe.clip_grad > 0 else float("inf")
            norm = torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit)
            losses = dict(zip(losses, everyone(None, device, list(losses.values()))))
            if not math.isfinite(losses["loss"]) or not math.isfinite(float(norm)):
                raise VtrError(
                    f"step {step}: the loss or its gradient is not finite ({losses}, gradient norm {float(norm):.4g}); "
                    + (f"last good checkpoint {saved}" if saved else "no checkpoint of this call yet")
                )
            optimizer.step()
            bar.update()
            done = step + 1
            if done % settings.log_every == 0 or done == last:
                log.write(
                    step=done, epoch=round(done / per_epoch, 4), lr=rate, grad_norm=float(f"{float(norm):.9g}"),
                    bad=self.progress["bad"], memory_gib=memory_gib(device), time=round(time.time(), 2),
                    **{k: float(f"{v:.9g}") for k, v in losses.items()},
                )  # fmt: skip
                accelerator.log({**losses, "lr": rate}, step=done)
                bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in losses.items()), refresh=False)
            if settings.dry_run:
                continue
            checked = False
            if done % every == 0 or done == steps:
                found = self._validate()
                log.write(step=done, validation=found, time=round(time.time(), 2))
                bar.write(f"step {done}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), file=sys.stderr)
                score = found["top1"] if recipe.classes else -found["mse"]
                checked = score > self.best
                self.best = max(self.best, score)
                model.train()
            if checked or done == steps or (settings.save_every and done % settings.save_every == 0):
                saved = save(done)
                if checked:
                    best = saved
                    self._main_only(lambda best=best: mark_best(best.parent, best))
        bar.close()
        if settings.dry_run:
            if main:
                each = (time.perf_counter() - start) / max(1, last - first)
                print(f"dry run: {steps} steps of {batch} items, {per_epoch} an epoch; {each:.2f} s a step here")
            return
        self.restore(_best(self.out / "checkpoints"))
        self._main_only(lambda: model.save_pretrained(self.out / "model"))

    def _validate(self) -> dict[str, float]:
        """One centre view of every validation item."""
        from vtr.eval.recognition import merged, metrics

        results, _ = self._score("val", (1, 1))
        _, labels, scores = merged(results)
        return metrics(labels, scores, self.recipe.classes)

    def _score(self, split: str, views: tuple[int, int], most: int | None = None) -> tuple[list[Any], list[str]]:
        """Views of a split, scored by all ranks; every rank gets all of them."""
        from vtr.eval.recognition import score_views
        from vtr.pretrain.run import _gathered

        accelerator = self.accelerator
        items = self.items(split)[:most]
        own = items[accelerator.process_index :: accelerator.num_processes]
        results, bad = score_views(
            self.model,
            own,
            self.recipe,
            views=views,
            autocast=accelerator.autocast,
            workers=self.settings.workers,
            progress=accelerator.is_main_process and views != (1, 1),
        )
        parts = _gathered((results, bad), accelerator)
        found = [r for part, _ in parts for r in part]
        if not found:
            raise VtrError(f"{split}: no file of it can be read, first {parts[0][1][0] if parts[0][1] else ''}")
        return found, [b for _, part in parts for b in part]

    def test(self) -> dict[str, Any]:
        """The multi-view test: results.json, views.jsonl and views.safetensors."""
        from vtr.eval.recognition import report, write_views

        settings, recipe = self.settings, self.recipe
        most = 2 if settings.dry_run else None
        results, bad = self._score("test", recipe.views, most)
        found = report(results, recipe, recipe.views, bad)
        split = self.splits["test"]
        lost = len(split.missing) + len(bad)
        if lost:
            found["note"] = f"{found['videos']} of {len(split.items) + len(split.missing)} videos: not comparable"
        if self.accelerator.is_main_process:
            words = ", ".join(f"{k} {v:.2f}" for k, v in found["merged"].items())
            print(
                f"test, {found['videos']} videos, {found['views']} views: {words}"
                + (f" ({found['note']})" if lost else "")
            )
            if not settings.dry_run:
                record = {
                    "task": settings.task,
                    "recipe": settings.recipe,
                    "split": split.source,
                    "frames": recipe.frames,
                    "pixels": recipe.pixels,
                    **found,
                }
                write_views(self.out, results)
                partial = self.out / f"results.{os.getpid()}.tmp"
                partial.write_text(json.dumps(record, indent=1) + "\n")
                os.replace(partial, self.out / "results.json")
        return found

    def _record(self) -> None:
        """run.json: settings and recipe."""
        import torch

        record = {
            "settings": dataclasses.asdict(self.settings),
            "recipe": dataclasses.asdict(self.recipe),
            "data": {
                k: {"source": v.source, "items": len(v.items), "missing": len(v.missing)}
                for k, v in self.splits.items()
            },
            "torch": torch.__version__,
            "device": str(self.accelerator.device),
            "ranks": self.accelerator.num_processes,
        }
        partial = self.out / "run.tmp"
        partial.write_text(json.dumps(record, indent=1, default=str))
        os.replace(partial, self.out / "run.json")

    def _main_only(self, work: Any) -> None:
        """Do something on the main process; if it fails there, it fails everywhere."""
        from vtr.pretrain.loop import everyone

        error = None
        if self.accelerator.is_main_process:
            try:
                work()
            except VtrError as caught:
                error = caught
        everyone(error, self.accelerator.device)


def _best(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of the best validation."""
    from vtr.pretrain.state import BEST, read_checkpoint

    return read_checkpoint(folder / BEST) if (folder / BEST).is_file() else None


def _one_thread(worker: int) -> None:
    import torch

    torch.set_num_threads(1)


def _failing_well(loader: Any) -> Iterator[list[Any]]:
    """The loader's batches; what a worker raises becomes one line."""
    try:
        yield from loader
    except VtrError:
        raise
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text and "Caught" not in text:
            raise
        raise VtrError(f"a data worker failed: {text.strip().splitlines()[-1]}") from error


def _rate(step: int, steps: int, per_epoch: int, recipe: TuneRecipe) -> float:
    """Linear warm-up, then a cosine, step by step."""
    top = recipe.lr * recipe.scale
    floor = recipe.min_lr * (recipe.scale if recipe.scale_floor else 1.0)
    low = recipe.warmup_lr * (recipe.scale if recipe.scale_floor else 1.0)
    # A run of other length than the recipe's keeps the warm-up's share of it.
    warmup = min(steps, round(steps * recipe.warmup_epochs / recipe.epochs)) if recipe.epochs > 0 else 0
    if step < warmup:
        return low + (top - low) * step / max(1, warmup)
    share = (step - warmup) / max(1, steps - warmup)
    return floor + (top - floor) * 0.5 * (1 + math.cos(math.pi * share))


def _reduce(parameters: list[Any], world: int) -> None:
    """Sum the gradients of all ranks: each holds its clips' share."""
    if world == 1:
        return
    import torch
    import torch.distributed as dist

    for parameter in parameters:  # a rank whose files were all unreadable has none, and must still take part
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad.copy_(part.view_as(parameter))


class _Guide:
    """The teacher of self-distillation and the student's head for it."""

    def __init__(self, teacher: Any, head: Any) -> None:
        self.teacher, self.head = teacher, head

    @classmethod
    def load(cls, settings: TuneSettings, recipe: TuneRecipe, model: Any, device: Any) -> _Guide:
        """From a trained recognition model.

        Raises:
            UsageError: It has no tokens to match the student's.
        """
        import vtr.models.load
        from vtr.encoders.distill import DistillHead

        teacher = vtr.models.load.load(str(settings.teacher), "cpu")
        encoder = getattr(teacher, "encoder", None)
        if encoder is None:
            raise UsageError(f"--teacher {settings.teacher}: a video-text model; expected a recognition model")
        own, theirs = model.config.video, encoder.config
        if own.patch_size != theirs.patch_size or own.tubelet != theirs.tubelet or (theirs.temporal != own.temporal):
            raise UsageError(
                f"--teacher {settings.teacher}: its tokens are not the student's (patch {theirs.patch_size}, tubelet "
                f"{theirs.tubelet}, {'video' if theirs.temporal else 'image'} model)"
            )
        encoder.to(device).eval().requires_grad_(False)
        return cls(encoder, DistillHead(own.dim, theirs.dim).to(device))


class _Losses:
    """One step's losses, their gradients added to the parameters."""

    def __init__(self, run: _Tuning, guide: _Guide | None, batch: int) -> None:
        self.run, self.guide, self.batch = run, guide, batch

    def __call__(self, rows: list[Any], count: float, step: int, distilling: bool) -> dict[str, float]:
        """This rank's share of the losses of the global batch (they sum up over the ranks).

        Args:
            rows: Readable samples of this rank.
            count: Readable samples of all ranks.
        """
        import torch
        import torch.nn.functional as F

        from vtr.data.recognition import mix
        from vtr.encoders import draws
        from vtr.pretrain.objectives import token_distillation_loss

        run, recipe = self.run, self.run.recipe
        encoder, device = run.model.encoder, run.accelerator.device
        losses = {"loss": 0.0, **({"distill": 0.0} if distilling else {})}
        if not rows:
            return losses
        clips = torch.cat([r[0] for r in rows])
        labels = torch.tensor([r[1] for r in rows for _ in r[2]])
        seeds = torch.tensor([s for r in rows for s in r[2]], dtype=torch.int64)
        target: Any = labels
        if recipe.classes:
            own = _seed(recipe.seed, step, run.accelerator.process_index)
            clips, target = mix(
                clips, labels.long(), recipe.classes, mixup=recipe.mixup, cutmix=recipe.cutmix, seed=own
            )
        total = count * recipe.repeats
        size = run.settings.micro_batch or len(clips)
        for start in range(0, len(clips), size):
            piece = slice(start, start + size)
            video, wanted = clips[piece].to(device), target[piece].to(device)
            with run.accelerator.autocast(), draws.rows(seeds[piece]):
                tokens = encoder.features(video)[0]
                logits = encoder.head(tokens[:, 0])
            if recipe.classes:
                loss = F.cross_entropy(logits.float(), wanted, label_smoothing=recipe.smoothing, reduction="sum")
            else:
                loss = F.mse_loss(logits.float()[:, 0], wanted.float(), reduction="sum")
            loss = loss / total
            if distilling and self.guide is not None:
                with torch.no_grad(), run.accelerator.autocast():
                    known = self.guide.teacher.features(video)[0]
                with run.accelerator.autocast():
                    guided = self.guide.head(tokens)
                extra = token_distillation_loss(guided, known) * len(video) / total
                losses["distill"] += float(extra.detach())
                loss = loss + extra
            loss.backward()
            losses["loss"] += float(loss.detach())
        return losses


__all__ = [
    "TuneSettings",
    "build_model",
    "epoch_order",
    "initial_weights",
    "load_initial",
    "main",
    "task_names",
    "tune",
]

if __name__ == "__main__":
    sys.exit(main())
