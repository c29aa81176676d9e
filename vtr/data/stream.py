"""The elastic stream: global batches that do not depend on how many ranks and workers read them (docs/architecture.md).

A fixed number of canonical streams, each a pure function of (seed, epoch, shard list), make up every global batch. A
rank reads a contiguous run of them, its worker processes share those among themselves, so that the ranks' batches in
rank order are the global batch. Positions travel with the batch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from vtr.data.manifests import Corpus
from vtr.data.order import MediaOrder, StreamSettings, media_at, media_steps
from vtr.data.samples import Sample, SampleReader, Unusable
from vtr.errors import UsageError, VtrError

Positions = dict[str, dict[int, tuple[int, int]]]  # media -> stream -> (epoch, samples of it consumed, good or bad)

_LOOK = 5.0  # seconds between looks whether the workers live
_ENOUGH = 50  # samples after which the share of bad ones is judged


@dataclass(kw_only=True)
class Batch:
    """One rank's part of a global batch, in canonical order."""

    media: str
    frames: Tensor  # uint8 (B, T, 3, S, S), or (B, 0) where media are not read
    captions: list[str]
    ids: Tensor  # int64 (B,)
    keys: list[str]
    meta: list[dict[str, object]]
    step: int
    positions: Positions = field(default_factory=dict)
    seen: int = 0  # samples consumed for this batch, good and bad
    bad: list[str] = field(default_factory=list)  # dropped since the batch before: "key: reason"


@dataclass(frozen=True, kw_only=True)
class _Share:
    """One worker's part of a rank's batch, as it travels to the main process."""

    media: str
    frames: Tensor
    samples: list[Sample]
    positions: Positions
    seen: int
    bad: list[str]

    def pin_memory(self) -> _Share:
        """For torch's loader, which asks for it."""
        return replace(self, frames=self.frames.pin_memory())


class _Reader:
    """The samples of one canonical stream from a position on, forever, not yet decoded.

    Args:
        patience: Epochs in a row without a usable sample after which it gives up.
    """

    def __init__(self, order: MediaOrder, stream: int, position: tuple[int, int], patience: int) -> None:
        self.order, self.stream, self.patience = order, stream, patience
        self.epoch, self.place = position
        self.barren, self.reason = 0, ""  # epochs begun since the last good sample, and why the last one was bad
        self._samples = order.samples(self.epoch, stream, self.place)

    def __next__(self) -> tuple[int, int, int]:
        """(epoch, shard, index) of the next sample."""
        while True:
            found = next(self._samples, None)
            if found is not None:
                self.place, shard, index = found
                return self.epoch, shard, index
            self.barren += 1
            if self.barren > self.patience:
                raise VtrError(
                    f"all samples of {self.order.media} stream {self.stream} can't be used; the last: {self.reason}; "
                    "run: vtr shards verify"
                )
            self.epoch, self.place = self.epoch + 1, 0
            self._samples = self.order.samples(self.epoch, self.stream)


def check_bad(seen: int, bad: int, most: float, examples: list[str]) -> None:
    """Raise VtrError when the share of samples that can't be used is too large to go on."""
    if seen >= _ENOUGH and bad > most * seen:
        raise VtrError(
            f"{bad} of {seen} samples can't be used (limit {most:.0%}); the last: "
            + "; ".join(examples[-3:])
            + "; run: vtr shards verify"
        )


def _die_with_parent() -> None:
    """End this worker when the process that reads from it is gone, even by SIGKILL.

    torch looks at the parent's id, which for a fork server's children is the server's, and that lives as long as they do.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


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
        unread: Mapping[int, str] | None,
    ) -> None:
        self.corpus, self.settings, self.weights = corpus, settings, weights
        self.owned, self.start, self.step, self.unread = owned, start, step, unread
        self.any_good = False  # whether this worker has met a sample that can be used

    def __iter__(self) -> Iterator[_Share | VtrError]:
        info = torch.utils.data.get_worker_info()
        if info is None:
            yield from self._batches(self.owned)
            return
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the reader's to hear: it ends its workers itself
        _die_with_parent()
        try:
            share = np.array_split(np.asarray(self.owned), info.num_workers)[info.id]
            yield from self._batches([int(i) for i in share])
        except VtrError as error:
            yield error  # the main process raises it as what it is

    def _batches(self, owned: list[int]) -> Iterator[_Share]:
        s = self.settings
        self.samples = SampleReader(self.corpus, s, self.weights, self.unread)
        rounds = media_steps(self.step, self.weights, s.seed)  # of each medium, which decide whose turn it is
        turns = max(1, s.streams // s.batch_size)
        per = max(1, s.batch_size // s.streams)
        # `per` samples are asked for before it is known whether the first is good: tiny epochs may pass meanwhile.
        readers = {
            (media, i): _Reader(order, i, self.start.get(media, {}).get(i, (0, 0)), 1 + per)
            for media, order in self.samples.orders.items()
            for i in owned
        }
        step = self.step
        pool = ThreadPoolExecutor(max(1, s.decode_threads))
        try:
            while True:
                media = media_at(step, self.weights, s.seed)
                mine = [i for i in owned if i % turns == rounds[media] % turns]
                yield self._part(media, mine, per, readers, pool if s.decode_threads > 1 else None)
                rounds[media] += 1
                step += 1
        finally:
            pool.shutdown(cancel_futures=True)

    def _part(
        self,
        media: str,
        streams: list[int],
        per: int,
        readers: dict[tuple[str, int], _Reader],
        pool: ThreadPoolExecutor | None,
    ) -> _Share:
        """`per` good samples of each of the streams."""
        s = self.settings
        shape = (0,) if self.unread is not None else (s.frames if media == "video" else 1, 3, s.size, s.size)
        frames = torch.empty(len(streams) * per, *shape, dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            frames.share_memory_()  # filled where the main process reads it: no copy on the way
        found: dict[tuple[int, int], tuple[Sample, Tensor]] = {}
        dropped: list[str] = []
        seen = 0
        need = dict.fromkeys(streams, per)
        filled = dict.fromkeys(streams, 0)
        while need:
            # All streams' next samples at once, for the threads; then again for those that met bad ones.
            wanted = [(i, next(readers[media, i])) for i, n in need.items() for _ in range(n)]
            seen += len(wanted)
            jobs = [ref for _, ref in wanted]
            load = partial(self.samples.read, media)
            results = map(load, jobs) if pool is None else pool.map(load, jobs)
            need = {}
            for (i, _), one in zip(wanted, results):
                if isinstance(one, Unusable):
                    dropped.append(str(one))
                    readers[media, i].reason = str(one)
                    need[i] = need.get(i, 0) + 1
                    self._judge(dropped)
                    continue
                self.any_good = True
                readers[media, i].barren = 0
                found[i, filled[i]] = one
                filled[i] += 1
        ordered = [found[k] for k in sorted(found)]
        for row, (_, clip) in enumerate(ordered):
            frames[row] = clip
        return _Share(
            media=media,
            frames=frames,
            samples=[sample for sample, _ in ordered],
            # The other medium's readers have not moved since their last turn.
            positions=_positions(readers),
            seen=seen,
            bad=dropped,
        )

    def _judge(self, bad: list[str]) -> None:
        """Ends a worker whose samples are all bad: before it looks through the rest of them for a whole batch."""
        if not self.any_good:
            check_bad(len(bad), len(bad), self.settings.max_bad_fraction, bad)


def _positions(readers: dict[tuple[str, int], _Reader]) -> Positions:
    places: Positions = {}
    for (media, i), reader in readers.items():
        places.setdefault(media, {})[i] = (reader.epoch, reader.place)
    return places


class Stream:
    """Iterates over a rank's batches forever.

    Args:
        corpus: From `vtr.data.manifests.load_corpus`.
        settings: See `StreamSettings`.
        rank, world: This process among how many.
        start: `Batch.positions` of all ranks, merged, to continue after.
        first_step: The global step of the first batch.
        judge: Raise when too many samples are bad. Off where the ranks judge together.
        unread: Media are not read, frames are (B, 0): see `SampleReader`. None: they are.
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
        judge: bool = True,
        unread: Mapping[int, str] | None = None,
    ) -> None:
        self.settings, self.judge = settings, judge
        self.weights = media_weights(corpus, settings)
        owned = owned_streams(settings, rank, world)
        self.workers = min(settings.workers, len(owned))
        mine = {m: {i: places[i] for i in owned if i in places} for m, places in (start or {}).items()}
        part = _Part(corpus, settings, self.weights, owned, mine, first_step, unread)
        if self.workers:  # torch is loaded once, by the server the workers are forked from, not by each of them
            multiprocessing.set_forkserver_preload(["__main__", "torch"])
        self._loader = torch.utils.data.DataLoader(
            part,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            timeout=_LOOK if self.workers else 0,
            pin_memory=settings.pin_memory,
            multiprocessing_context="forkserver" if self.workers and sys.platform != "win32" else None,
        )
        self._step = first_step
        self._iterator: Iterator[_Share | VtrError] | None = None
        self.seen = 0
        self.bad: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        self._iterator = iter(self._loader)
        while True:
            # With batch_size=None the loader returns the workers' items in turn: one of each makes a batch.
            parts = []
            for _ in range(max(1, self.workers)):
                part = self._next()
                if isinstance(part, VtrError):
                    raise part
                parts.append(part)
            batch = self._join(parts)
            self.seen += batch.seen
            self.bad += batch.bad
            for line in batch.bad:
                print(f"stream: dropped {line}", file=sys.stderr)
            if self.judge:
                check_bad(self.seen, len(self.bad), self.settings.max_bad_fraction, self.bad)
            yield batch
            self._step += 1

    def _next(self) -> _Share | VtrError:
        assert self._iterator is not None
        start = time.monotonic()
        while True:
            try:
                return next(self._iterator)
            except RuntimeError as error:
                # The loader looks whether its workers live only when its time is up: that is short, and asked for again.
                if "timed out" not in str(error) or time.monotonic() - start > self.settings.stall:
                    self._worker_gone(error)
            except (OSError, EOFError) as error:
                self._worker_gone(error)

    def _worker_gone(self, error: Exception) -> NoReturn:
        """Raise what the failure of `next` means."""
        # Killed by the system (memory), by a crash of a decoder, or nothing came for `stall` seconds. What it had put
        # into shared memory goes with it: then the connection to it breaks instead.
        if self.workers == 0 or (isinstance(error, RuntimeError) and "DataLoader" not in str(error)):
            raise error
        raise VtrError(
            f"a data worker has gone or stalled at step {self._step}: {str(error).splitlines()[0]}; "
            "if the system killed it for memory, lower --workers"
        ) from error

    def _join(self, parts: list[_Share]) -> Batch:
        samples = [x for p in parts for x in p.samples]
        filled = [p.frames for p in parts if len(p.frames)]
        return Batch(
            media=parts[0].media,
            frames=filled[0] if len(filled) == 1 else torch.cat(filled),
            captions=[x.caption for x in samples],
            ids=torch.tensor([x.id for x in samples]),
            keys=[x.key for x in samples],
            meta=[x.meta for x in samples],
            step=self._step,
            positions=merge_positions([p.positions for p in parts]),
            seen=sum(p.seen for p in parts),
            bad=[line for p in parts for line in p.bad],
        )

    def close(self) -> None:
        """End the worker processes."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._iterator = None


def owned_streams(settings: StreamSettings, rank: int, world: int) -> list[int]:
    """The canonical streams a rank reads: a contiguous run.

    Raises:
        UsageError: Streams, batch size and ranks do not divide.
    """
    streams, batch = settings.streams, settings.batch_size
    if batch % streams and streams % batch:
        raise UsageError(
            f"batch_size {batch} and streams {streams}: one must be a multiple of the other (--set streams=…)"
        )
    for name, value in (("streams", streams), ("batch_size", batch)):
        if value % world:
            raise UsageError(
                f"{value} {name} cannot be shared by {world} ranks: make `{name}` a multiple of {world} "
                f"(--set {name}=…)"
            )
    own = streams // world
    return list(range(rank * own, (rank + 1) * own))


def media_weights(corpus: Corpus, settings: StreamSettings) -> dict[str, float]:
    """Shares of the media types: those asked for, else in proportion to the samples found.

    Raises:
        VtrError: A type is asked for that the corpus does not have.
    """
    sizes: dict[str, float] = {}
    for member in corpus.members:
        sizes[member.media] = sizes.get(member.media, 0) + member.samples
    weights = {m: w for m, w in (settings.media_weights or sizes).items() if w > 0}
    for media in weights:
        if media not in sizes and "auto" not in sizes:
            raise VtrError(f"corpus {corpus.name} has no {media} member, which the recipe asks for")
    return {"video": weights["auto"]} if "auto" in weights else weights


def merge_positions(parts: list[Positions]) -> Positions:
    """The positions of all ranks as one table, which any number of ranks can continue from."""
    merged: Positions = {}
    for part in parts:
        for media, places in part.items():
            merged.setdefault(media, {}).update(places)
    return merged
