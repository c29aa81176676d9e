"""Recognition data sets in their own layouts, the released samplers, and views and augmentation of one clip.

B batch, T frames, S segments (clips along time), C crops.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtr.errors import UsageError, VtrError, unknown_name

IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_VIDEOS = (".mp4", ".avi", ".webm", ".mkv", ".mov")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled image, video, folder of frames, or window of a video.

    Attributes:
        path: A file, or a folder of numbered frames.
        label: Class number, or the target of a regression.
        name: Unique in its split, folders included: results of views are merged by it.
        start, end: Seconds; None = from the beginning, to the end.
        duration: Seconds of the whole video, where the annotation says.
    """

    path: Path
    label: float
    name: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """The items of a split, where they were read from, and what is not on disk."""

    items: tuple[Item, ...]
    source: str
    classes: int  # as named by the annotation, 0 where it names none
    missing: tuple[str, ...] = ()


# ---- annotation formats -------------------------------------------------------------------------------------------


def read_list(path: Path, *, window: bool = False) -> list[tuple[str, float, float | None]]:
    """(path, label, number between or after them) of a list `path label`, comma-, tab- or space-separated.

    Args:
        window: Rows are `path label duration` (LVU); otherwise three columns are `path frames label` (raw frames).

    Raises:
        VtrError: A row is something else; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VtrError(f"annotation {path}: cannot be read ({error})") from None
    rows: list[tuple[str, float, float | None]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        comma, tab = "," in line, "\t" in line
        cells = next(csv.reader([line])) if comma else line.split("\t") if tab else line.rsplit(maxsplit=2)
        if not comma and not tab and len(cells) == 3 and not _number(cells[1]):
            cells = line.rsplit(maxsplit=1)  # a space in the path
        cells = [c.strip() for c in cells]
        if number == 1 and len(cells) > 1 and not any(_number(c) for c in cells[1:]):
            continue  # a header
        if len(cells) not in (2, 3) or not all(_number(c) for c in cells[1:]):
            kind = "path, label, duration" if window else "path and label, or path, number of frames and label"
            raise VtrError(f"annotation {path}: line {number} is {line[:80]!r}; expected {kind}")
        values = [float(c) for c in cells[1:]]
        if len(values) == 1:
            rows.append((cells[0], values[0], None))
        else:
            label, other = values if window else reversed(values)
            rows.append((cells[0], label, other))
    if not rows:
        raise VtrError(f"annotation {path}: no rows")
    return rows


def _number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _from_list(path: Path, root: Path, split: str, layout: str) -> Split:
    lvu = layout == "lvu"
    bases = [root, root / split, root / "videos", root / "images", path.parent]
    items = []
    for name, label, number in read_list(path, window=lvu):
        items.append(Item(path=_found(name, bases), label=label, name=name, duration=number if lvu else None))
    return Split(items=tuple(items), source=str(path), classes=0)


def _found(name: str, bases: Sequence[Path]) -> Path:
    """Where a listed file lies; its first place when it is nowhere."""
    if Path(name).is_absolute():
        return Path(name)
    return next((base / name for base in bases if (base / name).exists()), bases[0] / name)


def _imagenet(root: Path, split: str) -> Split | None:
    """ImageNet: SPLIT/wnid/*.JPEG, classes in the order of their names."""
    folder = next((root / n for n in (split, {"test": "val"}.get(split, split)) if (root / n).is_dir()), None)
    if folder is None:
        return None
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    items = [
        Item(path=path, label=number, name=str(path.relative_to(folder)))
        for number, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGES
    ]
    return Split(items=tuple(items), source=f"{folder}/CLASS/*", classes=len(names)) if items else None


def _k400(root: Path, split: str) -> Split | None:
    """Kinetics: SPLIT.csv with label, youtube_id, time_start, time_end; SPLIT/label/ID_start_end.mp4 or SPLIT/ID_….mp4."""
    path = _first(root, (f"{split}.csv", f"annotations/{split}.csv", f"kinetics400/{split}.csv"))
    rows = _dicts(path, ("label", "youtube_id")) if path else None
    if path is None or rows is None:
        return None
    train = _first(path.parent, ("train.csv",)) or path
    names = sorted({row["label"] for row in _dicts(train, ("label",)) or rows})
    items = []
    for number, row in enumerate(rows, 2):
        if row["label"] not in names:
            raise VtrError(f"annotation {path}: line {number}: class {row['label']!r} is not in {train}")
        stem = row["youtube_id"]
        if row.get("time_start"):
            stem += f"_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        places = [
            root / middle / f"{name}{end}"
            for middle in (f"{split}/{row['label']}", f"{split}/{row['label'].replace(' ', '_')}", split, "videos", ".")
            for name in (stem, row["youtube_id"])
            for end in _VIDEOS
        ]
        found = next((p for p in places if p.exists()), places[0])
        items.append(Item(path=found, label=names.index(row["label"]), name=f"{row['label']}/{stem}"))
    return Split(items=tuple(items), source=str(path), classes=len(names))


def _ssv2(root: Path, split: str) -> Split | None:
    """Something-Something: labels.json {template: number}, {train,validation}.json [{id, template}], videos ID.webm."""
    word = {"train": "train", "val": "validation", "test": "validation"}[split]
    folders = ("", "labels/", "annotations/")
    names = [f"{f}{p}{word}.json" for f in folders for p in ("something-something-v2-", "")]
    path = _first(root, tuple(names))
    labels = _first(root, tuple(f"{f}{p}labels.json" for f in folders for p in ("something-something-v2-", "")))
    if path is None or labels is None:
        return None
    numbers = _json(labels)
    items = []
    for row in _json(path):
        try:
            label = int(numbers[row["template"].replace("[", "").replace("]", "")])
            name = str(row["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise VtrError(f"annotation {path}: a row has no known template or id ({error})") from None
        places = [
            root / middle / f"{name}{end}"
            for middle in ("20bn-something-something-v2", "videos", ".")
            for end in (".webm", ".mp4")
        ]
        items.append(Item(path=next((p for p in places if p.exists()), places[0]), label=label, name=name))
    return Split(items=tuple(items), source=str(path), classes=len(numbers))


def _coin(root: Path, split: str) -> Split | None:
    """COIN: COIN.json {database: {id: {recipe_type, subset}}}; videos ID.mp4 somewhere below the root."""
    path = _first(root, ("COIN.json", "annotations/COIN.json"))
    if path is None:
        return None
    wanted = "training" if split == "train" else "testing"
    files = _by_stem(root)
    items = []
    database = _json(path).get("database", {})
    for name, row in sorted(database.items()):
        if row.get("subset") == wanted:
            items.append(Item(path=files.get(name, root / f"{name}.mp4"), label=int(row["recipe_type"]), name=name))
    classes = len({int(row["recipe_type"]) for row in database.values()})
    return Split(items=tuple(items), source=str(path), classes=classes)


# The ten meals in alphabetical order, and the persons of the data set's split s1, which is tested on.
_MEALS = ("cereals", "coffee", "friedegg", "juice", "milk", "pancake", "salat", "sandwich", "scrambledegg", "tea")
_TESTED = range(3, 16)


def _breakfast(root: Path, split: str) -> Split | None:
    """Breakfast: the meal and the person are in the file's name, as in P03/cam01/P03_cereals.avi."""
    items = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in _VIDEOS):
        found = re.search(r"P(\d\d)", path.stem)
        meal = path.stem.rsplit("_", 1)[-1].lower()
        if found is None or meal not in _MEALS:
            continue
        if (int(found.group(1)) in _TESTED) == (split != "train"):
            name = str(path.relative_to(root))
            items.append(Item(path=path, label=_MEALS.index(meal), name=name))
    return Split(items=tuple(items), source=f"{root}/**/P??_MEAL.*, split s1", classes=len(_MEALS)) if items else None


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / n for n in names if (root / n).is_file()), None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VtrError(f"annotation {path}: cannot be read ({error})") from None


def _dicts(path: Path, needed: Sequence[str]) -> list[dict[str, str]] | None:
    """Rows of a CSV with these columns; None where it has others."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(needed) <= set(reader.fieldnames or ()):
            return None
        return list(reader)


def _by_stem(root: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(root.rglob("*")) if p.suffix.lower() in _VIDEOS}


LAYOUTS = {"imagenet": _imagenet, "k400": _k400, "ssv2": _ssv2, "coin": _coin, "breakfast": _breakfast, "lvu": None}


def load_split(layout: str, root: Path, split: str, *, file: Path | None = None, part: str = "") -> Split:
    """The items of a split.

    Args:
        layout: A data set's own layout (`LAYOUTS`); lists `path label` are understood everywhere: ROOT/SPLIT.csv or
            .txt, ROOT/meta/SPLIT.txt, LVU also ROOT/PART/SPLIT.csv.
        file: This list instead.
        part: Of LVU.

    Raises:
        VtrError: Nothing fits; the message says what was looked for.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if file is None:
        own = LAYOUTS[layout]
        # Many sets have one labelled split beside the training: it is both val and test.
        words = (split, "test") if split == "val" else (split, "val") if split == "test" else (split,)
        for word in words if own is not None and root.is_dir() else ():
            found = own(root, word) if own is not None else None
            if found is not None:
                return _with_missing(found)
        bases = [root / part, root, root / "meta", root / "annotations"]
        places = [b / f"{w}.{e}" for w in words for b in bases for e in ("csv", "txt")]
        file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise VtrError(
            f"{root}: no {split} split of {layout} found; expected its own layout (see the README), or a list "
            f"`path label` at {root / (split + '.csv')}, or --{split} LIST"
        )
    return _with_missing(_from_list(file, root, split, layout))


def _with_missing(split: Split) -> Split:
    seen: dict[str, int] = {}
    for item in split.items:
        seen[item.name] = seen.get(item.name, 0) + 1
    doubled = [n for n, count in seen.items() if count > 1]
    if doubled:
        raise VtrError(f"annotation {split.source}: {doubled[0]!r} is listed {seen[doubled[0]]} times")
    missing = tuple(str(i.path) for i in split.items if not i.path.exists())
    return replace(split, missing=missing, items=tuple(i for i in split.items if i.path.exists()))


def windows(item: Item, length: float, stride: float) -> list[Item]:
    """A long video in windows (docs/notes/videomamba.md): the last ones are kept if at least half a window remains."""
    duration = item.duration
    if length <= 0 or duration is None or duration < length:
        return [item]
    starts = np.arange(0.0, duration - length / 2 + 1e-6, stride)
    return [replace(item, start=float(s), end=float(min(duration, s + length))) for s in starts]


# ---- sampling -----------------------------------------------------------------------------------------------------


def sample_train(kind: str, n: int, count: int, rng: np.random.Generator) -> list[int]:
    """Frame numbers of a training clip: one at random of each of `count` stretches (docs/notes/videomamba.md)."""
    if kind == "ssv2":
        step = n // count
        if step > 0:
            return [i * step + int(rng.integers(step)) for i in range(count)]
        return sorted(int(i) for i in rng.integers(n, size=count)) if n > 1 else [0] * count
    seg = (n - 1) / count
    borders = [round(seg * i) for i in range(count + 1)]
    return [min(n - 1, int(rng.integers(a, max(a, b) + 1))) for a, b in itertools.pairwise(borders)]


def sample_test(kind: str, n: int, count: int, segment: int, segments: int) -> list[int]:
    """Frame numbers of test clip `segment` of `segments`; of one: the validation rule (docs/notes/videomamba.md).

    The released SSV2 sampler knows two test clips (start and middle of each stretch); here any number divides it evenly.
    """
    if kind == "ssv2":
        tick = n / count
        shift = tick / 2 if segments == 1 else tick * segment / segments
        return [min(n - 1, int(shift + tick * i)) for i in range(count)]
    seg = (n - 1) / count
    shift = int(seg / 2) if segments == 1 else int(seg / (segments + 1) * (segment + 1))
    return [min(n - 1, round(seg * i) + shift) for i in range(count)]


# ---- reading ------------------------------------------------------------------------------------------------------


def read_item(item: Item, pick: Any) -> Tensor:
    """Frames (T, 3, H, W) uint8 of an item: of a media file, or of a folder of numbered pictures.

    Raises:
        DecodeError: It gives no frames.
    """
    from vtr.data.decode import DecodeError, read_frames

    if not item.path.is_dir():
        clip = read_frames(item.path, pick, start=item.start, end=item.end)
        return torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)
    files = sorted(p for p in item.path.iterdir() if p.suffix.lower() in IMAGES)
    if not files:
        raise DecodeError(str(item.path), "no pictures in this folder")
    chosen = [read_frames(files[i], lambda n: [0]).frames[0] for i in pick(len(files))]
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)


# ---- views --------------------------------------------------------------------------------------------------------


def crop_views(frames: Tensor, pixels: int, crops: int, crop_ratio: float = 1.0) -> Tensor:
    """(T, 3, H, W) uint8 -> (C, T, 3, S, S): the short side resized, crops along the long one (one: the middle)."""
    from torchvision.transforms.v2 import functional as tv

    side = round(pixels / crop_ratio)
    still = len(frames) == 1 and crop_ratio < 1
    mode = tv.InterpolationMode.BICUBIC if still else tv.InterpolationMode.BILINEAR
    frames = tv.resize(frames, [side], antialias=still, interpolation=mode)
    top, left = frames.shape[-2] - pixels, frames.shape[-1] - pixels
    places = [(top / 2, left / 2)]
    if crops > 1:
        along = [i / (crops - 1) for i in range(crops)]
        places = [(top * a, left / 2) if top > left else (top / 2, left * a) for a in along]
    return torch.stack([frames[..., round(y) : round(y) + pixels, round(x) : round(x) + pixels] for y, x in places])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[np.random.Generator]:
    """Make the global generators that augmentation libraries draw from a function of the sample, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield np.random.default_rng(seed)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Augment:
    """Training views of a clip: the same geometry and colours for all of its frames.

    Args:
        pixels: Side of the result.
        policy: timm's name of an automatic augmentation, "" for none.
        order: "augment first" or "crop first".
        scale: Share of the area of a random crop.
        flip: Mirror half of the clips.
        erase: Probability of filling a random box with noise (the same box in all frames).
    """

    def __init__(
        self, pixels: int, *, policy: str, order: str, scale: tuple[float, float], flip: bool, erase: float
    ) -> None:
        self.pixels, self.scale, self.flip, self.erase = pixels, scale, flip, erase
        if order not in ("augment first", "crop first"):
            raise unknown_name("order of augmentation", order, ("augment first", "crop first"))
        self.crop_first = order == "crop first"
        self.policy = policy
        if policy:
            self._policy()

    def _policy(self) -> Any:
        from PIL import Image
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        how = {"translate_const": int(self.pixels * 0.45), "interpolation": Image.Resampling.BICUBIC}
        make = rand_augment_transform if self.policy.startswith("rand") else auto_augment_transform
        try:
            return make(self.policy, how)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(f"augment {self.policy!r}: not an augmentation that timm knows ({error})") from None

    def __call__(self, frames: Tensor, seed: int, mean: Tensor, std: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 -> (T, 3, S, S) float, normalised; a function of the frames and the seed."""
        from timm.data.random_erasing import RandomErasing

        with seeded(seed) as rng:
            if self.crop_first:
                frames = self._coloured(self._cropped(frames, rng), seed)
            else:
                frames = self._cropped(self._coloured(frames, seed), rng)
            clip = (frames.float() / 255 - mean) / std
            if self.erase > 0:
                # One picture of 3 T channels: one box, noise of its own in every frame.
                box = RandomErasing(self.erase, mode="pixel", max_count=1, device="cpu")
                clip = box(clip.flatten(0, 1)).unflatten(0, (-1, 3))
        return clip

    def _cropped(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional as tv

        from vtr.data.transforms import crop_box

        box = crop_box(frames.shape[-2], frames.shape[-1], rng, self.scale)
        mode = tv.InterpolationMode.BICUBIC if self.crop_first else tv.InterpolationMode.BILINEAR
        out = tv.resized_crop(frames, *box, [self.pixels, self.pixels], interpolation=mode, antialias=True)
        return out.flip(-1) if self.flip and rng.random() < 0.5 else out

    def _coloured(self, frames: Tensor, seed: int) -> Tensor:
        if not self.policy:
            return frames
        from PIL import Image

        policy = self._policy()
        out = []
        for frame in frames:
            with seeded(seed + 1):  # the same draws for every frame
                picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
                try:
                    out.append(np.asarray(policy(picture)))
                except ValueError as error:
                    if "bits must be" not in str(error):
                        raise
                    # Policy v0 may posterise to 0 bits: black, as older Pillows had it; newer ones refuse.
                    out.append(np.zeros((picture.height, picture.width, 3), np.uint8))
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


def mix(
    clips: Tensor, labels: Tensor, classes: int, *, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of a batch, one of them at random where both are on.

    Args:
        clips: (B, T, 3, S, S).
        labels: (B,) int64.
        mixup, cutmix: Parameters of their Beta distributions, 0 = off.

    Returns:
        Clips, and target distributions (B, classes).
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    target = torch.nn.functional.one_hot(labels, classes).float()
    if len(clips) < 2 or (mixup <= 0 and cutmix <= 0):
        return clips, target
    with seeded(seed) as rng:
        ways: list[Any] = []
        if mixup > 0:
            ways.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix > 0:
            ways.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        mixed, target = ways[int(rng.integers(len(ways)))](tv_tensors.Video(clips), labels)
    return mixed.as_subclass(Tensor), target
