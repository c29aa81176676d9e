"""Searching a library's folder: one view of its database, vectors and index for each query, whoever writes meanwhile."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vtr.errors import VtrError
from vtr.library import index as indexes
from vtr.library.calibrate import AGAIN, LEAST, confidence, unrelated_texts
from vtr.library.curve import Curve, curve_of, cuts_of, refined
from vtr.library.files import full_name, shown
from vtr.library.found import Found, Hit
from vtr.library.frame_vectors import unpacked
from vtr.library.hearing import Hearing
from vtr.library.index_types import Description
from vtr.library.near import Looks, joined, looks_of
from vtr.library.rows import SegmentRow, Span, VideoRow
from vtr.library.store import MissingVectors, Store, is_damage
from vtr.library.wanted import Wanted
from vtr.library.where import Node, to_sql

if TYPE_CHECKING:
    from vtr.library.search import Example

T = TypeVar("T")
_TEXTS = 32  # that are encoded together
_REACH = 4  # windows before and after a hit that are looked at for its ends
_FILTERS = 8  # filters whose segments are remembered until the library changes


class StoredSearcher(Hearing):
    """What a library's folder adds to searching. May be used from several threads at once.

    Args:
        store: The files of the library.
    """

    path: Path

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: indexes.Snapshot | None = None
        self._lock = threading.RLock()  # over what threads share: the snapshot, the model while it is loaded
        self._own = threading.local()  # patient: an index newer than the database seen is a matter of the moment

    def belongs(self, described: Description) -> bool:
        """Whether an index was made of this library as it is now or was before: not after a database was restored."""
        return described.get("library") == self.settings.id and not self._newer(described)

    def _newer(self, described: Description) -> bool:
        return int(described.get("generation", 0)) > self.store.generation()

    def snapshot(self) -> indexes.Snapshot:
        """What is searched now; within `store.reading()` it fits what the database shows there."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> indexes.Snapshot:
        generation, part = self.store.generation(), self.store.part()
        seen = self._seen
        if seen is None or (seen.generation, seen.part) != (generation, part):
            path = self.path / "index.faiss"
            described = indexes.describe(path)
            if getattr(self._own, "patient", False) and described is not None and self._newer(described):
                raise MissingVectors(f"{path} was replaced at that moment")  # look again: the database is newer too
            base, damaged = None, False
            kept = seen.base if seen is not None else None
            if kept is not None and described is not None and kept.description["crc"] == described["crc"]:
                base = kept  # only the tail has changed
            if base is None and path.is_file():
                base = indexes.read(path) if described is not None and self.belongs(described) else None
                damaged = base is None
            tail = self.store.pairs(base.description["last"] if base else 0)
            tail = tail[np.argsort(tail[:, 1], kind="stable")]
            if damaged and len(tail) > indexes.EXACT_UP_TO and not (seen and seen.damaged):
                print(
                    f"warning: {path} is damaged or of another library: searching without it, which is slower; "
                    f"vtr index compact {self.path} makes it anew",
                    file=sys.stderr,
                )
            seen = indexes.Snapshot(base, tail, self.store.vectors(), generation, part, damaged)
            self.store.check_place()  # the vectors and the index were opened by their names
            self._seen = seen
        return seen

    def read(self, function: Callable[[], T]) -> T:
        """Call within one view of the database; again where vectors or index were replaced at that moment."""
        try:
            for _ in range(5):
                try:
                    self._own.patient = True
                    with self.store.reading():
                        return function()
                except MissingVectors:
                    continue
                finally:
                    self._own.patient = False
            with self.store.reading():
                return function()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise VtrError(f"{self.path}/library.db cannot be read at the moment ({error})") from error
            raise VtrError(
                lambda say, why=str(error): (  # type: ignore[misc]
                    f"{self.path}/library.db cannot be read ({why}); {say.call('index verify')} says more, "
                    "restore it or build anew"
                )
            ) from error

    def _nothing(self) -> bool:
        return bool(self.read(self.store.empty))

    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return list(self.read(self.store.columns))

    def _allowed(self, where: Node | None, snapshot: indexes.Snapshot) -> np.ndarray | None:
        """Ids and rows of the segments a filter allows; within `read`."""
        if where is None:
            return None
        kept = snapshot.filters.get(where)
        if kept is None:
            values: list[object] = []
            kept = self.store.pairs(0, to_sql(where, values), values)
            with self._lock:
                while len(snapshot.filters) >= _FILTERS:
                    snapshot.filters.pop(next(iter(snapshot.filters)))
                snapshot.filters[where] = kept
        return kept

    def _nearest(self, wanted: Wanted, count: int, where: Node | None) -> tuple[list[Found], bool]:
        def read() -> tuple[list[Found], bool]:
            snapshot = self.snapshot()
            allowed = self._allowed(where, snapshot)
            total = len(snapshot) if allowed is None else len(allowed)
            if total == 0:
                return [], True
            scores, ids = snapshot.nearest(wanted, min(count, total), allowed, self.store.rows_of)
            return self._found(scores, ids), count >= total

        return self.read(read)

    def _moments(self, wanted: Wanted, paths: Sequence[str], where: Node | None) -> list[Found]:
        def read() -> list[Found]:
            snapshot = self.snapshot()
            allowed = self._allowed(where, snapshot)
            pairs = self.store.pairs_of(paths)
            if allowed is not None:
                pairs = pairs[np.isin(pairs[:, 0], allowed[:, 0])]
            scores = wanted.scores(snapshot.vectors[pairs[:, 1]])
            order = np.argsort(-scores, kind="stable")
            return self._found(scores[order], pairs[order, 0])

        return self.read(read)

    def changed(self, paths: Iterable[str]) -> list[str]:
        """Those of these files that are not what was indexed, by their size and date.

        Args:
            paths: As hits have them; those that the library does not hold are passed over.
        """
        known = [row for path in dict.fromkeys(paths) if (row := self.read(lambda: self.store.video_at(path)))]  # noqa: B023
        return [row.path for row in known if _changed(row)]

    def _vector_of(self, segment: int) -> tuple[np.ndarray, Found]:
        def read() -> tuple[np.ndarray, Found]:
            row = self.store.details([segment]).get(segment)
            if row is None:
                raise VtrError(f"{self.path} has no segment {segment}; hits show theirs as #NUMBER")
            return np.array(self.store.vectors()[row.row]), _found(row, 1.0)

        return self.read(read)

    def curve(
        self,
        video: str | Path | int,
        text: str | Sequence[str] = (),
        *,
        minus: str | Sequence[str] = (),
        like: Example | Sequence[Example] = (),
        more: int | None = None,
    ) -> Curve:
        """How well a video fits a query from moment to moment; the query as in `search`.

        Args:
            video: Its path, or its id.

        Raises:
            VtrError: It is not in the library.
        """
        query = self.asked(text, minus=minus, like=like, more=more)
        row = self.read(
            lambda: self.store.video(video) if isinstance(video, int) else self.store.video_at(full_name(video))
        )
        if row is None:
            near = [] if isinstance(video, int) else self.read(lambda: self.store.paths_named(Path(video).name))
            meant = f"; of that name it has {' and '.join(map(shown, near))}" if near else ""
            raise VtrError(f"{shown(str(video))} is not in {self.path}{meant}")
        if row.failure is not None:
            raise VtrError(f"{shown(str(video))} could not be read when it was indexed ({row.failure.reason})")
        found, _ = self.read(lambda: self._curve(query.wanted, row.path, Span(0.0, np.inf)))
        return replace(found, notes=query.notes)

    def _curve(self, wanted: Wanted, path: str, near: Span) -> tuple[Curve, list[float]]:
        """The curve of a video in and around a span, and the cuts there; within `read`."""
        spans, rows = self.store.spans_between(path, *near)
        kept = self.store.frame_rows(rows)
        if kept is None:
            scores = wanted.scores(self.store.vectors()[rows])[:, None]
        else:
            frames = unpacked(kept, self.settings.width)
            scores = wanted.scores(frames.reshape(-1, self.settings.width)).reshape(frames.shape[:2])
            scores[~frames.any(-1)] = np.nan
        return curve_of(path, spans, scores, exact=kept is not None), cuts_of(spans)

    def _finer(self, wanted: Wanted, hits: list[Hit]) -> list[Hit]:
        if not self.settings.frame_vectors:
            return hits
        reach = _REACH * self.settings.window
        for place, hit in enumerate(hits):
            if "words" in hit.by:
                continue  # it lasts as long as what is said
            others = [h for i, h in enumerate(hits) if i != place and h.path == hit.path]
            between = Span(
                max((h.end for h in others if h.end <= hit.start), default=0.0),
                min((h.start for h in others if h.start >= hit.end), default=hit.duration),
            )
            near = Span(hit.start - reach, hit.end + reach)
            curve, cuts = self.read(lambda: self._curve(wanted, hit.path, near))  # noqa: B023
            span = refined(curve, Span(hit.start, hit.end), between, cuts)
            hits[place] = replace(hit, start=span.start, end=span.end, refined=span != (hit.start, hit.end))
        return hits

    def calibrate(self, *, model: bool = True) -> None:
        """Write down how unrelated texts score here, where that has changed; with the writer lock held.

        Args:
            model: Load the model where the vectors of these texts are not known yet.
        """
        count, then = self.store.segments(), self.store.calibrated()
        vectors, _ = self.store.unrelated()
        texts = unrelated_texts()
        if count < LEAST or (len(vectors) == len(texts) and abs(count - then) <= AGAIN * then):
            return
        if len(vectors) != len(texts):
            if self._model is None and not (model and self._model_path):
                return
            parts = [texts[at : at + _TEXTS] for at in range(0, len(texts), _TEXTS)]
            try:
                vectors = np.concatenate([self.text_vectors(part) for part in parts])
            except VtrError as error:  # all else that the call was for is done
                print(f"note: hits of this library cannot say how sure they are: {error}", file=sys.stderr)
                return
        none = np.zeros((0, self.settings.width), np.float32)
        snapshot = self.snapshot()
        best = [
            snapshot.nearest(Wanted.of(vector[None], none, []), 1, None, self.store.rows_of)[0] for vector in vectors
        ]
        scores = np.array([float(found[0]) if len(found) else 0.0 for found in best])
        with self.store.change():
            self.store.set_unrelated(vectors, scores)
            self.store.set_calibrated(count)

    def _judged(self, wanted: Wanted, hits: list[Hit]) -> list[Hit]:
        if wanted.words is None or wanted.examples:
            return hits
        _, scores = self.read(self.store.unrelated)
        if not len(scores):
            return hits
        scores, length = np.sort(scores), float(np.linalg.norm(wanted.words)) or 1.0
        return [
            hit if "words" in hit.by else replace(hit, confidence=confidence(hit.similarity / length, scores))
            for hit in hits
        ]

    def _copies(self, contents: Collection[str]) -> dict[str, list[str]]:
        return self.read(lambda: self.store.copies(contents))

    def _looks(self, path: str, start: float, end: float) -> Looks | None:
        found = self.read(lambda: self.store.looks_between(path, start, end))
        if not found:
            return None
        looks = joined([looks_of(pictures, *span) for span, pictures in found])
        inside = (looks.times >= start) & (looks.times <= end)
        return Looks(looks.times[inside], looks.pictures[inside])

    def _found(self, scores: np.ndarray, ids: np.ndarray) -> list[Found]:
        details = self.store.details(ids.tolist())
        return [
            _found(row, score)
            for score, segment in zip(scores.tolist(), ids.tolist())
            if (row := details.get(segment)) is not None  # else it was removed since the index was made
        ]


def _changed(row: VideoRow) -> bool:
    try:
        now = os.stat(row.path)
    except OSError:  # a sample of a shard, or gone: those who read it say so
        return False
    return row.facts.modified is not None and (now.st_size, now.st_mtime) != row.facts[:2]


def _found(row: SegmentRow, score: float) -> Found:
    return Found(score, score, False, row.id, row.path, row.start, row.end, row.duration, row.metadata, row.sha256)
