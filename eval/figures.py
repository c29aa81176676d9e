"""PNG figures of ablations and efficiency, drawn with Pillow: bars with their spread, and lines on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtr.errors import VtrError

_COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
_GREY, _PALE = (90, 90, 90), (228, 228, 228)


def _canvas(width: int, height: int) -> tuple[Any, Any, Any]:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture), ImageFont.load_default(14)


def _save(picture: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise VtrError(f"{path}: cannot be written ({error.strerror or error})") from None


def bars(
    path: Path,
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    paper: Sequence[float | None],
    *,
    chance: float,
    caption: str,
) -> None:
    """Bars of the means with every single value as a dot, in percent; the paper's figures as numbers beside."""
    words, width, line = 420, 460, 34
    picture, draw, font = _canvas(words + width + 150, line * len(names) + 100)
    top, bottom = 50, 50 + line * len(names)
    draw.text((16, 16), title, fill="black", font=font)
    if any(p is not None for p in paper):
        draw.text((words + width + 80, 16), "paper", fill=_GREY, font=font, anchor="ma")
    for tick in range(0, 101, 20):
        x = words + width * tick / 100
        draw.line((x, top, x, bottom), fill=_PALE)
        draw.text((x, bottom + 4), str(tick), fill=_GREY, font=font, anchor="ma")
    for row, (name, found, known) in enumerate(zip(names, values, paper)):
        y = top + line * row + line / 2
        draw.text((words - 10, y), name, fill="black", font=font, anchor="rm")
        mean = sum(found) / len(found)
        draw.rectangle((words, y - 9, words + width * mean / 100, y + 9), fill=(143, 185, 219))
        for value in found:
            x = words + width * value / 100
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="black")
        if known is not None:
            draw.text((words + width + 80, y), f"{known:g}", fill=_GREY, font=font, anchor="mm")
    x = words + width * chance / 100
    draw.line((x, top, x, bottom), fill=(200, 60, 60), width=2)
    draw.text((words, bottom + 24), caption, fill=_GREY, font=font)
    _save(picture, path)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten that lie between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


Series = dict[str, list[tuple[float, float]]]


def curves(path: Path, panels: Sequence[tuple[str, Series]], across: str, caption: str) -> None:
    """Panels side by side, both axes logarithmic; each has a title and its lines by name."""
    width, height, left, top = 560, 400, 80, 50
    names = list(dict.fromkeys(name for _, series in panels for name in series))
    picture, draw, font = _canvas((width + left + 20) * len(panels), height + top + 80 + 22 * len(names) + 30)
    for number, (title, series) in enumerate(panels):
        x0, y0 = number * (width + left + 20) + left, top
        points = [p for line in series.values() for p in line]
        if not points:
            continue
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        low_x, high_x = min(xs) / 1.1, max(xs) * 1.1
        low_y, high_y = min(ys) / 1.3, max(ys) * 1.3

        def at(
            x: float, y: float, x0: int = x0, y0: int = y0, box: tuple[float, ...] = (low_x, high_x, low_y, high_y)
        ) -> tuple[float, float]:
            right = math.log(x / box[0]) / math.log(box[1] / box[0])
            up = math.log(y / box[2]) / math.log(box[3] / box[2])
            return x0 + right * width, y0 + (1 - up) * height

        draw.text((x0, y0 - 30), title, fill="black", font=font)
        for value in decades(low_y, high_y):
            y = at(low_x, value)[1]
            draw.line((x0, y, x0 + width, y), fill=_PALE)
            draw.text((x0 - 6, y), f"{value:g}", fill=_GREY, font=font, anchor="rm")
        for value in sorted(set(xs)):
            x = at(value, low_y)[0]
            draw.line((x, y0, x, y0 + height), fill=_PALE)
            draw.text((x, y0 + height + 6), f"{value:g}", fill=_GREY, font=font, anchor="ma")
        draw.rectangle((x0, y0, x0 + width, y0 + height), outline=_GREY)
        draw.text((x0 + width / 2, y0 + height + 28), across, fill=_GREY, font=font, anchor="ma")
        for name, line in series.items():
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            places = [at(*p) for p in sorted(line)]
            if len(places) > 1:
                draw.line(places, fill=colour, width=3)
            for x, y in places:
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    for i, name in enumerate(names):
        y = top + height + 66 + 22 * i
        draw.line((left, y, left + 40, y), fill=_COLOURS[i % len(_COLOURS)], width=3)
        draw.text((left + 50, y), name, fill="black", font=font, anchor="lm")
    draw.text((left, top + height + 70 + 22 * len(names)), caption, fill=_GREY, font=font)
    _save(picture, path)
