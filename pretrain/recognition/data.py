"""What a fine-tuning reads: the splits of a data set, augmented clips of their items, and the order of an epoch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vtr.data.build import copy_of, ensure_copies
from vtr.data.decode import DecodeError
from vtr.data.labels import Item, Split, load_split
from vtr.data.media import is_image
from vtr.data.views import Augment, read_item, sample_train
from vtr.errors import UsageError, VtrError
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.recognition.tasks import Task, TuneRecipe
from vtr.pretrain.stop import ignore_interrupts
from vtr.ranks import Ranks
from vtr.threads import cores


def load_splits(settings: TuneSettings, task: Task, classes: int, names: tuple[str, ...] = ()) -> dict[str, Split]:
    """train, val and test as far as they are there; val and test stand in for each other.

    Args:
        classes: The recipe's number of them: 0 = regression, -1 = as many as the training list has.
        names: Of own data: the classes by number, where a trained model has them.

    Raises:
        VtrError: A split that is needed is not there, lacks files, or has labels out of range.
    """
    lists = {"train": settings.train, "val": settings.val, "test": settings.test}
    root = Path(settings.data) if settings.data else settings.data_root / settings.task
    beside = next((path.parent for path in lists.values() if path is not None), None)
    if task.layout == "own" and settings.data is None and beside is not None:
        root = beside
    part = settings.task.partition("-")[2]
    wanted = ("test",) if settings.test_only else ("train", "val", "test")
    found: dict[str, Split] = {}
    lacking: list[str] = []
    for name in wanted:
        try:
            found[name] = load_split(task.layout, root, name, file=lists[name], part=part, names=names)
        except VtrError as error:
            if name == "train" or lists[name] is not None or root.joinpath(f"{name}.csv").is_file():
                raise
            lacking.append(str(error))
            continue
        names = names or found[name].names
    if not set(found) & {"val", "test"}:
        raise VtrError(f"neither a val nor a test split: give --val LIST or --test LIST ({'; '.join(lacking)})")
    for name, other in (("val", "test"), ("test", "val")):
        if name not in found and other in found:
            found[name] = found[other]
    for name, split in found.items():
        _check(name, split, settings, classes)
    return found


def small_copies(settings: TuneSettings, splits: dict[str, Split], ranks: Ranks) -> dict[str, Split]:
    """The splits with small copies of their videos, made by one rank while the others wait; pictures stay as they are.

    Raises:
        UsageError: The copies would be smaller than anything reads.
    """
    side = settings.short_side
    if not side:
        return splits
    if side < 16:
        raise UsageError(f"--short-side {side}: expected 16 pixels or more, or 0")
    if settings.dry_run:
        if ranks.main:
            print(f"a run would first make copies of {side} pixels; measured here on the files", file=sys.stderr)
        return splits
    folder = settings.data_root / "copies"
    files = {i.path: None for s in splits.values() for i in s.items if i.path.is_file() and not is_image(i.path)}
    ranks.main_only(lambda: ensure_copies(list(files), folder, side, max(2, cores())))
    copies = {path: copy for path in files if (copy := copy_of(path, folder, side)).is_file()}
    return {
        name: replace(split, items=tuple(replace(i, path=copies.get(i.path, i.path)) for i in split.items))
        for name, split in splits.items()
    }


def number_of_classes(splits: dict[str, Split]) -> int:
    """Classes of own data: those that the training list (in a test alone, the test list) has.

    Raises:
        VtrError: It has fewer than two.
    """
    split = splits.get("train") or splits["test"]
    count = len(split.names) or 1 + round(max(item.label for item in split.items))
    if count < 2:
        raise VtrError(f"{split.source}: a single class; expected two or more")
    return count


def shared_files(splits: dict[str, Split], one: str, other: str) -> int:
    """How many files of split `one` are in split `other` as well."""
    if not {one, other} <= splits.keys():
        return 0
    known = {item.path.resolve() for item in splits[other].items}
    return len({path for item in splits[one].items if (path := item.path.resolve()) in known})


def _check(name: str, split: Split, settings: TuneSettings, classes: int) -> None:
    if split.missing and not settings.allow_missing:
        raise VtrError(
            f"{name} ({split.source}): {len(split.missing)} of {len(split.missing) + len(split.items)} files are "
            f"missing, first {split.missing[0]}; --allow-missing goes on without them"
        )
    if not split.items:
        raise VtrError(f"{name} ({split.source}): none of its files is there, first {split.missing[0]}")
    if not classes:
        return
    worst = max((i.label for i in split.items), default=0)
    most = classes if classes > 0 else float("inf")
    bad = [i for i in split.items if not (0 <= i.label < most and i.label == int(i.label))]
    if bad and classes < 0:
        raise VtrError(
            f"{name} ({split.source}): {bad[0].name} has label {bad[0].label:g}; expected words, or whole numbers from 0"
        )
    if bad:
        raise VtrError(
            f"{name} ({split.source}): {bad[0].name} has label {bad[0].label:g}; {settings.task} has classes 0 to "
            f"{classes - 1} (highest label in the list: {worst:g}; --set classes=… for another number, --task own for words)"
        )


class Sample(NamedTuple):
    """The augmented clips of one item, or why there are none."""

    clips: Tensor  # (repeats, T, 3, S, S)
    label: float
    seeds: list[int]  # of the noise of each clip
    name: str
    problem: str = ""


class Clips:
    """Map-style data set of one split: (epoch, index) -> augmented clips of one item, or why there are none."""

    def __init__(self, items: list[Item], recipe: TuneRecipe, mean: Tensor, std: Tensor) -> None:
        self.items, self.recipe, self.mean, self.std = items, recipe, mean, std
        self.augment = Augment(
            recipe.pixels,
            policy=recipe.augment,
            order=recipe.order,
            scale=recipe.crop_scale,
            flip=recipe.flip,
            erase=recipe.erase,
        )

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        item, recipe = self.items[index], self.recipe
        seeds = [seed_of(recipe.seed, epoch, index, r) for r in range(recipe.repeats)]
        rng = np.random.default_rng(seeds[0])
        try:
            frames = read_item(item, lambda n: sample_train(recipe.sampling, n, recipe.frames, rng))
        except (DecodeError, OSError) as error:
            return Sample(torch.empty(0), item.label, seeds, item.name, str(error))
        clips = [self.augment(frames, seed, self.mean, self.std) for seed in seeds]
        return Sample(torch.stack(clips), item.label, seeds, item.name)


def seed_of(*numbers: int) -> int:
    """63 bits from whole numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch meets the items: a function of (seed, epoch), the same on all ranks."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]


class Order:
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


def loader(data: Clips, order: Order, workers: int) -> DataLoader:
    """Reads the batches of an order in worker processes."""
    return DataLoader(
        data,  # type: ignore[arg-type]  # its keys are (epoch, index)
        batch_sampler=order,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_prepare_worker,
        pin_memory=False,
    )


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)
    ignore_interrupts()


def batches(loader: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
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
