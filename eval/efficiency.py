"""Speed and memory against the number of frames: VideoMamba beside joint space-time attention (the paper's Fig. 1).

python -m vtr.eval.efficiency                              # tables and PNG into runs/efficiency
python -m vtr.eval.efficiency --sizes tiny small --frames 8 16 32 64 --device cuda
python -m vtr.eval.efficiency --long 64 256 1024           # VideoMamba alone, long videos
python -m vtr.eval.efficiency --flops                      # parameters and multiply-adds beside Tables 1 to 4, at once
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vtr.errors import UsageError, VtrError, reports_errors, unknown_name
from vtr.files import write_atomically
from vtr.settings import parsed

MODELS = ("videomamba", "fused", "naive")
_NAMES = {"videomamba": "VideoMamba", "fused": "joint attention, fused", "naive": "joint attention, naive"}
_SHORT = {"tiny": "Ti", "small": "S", "middle": "M", "base": "B"}


@dataclass(frozen=True, kw_only=True)
class EfficiencySettings:
    """Measure inference of one clip at a time, each point in a process of its own."""

    frames: tuple[int, ...] = (8, 16, 32, 64)
    """Frames per clip."""
    sizes: tuple[str, ...] = ("tiny",)
    """tiny, small, base: VideoMamba and the transformer of that size."""
    models: tuple[str, ...] = MODELS
    """videomamba, fused (joint attention with torch's fused kernel), naive (with the scores written out)."""
    long: tuple[int, ...] = ()
    """Frame counts for VideoMamba alone, instead of the comparison."""
    pixels: int = 224
    """Side of a frame."""
    batch: int = 1
    """Clips at once."""
    repeats: int = 3
    """Timed passes after a warm-up; the median counts. Passes longer than a minute are timed once, cold."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: int = 1
    """Threads on a CPU."""
    max_memory: float = 10.0
    """GiB; a point that would need more is left out, and the table says so."""
    huge_pages: bool = False
    """On a CPU: huge pages for tensors of 2 MiB and more, for every model. Who writes the largest tensors gains the most."""
    out: Path = Path("runs/efficiency")
    """Folder of efficiency.md, .json and .png."""
    flops: bool = False
    """Only parameters and multiply-adds."""


Maker = Callable[[int, int], Any]
"""Frames and pixels to an untrained network with `classify`; the process of a point gets it by name."""


class Passes(NamedTuple):
    """What `passes` measures; None: not measured, and the note says why."""

    seconds: float | None  # median of a pass by the clock
    cpu: float | None  # median CPU time of a pass, over all threads; the clock's on a GPU
    memory: float | None  # GiB: the most it held over the process's own base; weights and input included
    note: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement."""

    model: str
    size: str
    frames: int
    seconds: float | None  # median of a pass by the clock; None: not measured
    cpu: float | None  # median CPU time of a pass, over all threads; the clock's on a GPU
    memory: float | None  # GiB: the most it held over the process's own base; weights and input included
    note: str = ""


def predicted_memory(model: str, size: str, frames: int, pixels: int, batch: int) -> float:
    """GiB that a point takes at the least: what decides whether it is tried."""
    from vtr.eval.peers import TIMESFORMER_SIZES

    tokens = 1 + frames * (pixels // 16) ** 2
    if model != "naive":
        return batch * tokens * 4000 * 4 / 2**30
    # Scores, scaled scores and softmax: two of the three live at once.
    return 2 * batch * TIMESFORMER_SIZES[size].heads * tokens**2 * 4 / 2**30


def build(model: str, size: str, frames: int, pixels: int) -> Any:
    """An untrained model for `frames` frames; its `classify` takes (B, T, 3, H, W)."""
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMamba
    from vtr.eval.peers import TIMESFORMER_SIZES, TimeSformer

    if model == "videomamba":
        return VideoMamba(replace(VIDEOMAMBA_SIZES[size], num_frames=frames, image_size=pixels, num_classes=400))
    return TimeSformer(replace(TIMESFORMER_SIZES[size], num_frames=frames, image_size=pixels, fused=model == "fused"))


def resident(key: str) -> float:
    """GiB of this process: VmRSS now, VmHWM at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 2**20
    return 0.0


def _measure(
    make: Maker, frames: int, pixels: int, batch: int, repeats: int, device: str, threads: int, pipe: Any
) -> None:
    """In a process of its own, so that its peak of memory is that of this point alone."""
    try:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        cuda = device == "cuda"
        with torch.inference_mode():
            # Libraries and kernels are loaded by a pass over one small frame; what they take is the process's base.
            make(1, 32).eval().to(device).classify(torch.randn(1, 1, 3, 32, 32, device=device))
            if not cuda:
                base = resident("VmRSS")
            else:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated() / 2**30
            net = make(frames, pixels).eval().to(device)
            clip = torch.randn(batch, frames, 3, pixels, pixels, device=device)
            times, used = [], []
            for turn in range(repeats + 1):
                start, begin = time.perf_counter(), time.process_time()
                net.classify(clip)
                if cuda:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
                used.append(times[-1] if cuda else time.process_time() - begin)
                if turn == 0 and times[0] > 60:
                    break
            seconds, cpu = statistics.median(times[1:] or times), statistics.median(used[1:] or used)
            peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else resident("VmHWM")
        pipe.send((seconds, cpu, max(0.0, peak - base), ""))
    except Exception as error:  # out of memory, above all; the table says which
        pipe.send((None, None, None, str(error).splitlines()[0][:120]))


def passes(
    make: Maker, frames: int, pixels: int, *, batch: int = 1, repeats: int = 3, device: str = "cpu", threads: int = 1
) -> Passes:
    """Time and memory of a network's passes over clips, in a process of its own."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(make, frames, pixels, batch, repeats, device, threads, there))
    process.start()
    there.close()
    try:
        found = Passes(*here.recv())
    except EOFError:  # killed: out of memory
        found = Passes(None, None, None, "its process was killed (out of memory?)")
    process.join()
    return found


def measure(settings: EfficiencySettings, model: str, size: str, frames: int, device: str) -> Point:
    """One point."""
    need = predicted_memory(model, size, frames, settings.pixels, settings.batch)
    if need > settings.max_memory:
        note = f"needs more than {need:.0f} GiB (--max-memory {settings.max_memory:g})"
        return Point(model=model, size=size, frames=frames, seconds=None, cpu=None, memory=None, note=note)
    found = passes(
        partial(build, model, size), frames, settings.pixels, batch=settings.batch, repeats=settings.repeats,
        device=device, threads=settings.threads,
    )  # fmt: skip
    return Point(model=model, size=size, frames=frames, **found._asdict())


def _check(settings: EfficiencySettings) -> str:
    """The device; refuses what makes no sense."""
    import torch

    for name in settings.models:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    known = ("tiny", "small", "base") if not settings.long else tuple(_SHORT)
    for name in settings.sizes:
        if name not in known:
            raise unknown_name("size", name, known)
    numbers = [*settings.frames, *settings.long, settings.batch, settings.repeats, settings.threads]
    if not settings.frames or min(numbers) < 1:
        raise UsageError("--frames, --long, --batch, --repeats and --threads: expected positive numbers")
    if settings.pixels < 16 or settings.pixels % 16:
        raise UsageError(f"--pixels {settings.pixels}: expected a multiple of 16, the patch size")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise unknown_name("device", settings.device, ("auto", "cpu", "cuda"))
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no NVIDIA GPU here (vtr doctor says why)")
    return ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device


def compare(points: list[Point], settings: EfficiencySettings) -> str:
    """The points as a markdown table, with VideoMamba's advantage at each frame count.

    clips/s and the ratios are by CPU time, which other work on the machine does not change; with one thread on an idle
    machine it is the clock's. On a GPU they are by the clock.
    """
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
    from vtr.eval.flops import attention_cost, cost
    from vtr.eval.peers import TIMESFORMER_SIZES

    own = {(p.size, p.frames): p for p in points if p.model == "videomamba"}
    lines = [
        "| model | frames | s/clip | CPU s | clips/s | peak GiB | G multiply-adds | VideoMamba is faster | and takes less |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for p in points:
        if p.model == "videomamba":
            found = cost(VIDEOMAMBA_SIZES[p.size], p.frames, settings.pixels)
            work = f"{found.total:.1f} (paper's rule {found.paper:.1f})"
        else:
            peer = TIMESFORMER_SIZES[p.size]
            work = f"{attention_cost(peer.dim, peer.depth, p.frames, settings.pixels):.1f}"
        name = f"{_NAMES[p.model]}, {_SHORT[p.size]}"
        if p.seconds is None or p.cpu is None or p.memory is None:
            lines.append(f"| {name} | {p.frames} | {p.note} | | | | {work} | | |")
            continue
        ratio, less = "", ""
        mine = own.get((p.size, p.frames))
        if p.model != "videomamba" and mine is not None and mine.cpu and mine.memory:
            ratio, less = f"{p.cpu / mine.cpu:.1f}×", f"{p.memory / mine.memory:.1f}×"
        seconds = p.seconds / settings.batch
        lines.append(
            f"| {name} | {p.frames} | {seconds:.3f} | {p.cpu / settings.batch:.3f} | {settings.batch / p.cpu:.3f} | {p.memory:.3f} | {work} | {ratio} | {less} |"
        )
    return "\n".join(lines)


def linear(points: list[Point]) -> str:
    """Cost per frame of one model at growing lengths."""
    lines = [
        "| frames | s/clip | CPU s | CPU ms/frame | peak GiB | MiB/frame |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for p in points:
        if p.seconds is None or p.cpu is None or p.memory is None:
            lines.append(f"| {p.frames} | {p.note} | | | | |")
            continue
        lines.append(
            f"| {p.frames} | {p.seconds:.2f} | {p.cpu:.2f} | {1e3 * p.cpu / p.frames:.1f} | {p.memory:.3f} "
            f"| {1024 * p.memory / p.frames:.2f} |"
        )
    return "\n".join(lines)


def draw(path: Path, points: list[Point], settings: EfficiencySettings, where: str) -> None:
    """Fig. 1: throughput and memory against frames, one line a model."""
    from vtr.eval.figures import Series, curves

    speed: Series = {}
    memory: Series = {}
    for p in points:
        if p.seconds and p.memory:
            name = f"{_NAMES[p.model]}, {_SHORT[p.size]}"
            speed.setdefault(name, []).append((p.frames, settings.batch / (p.cpu or p.seconds)))
            memory.setdefault(name, []).append((p.frames, p.memory))
    panels = (("clips per second (of CPU time on a CPU)", speed), ("peak memory, GiB", memory))
    curves(path, panels, f"frames of {settings.pixels} x {settings.pixels} pixels", where)


PAPER = "The paper (Fig. 1, one GPU): 6× faster and 40× less memory than TimeSformer-Ti at 64 frames."


def run(settings: EfficiencySettings) -> int:
    """Measure, print, write."""
    from vtr.eval.ablate import here
    from vtr.eval.flops import table

    device = _check(settings)
    if settings.flops:
        print(table())
        return 0
    import torch

    torch.set_num_threads(settings.threads)
    if settings.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # read by torch in the process of each point
    where = here()
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, {where}"
    plan = [(m, s, f) for s in settings.sizes for f in settings.frames for m in settings.models]
    if settings.long:
        plan = [("videomamba", s, f) for s in settings.sizes for f in settings.long]
    points = []
    for model, size, frames in plan:
        print(f"{_NAMES[model]}, {size}, {frames} frames …", end=" ", file=sys.stderr, flush=True)
        point = measure(settings, model, size, frames, device)
        points.append(point)
        said = (
            point.note
            if point.seconds is None
            else f"{point.seconds:.3f} s, CPU {point.cpu:.3f} s, {point.memory:.3f} GiB"
        )
        print(said, file=sys.stderr, flush=True)
    points.sort(key=lambda p: (MODELS.index(p.model), p.size, p.frames))
    command = "python -m vtr.eval.efficiency " + " ".join(sys.argv[1:])
    if settings.long:
        text = f"# Long videos: VideoMamba-{_SHORT[settings.sizes[0]]}, inference\n\n{linear(points)}\n"
        name = "long"
    else:
        text = f"# Efficiency\n\n{compare(points, settings)}\n\n{PAPER}\n\n# Tables 1 to 4\n\n{table()}\n"
        name = "efficiency"
    text += f"\n`{command.strip()}`: {where}. Batch {settings.batch}, {settings.pixels} pixels, forward pass, fp32.\n"
    print(text)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / f"{name}.md").write_text(text)
        rows = {"command": command, "where": where, "points": [p.__dict__ for p in points]}
        with write_atomically(settings.out / f"{name}.json") as unfinished:
            unfinished.write_text(json.dumps(rows, indent=1))
        if not settings.long:
            draw(settings.out / "efficiency.png", points, settings, where)
    except OSError as error:
        raise VtrError(f"{settings.out}: cannot be written ({error.strerror})") from error
    return 0


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(EfficiencySettings, argv, "python -m vtr.eval.efficiency", __doc__ or "")
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
