"""Results of an evaluation: figures and how they came about, beside published ones, as text and as a file."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtr.errors import VtrError, unknown_name
from vtr.eval.benchmarks import Benchmark, Published
from vtr.files import write_atomically

Rows = Mapping[str, Mapping[str, float]]
"""By row (embedding, reranked, combined): r1, r5, r10, median_rank, mean_rank."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; a benchmark fills t2v and v2t, choice, classification, or order."""

    t2v: Rows = field(default_factory=dict)
    v2t: Rows = field(default_factory=dict)
    mean_recall: Mapping[str, float] = field(default_factory=dict)  # by row
    choice: Mapping[str, float] = field(default_factory=dict)  # accuracy by rule
    classification: Mapping[str, float] = field(default_factory=dict)  # top1, top5
    order: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by row: right decisions, see `contrast_rows`
    chance_r1: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What it took."""

    ranks: int
    seconds: float
    peak_memory_gib: float
    date: str
    vtr: str  # version


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published row, and ours less it."""

    model: str
    row: str
    t2v: tuple[float, ...] = ()
    t2v_difference: tuple[float, ...] = ()
    v2t: tuple[float, ...] = ()
    v2t_difference: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one benchmark."""

    benchmark: str
    protocol: str  # hash
    annotation: str
    gallery: int
    queries: int
    rule: str  # how captions become queries
    frames: int
    antialias: bool
    max_text_tokens: int
    rerank: int
    match_by: str  # log-odds or logit
    compat: tuple[str, ...]
    precision: str
    captions_cut: int
    figures: Figures
    comparable: str = ""  # why it is not
    ceilings: Mapping[str, float] = field(default_factory=dict)
    direction_pairs: Mapping[str, float] = field(default_factory=dict)
    match_direction_pairs: Mapping[str, float] = field(default_factory=dict)
    published: tuple[Comparison, ...] = ()
    model: str = ""
    fingerprint: str = ""
    run: Run | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, one level, without what is not there."""
        values = dataclasses.asdict(self)
        values |= values.pop("figures")
        values["published"] = [{k: v for k, v in entry.items() if v} for entry in values["published"]]
        return {k: v for k, v in values.items() if v or k in _ALWAYS}


_ALWAYS = ("gallery", "queries", "antialias", "rerank", "compat", "captions_cut", "chance_r1")


def published_rows(benchmark: Benchmark, names: Sequence[str], registered: str | None = None) -> list[Published]:
    """The published rows to compare with: those named, `all`, or the model's own.

    Raises:
        UsageError: A name that has no published row.
    """
    known = {p.model: p for p in benchmark.protocol.published}
    if "all" in names:
        return list(known.values())
    for name in names:
        if name not in known:
            raise unknown_name(f"published row of {benchmark.name}", name, known or ["(none)"])
    if not names:
        names = (registered,) if registered is not None and registered in known else ()
    return [known[name] for name in names]


def compared(figures: Figures, rows: Sequence[Published]) -> tuple[Comparison, ...]:
    """Published rows with the differences of ours to them."""
    out = []
    for row in rows:
        values: dict[str, tuple[float, ...]] = {}
        for direction, theirs, rows_of in (("t2v", row.t2v, figures.t2v), ("v2t", row.v2t, figures.v2t)):
            ours = rows_of.get(row.row) or rows_of.get("embedding")
            if theirs and ours:
                values[direction] = tuple(theirs)
                values[f"{direction}_difference"] = tuple(
                    round(ours[k] - f, 2) for k, f in zip(("r1", "r5", "r10"), theirs)
                )
        out.append(Comparison(model=row.model, row=row.row, note=row.note, **values))
    return tuple(out)


def table(result: Result) -> str:
    """A result as text."""
    lines = [f"{result.benchmark}: {result.gallery} videos, {result.queries} captions, protocol {result.protocol}"]
    lines.append("  " + _how(result))
    if result.comparable:
        lines.append(f"NOT COMPARABLE with published numbers ({result.comparable})")
    lines += [*result.figures.warnings, *_figures(result)]
    lines += [f"{entry.model}: {entry.note}" for entry in result.published if entry.note]
    if result.captions_cut:
        lines.append(
            f"{result.captions_cut} of {result.queries} texts are longer than the protocol allows and were cut"
        )
    for name, value in result.ceilings.items():
        lines.append(f"{'ceiling, ' + name.replace('_', ' '):<42}{value:.1f}")
    for name, value in result.direction_pairs.items():
        lines.append(f"{'direction pairs, ' + name.replace('_', '/'):<42}{value:.1f}")
    for name, value in result.match_direction_pairs.items():
        lines.append(f"{'direction pairs by match, ' + name.replace('_', '/'):<42}{value:.1f}")
    return "\n".join(lines)


def _figures(result: Result) -> list[str]:
    figures, lines = result.figures, []
    if figures.t2v:
        lines.append(f"{'':26}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MdR':>7}{'MnR':>8}")
    for words, rows, published in (
        ("text to video", figures.t2v, [(p, p.t2v, p.t2v_difference) for p in result.published]),
        ("video to text", figures.v2t, [(p, p.v2t, p.v2t_difference) for p in result.published]),
    ):
        for row, m in rows.items():
            lines.append(
                f"{words + ', ' + row:<26}{m['r1']:7.1f}{m['r5']:7.1f}{m['r10']:7.1f}{m['median_rank']:7.1f}{m['mean_rank']:8.1f}"
            )
        for entry, theirs, difference in published:
            if theirs:
                numbers = "".join(f"{v:7.1f}" for v in theirs)
                lines.append(f"{'  published':<26}{numbers}   {entry.model}, {entry.row}")
                lines.append(f"{'  ours minus published':<26}" + "".join(f"{v:+7.1f}" for v in difference))
    lines += [f"{'mean recall, ' + row:<26}{value:7.1f}" for row, value in figures.mean_recall.items()]
    for accuracies, words in ((figures.choice, "multiple choice"), (figures.classification, "classification")):
        lines += [f"{words + ', ' + row:<28}{value:5.1f}" for row, value in accuracies.items()]
    for row, decided in figures.order.items():
        lines += [f"{'right decisions, ' + row + ', ' + name:<58}{value:6.1f}" for name, value in decided.items()]
    return [*lines, f"{'chance':<26}{figures.chance_r1:7.1f}"]


_RULES = {
    "each": "each caption is a query",
    "paragraph": "a video's captions joined are a query",
    "shared": "equal captions are one query with several right videos",
    "choices": "a choice among each video's captions",
    "class": "a class is the mean of its prompts",
    "counterfactual": "a video chooses between its caption and a wrong one",
    "reversed": "a clip and its reversal choose between their captions, the captions between the two",
}


def _how(result: Result) -> str:
    """What was done, in words."""
    words = [
        _RULES.get(result.rule, result.rule),
        f"{result.frames} frames",
        "antialiased" if result.antialias else "not antialiased",
        f"texts of at most {result.max_text_tokens} tokens",
        f"{result.rerank} candidates re-ranked by the {result.match_by}" if result.rerank else "not re-ranked",
        result.precision,
    ]
    if result.compat:
        words.append("with " + ", ".join(result.compat))
    if result.run is not None:
        took = result.run
        words.append(f"{took.ranks} rank{'s' * (took.ranks > 1)}, {took.seconds:g} s, {took.peak_memory_gib:g} GiB")
    return "; ".join(words)


def write(result: Result, folder: Path, frames: int | None = None) -> Path:
    """Write a result's JSON; its name tells the model, the benchmark, compatibility switches and other `frames`.

    Raises:
        VtrError: The folder cannot be written.
    """
    model = Path(result.model).name if Path(result.model).exists() else result.model
    parts = [model, result.benchmark, *result.compat] + ([f"f{frames}"] if frames else [])
    path = folder / (re.sub(r"[^\w.+-]+", "-", "_".join(parts)) + ".json")
    try:
        with write_atomically(path) as partial:
            partial.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VtrError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"written: {path}", file=sys.stderr)
    return path
