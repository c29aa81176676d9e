"""Times bimamba on a GPU: ours, mamba-ssm's two passes where it is installed, and plain torch, beside the floor.

python -m bench.kernels_cuda --out runs/gpu                    # every shape; kernels.json grows row by row
python -m bench.kernels_cuda --out runs/gpu --only reference --minutes 2
python -m bench.kernels_cuda --once 2 300                      # one forward and backward of that batch and length, for ncu
python -m bench.kernels_cuda --out /tmp/gpu --rehearse         # tiny, on the CPU: whether it runs

bench.mamba_baseline builds mamba-ssm for it, bench.report makes docs/results/gpu.md of what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from bench.command import flags_of, machine, whole_number
from bench.device import Device
from bench.kernel_cases import SHAPES, STATES, WIDTHS, Shape, example
from bench.report import Part, ScanRow
from vtr.errors import VtrError, reports_errors
from vtr.kernels.bimamba import backend_info, bimamba, eager, mamba, use_backend

REPEATS = 15
Late = Callable[[], bool]


def floor_ms(device: Device, batch: int, length: int, width: int, backward: bool, itemsize: int = 2) -> float:
    """The least time of a call: its exponentials, or its bytes, whichever takes longer.

    Exponentials: 16 a multiprocessor and clock; one per state, token, channel and direction, 6/32 more for softplus and
    gate; the backward computes them twice more. Bytes: 7 tensors (B, L, E) forward; with the backward 7 more of inputs
    and gradients.
    """
    elements = batch * length * width
    exponentials = 2 * elements * STATES * 38 / 32 + (2 * 2 * elements * STATES if backward else 0)
    special = exponentials / (16 * device.multiprocessors * device.clock_ghz * 1e9)
    return max(special, (14 if backward else 7) * elements * itemsize / device.bytes_per_second) * 1e3


def backends(device: Device) -> dict[str, Callable[..., Tensor]]:
    """What is measured, by name; in a rehearsal each name is there, and the CPU computes it."""
    found: dict[str, Callable[..., Tensor]] = {"cuda": bimamba}
    if device.type == "cpu":
        found["mamba_ssm"] = eager.bimamba
    elif mamba.available()[0]:
        found["mamba_ssm"] = mamba.bimamba
    return {**found, "eager": eager.bimamba}


def arguments(device: Device, batch: int, length: int, width: int) -> list[Tensor]:
    """bimamba's, with random tokens in bfloat16 and parameters in float32."""
    values = [t.to(device.type) for t in example(width, 1)]
    return [torch.randn(batch, length, 2 * width, device=device.type, dtype=torch.bfloat16), *values[1:]]


def _time_one(
    device: Device, compute: Callable[..., Tensor], tensors: list[Tensor], backward: bool, repeats: int
) -> tuple[float, float]:
    """Milliseconds and peak memory in GiB beyond the arguments."""
    # Inputs take turns, so that no call finds its own in the cache.
    turns = 3 if tensors[0].numel() < 2**29 else 1
    inputs = [tensors[0].clone().requires_grad_(backward) for _ in range(turns)]
    parameters = [t.clone().requires_grad_(backward) for t in tensors[1:]]
    grad = torch.randn(*tensors[0].shape[:2], tensors[0].shape[2] // 2, device=device.type, dtype=tensors[0].dtype)
    count = 0

    def call() -> None:
        nonlocal count
        xz = inputs[count % turns]
        count += 1
        with torch.set_grad_enabled(backward):
            y = compute(xz, *parameters)
        if backward:
            torch.autograd.grad(y, [xz, *parameters], grad)

    call()
    before = device.allocated()
    ms = device.milliseconds(call, repeats)
    return ms, device.most_gib(before)


def scan_rows(device: Device, shapes: Sequence[Shape], widths: dict[str, int], late: Late) -> Iterator[ScanRow]:
    """One row per width, shape, pass and backend; those that time does not allow say so."""
    ways = backends(device)
    for encoder, width in widths.items():
        for shape in shapes:
            for backward in (False, True):
                for name, compute in ways.items():
                    row = ScanRow(
                        encoder=encoder, shape=shape.name, batch=shape.batch, length=shape.length, width=width,
                        passes="forward+backward" if backward else "forward", backend=name,
                        floor_ms=floor_ms(device, shape.batch, shape.length, width, backward),
                    )  # fmt: skip
                    if late():
                        yield replace(row, note="no time left")
                        continue
                    print(f"{encoder}, {shape.name}, {row.passes}, {name}", file=sys.stderr, flush=True)
                    try:
                        tensors = arguments(device, shape.batch, shape.length, width)
                        # plain torch is far slower: fewer repeats
                        ms, peak = _time_one(device, compute, tensors, backward, 3 if name == "eager" else REPEATS)
                        yield replace(row, ms=round(ms, 4), peak_gib=round(peak, 3))
                    except torch.OutOfMemoryError:
                        yield replace(row, note="out of memory")
                    finally:
                        tensors = []
                        device.free()


def the_device(rehearse: bool) -> Device:
    """The GPU, or the CPU to rehearse.

    Raises:
        VtrError: no GPU, or the kernels cannot be compiled for it.
    """
    if rehearse:
        torch.set_num_threads(1)
        return Device.rehearsal()
    ours = next(row for row in backend_info() if row.name == "cuda")
    if not ours.available:
        raise VtrError(f"nothing to measure: the CUDA kernels are not available here ({ours.reason})")
    return Device.here()


def facts(device: Device) -> dict[str, str]:
    """The head of a report: the device, versions, and what mamba-ssm is compared with."""
    found = {**machine(device.type), **device.facts()}
    if device.type == "cpu":
        return {**found, "device": device.name}
    there, words = mamba.available()
    return {**found, "mamba-ssm": f"{version('mamba-ssm')}, {words}" if there else "not measured: " + words}


def once(device: Device, batch: int, length: int, width: int) -> None:
    """One forward and backward, for a profiler or a sanitizer to look at."""
    tensors = [t.requires_grad_() for t in arguments(device, batch, length, width)]
    gradients = torch.autograd.grad(bimamba(*tensors).float().square().mean(), tensors)
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise VtrError(f"bimamba of {batch} x {length} x {width}: a gradient is not finite")
    print(f"one forward and backward of {batch} x {length} x {width} on {device.name}")


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder of kernels.json (default: %(default)s)"
    )
    parser.add_argument("--only", choices=["reference", "middle"], help="the first shape, or all of the middle encoder")
    parser.add_argument("--minutes", type=float, default=6.0, help="when to stop starting new measurements")
    parser.add_argument(
        "--once", type=whole_number(1), nargs=2, metavar=("BATCH", "LENGTH"), help="call it once instead"
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: measures nothing")
    options = parser.parse_args(argv)
    device = the_device(options.rehearse)
    widths = dict(list(WIDTHS.items())[: 1 if options.only else None])
    shapes = SHAPES[: 1 if options.only == "reference" else None]
    if options.rehearse:
        widths = dict.fromkeys(widths, 32)
        shapes = tuple(shape._replace(batch=1, length=9) for shape in shapes)
    if options.once:
        once(device, *options.once, next(iter(widths.values())))
        return 0
    end = time.monotonic() + 60 * options.minutes
    part = Part(options.out / "kernels.json", facts(device))
    with use_backend("eager" if options.rehearse else "cuda"):
        for row in scan_rows(device, shapes, widths, lambda: time.monotonic() > end):
            part.add(row)
    print(f"written: {part.path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
