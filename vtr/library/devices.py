"""Threads that encode windows: one a GPU, each with its own copy of the model; on the CPU one a core, which share it.

n windows, T frames, S pixels, w width of the embedding.
"""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from vtr.errors import UsageError, unknown_name
from vtr.library.encode import CPU_BATCH, encoded

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

P = TypeVar("P")

PRECISIONS = ("auto", "fp32", "bf16")
_GPU_BATCH = 64
_CPU_THREADS = 16  # that encode at once; each has its share of the cores
_QUEUED = 2  # batches that wait for a device


@dataclass(frozen=True)  # Python 3.10 has no generic NamedTuple
class Done(Generic[P]):
    """A batch that was encoded: whose windows, and their vectors (n, w)."""

    places: Sequence[P]
    vectors: np.ndarray


class Stillness:
    """Keeps others from computing while a process is forked: a lock that is held at that moment stays held in the fork."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._computing = self._wanted = 0

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """While a thread computes."""
        with self._change:
            self._change.wait_for(lambda: not self._wanted)
            self._computing += 1
        try:
            yield
        finally:
            with self._change:
                self._computing -= 1
                self._change.notify_all()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """While nobody computes."""
        with self._change:
            self._wanted += 1
            try:
                self._change.wait_for(lambda: not self._computing)
                yield
            finally:
                self._wanted -= 1
                self._change.notify_all()


def devices_of(model: VideoTextEncoder, asked: Sequence[str]) -> list[torch.device]:
    """The devices that encode: those asked for; all GPUs where the model is on the first; else where the model is.

    Raises:
        UsageError: There is no such device.
    """
    own = model.device
    if not asked:
        alone = own.type == "cuda" and not own.index and "LOCAL_RANK" not in os.environ
        return [torch.device("cuda", n) for n in range(torch.cuda.device_count())] if alone else [own]
    out = []
    for name in asked:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
            raise UsageError(f"--devices {name}: no such device here; there are {', '.join(there)}") from error
        out.append(device)
    return out


def precision_on(devices: Sequence[torch.device], asked: str) -> str:
    """ "fp32" or "bf16"; UsageError for another word."""
    if asked not in PRECISIONS:
        raise unknown_name("--precision", asked, PRECISIONS)
    return ("bf16" if devices[0].type == "cuda" else "fp32") if asked == "auto" else asked


class Encoders(Generic[P]):
    """The threads. One thread feeds them and collects; they wake it.

    Args:
        model: The model.
        asked: Devices, as in `devices_of`.
        precision: One of PRECISIONS.
        wake: Called by a thread that has encoded a batch.
        every: Vectors are (n, 1 + F, w): of windows, and behind each those of its frames.

    Attributes:
        on_cpu: Whether the first of them is the CPU.
        batch: Windows that a batch may have.
        precision: "fp32" or "bf16".
        parity: Lowest cosine between vectors in bf16 and in fp32, of the first batch; None in fp32 and before it.
    """

    def __init__(
        self,
        model: VideoTextEncoder,
        asked: Sequence[str],
        precision: str,
        wake: Callable[[], object],
        *,
        every: bool = False,
    ) -> None:
        devices = list(dict.fromkeys(devices_of(model, asked)))
        self.precision = precision_on(devices, precision)
        self.on_cpu = devices[0].type == "cpu"
        self.batch = _GPU_BATCH if devices[0].type == "cuda" else CPU_BATCH
        self.parity: float | None = None
        self.stillness = Stillness()
        self._wake, self._every = wake, every
        self._queue: queue.Queue[tuple[Sequence[P], np.ndarray] | None] = queue.Queue()
        self._done: queue.SimpleQueue[Done[P] | BaseException] = queue.SimpleQueue()
        self._under_way = 0
        self._cores = torch.get_num_threads()
        self._threads = [
            threading.Thread(target=self._work, args=(own, self._cores // count), name=f"encode {device}", daemon=True)
            for device in devices
            for own, count in [(_on(model, device), min(self._cores, _CPU_THREADS) if device.type == "cpu" else 1)]
            for _ in range(count)
        ]
        self._most = _QUEUED + len(self._threads)
        for thread in self._threads:
            thread.start()

    @property
    def full(self) -> bool:
        """Whether they have enough to do."""
        return self._under_way >= self._most

    @property
    def idle(self) -> bool:
        """Whether one of them has nothing to do."""
        return self._under_way < len(self._threads)

    def encode(self, places: Sequence[P], frames: np.ndarray) -> None:
        """Have windows (n, T, 3, S, S) encoded; they must not be changed any more."""
        self._under_way += 1
        self._queue.put((places, frames))

    def collect(self) -> Iterator[Done[P]]:
        """What was encoded since it was asked last; what went wrong is raised."""
        while True:
            try:
                done = self._done.get_nowait()
            except queue.Empty:
                return
            self._under_way -= 1
            if isinstance(done, BaseException):
                raise done
            yield done

    def close(self) -> None:
        """End the threads, each after the batch it is at."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._threads:
            torch.set_num_threads(self._cores)  # what a thread sets for itself is MKL's for all
        self._threads = []

    def _work(self, model: VideoTextEncoder, cores: int) -> None:
        # A window a core takes less time than all cores for one window after the other: nobody waits for the slowest.
        torch.set_num_threads(cores)
        while (asked := self._queue.get()) is not None:
            try:
                with self.stillness.computing():
                    out: Done[P] | BaseException = Done(asked[0], self._vectors(model, torch.from_numpy(asked[1])))
            except BaseException as error:  # raised where it is collected
                out = error
            self._done.put(out)
            self._wake()

    def _vectors(self, model: VideoTextEncoder, frames: torch.Tensor) -> np.ndarray:
        if self.precision == "fp32":
            return encoded(model, frames, every=self._every)
        vectors = encoded(model, frames, bf16=True, every=self._every)
        if self.parity is None:
            exact = encoded(model, frames, every=self._every)
            lengths = np.linalg.norm(exact, axis=-1) * np.linalg.norm(vectors, axis=-1)
            self.parity = float(((exact * vectors).sum(axis=-1) / np.maximum(lengths, 1e-12)).min())
        return vectors


def _on(model: VideoTextEncoder, device: torch.device) -> VideoTextEncoder:
    """The model, or a copy of it on another device."""
    if device == model.device or (device.type, device.index or 0) == (model.device.type, model.device.index or 0):
        return model
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"--devices {device}: this model cannot be copied from {model.device}")
    clone: VideoTextEncoder = copy.deepcopy(model).to(device)
    return clone
