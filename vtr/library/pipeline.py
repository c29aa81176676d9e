"""Files to windows to vectors: one stream of jobs in, their embeddings out in the same order.

Processes decode, windows of different files make up a batch, threads encode. All that waits is bounded.

T frames, S pixels, w width of the embedding.
"""

from __future__ import annotations

import base64
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from vtr.data.decode.types import Source
from vtr.data.subtitles import Cue, Track
from vtr.library.decoders import Decoder, Decoders, Message, Opener, default_workers, forkable, told
from vtr.library.devices import Encoders
from vtr.library.encode import cut_of
from vtr.library.frame_vectors import packed
from vtr.library.near import FRAMES
from vtr.library.rows import Embedded, Failure, Span
from vtr.library.settings import ALL, LibrarySettings, Work
from vtr.threads import give_back

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

K = TypeVar("K")

_AHEAD = 1024  # files that may be done before the first of them is
_HELD = 64 << 20  # bytes of vectors that may wait for files before theirs
_STALE = 1.0  # seconds after which a batch is encoded though it is not full
_POLL = 0.05  # seconds until a job that was not known is asked for again
_TRIM = 32  # windows after which freed memory is given back


@dataclass(frozen=True, kw_only=True)
class Job(Generic[K]):
    """Something to embed.

    Attributes:
        key: Given back with the result.
        source: A path, a file's bytes, or what gives one of them where it is decoded (a callable that can be pickled:
            it is called in the decoding process; OSError and VtrError of it are the file's failure). None: there is
            nothing to decode, and the result is None, in its place in the order.
        name: How errors name it; default: the path.
        weight: Its share of `Pipeline.done`, for progress.
    """

    key: K
    source: Source | Opener | None
    name: str = ""
    weight: int = 1


class _Item:
    """A job under way."""

    def __init__(self, job: Job[K]) -> None:
        self.weight, self.name = job.weight, job.name
        if not self.name and isinstance(job.source, str | os.PathLike):
            self.name = str(job.source)
        self.spans: list[Span] = []
        self.looks: list[np.ndarray] = []
        self.vectors: dict[int, np.ndarray] = {}
        self.attempt = 0
        self.end: Message | None = None  # duration, what is lacking, hash, what is said: once all is decoded
        self.result: Embedded | Failure | None = None
        self.ready = job.source is None
        self.share = 0.0  # of it that is decoded
        self.held = 0  # bytes of its vectors

    @property
    def seconds(self) -> float:
        """Of video that came of it so far."""
        if isinstance(self.result, Embedded):
            return self.result.duration
        return self.spans[-1].end if self.spans else 0.0

    def again(self) -> None:
        """Forget what came of it."""
        self.spans, self.looks, self.vectors, self.attempt = [], [], {}, self.attempt + 1

    def fail(self, failure: Failure) -> None:
        """It gives nothing."""
        self.again()
        self.result, self.ready = failure, True

    def settle(self) -> None:
        """It is ready once it is decoded to its end and all of it is encoded."""
        if self.end is None or self.ready or len(self.vectors) < len(self.spans):
            return
        if not self.spans:
            return self.fail(Failure(reason=f"{self.name or 'upload'}: no frames"))
        vectors, frames = np.stack([self.vectors[place] for place in range(len(self.spans))]), None
        if vectors.ndim == 3:
            vectors, frames = np.ascontiguousarray(vectors[:, 0]), packed(vectors[:, 1:])
        self.result = Embedded(
            spans=self.spans,
            vectors=vectors,
            duration=self.end["duration"],
            lacking=self.end["lacking"],
            sha256=self.end.get("sha256"),
            frames=frames,
            looks=np.stack(self.looks),
            tracks=[
                Track(name=name, cues=[Cue(*cue) for cue in cues], problem=problem)
                for name, cues, problem in self.end["tracks"]
            ],
        )
        self.vectors, self.ready = {}, True


class _Place(NamedTuple):
    """Whose a window is: of which file, in which attempt, and which of its windows."""

    item: _Item
    attempt: int
    number: int


class _Feed(Generic[K]):
    """Jobs as they become known."""

    def __init__(self, jobs: Iterable[Job[K] | None]) -> None:
        self._jobs = iter(jobs)
        self._ahead: Job[K] | None = None
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether there are surely no more."""
        return self._ended and self._ahead is None

    def look(self) -> None:
        """Look for the next one, so that `over` is known as early as it can be."""
        if self._ahead is None and not self._ended:
            try:
                self._ahead = next(self._jobs)
            except StopIteration:
                self._ended = True

    def take(self) -> Job[K] | None:
        """The next one; None where it is not known yet, or there is none."""
        self.look()
        job, self._ahead = self._ahead, None
        return job


class Pipeline:
    """Embeds files with one model, with everything the machine has. Close it, or use it as a context.

    Args:
        model: The model.
        settings: Windows and frames; what a library or a folder of embeddings writes down.
        work: Decoding processes, devices, precision.
    """

    def __init__(self, model: VideoTextEncoder, settings: LibrarySettings, work: Work = ALL) -> None:
        self._cut = cut_of(settings, model)
        self._ear, self._mouth = os.pipe()  # a thread that has encoded a batch wakes the one that waits
        os.set_blocking(self._ear, False)
        self._encoders: Encoders[_Place] = Encoders(
            model, work.devices, work.precision, self._call, every=settings.frame_vectors > 0
        )
        most = default_workers() if work.workers is None or not forkable() else work.workers
        self._decoders = Decoders(self._cut, most, self._encoders.stillness.still, behind=self._encoders.on_cpu)
        self._of: dict[Decoder, _Item] = {}
        self._items: deque[_Item] = deque()
        self._batch = self._room_for_batch()
        self._places: list[_Place] = []
        self._begun = 0.0  # when the first window of the batch came
        self._seconds = self._weight = 0.0  # of what is given out
        self._held = 0  # bytes of vectors that are not given out
        self._untrimmed = 0  # windows encoded since memory was given back

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes and the threads that encode."""
        self._decoders.close()
        self._encoders.close()
        for handle in (self._ear, self._mouth):
            if handle >= 0:
                os.close(handle)
        self._ear = self._mouth = -1

    @property
    def precision(self) -> str:
        """What it encodes in: "fp32" or "bf16"."""
        return self._encoders.precision

    @property
    def parity(self) -> float | None:
        """Lowest cosine between vectors in bf16 and in fp32, of the first batch; None in fp32 and before it."""
        return self._encoders.parity

    @property
    def seconds(self) -> float:
        """Seconds of video that went through it."""
        return self._seconds + sum(item.seconds for item in self._items)

    @property
    def done(self) -> float:
        """Weight of the jobs that are done, and of those under way as far as they are."""
        return self._weight + sum(item.weight * (1.0 if item.ready else item.share) for item in self._items)

    def run(
        self, jobs: Iterable[Job[K] | None], tick: Callable[[], None] | None = None
    ) -> Iterator[tuple[K, Embedded | Failure | None]]:
        """Results in the order of the jobs.

        Jobs are taken from the iterable only when there is somebody to decode them (and one ahead), so that it may
        claim them as it goes; None among them says that the next one is not known yet: it is asked again soon. Its
        exceptions, and those of the model, end the run.

        Args:
            jobs: What to embed.
            tick: Called often, for progress.
        """
        feed = _Feed(jobs)
        items, keys = self._items, deque[K]()
        items.clear()
        while True:
            later = self._hand_out(feed, keys)
            self._send_off(last=not self._of and not later)
            while items and items[0].ready:
                item = items.popleft()
                self._weight += item.weight
                self._seconds += item.seconds
                self._held -= item.held
                yield keys.popleft(), item.result
            if tick is not None:
                tick()
            if feed.over and not items:
                return
            self._listen(_POLL if later else _STALE)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _hand_out(self, feed: _Feed[K], keys: deque[K]) -> bool:
        """Give files to decoders; returns whether the next one is not known yet."""
        while len(self._items) < _AHEAD and self._held < _HELD:
            if self._decoders.most and not self._decoders.spare():
                return False
            job = feed.take()
            if job is None:
                return not feed.over
            item = _Item(job)
            self._items.append(item)
            keys.append(job.key)
            if job.source is None:
                continue
            if self._decoders.most == 0:
                for message, frames in told(self._cut, job.source, job.name, alone=True):
                    self._heard(item, message, None if frames is None else frames.numpy())
                return False
            feed.look()
            decoder = self._decoders.idle()
            decoder.start(job.source, job.name, alone=feed.over and self._decoders.spare() > 1)
            self._of[decoder] = item
        return False

    def _listen(self, seconds: float) -> None:
        """Wait until a decoder says something, or a batch is encoded; then hear all of it."""
        deaf = len(self._places) == self._encoders.batch  # nowhere to put another window
        pipes = {} if deaf else {decoder.pipe: decoder for decoder in self._of}
        for found in wait([*pipes, self._ear], seconds):
            if found == self._ear:
                os.read(self._ear, 1 << 12)
            elif isinstance(found, Connection):
                self._hear(pipes[found])
        for done in self._encoders.collect():
            self._untrimmed += len(done.places)
            if self._untrimmed >= _TRIM:
                self._untrimmed = 0
                give_back()
            for place, vector in zip(done.places, done.vectors):
                if place.attempt == place.item.attempt:
                    place.item.vectors[place.number] = vector
                    place.item.held += vector.nbytes
                    self._held += vector.nbytes
            for item in {id(place.item): place.item for place in done.places}.values():
                item.settle()

    def _hear(self, decoder: Decoder) -> None:
        """Hear what a decoder says, until it has nothing more to say or nothing more can be taken in."""
        item = self._of[decoder]
        while len(self._places) < self._encoders.batch and decoder.busy and decoder.pipe.poll():
            message = decoder.hear()
            if message is None:
                how = self._decoders.lost(decoder)
                del self._of[decoder]
                self._forget(item)
                return item.fail(_crash(item.name, how))
            slot = message.get("slot")
            self._heard(item, message, None if slot is None else decoder.frames(slot))
            if slot is not None:
                decoder.release(slot)
            if item.end is not None or item.ready:
                del self._of[decoder]
                decoder.busy = False

    def _heard(self, item: _Item, message: Message, frames: np.ndarray | None) -> None:
        """Take in what a decoder says of a file; frames (T, 3, S, S) of a window."""
        if frames is not None:
            start, end, claimed = message["start"], message["end"], message["claimed"]
            if not self._places:
                self._begun = time.monotonic()
            self._batch[len(self._places)] = frames
            self._places.append(_Place(item, item.attempt, len(item.spans)))
            item.spans.append(Span(start, end))
            item.looks.append(np.frombuffer(base64.b64decode(message["looks"]), np.uint8).reshape(FRAMES, -1))
            item.share = min(1.0, end / claimed) if claimed else 0.0
            self._send_off(last=False)
            while self._decoders.most == 0 and len(self._places) == self._encoders.batch:
                self._listen(_STALE)
                self._send_off(last=False)
        elif "again" in message:
            self._forget(item)
            item.again()
        elif "reason" in message:
            self._forget(item)
            item.fail(Failure(reason=message["reason"], kind=message["kind"]))
        else:
            item.end = message
            item.settle()

    def _forget(self, item: _Item) -> None:
        self._held -= item.held
        item.held = 0

    # -- encoding -----------------------------------------------------------------------------------------------------

    def _send_off(self, *, last: bool) -> None:
        """Have the batch encoded where it is full, or nothing will fill it soon.

        Args:
            last: No file is being decoded.
        """
        if not self._places or self._encoders.full:
            return
        full = len(self._places) == self._encoders.batch
        if full or (self._encoders.idle and (last or time.monotonic() - self._begun > _STALE)):
            self._encoders.encode(self._places, self._batch[: len(self._places)])
            self._places, self._batch = [], self._room_for_batch()

    def _room_for_batch(self) -> np.ndarray:
        return np.empty((self._encoders.batch, *self._cut.shape), np.uint8)

    def _call(self) -> None:
        os.write(self._mouth, b".")


def _crash(name: str, how: str) -> Failure:
    if how in ("SIGALRM", "SIGPROF"):
        return Failure(reason=f"{name}: its decoder stood still and was ended", kind="slow")
    return Failure(
        reason=f"{name}: it took its decoder down ({how}): damaged, or in need of more memory", kind="crashed"
    )
