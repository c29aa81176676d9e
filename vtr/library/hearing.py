"""Searching what is said in the videos of a library's folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from vtr.data.subtitles import Cue
from vtr.library.found import Found, Hit
from vtr.library.index import Snapshot
from vtr.library.rows import SegmentRow, Span
from vtr.library.search import Searcher
from vtr.library.store import Store
from vtr.library.wanted import Wanted
from vtr.library.where import Node

T = TypeVar("T")
_LEAST = (
    0.5  # share of a query's words, where hits by words stand beside hits by pictures: a common word alone is chance
)


class Hearing(Searcher):
    """A searcher whose subtitles are in a store."""

    store: Store

    @abstractmethod
    def read(self, function: Callable[[], T]) -> T:
        """Call within one view of the database."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """What is searched now."""

    @abstractmethod
    def _allowed(self, where: Node | None, snapshot: Snapshot) -> np.ndarray | None:
        """Ids and rows of the segments a filter allows."""

    def has_words(self) -> bool:
        """Whether there is something that is said: subtitles, text tracks."""
        return self.read(self.store.has_words)

    def _heard(
        self, texts: Sequence[str], minus: Sequence[str], wanted: Wanted | None, count: int, where: Node | None
    ) -> tuple[list[Found], bool]:
        def read() -> tuple[list[Found], bool]:
            snapshot = self.snapshot()
            allowed = self._allowed(where, snapshot)
            least = 0.0 if wanted is None else _LEAST
            ids, shares = self.store.heard(texts, minus, None if allowed is None else allowed[:, 0], least)
            found = self._as_found(ids[:count], shares[:count], texts, wanted, snapshot)
            return found, count >= len(ids)

        return self.read(read)

    def _as_found(
        self, ids: np.ndarray, shares: np.ndarray, texts: Sequence[str], wanted: Wanted | None, snapshot: Snapshot
    ) -> list[Found]:
        rows = self.store.details(ids.tolist())
        there = [int(i) for i in ids if int(i) in rows]
        near = dict.fromkeys(there, 0.0)
        if wanted is not None and there:
            near = dict(zip(there, wanted.scores(snapshot.vectors[[rows[i].row for i in there]]).tolist()))
        spans = {i: Span(rows[i].start, rows[i].end) for i in there}
        if wanted is None:
            said = self.store.said_in(spans, texts)
            spans = {i: _around(spans[i], said[i], rows[i].duration) for i in there}
        return [_found(rows[i], spans[i], float(share), near[i]) for i, share in zip(ids.tolist(), shares) if i in near]

    def _with_said(self, hits: list[Hit], texts: Sequence[str]) -> list[Hit]:
        spans = {hit.segment: Span(hit.start, hit.end) for hit in hits if "words" in hit.by}
        said = self.read(lambda: self.store.said_in(spans, texts)) if spans else {}
        return [replace(hit, said=said.get(hit.segment, ())) for hit in hits]


def _around(span: Span, said: Sequence[Cue], lasts: float) -> Span:
    """As long as what is said in a segment, also where that begins before it or ends after it; an image stays one."""
    if span.end <= span.start or not said:
        return span
    start, end = min(cue.start for cue in said), min(lasts, max(cue.end for cue in said))
    return Span(start, end) if end > start else span


def _found(row: SegmentRow, span: Span, share: float, near: float) -> Found:
    return Found(
        score=share,
        similarity=near,
        reranked=False,
        segment=row.id,
        path=row.path,
        start=span.start,
        end=span.end,
        duration=row.duration,
        metadata=row.metadata,
        content=row.sha256,
        by=("words",),
        words=share,
        measure="words",
    )
