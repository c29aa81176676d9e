"""Queries of a library, wherever its vectors are: texts, videos and images into one vector, re-ranking, grouping.

w width of the embedding, T frames, S pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library.files import shown
from vtr.library.found import Found
from vtr.library.rows import Metadata, Value
from vtr.library.settings import LibrarySettings
from vtr.library.tokens import TokenCache
from vtr.library.where import Node, parse

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from vtr.models.base import TextFeatures, VideoTextEncoder

    Example = str | Path | bytes | Tensor

MINUS = 0.5  # weight of what is not wanted: with 1 little but the difference would be left
_MOST = 1000  # hits of one query; more is an export


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer: a moment of a video.

    Attributes:
        score: What hits are ordered by: the similarity, or the combined score where it was re-ranked.
        path: The file.
        start, end: Seconds; equal for an image.
        duration: Seconds of the whole video.
        segment: The moment's id in the library.
        rank: 1 for the best; moments of one video share it where several are asked for.
        similarity: The cosine similarity of text and moment; of several texts their mean, less what is not wanted.
        reranked: Whether the cross-modal decoder has looked at it.
        moment: 1 for the best moment of a video.
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
    metadata: Metadata = field(default_factory=dict, hash=False)


class Query(NamedTuple):
    """What is looked for: a vector (1, w), and the texts with their weights for the cross-modal decoder."""

    vector: np.ndarray
    texts: TextFeatures | None
    weights: list[float]


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
    def _nearest(self, vector: np.ndarray, count: int, where: Node | None) -> tuple[list[Found], bool]:
        """The best `count` segments, best first, and whether there are no more."""

    @abstractmethod
    def _moments(self, vector: np.ndarray, paths: Sequence[str], where: Node | None) -> list[Found]:
        """All segments of these videos, best first."""

    @abstractmethod
    def _vector_of(self, segment: int) -> tuple[np.ndarray, str]:
        """Vector (w,) and path of a segment; VtrError where there is none."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the metadata columns."""

    # -- the model ----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> VideoTextEncoder:
        """The model, loaded on first use."""
        if self._model is None:
            if not self._model_path:
                raise VtrError(
                    lambda say: f"{self.path} does not say where its model is: name it with {say.name('model')}"
                )
            self._accept(_encoding().load_encoder(self._model_path))
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
        isolated: bool = False,
    ) -> Tensor:
        """The frames that stand for a video or an image, or for a part of it: uint8 tensor (T, 3, S, S).

        Args:
            source: A path, a sample of a shard (`SHARD.tar/KEY.mp4`), or a file's bytes.
            start, end: Seconds.
            isolated: Decode in a bounded process: for files from strangers.
        """
        return _encoding().frames_of(source, self.settings, self.model, start, end, isolated=isolated)

    def segment_frames(self, path: str, start: float, end: float) -> Tensor:
        """The frames a segment was embedded from: uint8 tensor (T, 3, S, S)."""
        whole = end <= start
        return self.frames_of(path, None if whole else start, None if whole else end)

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
    ) -> list[Hit]:
        """The best moments for a query, best first; one moment a video unless asked for more.

        Args:
            text: What is looked for, in words; several texts count the same.
            k: Number of hits; of videos, with `moments`.
            rerank: Best segments that the cross-modal decoder looks at again (0 = none): slower, better. They come
                first, by the combined score; the others follow by similarity. Needs a text.
            where: A filter, applied before the search; see `vtr.library.where`.
            all_moments: Several moments of one video, each with a rank of its own.
            minus: Texts that are not wanted.
            like: A video or an image, or several, that the hits resemble: paths, files' bytes, or tensors of frames
                (T, 3, S, S) uint8 (as `frames_of` gives).
            more: A hit's `segment`: more like that one; its own video is left out (with `all_moments` only itself).
            moments: Up to so many moments of a video, together; the video whose best moment is best comes first.

        Raises:
            UsageError: An empty query, a number out of range, a filter that does not parse.
            VtrError: What the query names cannot be read; the library cannot be read.
        """
        texts = [text] if isinstance(text, str) else list(text)
        against = [minus] if isinstance(minus, str) else list(minus)
        likes: list[Example] = list(like) if isinstance(like, list | tuple) else [like]  # type: ignore[list-item]
        if texts == [""] and (likes or more is not None):
            texts = []
        _in_range(k=(k, 1), rerank=(rerank, 0), moments=(moments, 1))
        if all_moments and moments > 1:
            raise UsageError(
                lambda say: (
                    f"{say.name('all_moments')} and {say.name('moments')} exclude each other: "
                    "ranks of their own, or by video"
                )
            )
        texts, against = [_words(t) for t in texts], [_words(t) for t in against]
        if not texts and not likes and more is None:
            raise UsageError(
                lambda say: f"an empty query: ask for something in words, with {say.name('like')} or {say.name('more')}"
            )
        if rerank and not texts:
            raise UsageError(
                lambda say: f"{say.name('rerank')} needs a text: the cross-modal decoder compares videos with words"
            )
        if rerank and not self.model.reranks:
            raise UsageError(
                lambda say: (
                    f"{say.given('rerank', rerank)}: {self._model_path} has no cross-modal decoder; leave it out"
                )
            )
        condition = None if where is None else parse(where, self.columns())
        if self._nothing():
            return []
        query, own = self._query(texts, against, likes, more)
        leave: set[str | int] = set() if more is None else {more if all_moments else own}
        found = self._enough(query.vector, max(k, 1), rerank, condition, all_moments, leave)
        if rerank:
            found = self._reranked(query, found, rerank)
        groups: dict[str | int, list[Found]] = {}
        for item in found:
            groups.setdefault(item.segment if all_moments else item.path, []).append(item)
        best = list(groups.values())[:k]
        if moments > 1 and best:
            best = self._grouped(query.vector, best, moments, condition)
        return [
            Hit(**item._asdict(), rank=rank, moment=moment)
            for rank, group in enumerate(best, 1)
            for moment, item in enumerate(group[:moments], 1)
        ]

    def _nothing(self) -> bool:
        return False

    def _query(self, texts: list[str], against: list[str], likes: list[Example], more: int | None) -> tuple[Query, str]:
        """The query's vector is the mean of what is wanted, less MINUS times the mean of what is not."""
        wanted: list[np.ndarray] = []
        unwanted: list[np.ndarray] = []
        features, own = None, ""
        if more is not None:
            vector, own = self._vector_of(more)
            wanted.append(_unit(vector))
        for source in likes:
            frames = self.frames_of(source) if isinstance(source, str | Path | bytes) else source
            wanted.append(_unit(self.encoded([frames])[0]))
        if texts or against:
            features = _encoding().encoded_texts(self.model, [*texts, *against])
            vectors = features.embedding.float().cpu().numpy()
            wanted += list(vectors[: len(texts)])
            unwanted += list(vectors[len(texts) :])
        vector = np.mean(wanted, axis=0)
        if unwanted:
            vector = vector - MINUS * np.mean(unwanted, axis=0)
        weights = [1 / len(texts) for _ in texts] + [-MINUS / len(against) for _ in against]
        return Query(vector[None].astype(np.float32), features, weights), own

    def _enough(
        self,
        vector: np.ndarray,
        k: int,
        rerank: int,
        where: Node | None,
        all_moments: bool,
        leave: set[str | int],
    ) -> list[Found]:
        """Nearest segments, enough of them for k videos."""
        count = max(k if all_moments else 4 * k, rerank) + len(leave)
        while True:
            found, over = self._nearest(vector, count, where)
            found = [f for f in found if f.path not in leave and f.segment not in leave]
            if over or (len(found) if all_moments else len({f.path for f in found})) >= k:
                return found
            count *= 4  # long videos fill the list with their own moments

    def _grouped(
        self, vector: np.ndarray, best: list[list[Found]], moments: int, where: Node | None
    ) -> list[list[Found]]:
        """Up to `moments` moments of each video: those re-ranked first, none that mostly shows what a better one does."""
        every: dict[str, list[Found]] = {}
        for item in self._moments(vector, [group[0].path for group in best], where):
            every.setdefault(item.path, []).append(item)
        out = []
        for group in best:
            kept: list[Found] = []
            again = [f for f in group if f.reranked] or group[:1]
            known = {f.segment for f in again}
            for item in [*again, *(f for f in every.get(group[0].path, []) if f.segment not in known)]:
                shared = [min(item.end, o.end) - max(item.start, o.start) for o in kept]
                if len(kept) < moments and all(s <= (item.end - item.start) / 2 for s in shared):
                    kept.append(item)
            out.append(kept)
        return out

    def _reranked(self, query: Query, found: list[Found], top: int) -> list[Found]:
        from vtr.library.rerank import Reranker

        assert query.texts is not None
        again = Reranker(self.model, query.texts, query.weights, self._cache)
        return again(found, top, lambda item: self.segment_frames(item.path, item.start, item.end))


def _encoding() -> ModuleType:
    """The part that needs torch and decoders: `vtr index info` and the like start without them."""
    from vtr.library import encode

    return encode


def _in_range(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            raise UsageError(
                lambda say, n=name, v=value, low=least: (  # type: ignore[misc]
                    f"{say.given(n, v)}: expected a number from {low} to {_MOST}"
                )
            )


def _words(text: str) -> str:
    words = _encoding().clean_caption(text)
    if not words.strip():
        raise UsageError(f"an empty query ({text!r} has no words): ask for something")
    return words


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def hit_dict(hit: Hit) -> dict[str, Value | Metadata]:
    """A hit as plain values for JSON."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(hit).items()}


def hit_lines(hits: Sequence[Hit]) -> list[str]:
    """Hits as lines of text: score, time, id, file; further moments of a video are indented."""
    times = [f"{hit.start:.1f}-{hit.end:.1f}s" if hit.end > hit.start else "image" for hit in hits]
    width = max(map(len, times), default=0)
    return [
        f"{hit.score:7.3f}  {time:>{width}}  #{hit.segment:<6} {'  ' if hit.moment > 1 else ''}{shown(hit.path)}"
        for hit, time in zip(hits, times)
    ]
