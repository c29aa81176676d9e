"""Queries of a library, wherever its vectors are: texts, videos and images, re-ranking, moments, copies.

w width of the embedding, T frames, S pixels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library.asked import check, listed
from vtr.library.calibrate import MARKED, check_least
from vtr.library.files import shown
from vtr.library.found import Found, Hit, Hits, Moment, distinct, fused, moments_of
from vtr.library.near import Kept, Looks, Seen, folded
from vtr.library.pairs import in_order
from vtr.library.settings import LibrarySettings
from vtr.library.tokens import TokenCache
from vtr.library.wanted import MINUS, Wanted, match
from vtr.library.where import Node, parse, shadowed

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from vtr.models.base import TextFeatures, VideoTextEncoder

    Example = str | Path | bytes | Tensor | np.ndarray

Nearest = Callable[[int], tuple[list[Found], bool]]  # the best so many segments, and whether there are no more
_LOADING = threading.RLock()  # threads that share a searcher load its model once
_FUSED = 100  # hits that are ranked by pictures and by words before their ranks are fused
WAYS = ("picture", "words", "both")
By = Literal["picture", "words", "both"]


class Query(NamedTuple):
    """What is looked for, the texts with their weights for the cross-modal decoder, and what of it could not be used."""

    wanted: Wanted
    texts: TextFeatures | None
    weights: list[float]
    notes: tuple[str, ...] = ()


class Searcher(ABC):
    """What can be searched: settings, a model, and somewhere the vectors.

    Attributes:
        path: Folder or address.
        settings: The content of library.json.
    """

    path: Path | str
    settings: LibrarySettings
    _model: VideoTextEncoder | None
    _model_path: str | None
    _cache: TokenCache | None

    # -- what a place of vectors has to give --------------------------------------------------------------------------

    @abstractmethod
    def _nearest(self, wanted: Wanted, count: int, where: Node | None) -> tuple[list[Found], bool]:
        """The best `count` segments, best first, and whether there are no more."""

    @abstractmethod
    def _moments(self, wanted: Wanted, paths: Sequence[str], where: Node | None) -> list[Found]:
        """All segments of these videos, best first."""

    @abstractmethod
    def _vector_of(self, segment: int) -> tuple[np.ndarray, Found]:
        """Vector (w,) of a segment, and what it is; VtrError where there is none."""

    @abstractmethod
    def _copies(self, contents: Collection[str]) -> dict[str, list[str]]:
        """The paths of all readable videos of these contents, sorted."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the metadata columns."""

    # -- the model ----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> VideoTextEncoder:
        """The model, loaded on first use."""
        with _LOADING:
            return self._loaded()

    @property
    def model_path(self) -> str | None:
        """What the model is loaded from."""
        return self._model_path

    def _loaded(self) -> VideoTextEncoder:
        if self._model is None:
            if not self._model_path:
                raise VtrError(
                    lambda say: f"{self.path} does not say where its model is: name it with {say.name('model')}"
                )
            try:
                model = _encoding().load_encoder(self._model_path)
            except VtrError as error:
                raise _no_model(str(self.path), error) from error
            self._accept(model)
        assert self._model is not None
        return self._model

    def _accept(self, model: VideoTextEncoder) -> None:
        own, given = self.settings.fingerprint, model.fingerprint()
        if own != given:
            raise VtrError(
                f"{self.path} was made with another model ({own[:12]}, this one is {given[:12]}): use that one, "
                "or build another library"
            )
        self._model = model

    def encoded(self, batch: Sequence[Tensor]) -> np.ndarray:
        """Vectors (n, w) of frames: n uint8 tensors (T, 3, S, S)."""
        return _encoding().encoded(self.model, batch)

    def frames_of(
        self,
        source: str | Path | bytes,
        start: float | None = None,
        end: float | None = None,
        *,
        lasts: float | None = None,
        isolated: bool = False,
    ) -> Tensor:
        """The frames that stand for a video or an image, or for a part of it: uint8 tensor (T, 3, S, S).

        Args:
            source: A path, a sample of a shard (`SHARD.tar/KEY.mp4`), or a file's bytes.
            start, end: Seconds.
            lasts: Seconds of the whole file, where they are known.
            isolated: Decode in a bounded process: for files from strangers.
        """
        return _encoding().frames_of(source, self.settings, self.model, start, end, lasts=lasts, isolated=isolated)

    def example_frames(self, source: str | Path | bytes, *, isolated: bool = False) -> tuple[Tensor, list[str]]:
        """Frames of the windows that stand for a clip, uint8 (m, T, 3, S, S); and what of it could not be looked at."""
        return _encoding().example_frames(source, self.settings, self.model, isolated=isolated)

    def segment_frames(self, path: str, start: float, end: float, lasts: float | None = None) -> Tensor:
        """The frames a segment was embedded from: uint8 tensor (T, 3, S, S); its path, start and end as in `frames_of`."""
        whole = end <= start
        return self.frames_of(path, None if whole else start, None if whole else end, lasts=lasts)

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        text: str | Sequence[str] = (),
        k: int = 10,
        *,
        rerank: int = 0,
        where: str | None = None,
        all_moments: bool = False,
        minus: str | Sequence[str] = (),
        like: Example | Sequence[Example] = (),
        more: int | None = None,
        moments: int = 1,
        unmerged: bool = False,
        all: bool = False,
        by: By | None = None,
        unrefined: bool = False,
        min_score: float | None = None,
        then: str | None = None,
        before: str | None = None,
        within: float | None = None,
    ) -> Hits:
        """The best moments for a query, best first; one moment a video unless asked for more.

        Files of the same content are one hit that names its copies, files that look the same one that names its
        `near_copies`. Moments of a video never overlap: windows that do are one.

        Args:
            text: What is looked for, in words; several texts count the same.
            k: Number of hits; of videos, with `moments`.
            rerank: Best segments that the cross-modal decoder looks at again (0 = none): slower, better. They come
                first, by the combined score; the others follow by similarity. Needs a text.
            where: A filter, applied before the search; see `vtr.library.where`.
            all_moments: Several moments of one video, each with a rank of its own.
            minus: Texts that are not wanted.
            like: A video or an image, or several, that the hits resemble, by cosine: paths, files' bytes, tensors of
                frames (T, 3, S, S) uint8 (as `frames_of` gives) or of a clip's windows (m, T, 3, S, S), or arrays of
                vectors (m, w). A clip of several windows is as like as the most like one.
            more: A hit's `segment`: more like that one; its own video is left out (with `all_moments` only itself).
            moments: Up to so many moments of a video, together; the video whose best moment is best comes first.
            unmerged: Every window and every copy of a file on its own, as they are stored.
            all: Near copies as hits of their own.
            by: "picture", "words" (what is said: subtitles and text tracks) or "both", the ranks by each fused. Default:
                both where the library has subtitles and something is asked for in words. By words, no model is needed,
                and a hit is as long as what is said.
            unrefined: Hits begin and end where segments do, though the library keeps vectors of single frames.
            min_score: Leave out hits of a lower `confidence`. Default: all are given; those that are `weak` say so.
            then, before: What happens after or before it in the same video: one hit a video, by the mean similarity;
                `steps` are all of them in order, with up to `within` seconds (60) between one and the next.

        Raises:
            UsageError: An empty query, a number out of range, a filter that does not parse.
            VtrError: What the query names cannot be read; the library cannot be read.
        """
        check_least(min_score)
        texts, against, likes = listed(text), listed(minus), _examples(like)
        if then is not None or before is not None or within is not None:
            alone = not (rerank or all_moments or against or likes or more is not None or moments > 1 or unmerged or by)
            return self._in_order(texts, before, then, 60.0 if within is None else within, k, where, min_score, alone)
        texts = [] if texts == [""] and (likes or more is not None) else texts
        check(texts, likes, more, k=k, rerank=rerank, moments=moments, all_moments=all_moments)
        by = self._way(by, texts, bool(likes) or more is not None, rerank)
        said = (texts, against)  # as they were given: quotes make a phrase
        texts, against = [_words(t) for t in texts], [_words(t) for t in against]
        self._check_reranks(rerank)
        notes: list[str] = []
        condition = self._condition(where, notes)
        if self._nothing():
            return Hits(notes=notes)
        query, own = Query(Wanted(), None, []), None
        if by != "words":
            query, own = self._query(texts, against, likes, more, notes)
        best = partial(
            _best, k=k, looks=None if all or unmerged else cache(self._looks), every=all_moments, apart=unmerged
        )
        left = _others(own, all_moments=all_moments, unmerged=unmerged)
        enough = partial(self._enough, left=left, arranged=best, unmerged=unmerged)
        found = self._answers(by, query, said, k, rerank, condition, enough, notes, unmerged)
        kept = best(found) if moments == 1 else self._grouped(query.wanted, found, best(found), condition, unmerged)
        hits = self._sure(query.wanted, self._hits(kept, moments, query, unmerged), min_score, notes)
        return Hits(self._with_said(hits if unmerged or unrefined else self._finer(query.wanted, hits), said[0]), notes)

    def _in_order(
        self,
        texts: list[str],
        before: str | None,
        then: str | None,
        within: float,
        k: int,
        where: str | None,
        least: float | None,
        alone: bool,
    ) -> Hits:
        """Hits of a text that others come after or before, see `search`."""
        if then is None and before is None:
            raise UsageError(
                lambda say: (
                    f"{say.name('within')} is about {say.name('then')} and {say.name('before')}: say what comes after or before"
                )
            )
        if not alone or len(texts) != 1:
            raise UsageError(
                lambda say: (
                    f"{say.name('then')} and {say.name('before')} go with one text, {say.name('k')}, {say.name('where')}, "
                    f"{say.name('within')} and {say.name('min_score')} alone"
                )
            )
        if not 0 <= within < float("inf"):
            raise UsageError(lambda say: f"{say.given('within', f'{within:g}')}: expected seconds, 0 or more")
        check(texts, [], None, k=k, rerank=0, moments=1, all_moments=False)
        told = [t for t in (before, texts[0], then) if t is not None]
        own = int(before is not None)
        notes: list[str] = []
        condition = self._condition(where, notes)
        if self._nothing():
            return Hits(notes=notes)
        queries = [self._query([_words(t)], [], [], None, notes)[0].wanted for t in told]
        hits = in_order(self, told, queries, own, k, condition, within)
        if not hits:
            notes.append(
                "no video has them in this order and so near; moments shorter than a segment cannot be told apart"
            )
        return Hits(self._sure(queries[own], hits, least, notes), notes)

    def asked(
        self,
        text: str | Sequence[str] = (),
        *,
        minus: str | Sequence[str] = (),
        like: Example | Sequence[Example] = (),
        more: int | None = None,
    ) -> Query:
        """A query as `search` takes it, as vectors."""
        texts, against, likes = listed(text), listed(minus), _examples(like)
        check(texts, likes, more, k=1, rerank=0, moments=1, all_moments=False)
        notes: list[str] = []
        query, _ = self._query([_words(t) for t in texts], [_words(t) for t in against], likes, more, notes)
        return query._replace(notes=tuple(notes))

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, w) of texts."""
        vectors: np.ndarray = _encoding().encoded_texts(self.model, texts).embedding.float().cpu().numpy()
        return vectors

    def _sure(self, wanted: Wanted, hits: list[Hit], least: float | None, notes: list[str]) -> list[Hit]:
        """Hits with their confidence, without those of less than the least."""
        hits = self._judged(wanted, hits)
        known = [hit.confidence for hit in hits if hit.confidence is not None]
        if least is not None and hits and not known:
            notes.append(
                "min_score: it is not known how unrelated texts score here (examples, few segments, or an older library, "
                "which vtr index compact mends), so nothing is left out"
            )
        elif len(known) == len(hits) > 0 and max(known) < (MARKED if least is None else least):
            notes.append(
                f"nothing like that: {1 - max(known):.0%} of unrelated texts have a hit as good as the best one here"
            )
        return [hit for hit in hits if hit.confidence is None or hit.confidence >= (least or 0.0)]

    def _judged(self, wanted: Wanted, hits: list[Hit]) -> list[Hit]:
        """Hits with their confidence, where the place of vectors knows."""
        return hits

    def _finer(self, wanted: Wanted, hits: list[Hit]) -> list[Hit]:
        """The hits with finer ends, where the place of vectors can tell."""
        return hits

    def _check_reranks(self, rerank: int) -> None:
        if rerank and not self.model.reranks:
            raise UsageError(
                lambda say: (
                    f"{say.given('rerank', rerank)}: {self._model_path} has no cross-modal decoder; leave it out"
                )
            )

    def _condition(self, where: str | None, notes: list[str]) -> Node | None:
        if where is None:
            return None
        columns = self.columns()
        condition = parse(where, columns)
        notes += shadowed(condition, columns)
        return condition

    def _answers(
        self,
        by: By,
        query: Query,
        said: tuple[list[str], list[str]],
        k: int,
        rerank: int,
        condition: Node | None,
        enough: Callable[[Nearest, int, int], list[Found]],
        notes: list[str],
        unmerged: bool,
    ) -> list[Found]:
        """Segments by pictures, by words, or by both, best first; `said` are the texts, and those that are not wanted."""

        def heard(count: int) -> tuple[list[Found], bool]:
            return self._heard(*said, None if by == "words" else query.wanted, count, condition)

        def nearest(count: int) -> tuple[list[Found], bool]:
            return self._nearest(query.wanted, count, condition)

        if by == "words":
            return enough(heard, k, 0)
        least = k if by == "picture" else max(k, _FUSED)
        found = enough(nearest, least, rerank)
        if rerank:
            found = self._reranked(query, found, rerank, notes)
        return fused(found, enough(heard, least, 0), apart=unmerged) if by == "both" else found

    def _looks(self, path: str, start: float, end: float) -> Looks | None:
        """What a file shows between two times, where the place of vectors knows."""
        return None

    def _hits(self, groups: list[Kept], moments: int, query: Query, unmerged: bool) -> list[Hit]:
        contents = {group[0].best.content for group, _ in groups} - {None}
        copies = {} if unmerged else self._copies([c for c in contents if c is not None])
        temperature = (
            float(self.model.temp.detach()) if any(m.best.reranked for group, _ in groups for m in group) else 1.0
        )
        hits = []
        for rank, (group, alike) in enumerate(groups, 1):
            for number, moment in enumerate(group[:moments], 1):
                best = moment.best
                measure = best.measure or ("combined" if best.reranked else query.wanted.measure)
                hits.append(
                    Hit(
                        score=best.score,
                        path=best.path,
                        start=moment.start,
                        end=moment.end,
                        duration=best.duration,
                        segment=best.segment,
                        rank=rank,
                        similarity=best.similarity,
                        reranked=best.reranked,
                        moment=number,
                        measure=measure,
                        match=match(best.score, measure, temperature),
                        by=best.by,
                        words=best.words,
                        copies=tuple(p for p in copies.get(best.content or "", ()) if p != best.path),
                        near_copies=alike,
                        keyframes=self.settings.keyframes,
                        metadata=best.metadata,
                    )
                )
        return hits

    def _nothing(self) -> bool:
        return False

    # -- what is said -------------------------------------------------------------------------------------------------

    def has_words(self) -> bool:
        """Whether there is something that is said: subtitles, text tracks."""
        return False

    def _heard(
        self, texts: Sequence[str], minus: Sequence[str], wanted: Wanted | None, count: int, where: Node | None
    ) -> tuple[list[Found], bool]:
        """The best `count` segments in which the texts' words are said, and whether there are no more.

        Args:
            wanted: What is looked for in pictures, so that each has its similarity; None: nothing, and each is as long
                as what is said.
        """
        return [], True

    def _with_said(self, hits: list[Hit], texts: Sequence[str]) -> list[Hit]:
        """Hits with the subtitles that hold the texts' words."""
        return hits

    def _way(self, by: By | None, texts: list[str], example: bool, rerank: int) -> By:
        """What a query is answered by."""
        if by not in (None, *WAYS):
            raise UsageError(lambda say: f"{say.given('by', repr(by))}: expected {', '.join(WAYS)}")
        if by in (None, "picture"):
            return "picture" if by or not any(map(str.strip, texts)) or not self.has_words() else "both"
        if not texts or (by == "words" and (example or rerank)):
            raise UsageError(
                lambda say: (
                    f"{say.given('by', by)} needs a text"
                    + (
                        f", and neither {say.name('like')}, {say.name('more')} nor {say.name('rerank')}"
                        if texts
                        else ""
                    )
                )
            )
        if not self.has_words():
            raise UsageError(
                lambda say: (
                    f"{say.given('by', by)}: no subtitles in {self.path}; put them beside the videos (film.srt, "
                    f"film.en.vtt) and call {say.call('index sync')}"
                )
            )
        return cast(By, by)

    def _query(
        self, texts: list[str], against: list[str], likes: list[Example], more: int | None, notes: list[str]
    ) -> tuple[Query, Found | None]:
        """The query, and the segment of `more`."""
        examples: list[np.ndarray] = []
        own = None
        if more is not None:
            vector, own = self._vector_of(more)
            examples.append(vector[None])
        for source in likes:
            if isinstance(source, np.ndarray):
                examples.append(np.atleast_2d(source))
            elif isinstance(source, str | Path | bytes):
                found = _encoding().embed_example(source, self.settings, self.model)
                examples.append(found.vectors)
                notes += found.notes
            else:
                examples.append(self.encoded(list(source) if source.ndim == 5 else [source]))
        features, vectors = None, np.zeros((0, self.settings.width), np.float32)
        if texts or against:
            features = _encoding().encoded_texts(self.model, [*texts, *against])
            vectors = features.embedding.float().cpu().numpy()
            notes += _encoding().cut_short(self.model, [*texts, *against])
        weights = [1 / len(texts) for _ in texts] + [-MINUS / len(against) for _ in against]
        wanted = Wanted.of(vectors[: len(texts)], vectors[len(texts) :], examples)
        return Query(wanted, features, weights), own

    def _enough(
        self,
        nearest: Nearest,
        k: int,
        rerank: int,
        left: Callable[[Found], bool],
        arranged: Callable[[Sequence[Found]], Sequence[object]],
        unmerged: bool,
    ) -> list[Found]:
        """Nearest segments, enough of them for k hits."""
        count = max(4 * k, rerank) + 1
        while True:
            found, over = nearest(count)
            found = [f for f in (found if unmerged else distinct(found)) if left(f)]
            if over or (len(found) >= rerank and len(arranged(found)) >= k):
                return found
            count *= 4  # long videos fill the list with their own moments

    def _grouped(
        self,
        wanted: Wanted,
        found: Sequence[Found],
        groups: list[Kept],
        where: Node | None,
        unmerged: bool,
    ) -> list[Kept]:
        """All moments of each video: those re-ranked first."""
        every: dict[str, list[Found]] = {}
        paths = [group[0].best.path for group, _ in groups]
        everything = found if wanted.empty or not paths else self._moments(wanted, paths, where)
        for item in everything:
            every.setdefault(item.path, []).append(item)
        out = []
        for group, near in groups:
            path = group[0].best.path
            again = [f for f in found if f.path == path and (f.reranked or f.measure)] or [group[0].best]
            known = {f.segment for f in again}
            items = [*again, *(f for f in every.get(path, []) if f.segment not in known)]
            out.append(([Moment(f, f.start, f.end) for f in items] if unmerged else moments_of(items), near))
        return out

    def _reranked(self, query: Query, found: list[Found], top: int, notes: list[str]) -> list[Found]:
        from vtr.library.rerank import Reranker

        assert query.texts is not None
        again = Reranker(self.model, query.texts, query.weights, self._cache)
        ordered = again(found, top, lambda item: self.segment_frames(item.path, item.start, item.end, item.duration))
        if again.failed:
            asked = min(top, len(found))
            notes.append(
                f"{len(again.failed)} of {asked} moments could not be looked at again and follow by similarity "
                f"({shown(again.failed[0])})"
            )
        return ordered


def _others(own: Found | None, *, all_moments: bool, unmerged: bool) -> Callable[[Found], bool]:
    """Whether a segment is another one than that of `more`; of another video unless moments of one are wanted."""

    def left(item: Found) -> bool:
        if own is None:
            return True
        if not all_moments:
            return item.path != own.path and (unmerged or item.what != own.what)
        return item.segment != own.segment and (unmerged or item.place != own.place)

    return left


def _arranged(found: Sequence[Found], *, all_moments: bool, unmerged: bool) -> list[list[Moment]]:
    """What becomes hits, best first: a list for each hit, or for each video that hits are moments of."""
    groups: dict[str | int, list[Found]] = {}
    for item in found:
        key = item.segment if all_moments and unmerged else item.path if unmerged else item.what
        groups.setdefault(key, []).append(item)
    if not all_moments or unmerged:
        return [[Moment(group[0], group[0].start, group[0].end)] for group in groups.values()]
    place = {f.segment: n for n, f in enumerate(found)}
    moments = [moment for group in groups.values() for moment in moments_of(group)]
    return [[moment] for moment in sorted(moments, key=lambda m: place[m.best.segment])]


def _best(found: Sequence[Found], *, k: int, looks: Seen | None, every: bool, apart: bool) -> list[Kept]:
    """The first k of what becomes hits, each with the files that look the same; None of `looks`: those stay apart."""
    groups = _arranged(found, all_moments=every, unmerged=apart)
    return folded(groups, k, looks, overlapping=every) if looks else [(group, ()) for group in groups[:k]]


def _encoding() -> ModuleType:
    """The part that needs torch and decoders: `vtr index info` and the like start without them."""
    from vtr.library import encode

    return encode


def _no_model(place: str, error: VtrError) -> VtrError:
    return type(error)(
        lambda say: (
            f"{place}: its model cannot be loaded ({error.said(say)}); where it has moved, name it with "
            f"{say.name('model')}"
        )
    )


def _examples(like: Example | Sequence[Example]) -> list[Example]:
    return list(like) if isinstance(like, list | tuple) else [like]  # type: ignore[list-item]


def _words(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"a query that is no text ({shown(text)[:100]!r}): expected UTF-8")
    words: str = _encoding().clean_caption(text)
    if not words.strip():
        raise UsageError(f"an empty query ({text!r} has no words): ask for something")
    return words
