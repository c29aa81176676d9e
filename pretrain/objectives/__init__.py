"""The training objectives, one a file. `vtr.pretrain.recipes.Stage` lists them with their weights: that line registers one."""

from __future__ import annotations

import importlib

from vtr.pretrain.objectives.base import Objective
from vtr.pretrain.recipes import Stage, objective_places


def objective_kinds() -> dict[str, type[Objective]]:
    """Every registered objective by name, in the order of the recipe's list."""
    found = {}
    for name, place in objective_places().items():
        module, _, kind = place.rpartition(".")
        found[name] = getattr(importlib.import_module(f"vtr.pretrain.objectives.{module}"), kind)
    return found


def objectives_of(stage: Stage) -> dict[str, Objective]:
    """The objectives that a stage gives a weight, by name."""
    return {name: kind(stage) for name, kind in objective_kinds().items() if getattr(stage, name) > 0}
