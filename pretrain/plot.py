"""Curves of runs as one PNG: each loss, learning rate, throughput and validation retrieval over the steps."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vtr.errors import VtrError

_SIZE = (620, 340)  # pixels of a panel
_MARGIN = (64, 34, 16, 40)  # left, top, right, bottom
_COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
_LEFT_OUT = ("step", "stage", "media", "batch", "time", "bad", "memory_gib", "validation")
_FIRST = ("loss", "vtc", "vtm", "mlm", "uta", "text")  # panels in this order, then the rest
_KEEP = 0.9  # of the running mean that is drawn over the raw values

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """What a run's log says, by name, and the steps at which a stage begins."""

    name: str
    curves: dict[str, Points]
    stages: tuple[tuple[int, str], ...]


def read_curves(run: Path) -> RunCurves:
    """Curves of a run folder or a log.jsonl; a line that is cut off at the end is passed over.

    Raises:
        VtrError: There is no log, or nothing in it.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VtrError(f"{path}: no log of a run ({error}); expected a run folder or its log.jsonl") from None
    curves: dict[str, Points] = {}
    stages: list[tuple[int, str]] = []
    last = 0
    for number, line in enumerate(lines):
        try:
            row: dict[str, Any] = json.loads(line)
            step = int(row["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            if number < len(lines) - 1:
                raise VtrError(f"{path}: line {number + 1} is not a row of a run's log") from None
            continue
        stage = str(row.get("stage", ""))
        if stage and (not stages or stages[-1][1] != stage):
            stages.append((last + 1, stage))  # the last step of a stage is always logged, the first one seldom
        last = step
        values = {k: v for k, v in row.items() if k not in _LEFT_OUT}
        values.update({f"validation {k}": v for k, v in row.get("validation", {}).items()})
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                curves.setdefault(key, []).append((step, float(value)))
    if not curves:
        raise VtrError(f"{path}: no rows yet")
    name = path.parent.name if path.name == "log.jsonl" else path.stem
    return RunCurves(name=name, curves=curves, stages=tuple(stages))


def smoothed(points: Points, keep: float = _KEEP) -> Points:
    """An exponential running mean that begins unbiased."""
    total = weight = 0.0
    out = []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, total / weight))
    return out


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot_runs(runs: list[Path], out: Path) -> list[str]:
    """Draw the runs' curves into a PNG, a panel for each name; the names.

    Raises:
        VtrError: A log cannot be read, or the picture not be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    found = [read_curves(run) for run in runs]
    every = dict.fromkeys(name for run in found for name in run.curves)
    names = [n for n in _FIRST if n in every] + [n for n in every if n not in _FIRST]
    columns = 2
    rows = -(-len(names) // columns)
    picture = Image.new("RGB", (_SIZE[0] * columns, _SIZE[1] * rows + 26 * len(found) + 14), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for place, name in enumerate(names):
        corner = (place % columns * _SIZE[0], place // columns * _SIZE[1])
        _panel(draw, font, corner, name, [(i, run) for i, run in enumerate(found) if name in run.curves])
    for i, run in enumerate(found):
        y = rows * _SIZE[1] + 10 + 26 * i
        draw.line((20, y + 8, 60, y + 8), fill=_COLOURS[i % len(_COLOURS)], width=3)
        stages = ", ".join(f"{stage} from step {step}" for step, stage in run.stages)
        draw.text((70, y), f"{run.name}: {stages}", fill="black", font=font)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out, "PNG")
    except OSError as error:
        raise VtrError(f"{out}: cannot be written ({error.strerror or error})") from None
    return names


def _panel(draw: Any, font: Any, corner: tuple[int, int], name: str, runs: list[tuple[int, RunCurves]]) -> None:
    left, top = corner[0] + _MARGIN[0], corner[1] + _MARGIN[1]
    right, bottom = corner[0] + _SIZE[0] - _MARGIN[2], corner[1] + _SIZE[1] - _MARGIN[3]
    xs = [x for _, run in runs for x, _ in run.curves[name]]
    # The first steps' outliers would flatten the rest: the axis shows all but a hundredth at either end.
    ys = sorted(y for _, run in runs for _, y in run.curves[name])
    cut = len(ys) // 100
    low, high = ys[cut], ys[-1 - cut]
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        share = min(max((y - low) / (high - low), 0.0), 1.0)
        return left + (x - first) / (last - first) * (right - left), bottom - share * (bottom - top)

    draw.text((left, corner[1] + 10), name, fill="black", font=font)
    for value in ticks(low, high):
        y = at(first, value)[1]
        draw.line((left, y, right, y), fill=(230, 230, 230))
        draw.text((left - 6, y), f"{value:.4g}", fill=(80, 80, 80), font=font, anchor="rm")
    for value in ticks(first, last):
        x = at(value, low)[0]
        draw.line((x, bottom, x, bottom + 4), fill=(80, 80, 80))
        draw.text((x, bottom + 8), f"{value:.6g}", fill=(80, 80, 80), font=font, anchor="mt")
    for _, run in runs[:1]:
        for step, _stage in run.stages:
            if first < step <= last:
                x = at(step, low)[0]
                draw.line((x, top, x, bottom), fill=(200, 200, 200))
    draw.rectangle((left, top, right, bottom), outline=(120, 120, 120))
    for i, run in runs:
        colour = _COLOURS[i % len(_COLOURS)]
        faint = tuple(c + (255 - c) * 3 // 4 for c in colour)
        starts = [*(step for step, _ in run.stages), math.inf]
        for begin, end in pairwise(starts):
            points = [p for p in run.curves[name] if begin <= p[0] < end]
            many = len(points) > 40
            if many:
                draw.line([at(*p) for p in points], fill=faint, width=1)
            line = [at(*p) for p in (smoothed(points) if many else points)]
            if len(line) > 1:
                draw.line(line, fill=colour, width=2)
            for x, y in line[:1]:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
