"""Times bimamba and whole encoders on a GPU: ours, mamba-ssm's two-pass path, plain torch; writes docs/results/gpu.md.

`python -m bench.kernels --device cuda [--mamba-source FOLDER] [--minutes N] [--out FOLDER]`
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtr.errors import VtrError
from vtr.kernels.bimamba import backend_info, bimamba, eager, mamba, use_backend

# Name, batch, tokens: KERNELS' reference shape first; the widths are those of the middle, small and tiny encoder.
SHAPES = [
    ("video", 32, 1569),
    ("masked video", 64, 314),
    ("one long video", 1, 12545),
    ("image", 128, 197),
    ("long video", 8, 12545),
]
WIDTHS = {"middle": 1152, "small": 768, "tiny": 384}
STATES = 16
WARM_UP, REPEATS = 3, 15
ENCODERS = [("middle", 32), ("small", 64), ("tiny", 128)]  # with the batch
DEVICE = "cuda"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of a GPU that the floor is made of."""

    name: str
    multiprocessors: int
    clock_ghz: float  # the highest the multiprocessors may run at
    bytes_per_second: float  # of a copy inside the GPU's memory, measured

    @classmethod
    def here(cls) -> Machine:
        """The current GPU."""
        properties = torch.cuda.get_device_properties(0)
        command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
        try:
            clock = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) / 1e3
        except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
            clock = 1.755
        source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        ms = milliseconds(lambda: target.copy_(source))
        return cls(
            name=properties.name,
            multiprocessors=properties.multi_processor_count,
            clock_ghz=clock,
            bytes_per_second=2 * source.numel() / ms * 1e3,
        )


def floor_ms(machine: Machine, batch: int, length: int, width: int, backward: bool, itemsize: int = 2) -> float:
    """The least time of a call: its exponentials, or its bytes, whichever takes longer.

    Exponentials: 16 a multiprocessor and clock; one per state, token, channel and direction, 6/32 more for softplus and
    gate; the backward computes them twice more. Bytes: 7 tensors (B, L, E) forward; with the backward 7 more of inputs
    and gradients.
    """
    elements = batch * length * width
    exponentials = 2 * elements * STATES * 38 / 32 + (2 * 2 * elements * STATES if backward else 0)
    special = exponentials / (16 * machine.multiprocessors * machine.clock_ghz * 1e9)
    return max(special, (14 if backward else 7) * elements * itemsize / machine.bytes_per_second) * 1e3


def milliseconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of a call on the GPU, warm."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _two_pass(*tensors: Tensor) -> Tensor:
    return mamba.bimamba(*tensors)


def _backends() -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {"cuda": bimamba}
    if mamba.available()[0]:
        found["mamba_ssm"] = _two_pass
    found["eager"] = eager.bimamba
    return found


def _arguments(batch: int, length: int, width: int) -> list[Tensor]:
    from bench.kernels import example

    values = [t.to(DEVICE) for t in example(width, 1)]
    return [torch.randn(batch, length, 2 * width, device=DEVICE, dtype=torch.bfloat16), *values[1:]]


def _time_one(
    compute: Callable[..., Tensor], tensors: list[Tensor], backward: bool, repeats: int
) -> tuple[float, float]:
    """Milliseconds and peak memory in GiB beyond the arguments."""
    # Inputs take turns, so that no call finds its own in the cache.
    turns = 3 if tensors[0].numel() < 2**29 else 1
    inputs = [tensors[0].clone().requires_grad_(backward) for _ in range(turns)]
    parameters = [t.clone().requires_grad_(backward) for t in tensors[1:]]
    grad = torch.randn(*tensors[0].shape[:2], tensors[0].shape[2] // 2, device=DEVICE, dtype=tensors[0].dtype)
    count = 0

    def call() -> None:
        nonlocal count
        xz = inputs[count % turns]
        count += 1
        with torch.set_grad_enabled(backward):
            y = compute(xz, *parameters)
        if backward:
            torch.autograd.grad(y, [xz, *parameters], grad)

    torch.cuda.synchronize()
    call()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(call, repeats)
    return ms, (torch.cuda.max_memory_allocated() - before) / 2**30


def scan_rows(machine: Machine, late: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """One row per shape, width, pass and backend; those that time does not allow say so."""
    for width_name, width in WIDTHS.items():
        for shape, batch, length in SHAPES:
            for backward in (False, True):
                row: dict[str, Any] = {
                    "what": "bimamba",
                    "encoder": width_name,
                    "shape": shape,
                    "batch": batch,
                    "length": length,
                    "width": width,
                    "pass": "forward+backward" if backward else "forward",
                    "floor_ms": floor_ms(machine, batch, length, width, backward),
                }
                for name, compute in _backends().items():
                    if late():
                        yield {**row, "backend": name, "note": "no time left"}
                        continue
                    print(f"{width_name}, {shape}, {row['pass']}, {name}", file=sys.stderr, flush=True)
                    try:
                        tensors = _arguments(batch, length, width)
                        # plain torch is far slower: fewer repeats
                        ms, peak = _time_one(compute, tensors, backward, 3 if name == "eager" else REPEATS)
                        yield {**row, "backend": name, "ms": round(ms, 4), "peak_gib": round(peak, 3)}
                    except torch.OutOfMemoryError:
                        yield {**row, "backend": name, "note": "out of memory"}
                    finally:
                        tensors = []
                        torch.cuda.empty_cache()


def encoder_rows(late: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Clips a second of whole encoders, 8 frames of 224 pixels, bfloat16 autocast; inference and training."""
    import vtr.encoders.videomamba as videomamba

    for size, batch in ENCODERS:
        for training in (False, True):
            for name, compute in _backends().items():
                row = {
                    "what": "encoder",
                    "encoder": size,
                    "batch": batch,
                    "pass": "training" if training else "inference",
                    "backend": name,
                }
                if name == "eager" or late():
                    if name != "eager":
                        yield {**row, "note": "no time left"}
                    continue
                print(f"encoder {size}, {row['pass']}, {name}", file=sys.stderr, flush=True)
                ours, videomamba.bimamba = videomamba.bimamba, compute
                try:
                    yield {**row, **_encoder(videomamba, size, batch, training)}
                except torch.OutOfMemoryError:
                    yield {**row, "note": "out of memory"}
                finally:
                    videomamba.bimamba = ours
                    torch.cuda.empty_cache()


def _encoder(videomamba: Any, size: str, batch: int, training: bool) -> dict[str, Any]:
    model = videomamba.VideoMamba(videomamba.VIDEOMAMBA_SIZES[size]).to(DEVICE).train(training)
    videos = [torch.randn(batch, 8, 3, 224, 224, device=DEVICE) for _ in range(2)]
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        with torch.set_grad_enabled(training), torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = model(videos[count % 2]).pooled
        if training:
            out.float().square().mean().backward()
            model.zero_grad(set_to_none=True)

    call()
    torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(call, 7)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"ms": round(ms, 2), "clips_per_second": round(batch / ms * 1e3, 1), "peak_gib": round(peak, 2)}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Measured speed of the CUDA kernels",
        "",
        "Written by `python -m bench.kernels --device cuda`.",
        "",
        *(f"- {name}: {value}" for name, value in report["machine"].items()),
        "",
        "Milliseconds are medians of warm calls with rotating inputs, bfloat16; memory is the peak beyond the arguments.",
        "The floor is what the exponentials, or the bytes, take at the least on this GPU.",
        "",
        "| encoder | shape | pass | floor ms | ours ms | of floor | mamba-ssm ms | times faster | eager ms | times faster"
        " | ours GiB | mamba-ssm GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        key = (row["what"], row["encoder"], row.get("shape"), row.get("batch"), row.get("length"), row["pass"])
        groups.setdefault(key, {})[row["backend"]] = row

    def shown(row: dict[str, Any] | None, name: str, digits: int = 3) -> str:
        if row is None:
            return "-"
        return f"{row[name]:.{digits}f}" if name in row else str(row.get("note", "-"))

    def ratio(a: dict[str, Any] | None, b: dict[str, Any] | None, name: str = "ms") -> str:
        return f"{a[name] / b[name]:.2f}x" if a and b and name in a and name in b else "-"

    for (what, encoder, shape, batch, length, which), found in groups.items():
        if what != "bimamba":
            continue
        ours, theirs, plain = (found.get(name) for name in ("cuda", "mamba_ssm", "eager"))
        floor = next(iter(found.values()))["floor_ms"]
        of_floor = f"{ours['ms'] / floor:.2f}" if ours and "ms" in ours else "-"
        lines.append(
            f"| {encoder} | {shape} {batch} x {length} | {which} | {floor:.3f} | {shown(ours, 'ms')} | {of_floor} |"
            f" {shown(theirs, 'ms')} | {ratio(theirs, ours)} | {shown(plain, 'ms')} | {ratio(plain, ours)} |"
            f" {shown(ours, 'peak_gib', 2)} | {shown(theirs, 'peak_gib', 2)} |"
        )
    lines += [
        "",
        "Whole encoders, 8 frames of 224 pixels, bfloat16 autocast:",
        "",
        "| encoder | batch | pass | ours clips/s | with mamba-ssm clips/s | times faster | ours GiB | with mamba-ssm GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (what, encoder, _, batch, _, which), found in groups.items():
        if what == "encoder":
            ours, theirs = found.get("cuda"), found.get("mamba_ssm")
            lines.append(
                f"| {encoder} | {batch} | {which} | {shown(ours, 'clips_per_second', 1)} |"
                f" {shown(theirs, 'clips_per_second', 1)} | {ratio(theirs, ours)} | {shown(ours, 'peak_gib', 1)} |"
                f" {shown(theirs, 'peak_gib', 1)} |"
            )
    return "\n".join(lines) + "\n"


def run(minutes: float, out: Path, mamba_source: Path | None) -> dict[str, Any]:
    """Measures everything that the time allows; the files are rewritten after every row, so a stop loses nothing.

    Args:
        minutes: When to stop starting new measurements.
        out: Gets gpu.json and gpu.md.
        mamba_source: Folder with the released source archives of mamba-ssm and causal-conv1d.

    Raises:
        VtrError: no GPU, or not all that the comparison needs.
    """
    start = time.monotonic()
    ours = next(row for row in backend_info() if row.name == "cuda")
    if not ours.available:
        raise VtrError(f"nothing to measure: the CUDA kernels are not available here ({ours.reason})")
    built = "not measured"
    if mamba_source is not None:
        from bench import mamba_baseline

        print("building mamba-ssm for comparison", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            built = mamba_baseline.install(mamba_source, Path(scratch))
            mamba._package.cache_clear()
    elif mamba.available()[0]:
        built = "as installed"
    machine = Machine.here()
    report: dict[str, Any] = {
        "machine": {
            "device": machine.name,
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "Python": platform.python_version(),
            "mamba-ssm": built,
            "highest clock": f"{machine.clock_ghz:.3f} GHz, {machine.multiprocessors} multiprocessors",
            "memory": f"{machine.bytes_per_second / 1e12:.2f} TB/s measured by a copy",
        },
        "rows": [],
    }
    out.mkdir(parents=True, exist_ok=True)

    def late() -> bool:
        return time.monotonic() - start > 60 * minutes

    def rows() -> Iterator[dict[str, Any]]:
        scans = scan_rows(machine, late)
        first = len(SHAPES) * 2 * len(_backends())
        for _, row in zip(range(first), scans):  # the middle width, then whole encoders, then the other widths
            yield row
        yield from encoder_rows(late)
        yield from scans

    with use_backend("cuda"):
        for row in rows():
            report["rows"].append(row)
            (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
            (out / "gpu.md").write_text(table(report))
    return report


def main(minutes: float, out: Path, mamba_source: Path | None, as_json: bool) -> int:
    """The part of the command line for GPUs."""
    report = run(minutes, out, mamba_source)
    print(json.dumps(report["rows"], indent=1) if as_json else table(report))
    print(f"written: {out / 'gpu.md'}, {out / 'gpu.json'}", file=sys.stderr)
    return 0
