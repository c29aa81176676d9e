"""Result files of many runs as one table and one picture."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtr.errors import VtrError
from vtr.eval.orders import SHOWN

_KINDS = ("t2v", "choice", "classification", "order")  # a result has one of these


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of one result: of a model on a benchmark."""

    benchmark: str
    model: str
    row: str  # embedding, reranked, combined, published; or the name of an accuracy
    t2v: dict[str, float]  # r1, r5, r10, median_rank; {"r1": accuracy} of choices and classes
    v2t: dict[str, float]
    mean_recall: float | None
    protocol: str
    marks: str  # what keeps it from being compared
    how: str = ""  # frames, candidates re-ranked, precision
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Every result among files and folders, in the order of benchmark, model and date.

    Raises:
        VtrError: A path is not there, a file named by itself is no result, or there is none at all.
    """
    found: list[dict[str, Any]] = []
    looked = []
    for path in paths:
        looked.append(str(path))
        if path.is_file():
            result = _read(path)
            if result is None:
                raise VtrError(f"{path} is no result of eval/zero_shot.py")
            found.append(result)
        elif path.is_dir():
            inside = (_read(p) for p in sorted(path.rglob("*.json")) if ".work" not in p.parts)
            found += [r for r in inside if r is not None]
        else:
            raise VtrError(f"{path}: no such file or folder; eval/zero_shot.py writes its results to results/")
    if not found:
        raise VtrError(f"no results in {', '.join(looked)}; eval/zero_shot.py writes them")
    return sorted(found, key=lambda r: (r["benchmark"], r["model"], r.get("run", {}).get("date", "")))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or not {"benchmark", "model", "protocol"} <= result.keys():
        return None
    return result if any(kind in result for kind in _KINDS) else None


def lines_of(result: dict[str, Any]) -> list[Line]:
    """Its rows, the published ones after them."""
    marks = []
    if "comparable" in result:
        marks.append(str(result["comparable"]).removeprefix("no: "))
    if result.get("warnings"):
        marks.append("at chance level")
    common = {
        "benchmark": result["benchmark"],
        "protocol": result["protocol"],
        "date": result.get("run", {}).get("date", ""),
    }
    how = [f"{result['frames']} frames"] if "frames" in result else []
    how += [f"k {result['rerank']}"] if result.get("rerank") else []
    how += [result[key] for key in ("precision",) if key in result] + list(result.get("compat", ()))
    own = {**common, "model": result["model"], "marks": "; ".join(marks), "how": ", ".join(how)}
    none: dict[str, float] = {}
    lines = [
        Line(
            row=row,
            t2v=result["t2v"][row],
            v2t=result["v2t"][row],
            mean_recall=result.get("mean_recall", {}).get(row),
            **own,
        )
        for row in result.get("t2v", {})
    ]
    for kind in ("choice", "classification"):
        for row, value in result.get(kind, {}).items():
            lines.append(Line(row=row, t2v={"r1": value}, v2t=none, mean_recall=None, **own))
    for row, decided in result.get("order", {}).items():
        shown = [f"{decided[k]:g} {k}" for k in SHOWN[1:] if k in decided]
        facts = {**own, "how": ", ".join([own["how"], *shown])}
        lines.append(Line(row=row, t2v={"r1": decided["all"]}, v2t=none, mean_recall=None, **facts))
    for entry in result.get("published", ()):
        figures = [dict(zip(("r1", "r5", "r10"), entry.get(d, ()))) for d in ("t2v", "v2t")]
        mean = sum(sum(f.values()) for f in figures) / 6 if all(len(f) == 3 for f in figures) else None
        lines.append(
            Line(
                model=f"{entry['model']}, published",
                row=entry["row"],
                t2v=figures[0],
                v2t=figures[1],
                mean_recall=None if mean is None else round(mean, 2),
                marks=entry.get("note", ""),
                **common,
            )
        )
    return lines


def text_table(lines: Sequence[Line]) -> str:
    """The lines as text, a benchmark after the other; what is marked stands below."""
    width = max(len(name) for line in lines for name in (line.model, line.benchmark)) + 2
    rows = max([len(line.row) for line in lines] + [3]) + 2
    out: list[str] = []
    notes: list[str] = []
    published: set[tuple[str, str, str]] = set()
    benchmark = ""
    for line in lines:
        if line.benchmark != benchmark:
            benchmark = line.benchmark
            head = "".join(f"{h:>7}" for h in ("R@1", "R@5", "R@10", "MdR"))
            if out:
                out.append("")
            out += [f"{benchmark:<{width}}{'row':<{rows}}{head}{head}{'mean':>7}"]
            out.append(f"{'':<{width + rows}}{'text to video':>28}{'video to text':>28}")
        if line.model.endswith(", published"):
            key = (line.benchmark, line.model, line.row)
            if key in published:
                continue  # once, however many results it is compared with
            published.add(key)
        mark = ""
        if line.marks:
            if line.marks not in notes:
                notes.append(line.marks)
            mark = f"  [{notes.index(line.marks) + 1}]"
        cells = [d.get(k) for d in (line.t2v, line.v2t) for k in ("r1", "r5", "r10", "median_rank")] + [
            line.mean_recall
        ]
        numbers = "".join(f"{'' if c is None else f'{c:.1f}':>7}" for c in cells)
        out.append(f"{line.model:<{width}}{line.row:<{rows}}{numbers}  {line.how}{mark}".rstrip())
    out += [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(out)


_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e6c8a", "#c98b1b", "#2f4858", "#6b9080", "#a44a3f")
_SHAPES = {"embedding": "circle", "reranked": "square", "combined": "diamond"}


def plot_svg(lines: Sequence[Line]) -> str:
    """Recalls at 1 as an SVG: a band for each benchmark and direction, a colour for each model, a shape for each row."""
    bands = [
        (
            f"{b}, {words}",
            [
                (line, getattr(line, d)["r1"])
                for line in lines
                if line.benchmark == b and getattr(line, d).get("r1") is not None
            ],
        )
        for b in dict.fromkeys(line.benchmark for line in lines)
        for d, words in (("t2v", "text to video"), ("v2t", "video to text"))
    ]
    bands = [band for band in bands if band[1]]
    models = list(dict.fromkeys(line.model for line in lines))
    left, plot, step, band_height = 190, 520, 12, 34
    legend = 24 + step + 14 * len(models)
    height = 30 + band_height * len(bands) + 30 + legend
    escape = html.escape
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + plot + 40}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="16">R@1 in percent (accuracy of choices and '
        "classes)</text>",
    ]
    bottom = 30 + band_height * len(bands)
    for tick in range(0, 101, 10):
        x = left + plot * tick / 100
        out.append(
            f'<path d="M{x:g} 24V{bottom}" stroke="#ddd"/><text x="{x:g}" y="{bottom + 14}" text-anchor="middle">{tick}</text>'
        )
    for i, (title, points) in enumerate(bands):
        y = 30 + band_height * i + band_height / 2
        out.append(f'<text x="{left - 10}" y="{y + 4:g}" text-anchor="end">{escape(title)}</text>')
        out.append(f'<path d="M{left} {y:g}h{plot}" stroke="#eee"/>')
        for line, value in points:
            number = models.index(line.model)
            offset = (number % 5 - 2) * 5 if len(models) > 1 else 0
            words = f"{line.model}, {line.row}: {value:g}"
            out.append(_mark(left + plot * value / 100, y + offset, line, _COLOURS[number % len(_COLOURS)], words))
    y = bottom + 36
    out.append(
        f'<text x="{left}" y="{y}">circle: embedding, square: reranked, diamond: combined, hollow: published</text>'
    )
    for number, model in enumerate(models):
        y += 14
        out.append(f'<circle cx="{left + 4}" cy="{y - 4}" r="4" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        out.append(f'<text x="{left + 14}" y="{y}">{escape(model)}</text>')
    return "\n".join([*out, "</svg>\n"])


def _mark(x: float, y: float, line: Line, colour: str, words: str) -> str:
    fill = "white" if line.model.endswith(", published") else colour
    shape = _SHAPES.get(line.row, "circle")
    style = f'fill="{fill}" stroke="{colour}" stroke-width="1.5"'
    title = f"<title>{html.escape(words)}</title>"
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:g}" r="4" {style}>{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:g})"' if shape == "diamond" else ""
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:g}" width="7" height="7"{turn} {style}>{title}</rect>'
