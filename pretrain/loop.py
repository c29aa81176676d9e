"""The training loop: fetch, step, log, validate, save; all ranks together, or none."""

from __future__ import annotations

import hashlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vtr.errors import VtrError
from vtr.pretrain.sharding import clip_gradients
from vtr.pretrain.state import Progress, RunLog, State, mark_best, save_checkpoint
from vtr.pretrain.stop import Stop, Stopped
from vtr.ranks import Ranks, all_rows
from vtr.threads import give_back

B = TypeVar("B")

_TRIM = 10  # log rows after which freed memory is given back: at every row it costs steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """From which step to which, and when the loop does what besides.

    Attributes:
        name: On the bar and in messages.
        staged: It is a stage of several, named in the log.
        first, steps: It runs the steps `first … steps - 1`.
        before: Steps of earlier stages, for the global step in logs and checkpoints.
        log_every, save_every, validate_every: Steps between; 0 = never.
        most: Steps at most, without writing anything (a dry run); 0 = all.
        keep: Latest checkpoints kept; 0 = all.
    """

    name: str
    steps: int
    first: int = 0
    before: int = 0
    log_every: int = 10
    save_every: int = 0
    validate_every: int = 0
    most: int = 0
    keep: int = 2
    staged: bool = False

    @property
    def end(self) -> int:
        """The step after the last one of this call."""
        return min(self.steps, self.first + self.most) if self.most else self.steps


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a loop works with."""

    ranks: Ranks
    log: RunLog
    progress: Progress
    folder: Path  # of the checkpoints
    stop: Stop


class Taken(NamedTuple):
    """What an optimiser step was."""

    losses: dict[str, Tensor]
    norm: Tensor
    rate: float


class Loop(ABC, Generic[B]):
    """Runs a schedule; a subclass says what a batch is, what its losses are, and what a checkpoint holds.

    Attributes:
        last: The last batch that was trained on.
        seconds: That the steps took.
    """

    def __init__(
        self, schedule: Schedule, bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, clip_grad: float
    ) -> None:
        self.schedule, self.bench, self.model, self.optimizer = schedule, bench, model, optimizer
        self.ranks, self.log_file, self.progress = bench.ranks, bench.log, bench.progress
        self._limit = clip_grad if clip_grad > 0 else float("inf")
        self.last: B | None = None
        self.seconds = 0.0
        self._saved: Path | None = None
        self._pace = Pace()
        self._waits, self._hinted = 0, False

    # What a subclass says.

    @abstractmethod
    def next_batch(self) -> B:
        """This rank's next batch."""

    @abstractmethod
    def counts(self, batch: B) -> list[float]:
        """Samples read for it, samples dropped of them, and whatever else all ranks need the sum of."""

    @abstractmethod
    def took(self, batch: B, sums: list[float]) -> None:
        """Take note of the counts of all ranks.

        Raises:
            VtrError: Too much is bad; alike on all ranks.
        """

    @abstractmethod
    def set_rate(self, step: int) -> float:
        """Set the optimiser's learning rates; the one to log."""

    @abstractmethod
    def losses(self, batch: B, step: int) -> dict[str, Tensor]:
        """The losses of the global batch, equal on all ranks, and their gradients in the parameters' `.grad`."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""

    @abstractmethod
    def samples(self, batch: B) -> Sequence[str]:
        """Names of its samples, for a message, one for each that was trained on."""

    @abstractmethod
    def facts(self, batch: B, step: int) -> dict[str, object]:
        """What else of a step is logged."""

    @abstractmethod
    def state(self, done: int) -> State:
        """What a checkpoint after `done` steps holds; all ranks call it."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data, the same on all ranks."""
        raise NotImplementedError

    def score(self, found: dict[str, float]) -> float:
        """What the best checkpoint has the most of."""
        raise NotImplementedError

    # The loop.

    def run(self) -> None:
        """From the first step to the end.

        Raises:
            VtrError: On all ranks together: a loss or gradient is not finite (the message names the step, the samples
                and the last good checkpoint), data can't be read, a checkpoint can't be written.
            Stopped: The user asked for the end; the steps so far are in a checkpoint.
        """
        schedule = self.schedule
        self.model.train()
        begin = time.perf_counter()
        with (
            tqdm(
                total=schedule.steps,
                initial=schedule.first,
                desc=schedule.name,
                file=sys.stderr,
                unit="step",
                disable=not self.ranks.main,
            ) as bar,
            self.bench.stop.listening(),
        ):
            for step in range(schedule.first, schedule.end):
                self._pace.start()
                batch = self.fetch(step)
                self._pace.fetched()
                taken = self.step(batch, step)
                self._pace.stepped(len(self.samples(batch)) * self.ranks.size)
                self.last = batch
                bar.update()
                done = step + 1
                if schedule.log_every and (done % schedule.log_every == 0 or done == schedule.end):
                    self.log(batch, step, taken, bar)
                if not schedule.most:
                    self.keep(done, bar)
        self.seconds = time.perf_counter() - begin

    def fetch(self, step: int) -> B:
        """The next batch, when all ranks have theirs."""
        stop = self.bench.stop
        batch, error = None, None
        try:
            batch = self.next_batch()
        except VtrError as caught:
            error = None if stop.asked else caught  # Ctrl-C reaches the data workers too
        counts = [0.0, 0.0] if batch is None else self.counts(batch)
        *sums, asked = self.ranks.settle(error, [*counts, float(stop.asked)])
        if asked:
            self._stopped(step)
        assert batch is not None
        self.took(batch, sums)
        return batch

    def step(self, batch: B, step: int) -> Taken:
        """One step of the optimiser."""
        rate = self.set_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(batch, step)
        norm = clip_gradients(self.parameters(), self._limit)
        # Losses and summed gradients are the same on all ranks: all of them stop here, or none.
        if not bool(torch.isfinite(losses["loss"]) & torch.isfinite(norm)):
            values = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise VtrError(
                f"{self.schedule.name} step {step}: the loss or its gradient is not finite ({values}, gradient norm "
                f"{float(norm):.4g}); samples {', '.join(self.samples(batch)[:64])}; "
                + (
                    f"last good checkpoint {self._saved}"
                    if self._saved
                    else "no checkpoint of this call yet: --resume latest finds older ones"
                )
            )
        self.optimizer.step()
        return Taken(losses, norm, rate)

    def log(self, batch: B, step: int, taken: Taken, bar: tqdm) -> None:
        """A row of log.jsonl, of the trackers, and the bar's words."""
        done = self.schedule.before + step + 1
        row = {k: float(f"{v.item():.9g}") for k, v in taken.losses.items()}  # nine digits: fp32 without loss
        numbers = {"lr": taken.rate, **row, "grad_norm": float(f"{float(taken.norm):.9g}")}
        pace = self._pace.taken()
        self.log_file.write(
            step=done,
            **self._where(),
            **self.facts(batch, step),
            **numbers,
            bad=self.progress.bad,
            **pace,
            memory_gib=memory_gib(self.ranks.device),
            time=round(time.time(), 2),
        )
        self.ranks.track({**numbers, **pace}, done)
        self._hint(pace["data_wait"], bar)
        if (step + 1) % (_TRIM * self.schedule.log_every) == 0:
            give_back()
        bar.set_postfix_str(
            " ".join(f"{k} {v:.3f}" for k, v in row.items())
            + f" lr {taken.rate:.1e} {pace['samples_per_s']:.0f}/s wait {pace['data_wait']:.0%}",
            refresh=False,
        )

    def _hint(self, wait: float, bar: tqdm) -> None:
        """Say once what helps where the data is waited for most of the time."""
        self._waits = self._waits + 1 if wait > 0.5 else 0
        if self._waits == 3 and not self._hinted and self.ranks.main:
            self._hinted = True
            bar.write(
                f"note: data is waited for {wait:.0%} of the time; more --workers, or shards of smaller videos "
                "(vtr shards build --short-side 256), make steps faster",
                file=sys.stderr,
            )

    def keep(self, done: int, bar: tqdm) -> None:
        """Validate and save after `done` steps, where it is time to."""
        schedule = self.schedule
        last, best = done == schedule.steps, False
        if schedule.validate_every and (done % schedule.validate_every == 0 or last):
            found = self.validate()
            self.model.train()
            step = schedule.before + done
            self.log_file.write(step=step, **self._where(), validation=found, time=round(time.time(), 2))
            self.ranks.track({f"validation/{k}": v for k, v in found.items()}, step)
            bar.write(
                f"{schedule.name} step {done}: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()), file=sys.stderr
            )
            score = self.score(found)
            best = score > self.progress.best
            self.progress.best = max(self.progress.best, score)
        if best or last or (schedule.save_every and done % schedule.save_every == 0):
            path = self._saved = self.save(done)
            if best:
                self.ranks.main_only(lambda: mark_best(path.parent, path))

    def _where(self) -> dict[str, object]:
        return {"stage": self.schedule.name} if self.schedule.staged else {}

    def save(self, done: int) -> Path:
        """Write a checkpoint after `done` steps of the schedule."""
        step = self.schedule.before + done
        state = self.state(done)
        self.ranks.main_only(lambda: save_checkpoint(self.bench.folder, step, state, self.schedule.keep))
        return self.bench.folder / f"step-{step:08d}.pt"

    def _stopped(self, done: int) -> None:
        """End because the user asked for it, with a checkpoint of what has been done."""
        path = self._saved
        if self.last is not None and not self.schedule.most:
            path = self.save(done)
        raise Stopped(self.bench.stop.number, self.schedule.before + done, path)


class Pace:
    """Seconds waited and worked, processor seconds and samples, between two rows of a log."""

    def __init__(self) -> None:
        self._begin = self._middle = self._used = 0.0
        self._forget()

    def _forget(self) -> None:
        self._waited = self._busy = self._processor = 0.0
        self._samples = 0

    def start(self) -> None:
        """A step begins."""
        self._begin, self._used = time.perf_counter(), time.process_time()

    def fetched(self) -> None:
        """Its batch is there."""
        self._middle = time.perf_counter()
        self._waited += self._middle - self._begin

    def stepped(self, samples: int) -> None:
        """It is done, with so many samples over all ranks."""
        self._busy += time.perf_counter() - self._begin
        self._processor += time.process_time() - self._used
        self._samples += samples

    def taken(self) -> dict[str, float]:
        """Samples a second, share of the time that data was waited for, processor seconds a second; begin anew."""
        busy = max(self._busy, 1e-9)
        found = {
            "samples_per_s": round(self._samples / busy, 1),
            "data_wait": round(self._waited / busy, 4),
            "cpu_s_per_s": round(self._processor / busy, 2),
        }
        self._forget()
        return found


def batch_digest(ids: Tensor) -> str:
    """A name for the global batch, from the ids of this rank's part (n,); all ranks call it."""
    return hashlib.blake2b(all_rows(ids).cpu().numpy().tobytes(), digest_size=8).hexdigest()


def memory_gib(device: torch.device) -> float | None:
    """The most memory this process has held: of the GPU, else resident."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)
