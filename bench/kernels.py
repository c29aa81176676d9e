"""Times bimamba: the step-by-step loop, the chunked torch path and the C kernels, in one run on one machine.

`python -m bench.kernels --device cpu [--json] [--threads N]`; `--device cuda` is in kernels_cuda.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vtr.errors import VtrError
from vtr.kernels.bimamba import backend_info, bimamba, eager, use_backend

LENGTH = 1569  # one CLS token and eight frames of 14 x 14 patches
WIDTHS = (384, 1152)  # inner widths of the tiny and the middle encoder
STATES, TAPS = 16, 4
REPEATS = {"c": 15, "eager": 5, "loop": 3}


def example(width: int, length: int = LENGTH, batch: int = 1, states: int = STATES, seed: int = 0) -> list[Tensor]:
    """The fifteen arguments of `bimamba` with the statistics that an untrained VideoMamba gives them, float32."""
    g = torch.Generator().manual_seed(seed)
    rank = max(1, width // 32)
    values = [torch.randn(batch, length, 2 * width, generator=g)]
    for _ in range(2):
        step = torch.exp(torch.rand(width, generator=g) * math.log(100) + math.log(1e-3))  # 1e-3 .. 1e-1
        values += [
            (torch.rand(width, TAPS, generator=g) - 0.5) * 2 / TAPS**0.5,
            (torch.rand(width, generator=g) - 0.5) * 2 / TAPS**0.5,
            torch.randn(rank + 2 * states, width, generator=g) / width**0.5,
            (torch.rand(width, rank, generator=g) - 0.5) * 2 / rank**0.5,
            step + torch.log(-torch.expm1(-step)),  # softplus of it is `step`
            torch.log(torch.arange(1.0, states + 1)).expand(width, states).clone(),
            torch.ones(width),
        ]
    return values


def _loop(*tensors: Tensor) -> Tensor:
    return eager.bimamba(*tensors, loop=True)


def _milliseconds(compute: Callable[..., Tensor], tensors: Sequence[Tensor], backward: bool, repeats: int) -> float:
    """Median wall time of one call; with `backward`, of the call and the gradients of all fifteen arguments."""
    leaves = [t.clone().requires_grad_(backward) for t in tensors]
    grad = torch.ones(*tensors[0].shape[:2], tensors[0].shape[2] // 2)  # what the layers above would hand down
    times = []
    # One warm-up, but for a lone repeat: that is for cases too slow to be run twice.
    for turn in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            y = compute(*leaves)
        if backward:
            torch.autograd.grad(y, leaves, grad)
        if turn or repeats == 1:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(widths: Sequence[int] = WIDTHS, length: int = LENGTH) -> list[dict[str, object]]:
    """One row per width, pass and backend.

    Returns:
        Rows with `width`, `pass` ("forward" | "forward+backward"), `backend` ("loop" | "eager" | "c"), `ms`,
        `times_faster_than_loop`, `times_faster_than_eager`. Without a compiler the C rows are left out.
    """
    backends: dict[str, Callable[..., Tensor]] = {"loop": _loop, "eager": eager.bimamba}
    if next(row for row in backend_info() if row.name == "c").available:
        backends["c"] = bimamba
    rows: list[dict[str, object]] = []
    for width in widths:
        tensors = example(width, length)
        for backward in (False, True):
            ms = {}
            for name, compute in backends.items():
                print(f"width {width}, {'forward+backward' if backward else 'forward'}, {name}", file=sys.stderr)
                if name == "c":
                    with use_backend("c"):
                        ms[name] = _milliseconds(compute, tensors, backward, REPEATS[name])
                else:
                    ms[name] = _milliseconds(compute, tensors, backward, REPEATS[name])
            for name, value in ms.items():
                rows.append(
                    {
                        "width": width,
                        "pass": "forward+backward" if backward else "forward",
                        "backend": name,
                        "ms": round(value, 3),
                        "times_faster_than_loop": round(ms["loop"] / value, 2),
                        "times_faster_than_eager": round(ms["eager"] / value, 2),
                    }
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure")
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads of torch and of the kernels (default: torch's)"
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="GPU: when to stop starting new measurements")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="GPU: where gpu.md is written")
    parser.add_argument(
        "--mamba-source", type=Path, default=None, help="GPU: folder with mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz"
    )
    options = parser.parse_args(arguments)
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    try:
        if options.device == "cuda":
            from bench import kernels_cuda

            return kernels_cuda.main(options.minutes, options.out, options.mamba_source, options.json)
        info = backend_info()
        rows = measure()
    except VtrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    c_row = next(row for row in info if row.name == "c")
    print(f"bimamba, B=1, L={LENGTH}, N={STATES}, float32, {torch.get_num_threads()} threads; C: {c_row.reason}")
    print(f"{'width':>6} {'pass':<17} {'backend':<8} {'ms':>10} {'vs loop':>9} {'vs eager':>9}")
    for row in rows:
        print(
            f"{row['width']:>6} {row['pass']:<17} {row['backend']:<8} {row['ms']:>10.2f} "
            f"{row['times_faster_than_loop']:>8.1f}x {row['times_faster_than_eager']:>8.1f}x"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
