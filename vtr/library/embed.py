"""Videos to embeddings as Parquet parts, by any number of processes.

A folder of embeddings: embeddings.json (model, windows), the parts (`vtr.library.parts`), and `work`, where those that
are at work say what they are at. A process takes a slice of the list, embeds it, writes the part, takes the next one;
one that dies loses what it was at, and another takes that over.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from vtr.data.uri import Access
from vtr.errors import VtrError
from vtr.library.claims import Claims
from vtr.library.encode import settings_of
from vtr.library.parts import ENDING, begin
from vtr.library.pipeline import Job, Pipeline
from vtr.library.settings import ALL, LibrarySettings, Work
from vtr.library.unit import Key, UnitWork
from vtr.library.work import PART_BYTES, Unit, Wanted, plan, wanted, work_folder

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

_PAUSE = 0.2  # seconds between two looks at what the others are at


@dataclass(kw_only=True)
class EmbedReport:
    """What an `embed` did; `failed` holds one line for each video that could not be read, `damaged` for each unit.

    `busy` and `waited` are seconds: of work, and of waiting for what other processes had claimed.
    """

    parts: int = 0
    skipped: int = 0
    segments: int = 0
    videos: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    left_out: str = ""
    busy: float = 0.0
    waited: float = 0.0


def place() -> tuple[int, int]:
    """This process's number and how many there are, as accelerate and torchrun say in RANK and WORLD_SIZE."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def embed(
    named: Sequence[str],
    out: Path,
    model: VideoTextEncoder,
    *,
    model_path: str | None = None,
    window: float = 8.0,
    stride: float = 4.0,
    segments: str = "windows",
    uris: Sequence[Path] = (),
    access: Access | None = None,
    exclude: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
    work: Work = ALL,
) -> EmbedReport:
    """Embed folders, files, lists, shards and addresses; what is done is skipped, what failed for a time tried again.

    Any number of processes may do so together, on one machine or on several that share `out`: each takes what none has
    taken, and what a dead one had. It returns when all is done.

    Args:
        named: Paths, lists, shards (also braces and `::`), addresses.
        out: Folder of the embeddings.
        model: A `vtr.VideoTextModel`.
        model_path: Written down for the library.
        window, stride: Seconds of a segment and between the starts of two.
        segments: "windows", "shots" or "auto", see `read_windows`.
        uris: Lists whose rows may be addresses.
        access: What may be fetched.
        exclude: Patterns of files to leave out of folders.
        part_bytes: Most bytes of media in a part.
        work: Processes and devices that it works with.
    """
    settings = settings_of(model, model_path, window, stride, segments)
    todo = wanted(named, uris=uris, exclude=exclude)
    begin(out, settings)
    with Pipeline(model, settings, work) as machine:
        return _Run(out, settings, todo, access or Access(), machine).run(part_bytes)


class _Run:
    """One process's share of a run."""

    def __init__(self, out: Path, settings: LibrarySettings, todo: Wanted, access: Access, pipeline: Pipeline) -> None:
        self.out, self.settings, self.access, self.pipeline = out, settings, access, pipeline
        self.items = {item.name: item for item in todo.items}
        self.report = EmbedReport(failed=list(todo.refused), left_out=todo.skipped)
        self.left: dict[str, Unit] = {}
        self.under_way: deque[UnitWork] = deque()

    def run(self, part_bytes: int) -> EmbedReport:
        """Work until everything is done, by this process or another."""
        items, begun = list(self.items.values()), time.monotonic()
        folder = work_folder(self.out, items)
        try:
            with Claims(folder) as self.claims:
                try:
                    units = plan(self.out, items, self.claims, part_bytes=part_bytes)
                    self.left = {unit.name: unit for unit in units}
                    self.report.skipped = sum(p.name not in self.left for p in self.out.glob(f"*{ENDING}"))
                    self._work()
                    alone = not self.claims.others()
                finally:
                    for work in self.under_way:
                        self.claims.release(work.unit.name)
            if alone:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise VtrError(f"{self.out}: {error.strerror or error}; parts that are done stay done") from error
        self.report.busy = time.monotonic() - begun - self.report.waited
        return self.report

    def _work(self) -> None:
        rank, _ = place()
        total, often = len(self.left), 0.1 if sys.stderr.isatty() else 30.0
        with tqdm(total=total, desc="embed", unit="part", file=sys.stderr, mininterval=often, disable=rank != 0) as bar:

            def show() -> None:
                bar.set_postfix_str(f"{self.pipeline.seconds / 3600:.2f} h of video here", refresh=False)
                bar.update(total - len(self.left) - bar.n)

            for key, found in self.pipeline.run(self._jobs(), show):
                if isinstance(key, UnitWork):
                    self._finish(key)
                else:
                    self.under_way[0].take(key, found)
            show()

    def _jobs(self) -> Iterator[Job[Key] | None]:
        """Jobs of the units that nobody else is at, claimed as the pipeline asks for them; each unit's end is one too.

        None while others are at all that is left: one that dies leaves it to us.
        """
        own: set[str] = set()
        while set(self.left) - own:
            for name in [n for n in self.left if n not in own]:
                work = self._claimed(self.left[name])
                if work is not None:
                    own.add(name)
                    self.under_way.append(work)
                    yield from work.jobs()
                    yield Job(key=work, source=None, weight=0)
            looked = time.monotonic()
            while set(self.left) - own and time.monotonic() - looked < _PAUSE:
                idle, before = not self.under_way, time.monotonic()
                yield None
                self.report.waited += time.monotonic() - before if idle else 0.0

    def _claimed(self, unit: Unit) -> UnitWork | None:
        """A unit as ours, unless it is done or another's."""
        if self._over(unit):
            return None
        state = self.claims.take(unit.name)
        if state == "given up":
            del self.left[unit.name]
            self.claims.fail(unit.name)
            self.report.damaged.append(f"{unit.sources[0].name}: several processes died while they were at it")
        if state != "mine":
            return None
        if self._over(unit):  # since it was looked at
            self.claims.release(unit.name)
            return None
        return UnitWork(self.out, unit, self.items, self.settings, self.access)

    def _over(self, unit: Unit) -> bool:
        """Whether a unit is done, or another process met damage in it; then it is left no more."""
        over = self.claims.failed(unit.name) or unit.done(self.out)
        if over:
            del self.left[unit.name]
        return over

    def _finish(self, work: UnitWork) -> None:
        assert self.under_way.popleft() is work
        del self.left[work.unit.name]
        self.report.failed += work.failed
        if work.damaged:
            self.report.damaged.append(work.damaged)
            self.claims.fail(work.unit.name)
        else:
            self.report.segments += work.write(self.pipeline.precision, self.pipeline.parity)
            self.report.parts += 1
            self.report.videos += len(work.videos)
        self.claims.release(work.unit.name)
