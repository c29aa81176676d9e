"""Fine-tuning recipes by task, read from `data_manifests/recipes/*.toml`: the paper's, and the released scripts'."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vtr.errors import UsageError, VtrError, unknown_name
from vtr.files import read_manifest

RECIPES = ("paper", "released")


@dataclass(frozen=True, kw_only=True)
class TuneRecipe:
    """Everything that a fine-tuning does, once for all sizes of batch.

    Attributes:
        lr, min_lr, warmup_lr: For `lr_batch` samples a step; what is used is scaled to the real batch (lr always, the
            other two where `scale_floor` says so, as the released scripts do).
        batch_size: Different videos of a step, over all ranks.
        repeats: Times each is augmented within a step; the real batch is batch_size * repeats.
        augment: timm's name of an automatic augmentation ("rand-m7-n4-mstd0.5-inc1", "v0"), or "".
        order: "augment first" (video scripts) or "crop first" (image scripts).
        sampling: "segments" (Kinetics) or "ssv2".
        decay_rule: "right": layer decay by depth; "released": only the embeddings decay, the layers do not
            (docs/notes/videomamba.md, "Layer decay").
        views: Segments x crops of the test.
        window, window_stride: Seconds; long videos are cut into windows (LVU), 0 = whole.
        crop_ratio: Images: share of the resized short side that the test crop covers.
        self_distill: The recipe guides the model by a smaller trained one (--teacher).
        start: What the weights start from, in words; the file is given with --init.
        classes: 0 = regression, -1 = as many as the training list has.
    """

    frames: int = 8  # of a clip
    pixels: int = 224  # side of a frame
    classes: int = 0
    lr: float = 2e-4
    lr_batch: int = 256  # samples of a step that lr is for
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    scale_floor: bool = False  # min_lr and warmup_lr go with the batch too
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.05  # of matrices
    clip_grad: float = 0.0  # global gradient norm; 0 = no clipping
    warmup_epochs: float = 5.0  # of linearly rising learning rate, then a cosine
    epochs: float = 50.0  # passes over the training list
    batch_size: int = 256
    repeats: int = 1
    drop_path: float = 0.0  # stochastic depth: the last block's rate
    layer_decay: float = 1.0  # learning rate of a block to that of the next
    decay_rule: str = "right"
    smoothing: float = 0.1  # of the labels
    mixup: float = 0.8  # alpha; 0 = off
    cutmix: float = 1.0  # alpha; 0 = off
    erase: float = 0.25  # probability of erasing a rectangle
    augment: str = ""
    order: str = "augment first"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of a frame that a random crop covers
    flip: bool = True  # mirror half of the clips
    sampling: str = "segments"
    views: tuple[int, int] = (4, 3)
    crop_ratio: float = 1.0
    window: float = 0.0
    window_stride: float = 0.0
    self_distill: bool = False
    start: str = "scratch"
    seed: int = 0  # of order, augmentation and new weights

    @property
    def scale(self) -> float:
        """What the learning rate is multiplied by."""
        return self.batch_size * self.repeats / self.lr_batch


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task by name.

    Attributes:
        name: As in --task.
        layout: How its data set lies on disk (`vtr.data.labels.LAYOUTS`).
        classes: 0 = regression, -1 = as many as the training list has.
    """

    name: str
    about: str
    layout: str
    classes: int
    start: str
    sources: str
    rules: tuple[dict[str, Any], ...]


def task_names() -> list[str]:
    """Every task of recognition, in the paper's order, and own data."""
    return ["imagenet", "k400", "ssv2", "breakfast", "coin", *(f"lvu-{name}" for name in _table("lvu")["tasks"]), "own"]


def _table(name: str) -> dict[str, Any]:
    return read_manifest("recipes", name)


def load_task(name: str) -> Task:
    """A task by name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in task_names():
        raise unknown_name("task", name, [*task_names(), "retrieval"])
    family, _, part = name.partition("-")
    table = _table(family)
    classes = table["tasks"][part] if part else table["classes"]
    return Task(
        name=name,
        about=f"{table['about']}, {part}" if part else table["about"],
        layout=table["layout"],
        classes=classes,
        start=table["start"],
        sources=table["sources"],
        rules=tuple(table["rule"]),
    )


def tune_recipe(
    task: Task, recipe: str, size: str, *, frames: int | None = None, pixels: int | None = None, masked: bool = False
) -> TuneRecipe:
    """The recipe of a task for a model size, from its rules in order.

    Args:
        recipe: "paper" (Tables III to VI) or "released" (the scripts, where they differ).
        frames, pixels: Instead of the task's own; some values depend on them.
        masked: The model comes from masked pretraining.

    Raises:
        UsageError: No recipe of that name.
    """
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    known = {f.name for f in dataclasses.fields(TuneRecipe)}
    values: dict[str, Any] = {"start": task.start, "classes": task.classes}
    if masked and size != "middle":
        raise UsageError(f"--masked: the paper pretrains the middle model with masks, not {size}")
    for rule in task.rules:
        facts = {
            "recipe": recipe,
            "size": size,
            "frames": frames or values.get("frames"),
            "pixels": pixels or values.get("pixels"),
            "masked": masked,
            "loss": "classes" if task.classes else "regression",
        }
        if all(facts[key] in wanted for key, wanted in rule.get("when", {}).items()):
            for key in rule["set"]:
                if key not in known:
                    raise VtrError(f"recipe of {task.name}: {key!r} is no setting")
            values.update(rule["set"])
    if frames:
        values["frames"] = frames
    if pixels:
        values["pixels"] = pixels
    settled: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TuneRecipe(**settled)


def differences(task: Task, size: str, **facts: Any) -> list[tuple[str, Any, Any]]:
    """(setting, the paper's value, the released scripts' value) wherever they differ."""
    ours, theirs = (dataclasses.asdict(tune_recipe(task, r, size, **facts)) for r in RECIPES)
    return [(key, ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]]
