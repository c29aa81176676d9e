"""The elastic stream: global batches that do not depend on how many ranks and workers read them (DESIGN.md 5).

A fixed number of canonical streams, each a pure function of (seed, epoch, shard list), make up every global batch. A
rank reads the streams it owns, its worker processes share those among them. Positions travel with the batch.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtr.data.decode import DecodeError, read_frames
from vtr.data.manifests import Corpus, CorpusMember
from vtr.data.sampling import random_frames
from vtr.data.shards import iterate_samples
from vtr.data.text import clean_caption
from vtr.data.transforms import eval_frames, train_frames
from vtr.errors import UsageError, VtrError

Positions = dict[str, dict[int, int]]  # media -> stream -> samples consumed, good or bad


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How samples become batches."""

    frames: int = 8
    size: int = 224
    batch_size: int = 32  # over all ranks
    streams: int = 8
    workers: int = 1
    block: int = 1  # neighbours in the shards that stay together in a batch
    shuffle_window: int = 512  # samples of a stream that are shuffled among each other
    seed: int = 0
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = False
    media_weights: dict[str, float] | None = None  # default: in proportion to the corpus
    max_bad_fraction: float = 0.05
    timeout: float = 30.0


@dataclass(kw_only=True)
class Batch:
    """One rank's part of a global batch."""

    media: str
    frames: Tensor  # uint8 (B, T, 3, S, S)
    captions: list[str]
    ids: Tensor  # int64 (B,)
    keys: list[str]
    meta: list[dict]
    step: int
    positions: Positions = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)  # dropped since the batch before: "key: reason"


def sample_id(member: str, key: str) -> int:
    """63 bits of (corpus member, key)."""
    return int.from_bytes(hashlib.blake2b(f"{member}\0{key}".encode(), digest_size=8).digest(), "big") >> 1


def _rng(*words: object) -> np.random.Generator:
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def media_at(step: int, weights: dict[str, float], seed: int) -> str:
    """The media type of a global step: exact shares in every run of 20 steps, in a seeded order."""
    names = sorted(n for n, w in weights.items() if w > 0)
    if len(names) == 1:
        return names[0]
    total = sum(weights.values())
    period = 20
    # Largest-remainder shares of each period, drifting with its number so that small shares come up too.
    cycle, place = divmod(step, period)
    counts = [
        round((cycle + 1) * period * weights[n] / total) - round(cycle * period * weights[n] / total)
        for n in names[:-1]
    ]
    order = [n for n, c in zip(names, counts) for _ in range(c)]
    order += [names[-1]] * (period - len(order))
    return order[int(_rng(seed, "media", cycle).permutation(period)[place])]


class _Order:
    """The order of one canonical stream: index arithmetic, no reading."""

    def __init__(self, members: list[CorpusMember], settings: StreamSettings, media: str, stream: int) -> None:
        self.shards = [(m.name, s, n) for m in members for s, n in zip(m.shards, m.sizes)]
        self.settings, self.media, self.stream = settings, media, stream
        block = settings.block
        self.blocks = sum(-(-n // block) for _, _, n in self.shards) // settings.streams
        if self.blocks == 0:
            raise VtrError(
                f"{sum(n for *_, n in self.shards)} {media} samples do not fill {settings.streams} streams of blocks of "
                f"{block}: lower `streams`"
            )

    def windows(self, epoch: int) -> Iterator[tuple[int, list[tuple[str, str, int, int]]]]:
        """(number, blocks (member, shard, start, stop) in shard order) of each shuffle window of an epoch."""
        s = self.settings
        order = _rng(s.seed, "shards", self.media, epoch).permutation(len(self.shards))
        line = 0
        first, last = self.stream * self.blocks, (self.stream + 1) * self.blocks
        mine: list[tuple[str, str, int, int]] = []
        for i in order:
            member, shard, n = self.shards[i]
            count = -(-n // s.block)
            for k in range(max(0, first - line), min(count, last - line)):
                mine.append((member, shard, k * s.block, min(n, (k + 1) * s.block)))
            line += count
        per = max(1, s.shuffle_window // s.block)
        for number, start in enumerate(range(0, len(mine), per)):
            yield number, mine[start : start + per]


class _Reader:
    """Decoded samples of one canonical stream from a position on, forever."""

    def __init__(self, order: _Order, position: int) -> None:
        self.order, self.position = order, position

    def __iter__(self) -> Iterator[tuple[int, str, dict | str]]:
        """(position after it, key, sample or the reason why it is bad)."""
        s, order = self.order.settings, self.order
        place, epoch = 0, 0
        while True:
            for number, blocks in order.windows(epoch):
                size = sum(b[3] - b[2] for b in blocks)
                if place + size <= self.position:
                    place += size
                    continue
                raw = self._read(blocks)
                shuffled = _rng(s.seed, "window", order.media, order.stream, epoch, number).permutation(len(blocks))
                for b in shuffled:
                    member, shard, start, stop = blocks[b]
                    for index in range(start, stop):
                        place += 1
                        if place <= self.position:
                            continue
                        sample = raw.get((shard, index))
                        key = f"{member}/{shard.rsplit('/', 1)[-1]}#{sample.key if sample else index}"
                        yield place, key, self._decode(sample, member, epoch)
            epoch += 1

    @staticmethod
    def _read(blocks: list[tuple[str, str, int, int]]) -> dict[tuple[str, int], Any]:
        raw: dict[tuple[str, int], Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _, shard, start, stop in blocks:
            low, high = spans.get(shard, (start, stop))
            spans[shard] = (min(low, start), max(high, stop))
        for shard, (low, high) in spans.items():
            try:
                for offset, sample in enumerate(iterate_samples(shard, low, high)):
                    raw[(shard, low + offset)] = sample
            except VtrError as error:
                print(f"stream: {error}", file=sys.stderr)  # what was not read counts as bad, sample by sample
        return raw

    def _decode(self, sample: Any, member: str, epoch: int) -> dict | str:
        s = self.order.settings
        if sample is None:
            return "the shard is damaged before this sample"
        if not sample.caption:
            return "no caption"
        if not sample.media:
            return "no image or video"
        key = sample_id(member, sample.key)
        rng = _rng(s.seed, "sample", epoch, key)
        count = s.frames if self.order.media == "video" else 1
        try:
            clip = read_frames(sample.media, lambda n: random_frames(n, count, rng), timeout=s.timeout)
        except DecodeError as error:
            return str(error)
        if s.crop_scale is None and not s.flip:
            frames = eval_frames(clip.frames, s.size)
        else:
            frames = train_frames(clip.frames, s.size, rng, scale=s.crop_scale or (1.0, 1.0), flip=s.flip)
        return {"frames": frames, "caption": clean_caption(sample.caption), "id": key, "meta": sample.meta}


class _Part(torch.utils.data.IterableDataset):
    """What one worker reads: for every step, its streams' share of the batch."""

    def __init__(
        self,
        corpus: Corpus,
        settings: StreamSettings,
        weights: dict[str, float],
        owned: list[int],
        start: Positions,
        step: int,
    ) -> None:
        self.corpus, self.settings, self.weights = corpus, settings, weights
        self.owned, self.start, self.step = owned, start, step

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        if info is None:
            yield from self._batches(self.owned)
            return
        torch.set_num_threads(1)
        try:
            yield from self._batches(self.owned[info.id :: info.num_workers])
        except VtrError as error:
            yield error  # the main process raises it as what it is

    def _batches(self, owned: list[int]) -> Iterator[Any]:
        s = self.settings
        per = s.batch_size // s.streams
        readers: dict[str, dict[int, Iterator]] = {}
        place: Positions = {m: dict(v) for m, v in self.start.items()}
        for media in self.weights:
            members = [m for m in self.corpus.members if m.media in (media, "auto")]
            place.setdefault(media, {})
            readers[media] = {
                i: iter(_Reader(_Order(members, s, media, i), place[media].setdefault(i, 0))) for i in owned
            }
        seen, bad = 0, 0
        step = self.step
        while True:
            media = media_at(step, self.weights, s.seed)
            samples, dropped = [], []
            for i in owned:
                good = 0
                while good < per:
                    place[media][i], key, sample = next(readers[media][i])
                    seen += 1
                    if isinstance(sample, str):
                        bad += 1
                        dropped.append(f"{key}: {sample}")
                        if seen >= 50 and bad > s.max_bad_fraction * seen:
                            raise VtrError(
                                f"{bad} of {seen} samples can't be used (limit {s.max_bad_fraction:.0%}); the last: "
                                + "; ".join(dropped[-3:])
                                + "; run: vtr shards verify"
                            )
                        continue
                    good += 1
                    samples.append((i, key, sample))
            yield {
                "media": media,
                "order": [i for i, *_ in samples],
                "frames": torch.stack([x["frames"] for *_, x in samples]),
                "captions": [x["caption"] for *_, x in samples],
                "ids": [x["id"] for *_, x in samples],
                "keys": [k for _, k, _ in samples],
                "meta": [x["meta"] for *_, x in samples],
                "positions": {m: dict(p) for m, p in place.items()},
                "bad": dropped,
            }
            step += 1


class Stream:
    """Iterates over a rank's batches forever.

    Args:
        corpus: From `vtr.data.manifests.load_corpus`.
        settings: See `StreamSettings`.
        rank, world: This process among how many.
        start: `Batch.positions` to continue after.
        first_step: The global step of the first batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: StreamSettings,
        *,
        rank: int = 0,
        world: int = 1,
        start: Positions | None = None,
        first_step: int = 0,
    ) -> None:
        if settings.batch_size % settings.streams:
            raise UsageError(f"batch_size {settings.batch_size} is not a multiple of {settings.streams} streams")
        if settings.streams % world:
            raise UsageError(
                f"{settings.streams} streams cannot be shared by {world} ranks: make `streams` a multiple of {world}"
            )
        sizes: dict[str, float] = {}
        for member in corpus.members:
            sizes[member.media] = sizes.get(member.media, 0) + member.samples
        weights = {m: w for m, w in (settings.media_weights or sizes).items() if w > 0}
        for media in weights:
            if media not in sizes and "auto" not in sizes:
                raise VtrError(f"corpus {corpus.name} has no {media} member, which the recipe asks for")
        if "auto" in weights:
            weights = {"video": weights["auto"]}
        self.settings = settings
        owned = [i for i in range(settings.streams) if i % world == rank]
        self.workers = min(settings.workers, len(owned))
        part = _Part(corpus, settings, weights, owned, start or {}, first_step)
        self._loader = torch.utils.data.DataLoader(
            part,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            multiprocessing_context="forkserver" if self.workers and sys.platform != "win32" else None,
        )
        self._step = first_step
        self._iterator: Iterator[Any] | None = None
        self.bad: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        self._iterator = iter(self._loader)
        while True:
            # With batch_size=None the loader returns the workers' items in turn: one of each makes a batch.
            parts = [next(self._iterator) for _ in range(max(1, self.workers))]
            for part in parts:
                if isinstance(part, VtrError):
                    raise part
            yield self._join(parts)
            self._step += 1

    def _join(self, parts: list[dict]) -> Batch:
        order = [i for p in parts for i in p["order"]]
        rank = sorted(range(len(order)), key=lambda j: (order[j], j))

        def flat(name: str) -> list:
            values = [v for p in parts for v in p[name]]
            return [values[j] for j in rank]

        positions: Positions = {}
        for p in parts:
            for media, places in p["positions"].items():
                positions.setdefault(media, {}).update(places)
        bad = [b for p in parts for b in p["bad"]]
        for line in bad:
            print(f"stream: dropped {line}", file=sys.stderr)
        self.bad += bad
        frames = parts[0]["frames"] if len(parts) == 1 else torch.cat([p["frames"] for p in parts])
        if rank != list(range(len(rank))):
            frames = frames[rank]
        return Batch(
            media=parts[0]["media"],
            frames=frames,
            captions=flat("captions"),
            ids=torch.tensor(flat("ids")),
            keys=flat("keys"),
            meta=flat("meta"),
            step=self._step,
            positions=positions,
            bad=bad,
        )

    def close(self) -> None:
        """End the worker processes."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._iterator = None
