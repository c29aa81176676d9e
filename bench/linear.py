"""Times torch's linear layers and ours at the sizes of VideoMamba and BERT-base, side by side.

python -m bench.linear --threads 1
python -m bench.linear --threads 2 --repeats 3 --json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.command import parsed
from vtr.errors import UsageError, reports_errors
from vtr.kernels.linear import linear, linear_info

SHAPES = {
    # (rows, K, N) of one clip or text; VideoMamba's tokens are 196 a frame and CLS, BERT's batch is 32 texts of 32 tokens.
    f"{size} {layer}, {frames} frames": (1 + frames * 196, k, n)
    for size, dim in (("tiny", 192), ("middle", 576))
    for frames in (8, 64)
    for layer, k, n in (("in_proj", dim, 4 * dim), ("out_proj", 2 * dim, dim))
} | {
    "BERT-base attention": (1024, 768, 768),
    "BERT-base up": (1024, 768, 3072),
    "BERT-base down": (1024, 3072, 768),
}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Time torch's linear and ours at the sizes of VideoMamba and BERT-base, side by side."""

    threads: int = 1
    """Of torch."""
    repeats: int = 10
    """Timed calls of each; the fastest counts."""
    json: bool = False
    """Print the rows as JSON."""


def _seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bench(settings: BenchSettings) -> list[dict[str, Any]]:
    """A row a shape: GFLOP/s of torch's and ours, forward, and forward with both gradients.

    Raises:
        UsageError: threads or repeats below 1.
    """
    for name in ("threads", "repeats"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name} {getattr(settings, name)}: expected 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    generator, rows = torch.Generator().manual_seed(0), []
    try:
        for name, (m, k, n) in SHAPES.items():
            x = torch.randn(m, k, generator=generator, requires_grad=True)
            weight = torch.randn(n, k, generator=generator, requires_grad=True)
            g = torch.randn(m, n, generator=generator)
            row: dict[str, Any] = {"layer": name, "rows": m, "k": k, "n": n}
            for way, function in (("torch", F.linear), ("ours", linear)):

                def forward(function: Callable[..., Tensor] = function, x: Tensor = x, w: Tensor = weight) -> None:
                    with torch.no_grad():
                        function(x, w)

                def both(
                    function: Callable[..., Tensor] = function, x: Tensor = x, w: Tensor = weight, g: Tensor = g
                ) -> None:
                    torch.autograd.grad(function(x, w), (x, w), g)

                gflop = 2e-9 * m * k * n
                row[f"forward_{way}"] = gflop / _seconds(forward, settings.repeats)
                row[f"both_{way}"] = 3 * gflop / _seconds(both, settings.repeats)
            rows.append(row)
            if not settings.json:
                print(_line(row), flush=True)
    finally:
        torch.set_num_threads(before)
    return rows


def _line(row: dict[str, Any]) -> str:
    cells = [f"{row['layer']:<26}{row['rows']:>6} x {row['k']:>4} x {row['n']:>4}"]
    for part in ("forward", "both"):
        theirs, ours = row[f"{part}_torch"], row[f"{part}_ours"]
        cells.append(f"{theirs:>8.0f}{ours:>8.0f}{ours / theirs:>7.2f}")
    return "  ".join(cells)


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """`python -m bench.linear`."""
    settings = parsed(BenchSettings, __doc__, argv)
    info = linear_info()
    if not settings.json:
        for row in info:
            print(f"{row.name}: {row.reason}" + (f"; used for {row.chosen_for}" if row.chosen_for else ""))
        print(
            f"{settings.threads} threads, GFLOP/s: torch, ours, ratio\n{'':<46}  {'forward':<23}  forward and backward"
        )
    rows = bench(settings)
    if settings.json:
        print(json.dumps({"threads": settings.threads, "backends": [asdict(row) for row in info], "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
