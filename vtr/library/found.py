"""What a query found: segments, moments (windows of a video that overlap and score alike are one), hits."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from vtr.data.subtitles import Cue
from vtr.library.calibrate import MARKED
from vtr.library.files import shown
from vtr.library.rows import Metadata
from vtr.library.wanted import FUSE_AFTER, Measure

CLOSE = 0.005  # similarities that differ by less are one moment's, where windows overlap
_PICTURED = 20  # hits of a notebook's table that have a picture: each is a frame to decode

Way = Literal["picture", "words"]


class Found(NamedTuple):
    """A segment and its score."""

    score: float
    similarity: float
    reranked: bool
    segment: int
    path: str
    start: float
    end: float
    duration: float
    metadata: Metadata
    content: str | None  # SHA-256 of the file, where it is known
    by: tuple[Way, ...] = ("picture",)
    words: float = 0.0  # share of the query's words that are said
    measure: Measure | None = None  # what the score is; None: what the query's is

    @property
    def what(self) -> str:
        """The file by its content: the same for all copies."""
        return self.content or self.path

    @property
    def place(self) -> tuple[str, float, float]:
        """The same for the same segment of all copies of a file."""
        return self.what, self.start, self.end


class Moment(NamedTuple):
    """A stretch of a video: its best segment, and the span of all that it is made of."""

    best: Found
    start: float
    end: float


def distinct(found: Iterable[Found]) -> list[Found]:
    """Each segment of a content once, however many copies of the file there are."""
    seen: dict[tuple[str, float, float], Found] = {}
    for item in found:
        seen.setdefault(item.place, item)
    return list(seen.values())


def fused(pictures: Sequence[Found], words: Sequence[Found], *, apart: bool = False) -> list[Found]:
    """What was found by pictures and by words in one order: reciprocal rank fusion (Cormack et al. 2009).

    A segment's rank in a list counts the videos before it, and the segments of its own: a long video whose every window
    is alike pushes nothing down.

    Args:
        pictures, words: Best first; of copies of a file, each list may have another one.
        apart: Copies are files of their own.
    """
    scores: dict[int, float] = {}
    items: dict[int, Found] = {}
    heard = {} if apart else {item.place: item.segment for item in words}
    for found in (words, pictures):
        before: Counter[str] = Counter()
        for item in found:
            if item.what not in before:
                before[item.what] = len(before)
            before[item.what] += 1
            number = item.segment if item.segment in items else heard.get(item.place, item.segment)
            scores[number] = scores.get(number, 0.0) + 1 / (FUSE_AFTER + before[item.what])
            there = items.get(number)
            both = there and there._replace(
                by=(*item.by, *there.by), similarity=item.similarity, reranked=item.reranked
            )
            items[number] = both or item
    ordered = sorted(items.values(), key=lambda f: -scores[f.segment])  # stable: what is said before what is seen
    return [f._replace(score=scores[f.segment], measure="fused") for f in ordered]


def moments_of(found: Sequence[Found]) -> list[Moment]:
    """The moments of one video's segments, best first.

    A segment that overlaps a better one belongs to its moment: it makes it longer where it scores alike, so that a
    scene of many windows is one hit; otherwise it is but the better one's edge.
    """
    kept: list[Moment] = []
    for item in found:
        over = [m for m in kept if min(item.end, m.end) - max(item.start, m.start) > 0]
        alike = [m for m in over if m.best.similarity - item.similarity <= CLOSE]
        if not over:
            kept.append(Moment(item, item.start, item.end))
        elif len(alike) == len(over):  # else it would grow into a moment that it is no part of
            joined = Moment(
                over[0].best, min(item.start, *(m.start for m in over)), max(item.end, *(m.end for m in over))
            )
            kept = [joined if m is over[0] else m for m in kept if m is over[0] or m not in over]
    return kept


@dataclass(frozen=True, kw_only=True, repr=False)
class Hit:
    """One answer: a moment of a video.

    `vtr.library.clips.write_clips([hit], FOLDER)` saves it as a file of its own, `vtr.library.timeline.write_timeline` lists
    hits for other programs, and `Library.segment_frames(hit.path, hit.start, hit.end)` gives the frames that were looked at.

    Attributes:
        score: What hits are ordered by; `measure` names it.
        path: The file.
        start, end: Seconds; equal for an image.
        duration: Seconds of the whole video.
        segment: The moment's id in the library.
        rank: 1 for the best; moments of one video share it where several are asked for.
        similarity: The score before re-ranking.
        reranked: Whether the cross-modal decoder has looked at it.
        moment: 1 for the best moment of a video.
        measure: "similarity" (mean cosine of text and frames; of several texts their mean, less what is not wanted),
            "likeness" (cosine of two moments), "mixed" (the mean of both), or "combined" (re-ranked: the similarity over
            the model's temperature plus the decoder's log-odds), "words" (share of the query's words that are said,
            weighted by how rare they are), "fused" (the sum of 1 / (60 + rank) by pictures and by words).
        match: The score between 0 and 1.
        confidence: The share of unrelated texts whose best hit in this library scores lower, 0 to 1; None for examples, and
            where the library does not know. It is of the similarity, re-ranked or not.
        by: What it was found by: "picture", "words", or both.
        words: Share of the query's words that are said there, weighted by how rare they are.
        said: The subtitles in which they are, as (start, end, text).
        copies: Other files of the same content.
        near_copies: Other files that look the same there: in another codec, size, compression or frame.
        refined: Its ends were found between those of segments, by vectors of single frames.
        steps: The moments of a query for several things in order, each with its text; the hit itself is that of the query's
            own text, and its score is their mean.
        keyframes: Only key frames of the video were looked at when it was indexed: a quick look.
        metadata: The video's metadata.
    """

    score: float
    path: str
    start: float
    end: float
    duration: float
    segment: int
    rank: int = 0
    similarity: float = 0.0
    reranked: bool = False
    moment: int = 1
    measure: Measure = "similarity"
    match: float = 0.0
    confidence: float | None = None
    by: tuple[Way, ...] = ("picture",)
    words: float = 0.0
    said: tuple[Cue, ...] = ()
    copies: tuple[str, ...] = ()
    near_copies: tuple[str, ...] = ()
    refined: bool = False
    steps: tuple[Step, ...] = ()
    keyframes: bool = False
    metadata: Metadata = field(default_factory=dict, hash=False)

    @property
    def weak(self) -> bool:
        """Whether so many unrelated texts score as high that it is hardly what was asked for."""
        return self.confidence is not None and self.confidence < MARKED

    def __repr__(self) -> str:
        copies = f", {len(self.copies)} copies" if self.copies else ""
        return f"<Hit {self.rank}: {self.measure} {match_text(self)}, {shown(self.path)} {when(self)}, #{self.segment}{copies}>"

    def _repr_html_(self) -> str:
        return _table([self])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One of several moments that were asked for in this order.

    Attributes:
        text: What was asked for.
        start, end: Seconds.
        segment: Its id.
        similarity: To its own text.
    """

    text: str
    start: float
    end: float
    segment: int
    similarity: float


class Hits(list[Hit]):
    """The hits of a query, best first.

    Attributes:
        notes: What could not be done as it was asked for, one line each.
    """

    def __init__(self, hits: Iterable[Hit] = (), notes: Sequence[str] = ()) -> None:
        super().__init__(hits)
        self.notes = list(notes)

    def __repr__(self) -> str:
        return "[" + ",\n ".join(map(repr, self)) + "]"

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(shown(note))}</p>" for note in self.notes)
        return (_table(self) if self else "<p>Nothing found.</p>") + notes


def _table(hits: Sequence[Hit]) -> str:
    """Hits as a table of a notebook, the first ones with a picture."""
    from vtr.library.thumbnails import pictures  # decoders: a search needs none

    rows = []
    for number, hit in enumerate(hits):
        drawn = pictures(hit.path, hit.start, hit.end, hit.duration, [(0, 160)])[0] if number < _PICTURED else []
        cells = (hit.rank, shown(hit.path), when(hit), f"{hit.measure} {match_text(hit)}")
        image = f"<img src='{drawn[0]}' alt=''>" if drawn else ""
        told = (*cells, why(hit).strip(" ()") + ("weak" if hit.weak else ""))
        rows.append(f"<tr><td>{image}</td>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in told)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def match_text(hit: Hit) -> str:
    """The match with three digits, or `<0`: its scale begins at 0, and a cosine below is none of 0.000."""
    return "<0" if hit.match == 0 and hit.score < 0 else f"{hit.match:.3f}"


def when(hit: Hit) -> str:
    """The moment's time, as in `12.0-20.0s`."""
    return f"{hit.start:.1f}-{hit.end:.1f}s" if hit.end > hit.start else "image"


def hit_dict(hit: Hit) -> dict[str, object]:
    """A hit as plain values for JSON."""
    steps = [_rounded(asdict(step)) for step in hit.steps]
    said = [c._asdict() for c in hit.said]
    lists = {"copies": list(hit.copies), "near_copies": list(hit.near_copies), "by": list(hit.by)}
    return {**_rounded(asdict(hit)), **lists, "said": said, "steps": steps, "weak": hit.weak}


def _rounded(values: dict[str, object]) -> dict[str, object]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def hit_lines(hits: Sequence[Hit]) -> list[str]:
    """Hits as lines of text: match, time, id, file; further moments of a video are indented."""
    times = [when(hit) for hit in hits]
    width, named = max(map(len, times), default=0), max((len(h.measure) for h in hits), default=0)
    return [
        f"{hit.measure:>{named}} {match_text(hit):>5}  {time:>{width}}  #{hit.segment:<6} "
        f"{'  ' if hit.moment > 1 else ''}{shown(hit.path)}{_copies('=', hit.copies)}{_copies('≈', hit.near_copies)}{why(hit)}"
        + ("  (key frames only)" if hit.keyframes else "")
        + (f"  (weak: {hit.confidence:.2f})" if hit.weak else "")
        + (f"  [{' → '.join(f'{s.text} {s.start:.1f}-{s.end:.1f}s' for s in hit.steps)}]" if hit.steps else "")
        for hit, time in zip(hits, times)
    ]


def why(hit: Hit) -> str:
    """What a hit was found by, where words come into it: what is said and when; "" where they do not."""
    if "words" not in hit.by:
        return "  (picture)" if hit.measure == "fused" else ""
    first = hit.said[0] if hit.said else None
    said = "" if first is None else f" at {first.start:.1f} s: {shown(first.text[:80])!r}"
    return f"  ({' and '.join(hit.by)}{said})"


def _copies(sign: str, files: Sequence[str]) -> str:
    if not files:
        return ""
    first = shown(Path(files[0]).name)
    return f"  ({sign} {first}{f' and {len(files) - 1} more' if len(files) > 1 else ''})"
