"""Times bimamba on a CPU: the step-by-step loop, the chunked torch path and the C kernels, in one run.

python -m bench.kernels                          # widths of tiny and middle, a video of eight frames
python -m bench.kernels --threads 2 --json
python -m bench.kernels --widths 64 --length 99  # a moment, to try it

On a GPU: bench.kernels_cuda. Needs torch alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.command import flags_of, table, whole_number
from bench.kernel_cases import LENGTH, STATES, WIDTHS, example
from vtr.errors import reports_errors
from vtr.kernels.bimamba import backend_info, bimamba, eager, use_backend

REPEATS = {"c": 15, "eager": 5, "loop": 3}


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


def measure(widths: Sequence[int], length: int = LENGTH) -> list[dict[str, object]]:
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


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    positive = whole_number(1)
    parser.add_argument(
        "--widths", type=positive, nargs="+", default=[WIDTHS["tiny"], WIDTHS["middle"]], help="inner widths"
    )
    parser.add_argument("--length", type=positive, default=LENGTH, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="of torch and of the kernels (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list")
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = measure(options.widths, options.length)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    c_row = next(row for row in backend_info() if row.name == "c")
    print(
        f"bimamba, B=1, L={options.length}, N={STATES}, float32, {torch.get_num_threads()} threads; C: {c_row.reason}\n"
    )
    print(table(("width", "pass", "backend", "ms", "vs loop", "vs eager"), (
        (r["width"], r["pass"], r["backend"], f"{r['ms']:.2f}", f"{r['times_faster_than_loop']:.1f}x", f"{r['times_faster_than_eager']:.1f}x")
        for r in rows
    )))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
