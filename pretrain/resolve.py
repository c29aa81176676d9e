"""The flags of a pretraining settled: a recipe with its overrides and the stages, refused where a name or value means nothing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import vtr.settings
from vtr.encoders.registry import named_encoders
from vtr.errors import UsageError
from vtr.pretrain.build import check_names
from vtr.pretrain.join import check_joining
from vtr.pretrain.objectives import objectives_of
from vtr.pretrain.recipes import STAGES, Recipe, Stage, check, recipe
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.teacher import NONE


def resolve(settings: RunSettings) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with all overrides, and the stages to run.

    Raises:
        UsageError: A name or value that means nothing.
    """
    check_joining(settings)
    check_names(settings.model, settings.text)
    chosen = recipe(settings.recipe, settings.corpus)
    size = named_encoders().get(settings.model or "")
    if size is not None:  # UMT's students are aligned in six layers
        chosen = dataclasses.replace(chosen, align_layers=size.align_layers)
    for text in settings.set:
        # A key without a stage (optim.lr) goes to every stage.
        names = [f.name for f in dataclasses.fields(Stage)]
        if text.split("=")[0].split(".")[0].replace("-", "_") in names:
            chosen = vtr.settings.apply_overrides(chosen, [f"{s}.{text}" for s in STAGES])
        else:
            chosen = vtr.settings.apply_overrides(chosen, [text])
    if settings.seed is not None:
        chosen = dataclasses.replace(chosen, seed=settings.seed)
    if settings.steps is not None:
        if settings.steps < 1:
            raise UsageError(f"--steps {settings.steps}: expected a positive number")
        chosen = dataclasses.replace(
            chosen, **{s: dataclasses.replace(getattr(chosen, s), steps=settings.steps) for s in STAGES}
        )
    stages = (settings.stage,) if settings.stage else chosen.stages
    check(chosen, stages)
    if settings.teacher == NONE:
        chosen = without_teacher(chosen, stages)
    check_numbers(settings)
    return chosen, stages


def without_teacher(chosen: Recipe, stages: tuple[str, ...]) -> Recipe:
    """The recipe without token alignment, and so without its masks.

    Raises:
        UsageError: A stage does nothing else.
    """
    for name in stages:
        stage: Stage = getattr(chosen, name)
        if stage.uta == 0:
            continue
        if not any(o.needs_text for o in objectives_of(stage).values()):
            raise UsageError(
                f"--teacher {NONE}: the {name} stage only aligns with a teacher; leave it out (--stage multimodal, then "
                "--stage unmasked --init RUN), or name a teacher: --teacher ARCHITECTURE/PRETRAINED"
            )
        chosen = vtr.settings.apply_overrides(chosen, [f"{name}.uta=0", f"{name}.mask=none"])
    return chosen


def check_numbers(settings: RunSettings) -> None:
    """Refuse flags whose numbers mean nothing.

    Raises:
        UsageError: The flag, its value and what was expected.
    """
    for name in ("log_every", "save_every", "keep", "validate_every", "micro_batch", "plan_ranks"):
        if getattr(settings, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(settings, name)}: expected 0 or more")
    for name in ("validate_samples", "decode_threads"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(settings, name)}: expected 1 or more")
    if settings.validate is not None and not settings.validate_every:
        raise UsageError(f"--validate {settings.validate} needs --validate-every: the steps between validations")


def run_folder(settings: RunSettings) -> Path:
    """Where the run is kept."""
    name = re.sub(r"[^\w.-]+", "-", Path(settings.corpus).stem).strip("-.")
    return settings.out or Path("runs") / (name or "own")
