"""Queries of a library, wherever its vectors are: texts, videos and images into one vector, re-ranking, grouping.

w width of the embedding, T frames, S pixels.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library.files import media_source, shown
from vtr.library.tokens import TokenCache
from vtr.library.where import Node, parse

BATCH = 16  # windows that are encoded together
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
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


class Found(NamedTuple):
    """A segment on its way to become a hit."""

    score: float
    similarity: float
    reranked: bool
    segment: int
    path: str
    start: float
    end: float
    duration: float
    metadata: dict[str, Any]


class Query(NamedTuple):
    """What is looked for: a vector (1, w), and the texts with their weights for the cross-modal decoder."""

    vector: np.ndarray
    texts: Any  # TextFeatures, or None
    weights: list[float]


class Searcher(ABC):
    """What can be searched: settings, a model, and somewhere the vectors.

    Attributes:
        path: Folder or address.
        settings: The content of library.json.
    """

    path: Any
    settings: dict[str, Any]
    _model: Any
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
    def model(self) -> Any:
        """The model, loaded on first use."""
        if self._model is None:
            if not self._model_path:
                raise VtrError(f"{self.path} does not say where its model is: name it with --model")
            import vtr.models.load

            self._accept(vtr.models.load.load(self._model_path))
        return self._model

    def _accept(self, model: Any) -> None:
        own, given = self.settings["fingerprint"], model.fingerprint()
        if own != given:
            raise VtrError(
                f"{self.path} was made with another model ({own[:12]}, this one is {given[:12]}): use that one, "
                "or build another library"
            )
        self._model = model

    def encoded(self, batch: Sequence[Any]) -> np.ndarray:
        """Vectors (n, w) of frames: n uint8 tensors (T, 3, S, S)."""
        import torch

        model = self.model.eval()  # loaded outside: parameters made in inference mode could never be trained
        with torch.inference_mode():
            out = model.encode_video(torch.stack(list(batch))).embedding.float().cpu().numpy()
        if not np.isfinite(out).all():
            raise VtrError(f"the model {self._model_path} gives embeddings that are not finite: is it a trained one?")
        return out

    def frames_of(
        self,
        source: str | Path | bytes,
        start: float | None = None,
        end: float | None = None,
        *,
        isolated: bool = False,
    ) -> Any:
        """The frames that stand for a video or an image, or for a part of it: uint8 tensor (T, 3, S, S).

        Args:
            source: A path, a sample of a shard (`SHARD.tar/KEY.mp4`), or a file's bytes.
            start, end: Seconds.
            isolated: Decode in a bounded process: for files from strangers.
        """
        from vtr.data.decode import read_frames
        from vtr.data.sampling import middle_frames
        from vtr.data.transforms import eval_frames

        clip = read_frames(
            source if isinstance(source, bytes) else media_source(str(source)),
            lambda n: middle_frames(n, self.settings["frames"]),
            start=start,
            end=end,
            isolated=isolated,
        )
        return eval_frames(clip.frames, self.model.config.video.image_size, antialias=self.model.config.antialias)

    def segment_frames(self, path: str, start: float, end: float) -> Any:
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
        like: Any = (),
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
        likes = list(like) if isinstance(like, list | tuple) else [like]
        if texts == [""] and (likes or more is not None):
            texts = []
        for name, value, least in (("-k", k, 1), ("--rerank", rerank, 0), ("--moments", moments, 1)):
            if not least <= value <= _MOST:
                raise UsageError(f"{name} {value}: expected a number from {least} to {_MOST}")
        if all_moments and moments > 1:
            raise UsageError("--all-moments and --moments exclude each other: ranks of their own, or by video")
        texts, against = [_words(t) for t in texts], [_words(t) for t in against]
        if not texts and not likes and more is None:
            raise UsageError("an empty query: ask for something in words, with --like FILE or --more SEGMENT")
        if rerank and not texts:
            raise UsageError("--rerank needs a text: the cross-modal decoder compares videos with words")
        if rerank and not self.model.reranks:
            raise UsageError(f"--rerank {rerank}: {self._model_path} has no cross-modal decoder; leave --rerank out")
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

    def _query(self, texts: list[str], against: list[str], likes: list[Any], more: int | None) -> tuple[Query, str]:
        """The query's vector is the mean of what is wanted, less MINUS times the mean of what is not."""
        import torch

        wanted: list[np.ndarray] = []
        unwanted: list[np.ndarray] = []
        features, own = None, ""
        if more is not None:
            vector, own = self._vector_of(more)
            wanted.append(_unit(vector))
        for source in likes:
            frames = source if isinstance(source, torch.Tensor) else self.frames_of(source)
            wanted.append(_unit(self.encoded([frames])[0]))
        if texts or against:
            model = self.model.eval()
            with torch.inference_mode():
                features = model.encode_text([*texts, *against])
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
        """The top ones by the combined score first; those that cannot be looked at again keep their place after them."""
        import torch

        from vtr.models.base import combined_scores

        model = self.model
        head: list[Found] = []
        rest: list[Found] = []
        odds: list[Any] = []

        def match(items: list[Found], tokens: Any) -> None:
            n, total = len(items), torch.zeros(len(items))
            with torch.inference_mode():
                for place, weight in enumerate(query.weights):
                    words, mask = query.texts.tokens[place : place + 1], query.texts.mask[place : place + 1]
                    logits = model.match(words.expand(n, -1, -1), mask.expand(n, -1), tokens).float().cpu()
                    total += weight * (logits[:, 1] - logits[:, 0])
            head.extend(items)
            odds.append(total)

        def encode(batch: list[tuple[Found, Any]]) -> None:
            with torch.inference_mode():
                tokens = model.encode_video(torch.stack([frames for _, frames in batch])).tokens
            if self._cache is not None:
                for (item, _), own in zip(batch, tokens):
                    self._cache.put(item.segment, own.half().cpu().numpy())
            match([item for item, _ in batch], tokens)

        known: list[tuple[Found, np.ndarray]] = []
        batch: list[tuple[Found, Any]] = []
        for item in found[:top]:
            kept = self._cache.get(item.segment) if self._cache is not None else None
            if kept is not None:
                known.append((item, kept))
                continue
            try:
                batch.append((item, self.segment_frames(item.path, item.start, item.end)))
            except (VtrError, OSError, ValueError):
                rest.append(item)  # the file is gone or has changed since it was indexed
                continue
            if len(batch) == BATCH:
                encode(batch)
                batch = []
        if batch:
            encode(batch)
        # Images have fewer tokens than videos: only equal shapes make a batch.
        for _, same in itertools.groupby(sorted(known, key=lambda i: i[1].shape), key=lambda i: i[1].shape):
            group = list(same)
            for start in range(0, len(group), BATCH):
                part = group[start : start + BATCH]
                stacked = torch.from_numpy(np.stack([t for _, t in part])).to(model.device, torch.float32)
                match([item for item, _ in part], stacked)
        if self._cache is not None:
            self._cache.trim()
        if not head:
            return found
        both_odds = torch.cat(odds)
        logits = torch.stack([torch.zeros_like(both_odds), both_odds], dim=1)
        both = combined_scores(torch.tensor([i.similarity for i in head]), logits, float(model.temp.detach()))
        first = [head[i]._replace(score=float(both[i]), reranked=True) for i in both.argsort(descending=True).tolist()]
        return first + rest + found[top:]


def _words(text: str) -> str:
    from vtr.data.text import clean_caption

    words = clean_caption(text)
    if not words.strip():
        raise UsageError(f"an empty query ({text!r} has no words): ask for something")
    return words


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def hit_dict(hit: Hit) -> dict[str, Any]:
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
