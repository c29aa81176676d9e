"""Moments of videos told by sentences: annotations with times, and how well spans that were found meet them.

Times are seconds on the video's own timeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vtr.data.cells import name_of
from vtr.data.tables import Table, read_table, refuse, what_is
from vtr.errors import VtrError

OVERLAPS = (0.3, 0.5, 0.7)
"""Intersections over union from which a span counts as found."""
RANKS = (1, 5, 10)


class Span(NamedTuple):
    """Seconds of a video."""

    video: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """A sentence and the span it tells of."""

    span: Span
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a search gave for a sentence.

    Attributes:
        own: The best span when the right video alone was searched; None where nothing was found.
        pooled: The hits of the whole library, best first.
        windows: Every span of the right video that could have been found.
    """

    told: Told
    own: Span | None
    pooled: Sequence[Span]
    windows: Sequence[Span] = ()


def overlap(one: Span, other: Span) -> float:
    """Intersection over union of two spans; 0 of different videos."""
    if one.video != other.video:
        return 0.0
    both = min(one.end, other.end) - max(one.start, other.start)
    return max(0.0, both) / max(1e-9, max(one.end, other.end) - min(one.start, other.start))


def read_moments(path: Path) -> list[Told]:
    """Sentences with times: ActivityNet Captions' release (val_1.json), or rows of video, start, end, sentence.

    Raises:
        VtrError: The file is missing or of another format, or a time is no span (with its place).
    """
    table = read_table(path, ("video", "start", "end", "sentence", "caption"))
    found = _rows(table) if isinstance(table, Table) else _release(path, table)
    if not found:
        raise VtrError(f"{path}: no sentences with times")
    return found


def _rows(table: Table) -> list[Told]:
    said = next((c for c in ("sentence", "caption") if c in table.columns), None)
    if said is None or not {"video", "start", "end"} <= set(table.columns):
        raise VtrError(
            f"{table.path}: columns {', '.join(table.columns)}; expected video, start, end (seconds) and sentence, or "
            "ActivityNet Captions' object by video with timestamps and sentences"
        )
    return [
        _told(table.path, r.place, r.cells["video"], [r.cells["start"], r.cells["end"]], r.cells[said])
        for r in table.records
    ]


def _release(path: Path, entries: dict[str, object]) -> list[Told]:
    found = []
    for video, entry in entries.items():
        place = f"entry {video!r}"
        if not isinstance(entry, dict) or not {"timestamps", "sentences"} <= entry.keys():
            raise refuse(path, place, what_is(entry), "an object with timestamps and sentences")
        times, sentences = entry["timestamps"], entry["sentences"]
        if not isinstance(times, list) or not isinstance(sentences, list) or len(times) != len(sentences):
            raise refuse(path, place, "not as many timestamps as sentences", "a pair of seconds for each sentence")
        found += [_told(path, place, video, span, sentence) for span, sentence in zip(times, sentences)]
    return found


def _told(path: Path, place: str, video: object, span: object, sentence: object) -> Told:
    name, why = name_of(video)
    if why or not isinstance(sentence, str) or not sentence.strip():
        raise refuse(path, place, why or f"its sentence is {what_is(sentence)}", "a video and a sentence")
    try:
        first, last = sorted(float(x) for x in span)  # type: ignore[attr-defined]  # some releases have them exchanged
    except (TypeError, ValueError):
        raise refuse(path, place, f"its times are {span!r}", "start and end in seconds") from None
    if not 0 <= first < last < float("inf"):
        raise refuse(path, place, f"its times are {span!r}", "0 <= start < end in seconds")
    return Told(span=Span(name, first, last), sentence=" ".join(sentence.split()))


def moment_rows(answers: Sequence[Answer]) -> dict[str, float]:
    """Percent of the sentences whose moment was found.

    Returns:
        `own video R@1, IoU t`: the right video is known, its best span meets the sentence's; then what any span of it at
        random and the best one at most would reach. `pooled, right window R@k`: a span of the right video with IoU 0.5 is
        among the first k of the library; `pooled, right video R@k`: any span of it is.
    """
    rows: dict[str, float] = {}

    def share(name: str, values: Sequence[float]) -> None:
        rows[name] = round(100 * sum(values) / len(values), 2)

    own = [overlap(a.own, a.told.span) if a.own else 0.0 for a in answers]
    for least in OVERLAPS:
        share(f"own video R@1, IoU {least:g}", [value >= least for value in own])
    share("own video, mean IoU", own)
    with_windows = [[overlap(w, a.told.span) for w in a.windows] for a in answers if a.windows]
    for least in OVERLAPS if with_windows else ():
        share(f"  a window at random, IoU {least:g}", [sum(v >= least for v in ws) / len(ws) for ws in with_windows])
        share(f"  the best window, IoU {least:g}", [max(ws) >= least for ws in with_windows])
    for k in RANKS:
        met = [max((overlap(s, a.told.span) for s in a.pooled[:k]), default=0.0) for a in answers]
        share(f"pooled, right window R@{k}", [value >= 0.5 for value in met])
        share(f"pooled, right video R@{k}", [any(s.video == a.told.span.video for s in a.pooled[:k]) for a in answers])
    return rows
