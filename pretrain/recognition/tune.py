"""A fine-tuning on labels: the recipe settled, the training, the multi-view test."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from torch import Tensor, nn

import vtr.models.load
import vtr.settings
from vtr.data.labels import Item, Split, windows
from vtr.encoders.registry import config_to_dict
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.eval.recognition import ViewScore, merged, metrics, report, score_views, write_views
from vtr.files import write_atomically
from vtr.models.recognition import RecognitionModel
from vtr.pretrain.join import call_facts, check_joining, join, say_how, trackers_begin
from vtr.pretrain.loop import Bench, Loop, Schedule
from vtr.pretrain.optim import AdamW
from vtr.pretrain.recognition.data import (
    Clips,
    Order,
    Sample,
    batches,
    load_splits,
    loader,
    number_of_classes,
    shared_files,
    small_copies,
)
from vtr.pretrain.recognition.initial import build_model, check_size, initialise
from vtr.pretrain.recognition.layer_decay import RULES, Group, parameter_groups
from vtr.pretrain.recognition.losses import Guide, TuneLosses
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.recognition.tasks import Task, TuneRecipe, load_task, tune_recipe
from vtr.pretrain.sharding import sum_gradients
from vtr.pretrain.state import (
    BEST,
    Progress,
    RunLog,
    State,
    check_out,
    check_same_run,
    read_checkpoint,
    to_continue,
    write_record,
)
from vtr.pretrain.stop import Stop
from vtr.pretrain.watch import Watch
from vtr.ranks import Ranks

SAMPLINGS = ("segments", "ssv2")
ORDERS = ("augment first", "crop first")
DRY_STEPS = 2


def resolve(settings: TuneSettings) -> tuple[Task, TuneRecipe]:
    """The task, and its recipe with all overrides.

    Raises:
        UsageError: A name or value that means nothing.
    """
    check_joining(settings)
    size = settings.model or "tiny"
    check_size(size)
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
    for name, known in (("sampling", SAMPLINGS), ("decay_rule", RULES), ("order", ORDERS)):
        if getattr(chosen, name) not in known:
            raise unknown_name(name, getattr(chosen, name), known)
    for name in ("batch_size", "repeats", "frames", "pixels"):
        if getattr(chosen, name) < 1:
            raise UsageError(f"{name} {getattr(chosen, name)}: expected a positive number")
    if settings.steps is not None and settings.steps < 1:
        raise UsageError(f"--steps {settings.steps}: expected a positive number")
    if not 0 <= settings.distill_until <= 1:
        raise UsageError(f"--distill-until {settings.distill_until}: expected a share between 0 and 1")
    return task, chosen


def _begun(settings: TuneSettings, recipe: TuneRecipe, names: tuple[str, ...]) -> tuple[RecognitionModel, list[str]]:
    """The model with the weights it begins with, and what is to be said of them."""
    set_seed(recipe.seed)
    model = build_model(settings.model or "tiny", recipe, names)
    return model, initialise(model, settings, recipe)


def tune(settings: TuneSettings, watch: Watch | None = None) -> Path:
    """Fine-tune and test; returns the run folder."""
    task, chosen = resolve(settings)
    out = settings.out or Path("runs") / settings.task
    if not settings.dry_run:
        check_out(out)
    ranks = join(settings, out)
    if watch is not None:
        watch.start()
    names = class_names(settings) if task.layout == "own" and settings.test_only else ()
    splits = ranks.together(lambda: load_splits(settings, task, chosen.classes, names))
    if ranks.main:
        print(describe(settings, task, chosen, splits), file=sys.stdout if settings.dry_run else sys.stderr)
    say_how(ranks)
    splits = small_copies(settings, splits, ranks)
    chosen = settled(chosen, splits)
    model, said = ranks.together(lambda: _begun(settings, chosen, splits["test"].names))
    if ranks.main:
        for line in said:
            print(line, file=sys.stderr)
    model.to(ranks.device)
    model.encoder.checkpointing = settings.checkpointing
    run = Tuning(settings, chosen, model, ranks, out, splits)
    if ranks.size > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)
    if not settings.test_only:
        run.fit(watch.request if watch else Stop())
    elif settings.resume:
        found = run.checkpoint()
        if found is not None:
            model.load_state_dict(found["model"])
    if not settings.dry_run or "test" in splits:
        run.test()
    if watch is not None:
        watch.stop()
    ranks.end()
    return out


def settled(recipe: TuneRecipe, splits: dict[str, Split]) -> TuneRecipe:
    """The recipe as the data have it: the number of own classes, and no larger batch than there are items."""
    classes = recipe.classes if recipe.classes >= 0 else number_of_classes(splits)
    if "train" not in splits:
        return dataclasses.replace(recipe, classes=classes)
    count = len(items_of(splits["train"], recipe))
    return dataclasses.replace(recipe, classes=classes, batch_size=min(recipe.batch_size, count))


def items_of(split: Split, recipe: TuneRecipe) -> list[Item]:
    """The items of a split; long videos in windows where the recipe has them."""
    return [w for i in split.items for w in windows(i, recipe.window, recipe.window_stride)]


def class_names(settings: TuneSettings) -> tuple[str, ...]:
    """The names of the classes that a trained model knows, in a test of own data."""
    if settings.init is None:
        return ()
    config = getattr(vtr.models.load.load(settings.init, "cpu"), "config", None)
    return tuple(getattr(config, "class_names", ()))


def selection(splits: dict[str, Split]) -> str:
    """What the best checkpoint is chosen on, and what that means for the test."""
    same = shared_files(splits, "test", "val")
    source = splits["val"].source
    if not same:
        return f"best of the validations on {source}, which shares no file with the test"
    whole = len({item.path.resolve() for item in splits["test"].items})
    what = "the test split itself" if same == whole else f"{same} of the {whole} test files"
    return f"best of the validations on {what} ({source}): its score is optimistic; give both --val and --test"


def describe(settings: TuneSettings, task: Task, recipe: TuneRecipe, splits: dict[str, Split]) -> str:
    """What will be done, as text: data found, recipe, where the paper and the released scripts differ."""
    lines = [f"{settings.task}: {task.about}; {settings.model or 'tiny'}, recipe {settings.recipe} ({task.sources})"]
    for name, split in splits.items():
        missing = f", {len(split.missing)} missing" if split.missing else ""
        named = f", {split.classes} classes named" if split.classes else ""
        lines.append(f"  {name:<6} {len(split.items)} items{missing}{named}, from {split.source}")
    for name in ("val", "test"):
        same = shared_files(splits, name, "train")
        if same:
            lines.append(f"  note: {same} of the {len(splits[name].items)} {name} files are in the training list too")
    if {"train", "val", "test"} <= splits.keys():
        lines.append(f"  checkpoint     {selection(splits)}")
    asked, recipe = recipe, settled(recipe, splits)
    values = dataclasses.asdict(recipe)
    if settings.recipe == "paper":
        _, other = resolve(dataclasses.replace(settings, recipe="released"))
    else:
        _, other = resolve(dataclasses.replace(settings, recipe="paper"))
    others = dataclasses.asdict(settled(other, splits))
    word = "released" if settings.recipe == "paper" else "paper"
    for key, value in values.items():
        differs = f"   ({word}: {others[key]})" if others[key] != value else ""
        lines.append(f"  {key:<14} {value}{differs}")
    cut = "" if recipe.batch_size == asked.batch_size else f", all that the list has of the recipe's {asked.batch_size}"
    lines.append(
        f"  learning rate  {recipe.lr * recipe.scale:.3g} for {recipe.batch_size} x {recipe.repeats} clips a step{cut} "
        f"(lr {recipe.lr:g} is for {recipe.lr_batch})"
    )
    return "\n".join(lines)


class Tuning:
    """A fine-tuning in progress."""

    def __init__(
        self,
        settings: TuneSettings,
        recipe: TuneRecipe,
        model: RecognitionModel,
        ranks: Ranks,
        out: Path,
        splits: dict[str, Split],
    ) -> None:
        self.settings, self.recipe, self.model, self.ranks = settings, recipe, model, ranks
        self.out, self.splits = out, splits
        self.selection = "the last"  # how the checkpoint that is tested was chosen

    def items(self, split: str) -> list[Item]:
        """The items of a split; long videos in windows where the recipe has them."""
        return items_of(self.splits[split], self.recipe)

    @property
    def identity(self) -> State:
        """What makes the run this run."""
        train = self.splits["train"]
        return {
            "task": self.settings.task,
            "recipe": dataclasses.asdict(self.recipe),
            "model": config_to_dict(self.model.config.video),
            "data": {"source": train.source, "items": len(train.items)},
            "teacher": self.settings.teacher,
            "steps": self.settings.steps,
        }

    def checkpoint(self) -> State | None:
        """The state to continue from, checked against this run."""
        settings = self.settings
        found = to_continue(self.out, settings.resume, self.ranks)
        if found is None:
            lost = settings.resume is not None and settings.init is None and not settings.scratch
            if lost and self.recipe.start != "scratch":
                raise UsageError(f"this recipe starts from {self.recipe.start}: give it with --init, or --scratch")
            return None
        path, state = found
        if not settings.test_only:
            plain = config_to_dict(type(self.model.config.video)())
            defaults = {"recipe": dataclasses.asdict(type(self.recipe)()), "model": plain}
            accept = settings.accept_changes
            self.ranks.together(
                lambda: check_same_run(path, state, self.identity, defaults, self.ranks, accept_changes=accept)
            )
        return state

    def fit(self, stop: Stop) -> None:
        """Train to the end; the model is then that of the best validation."""
        settings, ranks = self.settings, self.ranks
        loop = TuneLoop.of(self, stop)
        if not settings.dry_run:
            ranks.main_only(self._record)
            trackers_begin(ranks, {"settings": settings, "recipe": self.recipe}, self.out)
        loop.run()
        if settings.dry_run:
            if ranks.main:
                each = loop.seconds / max(1, loop.schedule.end - loop.schedule.first)
                print(
                    f"dry run: {loop.schedule.steps} steps of {loop.batch} items, {loop.per_epoch} an epoch; "
                    f"{each:.2f} s a step here"
                )
            return
        best = self.out / "checkpoints" / BEST
        if best.is_file():
            self.selection = selection(self.splits)
            self.model.load_state_dict(read_checkpoint(best)["model"])
        ranks.main_only(lambda: self.model.save_pretrained(self.out / "model"))

    def validate(self) -> dict[str, float]:
        """One centre view of every validation item."""
        results, _ = self._score("val", (1, 1))
        _, labels, scores = merged(results)
        return metrics(labels, scores, self.recipe.classes)

    def _score(self, split: str, views: tuple[int, int], most: int | None = None) -> tuple[list[ViewScore], list[str]]:
        """Views of a split, scored by all ranks; every rank gets all of them."""
        ranks = self.ranks
        own = self.items(split)[:most][ranks.rank :: ranks.size]
        results, bad = score_views(
            self.model,
            own,
            self.recipe,
            views=views,
            autocast=ranks.autocast,
            workers=self.settings.workers,
            progress=ranks.main and views != (1, 1),
        )
        parts = ranks.gathered((results, bad))
        found = [r for part, _ in parts for r in part]
        if not found:
            raise VtrError(f"{split}: no file of it can be read, first {parts[0][1][0] if parts[0][1] else ''}")
        return found, [b for _, part in parts for b in part]

    def test(self) -> None:
        """The multi-view test: results.json, views.jsonl and views.safetensors."""
        settings, recipe = self.settings, self.recipe
        results, bad = self._score("test", recipe.views, 2 if settings.dry_run else None)
        found = report(results, recipe, recipe.views, bad)
        split = self.splits["test"]
        lost = len(split.missing) + len(bad)
        if lost:
            found["note"] = f"{found['videos']} of {len(split.items) + len(split.missing)} videos: not comparable"
        if not self.ranks.main:
            return
        if settings.test_only:
            self.selection = settings.init or settings.resume or "untrained"
        words = ", ".join(f"{k} {v:.2f}" for k, v in found["merged"].items())
        print(
            f"test, {found['videos']} videos, {found['views']} views: {words}" + (f" ({found['note']})" if lost else "")
        )
        if settings.dry_run:
            return
        print(f"checkpoint: {self.selection}")
        record = {
            "task": settings.task,
            "recipe": settings.recipe,
            "split": split.source,
            "checkpoint": self.selection,
            **({"class_names": list(split.names)} if split.names else {}),
            "frames": recipe.frames,
            "pixels": recipe.pixels,
            **found,
        }
        write_views(self.out, results)
        with write_atomically(self.out / "results.json") as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")

    def _record(self) -> None:
        """run.json: settings and recipe."""
        record = {
            "settings": dataclasses.asdict(self.settings),
            "recipe": dataclasses.asdict(self.recipe),
            "data": {
                k: {"source": v.source, "items": len(v.items), "missing": len(v.missing)}
                for k, v in self.splits.items()
            },
            "torch": torch.__version__,
            "device": str(self.ranks.device),
            "ranks": self.ranks.size,
        }
        call = {**call_facts(self.ranks), "workers": self.settings.workers}
        write_record(self.out, record, call, resumed=self.settings.resume is not None)


class TuneLoop(Loop[list[Sample]]):
    """The training of a fine-tuning.

    Attributes:
        batch: Items of a step, over all ranks.
        per_epoch: Steps of an epoch.
    """

    def __init__(
        self, run: Tuning, schedule: Schedule, bench: Bench, optimizer: torch.optim.Optimizer, guide: Guide | None
    ) -> None:
        super().__init__(schedule, bench, run.model, optimizer, run.recipe.clip_grad)
        items, recipe, ranks = run.items("train"), run.recipe, bench.ranks
        self.batch, self.per_epoch = step_size(run, items)
        self._run, self._guide = run, guide
        self._losses = TuneLosses(run.model, recipe, ranks, guide, run.settings.micro_batch)
        config = run.model.config
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.pixel_mean, config.pixel_std))
        data = Clips(items, recipe, mean, std)
        order = Order(len(items), self.batch, recipe.seed, ranks.rank, ranks.size, schedule.first, schedule.end)
        self._batches = batches(loader(data, order, run.settings.workers))
        self._readable = 0.0  # samples of the step, over all ranks

    @classmethod
    def of(cls, run: Tuning, stop: Stop) -> TuneLoop:
        """The loop of a run, in the state of its checkpoint."""
        settings, recipe, model, ranks = run.settings, run.recipe, run.model, run.ranks
        _, per_epoch = step_size(run, run.items("train"))
        guide = Guide.load(settings, recipe, model, ranks.device) if settings.teacher else None
        groups = parameter_groups(
            model.encoder,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            rule=recipe.decay_rule,
        )
        if guide is not None:
            head = list(guide.head.parameters())
            groups.append(Group(params=head, scale=1.0, weight_decay=recipe.weight_decay))
        optimizer = AdamW([dict(g) for g in groups], lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
        state = None if settings.dry_run else run.checkpoint()
        log = RunLog(run.out / "log.jsonl" if ranks.main and not settings.dry_run else None)
        progress, first = Progress(best=-math.inf), 0
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if guide is not None:
                guide.head.load_state_dict(state["guide"])
            first = state["step"]
            progress = Progress(
                seen=round(state["progress"]["seen"]), bad=round(state["progress"]["bad"]), best=state["best"]
            )
        log.cut(state["log_bytes"] if state else 0)
        schedule = Schedule(
            name=settings.task,
            steps=settings.steps or max(1, round(recipe.epochs * per_epoch)),
            first=first,
            log_every=settings.log_every,
            save_every=settings.save_every,
            validate_every=settings.validate_every or per_epoch,
            most=DRY_STEPS if settings.dry_run else 0,
            keep=settings.keep,
        )
        bench = Bench(ranks=ranks, log=log, progress=progress, folder=run.out / "checkpoints", stop=stop)
        return cls(run, schedule, bench, optimizer, guide)

    def next_batch(self) -> list[Sample]:
        return next(self._batches)

    def counts(self, batch: list[Sample]) -> list[float]:
        bad = sum(1 for row in batch if row.problem)
        return [float(len(batch)), float(bad), float(len(batch) - bad)]

    def took(self, batch: list[Sample], sums: list[float]) -> None:
        seen, bad, self._readable = sums
        bad_lines = [row.problem for row in batch if row.problem]
        progress, most = self.progress, self._run.settings.max_bad_fraction
        progress.add(seen, bad, bad_lines)
        for line in bad_lines:
            print(f"unreadable, left out: {line}", file=sys.stderr)
        if progress.bad > max(1.0, most * progress.seen) or not self._readable:
            raise VtrError(
                f"{progress.bad} of {progress.seen} files could not be read, more than --max-bad-fraction {most:g}; "
                f"{bad_lines[0] if bad_lines else '(see the other ranks)'}"
            )

    def set_rate(self, step: int) -> float:
        rate = learning_rate(step, self.schedule.steps, self.per_epoch, self._run.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def losses(self, batch: list[Sample], step: int) -> dict[str, Tensor]:
        distilling = self._guide is not None and step < self._run.settings.distill_until * self.schedule.steps
        own = self._losses([row for row in batch if not row.problem], self._readable, step, distilling)
        if self.ranks.size > 1:
            for parameter in self.parameters():  # a rank whose files were all unreadable has none, and must take part
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        sum_gradients(self.parameters())
        sums = torch.tensor(self.ranks.sums(list(own.values())), dtype=torch.float64, device=self.ranks.device)
        return dict(zip(own, sums))

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def samples(self, batch: list[Sample]) -> list[str]:
        return [row.name for row in batch if not row.problem]

    def facts(self, batch: list[Sample], step: int) -> dict[str, object]:
        return {"epoch": round((step + 1) / self.per_epoch, 4)}

    def state(self, done: int) -> State:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guide": self._guide.head.state_dict() if self._guide is not None else {},
            "step": done,
            "progress": {"seen": float(self.progress.seen), "bad": float(self.progress.bad)},
            "best": self.progress.best,
            "log_bytes": self.log_file.size(),
            "identity": self._run.identity,
        }

    def validate(self) -> dict[str, float]:
        return self._run.validate()

    def score(self, found: dict[str, float]) -> float:
        return found["top1"] if self._run.recipe.classes else -found["mse"]


def step_size(run: Tuning, items: list[Item]) -> tuple[int, int]:
    """(items of a step over all ranks, steps of an epoch).

    Raises:
        UsageError: There are more ranks than items.
    """
    batch = min(run.recipe.batch_size, len(items))
    if batch < run.ranks.size:
        raise UsageError(f"a batch of {batch} is too small for {run.ranks.size} ranks")
    return batch, len(items) // batch


def learning_rate(step: int, steps: int, per_epoch: int, recipe: TuneRecipe) -> float:
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
