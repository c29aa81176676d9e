"""The order of samples: canonical streams and the schedule of media, pure functions of (seed, epoch, shard list)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vtr.data.manifests import CorpusMember
from vtr.errors import VtrError


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How samples become batches."""

    frames: int = 8
    size: int = 224
    batch_size: int = 32  # over all ranks
    streams: int = 8
    workers: int = 1  # processes of a rank
    decode_threads: int = 1  # of a worker
    block: int = 1  # neighbours in the shards that stay together in a batch
    shuffle_window: int = 512  # samples of a stream that are shuffled among each other
    seed: int = 0
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = False
    official_frames: bool = False  # draw frames as the released code does
    middle_frames: bool = False  # not drawn: the middle ones, as evaluation takes them
    captions: bool = True  # a sample without a caption is bad
    media_weights: dict[str, float] | None = None  # default: in proportion to the corpus
    max_bad_fraction: float = 0.05
    timeout: float = 30.0  # seconds of one sample's decoding
    stall: float = 300.0  # seconds without anything from a worker
    cache: str | None = None  # folder of local copies of remote shards
    pin_memory: bool = False


def drawn(*words: object) -> np.random.Generator:
    """The random numbers that belong to these words, in any process."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


_PERIOD = 20  # steps over which the media shares are exact


def _media_counts(cycle: int, weights: dict[str, float]) -> dict[str, int]:
    """Steps of each medium in a period: largest-remainder shares that drift, so that small shares come up too."""
    names = sorted(n for n, w in weights.items() if w > 0)
    total = sum(weights.values())
    counts = {
        n: round((cycle + 1) * _PERIOD * weights[n] / total) - round(cycle * _PERIOD * weights[n] / total)
        for n in names[:-1]
    }
    return {**counts, names[-1]: _PERIOD - sum(counts.values())}


def _media_order(cycle: int, weights: dict[str, float], seed: int) -> list[str]:
    order = [n for n, c in _media_counts(cycle, weights).items() for _ in range(c)]
    return [order[int(i)] for i in drawn(seed, "media", cycle).permutation(_PERIOD)]


def media_at(step: int, weights: dict[str, float], seed: int) -> str:
    """The media type of a global step: exact shares in every run of 20 steps, in a seeded order."""
    cycle, place = divmod(step, _PERIOD)
    return _media_order(cycle, weights, seed)[place]


def media_steps(step: int, weights: dict[str, float], seed: int) -> dict[str, int]:
    """How many steps before `step` had each media type."""
    cycles, place = divmod(step, _PERIOD)
    counts = {n: 0 for n, w in sorted(weights.items()) if w > 0}
    for cycle in range(cycles):
        for name, count in _media_counts(cycle, weights).items():
            counts[name] += count
    for name in _media_order(cycles, weights, seed)[:place]:
        counts[name] += 1
    return counts


class MediaOrder:
    """The order of all canonical streams of one media type: index arithmetic, no reading.

    The samples of an epoch are cut into blocks of neighbours; the shards, in an order of the epoch's own, lay their
    blocks end to end on a line, and each stream owns an equal run of it. What is left at the end of the line, fewer
    blocks than there are streams, is left out of this epoch.

    Attributes:
        blocks: Blocks of one stream in an epoch.
        total: Samples of all shards.
    """

    def __init__(self, members: list[CorpusMember], settings: StreamSettings, media: str) -> None:
        self.settings, self.media = settings, media
        self.shards = [(m.name, s) for m in members for s, n in zip(m.shards, m.sizes) if n]
        self.sizes = np.asarray([n for m in members for n in m.sizes if n], dtype=np.int64)
        self._counts = -(-self.sizes // settings.block)
        self.total = int(self.sizes.sum())
        self.blocks = int(self._counts.sum()) // settings.streams
        if self.blocks == 0:
            most = int(self._counts.sum())
            raise VtrError(
                f"{self.total} {media} samples do not fill {settings.streams} streams of blocks of {settings.block}: "
                f"lower `streams` to {1 << most.bit_length() - 1 if most else 1} or less, and `batch_size` to a multiple or a part "
                "of it (--set streams=… batch_size=…)"
            )
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards' order, and where each one's blocks begin on the line (with the end as last entry)."""
        if epoch not in self._epochs:
            order = drawn(self.settings.seed, "shards", self.media, epoch).permutation(len(self.shards))
            self._epochs[epoch] = (order, np.concatenate([[0], np.cumsum(self._counts[order])]))
            if len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def span(self, epoch: int, stream: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blocks `first … last - 1` of a stream: shard, first sample, last + 1 sample of each."""
        order, borders = self._epoch(epoch)
        line = np.arange(stream * self.blocks + first, stream * self.blocks + min(last, self.blocks))
        place = np.searchsorted(borders, line, side="right") - 1
        shard = order[place]
        start = (line - borders[place]) * self.settings.block
        return shard, start, np.minimum(start + self.settings.block, self.sizes[shard])

    def samples(self, epoch: int, stream: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """(consumed after it, shard, index in the shard) of a stream's epoch, after the first `start`."""
        s = self.settings
        per = max(1, s.shuffle_window // s.block)
        place, window = 0, 0
        if start and s.block == 1:
            window = start // per
            place = window * per
        while window * per < self.blocks:
            shard, low, high = self.span(epoch, stream, window * per, (window + 1) * per)
            size = int((high - low).sum())
            if place + size > start:
                shuffle = drawn(s.seed, "window", self.media, stream, epoch, window).permutation(len(shard))
                for b in shuffle:
                    for index in range(int(low[b]), int(high[b])):
                        place += 1
                        if place > start:
                            yield place, int(shard[b]), index
            else:
                place += size
            window += 1
