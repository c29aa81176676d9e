"""`vtr embed --engine ray`: the units of `vtr embed` on a Ray cluster; imported where Ray is installed.

A unit is a task of one core: it decodes, sends windows to the encoders (actors, one a GPU) and writes the part. Ray places
the tasks, starts those of a dead node again elsewhere, and its encoders too. The files, and the folder of the parts, must
be where every node finds them: on a file system that they share, or at addresses.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from vtr.data.uri import Access
from vtr.errors import VtrError
from vtr.files import import_root
from vtr.library.claims import Claims
from vtr.library.decoders import Cut, failure_of, opened
from vtr.library.embed import EmbedReport
from vtr.library.encode import cut_of, encoded, settings_of
from vtr.library.parts import ENDING, begin
from vtr.library.pipeline import Job
from vtr.library.rows import Embedded, Failure, Span
from vtr.library.settings import LibrarySettings
from vtr.library.unit import Key, UnitWork
from vtr.library.work import PART_BYTES, Item, Unit, plan, wanted, work_folder

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

_BLOCK = 32  # windows that are sent to an encoder together
_AHEAD = 2  # blocks of a task that may be under way
_RETRIES = 3  # of a unit whose node died
_PATIENCE = 300.0  # seconds after which a block is sent to another encoder too: its own may never come back


@ray.remote
class Encoder:
    """A copy of the model on a GPU, or on the cores that are there."""

    def __init__(self, model: VideoTextEncoder) -> None:
        on_gpu = bool(ray.get_gpu_ids())  # type: ignore[no-untyped-call]
        self.model = model.to("cuda" if on_gpu else "cpu").eval()

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Vectors (n, w) of frames uint8 (n, T, 3, S, S)."""
        return encoded(self.model, torch.from_numpy(frames.copy()))


class _Sent:
    """A block of windows on its way through an encoder."""

    def __init__(self, frames: np.ndarray, encoders: Iterator[ray.actor.ActorHandle]) -> None:
        self._frames, self._encoders = ray.put(frames), encoders
        self._answers = [self._ask()]

    def _ask(self) -> ray.ObjectRef:
        return next(self._encoders).encode.remote(self._frames)

    def vectors(self) -> np.ndarray:
        """What came of it; waits."""
        while True:
            ready, _ = ray.wait(self._answers, timeout=_PATIENCE)
            if ready:
                return ray.get(ready[0])
            self._answers.append(self._ask())


class _Remote:
    """As `Pipeline`: decodes in this process, encodes elsewhere."""

    def __init__(self, cut: Cut, encoders: Sequence[ray.actor.ActorHandle], first: int) -> None:
        self.cut = cut
        self._encoders = itertools.cycle([*encoders[first % len(encoders) :], *encoders[: first % len(encoders)]])

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Embedded | Failure | None]]:
        """Results in the order of the jobs."""
        for job in jobs:
            yield job.key, None if job.source is None else self._embedded(job)

    def _embedded(self, job: Job[Key]) -> Embedded | Failure:
        sent, vectors, spans = deque[_Sent](), list[np.ndarray](), list[Span]()
        try:
            assert job.source is not None
            windows = self.cut.windows(opened(job.source))
            while block := list(itertools.islice(windows, _BLOCK)):
                spans += [Span(w.start, w.end) for w in block]
                sent.append(_Sent(torch.stack([w.frames for w in block]).numpy(), self._encoders))
                while len(sent) > _AHEAD:
                    vectors.append(sent.popleft().vectors())
        except (VtrError, OSError) as error:
            return failure_of(error, job.name or str(job.source))
        vectors += [s.vectors() for s in sent]
        if not spans:
            return Failure(reason=f"{job.name or job.source}: no frames")
        return Embedded(spans=spans, vectors=np.concatenate(vectors), duration=windows.duration)


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _embed_unit(
    out: Path, unit: Unit, items: Mapping[str, Item], settings: LibrarySettings, access: Access, cut: Cut,
    encoders: Sequence[ray.actor.ActorHandle],
) -> EmbedReport:  # fmt: skip
    """Embed a unit and write its part; done again, it gives the same part."""
    torch.set_num_threads(1)
    report = EmbedReport()
    if unit.done(out):  # its node died after the part was written
        return report
    work = UnitWork(out, unit, items, settings, access)
    for key, found in _Remote(cut, encoders, int(unit.id, 16)).run(work.jobs()):
        assert not isinstance(key, UnitWork)
        work.take(key, found)
    report.failed = work.failed
    if work.damaged:
        report.damaged = [work.damaged]
        return report
    report.segments, report.parts, report.videos = work.write(), 1, len(work.videos)
    return report


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
) -> EmbedReport:
    """As `vtr.library.embed.embed`, on the Ray cluster that is running, else on one of this machine alone.

    Raises:
        VtrError: There is no cluster where RAY_ADDRESS says, or `out` cannot be written.
    """
    if not ray.is_initialized():
        try:
            paths = os.pathsep.join(filter(None, [str(import_root()), os.environ.get("PYTHONPATH")]))
            ray.init(
                address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, configure_logging=False,
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise VtrError(f"Ray: {' '.join(str(error).split())[:300]}") from error
    settings = settings_of(model, model_path, window, stride, segments)
    todo = wanted(named, uris=uris, exclude=exclude)
    begin(out, settings)
    out = out.absolute()
    report = EmbedReport(failed=list(todo.refused), left_out=todo.skipped)
    items = {item.name: item for item in todo.items}
    with Claims(work_folder(out, todo.items)) as claims:
        units = [u for u in plan(out, todo.items, claims, part_bytes=part_bytes) if not u.done(out)]
        own = {u.name for u in units}
        report.skipped = sum(p.name not in own for p in out.glob(f"*{ENDING}"))
        _spread(units, out, items, settings, access or Access(), model, report)
    return report


def _spread(
    units: Sequence[Unit], out: Path, items: Mapping[str, Item], settings: LibrarySettings, access: Access,
    model: VideoTextEncoder, report: EmbedReport,
) -> None:  # fmt: skip
    resources = ray.cluster_resources()
    cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    # Encoders reserve no core: one that starts again on another node must not wait for tasks that wait for it.
    made = Encoder.options(num_cpus=0, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=-1)
    shared = ray.put(model.cpu())
    encoders = [made.remote(shared) for _ in range(gpus or max(1, cores // 2))]
    cut = cut_of(settings, model)
    todo, running = deque(units), dict[ray.ObjectRef, Unit]()
    often = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(units), desc="embed", unit="part", file=sys.stderr, mininterval=often) as bar:
        while todo or running:
            while todo and len(running) < 4 * cores:
                unit = todo.popleft()
                own = {s.name: items[s.name] for s in unit.sources}
                running[_embed_unit.remote(out, unit, own, settings, access, cut, encoders)] = unit
            for ready in ray.wait(list(running), timeout=1.0)[0]:
                _add(report, running.pop(ready), ready)
                bar.update()
                bar.set_postfix(segments=report.segments, refresh=False)
    for encoder in encoders:
        ray.kill(encoder)


def _add(report: EmbedReport, unit: Unit, ready: ray.ObjectRef) -> None:
    try:
        one = ray.get(ready)
    except RayTaskError as error:
        cause = error.cause
        report.damaged.append(f"{unit.sources[0].name}: {' '.join(str(cause or error).split())[:300]}")
        return
    except RayError as error:
        report.damaged.append(f"{unit.sources[0].name}: its tasks died ({type(error).__name__})")
        return
    report.parts += one.parts
    report.segments += one.segments
    report.videos += one.videos
    report.failed += one.failed
    report.damaged += one.damaged
