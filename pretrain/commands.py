"""The verbs of training runs: `vtr runs plot` and `vtr export`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """Draw loss, throughput and retrieval curves of runs as a PNG."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or their log.jsonl."""
    out: Path = Path("curves.png")
    """The picture."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Make a model folder of a run's checkpoint: model.safetensors, config.json, tokenizer.json."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """Model folder; `vtr.load`, evaluation and search take it."""
    checkpoint: str = "latest"
    """`latest`, `best`, or a checkpoint file."""


def plot(settings: PlotSettings) -> int:
    """`vtr runs plot`."""
    from vtr.errors import UsageError
    from vtr.pretrain.plot import plot_runs

    if not settings.runs:
        raise UsageError("which runs? expected run folders, as in: vtr runs plot runs/demo")
    names = plot_runs(list(settings.runs), settings.out)
    print(f"{settings.out}: {', '.join(names)}", file=sys.stderr)
    return 0


def export(settings: ExportSettings) -> int:
    """`vtr export`."""
    from vtr.pretrain.export import checkpoint_model

    model, step = checkpoint_model(settings.run, settings.checkpoint)
    model.save_pretrained(settings.out)
    print(f"{settings.out}: the model of {settings.run} after step {step}", file=sys.stderr)
    return 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "runs plot": (PlotSettings, plot),
    "export": (ExportSettings, export),
}
