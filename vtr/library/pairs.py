"""Things that happen one after the other in one video: of each query its segments, and the best that are in order.

n segments of a video, m steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from vtr.library.found import Found, Hit, Step
from vtr.library.settings import LibrarySettings
from vtr.library.wanted import Wanted, match
from vtr.library.where import Node

_CANDIDATES = 20  # videos that are looked at for each hit
TOUCH = 1e-3  # seconds by which what follows may begin before the other has ended


def best_chain(steps: Sequence[Sequence[Found]], within: float) -> tuple[float, list[Found]] | None:
    """The segments of one video, one for each step, each after the one before, whose mean similarity is highest.

    Args:
        steps: For each step the video's segments with their similarity to it, in any order.
        within: Seconds that may lie between the end of one and the beginning of the next.

    Returns:
        The mean, and the segments; None where no segments are in that order.
    """
    ordered = [sorted(step, key=lambda f: f.start) for step in steps]
    totals = [np.array([f.similarity for f in ordered[0]])]
    before: list[np.ndarray] = []
    for earlier, later in pairwise(ordered):
        ends, starts = np.array([f.end for f in earlier]), np.array([f.start for f in later])
        gaps = starts[None] - ends[:, None]
        fits = (gaps >= -TOUCH) & (gaps <= within)
        reach = np.where(fits, totals[-1][:, None], -np.inf)
        if not reach.size:
            return None
        before.append(reach.argmax(0))
        totals.append(reach.max(0) + np.array([f.similarity for f in later]))
    last = int(totals[-1].argmax()) if len(totals[-1]) else -1
    if last < 0 or not np.isfinite(totals[-1][last]):
        return None
    total, places = float(totals[-1][last]), [last]
    for came in reversed(before):
        places.append(int(came[places[-1]]))
    return total / len(steps), [step[place] for step, place in zip(ordered, reversed(places))]


class Place(Protocol):
    """What is asked of a `Searcher`."""

    settings: LibrarySettings

    def _nearest(self, wanted: Wanted, count: int, where: Node | None) -> tuple[list[Found], bool]: ...
    def _moments(self, wanted: Wanted, paths: Sequence[str], where: Node | None) -> list[Found]: ...
    def _copies(self, contents: Collection[str]) -> dict[str, list[str]]: ...


def in_order(
    place: Place, texts: Sequence[str], queries: Sequence[Wanted], own: int, k: int, where: Node | None, within: float
) -> list[Hit]:
    """One hit of each video that has all that is asked for in order, best mean first.

    Args:
        place: Of the vectors.
        texts, queries: Of the steps, in order; `own` is the number of the one that the hit is of.
        k: Number of hits.
        where: A filter.
        within: Seconds between one and the next.
    """
    paths: dict[str, str] = {}  # of each content one file
    for query in queries:
        nearest = dict.fromkeys((f.what, f.path) for f in place._nearest(query, 4 * _CANDIDATES * k, where)[0])
        for what, path in list(nearest)[: _CANDIDATES * k]:
            paths.setdefault(what, path)
    videos: dict[str, list[list[Found]]] = {}
    for number, query in enumerate(queries):
        for item in place._moments(query, list(paths.values()), where):
            videos.setdefault(item.path, [[] for _ in queries])[number].append(item)
    found = [chain for steps in videos.values() if (chain := best_chain(steps, within)) is not None]
    found = sorted(found, key=lambda chain: -chain[0])[:k]
    copies = place._copies([chain[own].content or "" for _, chain in found])
    return [
        Hit(
            score=score,
            path=chain[own].path,
            start=chain[own].start,
            end=chain[own].end,
            duration=chain[own].duration,
            segment=chain[own].segment,
            rank=rank,
            similarity=score,
            match=match(score, "similarity"),
            copies=tuple(p for p in copies.get(chain[own].content or "", ()) if p != chain[own].path),
            keyframes=place.settings.keyframes,
            metadata=chain[own].metadata,
            steps=tuple(
                Step(text=text, start=f.start, end=f.end, segment=f.segment, similarity=f.similarity)
                for text, f in zip(texts, chain)
            ),
        )
        for rank, (score, chain) in enumerate(found, 1)
    ]
