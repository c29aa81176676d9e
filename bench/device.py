"""A GPU as the benchmarks see it: its rates, times and memory; and the CPU in its place, to rehearse them."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where something is measured, and the rates that a floor is made of."""

    type: str  # of torch: "cuda", or "cpu" in a rehearsal
    name: str
    multiprocessors: int
    clock_ghz: float  # the highest the multiprocessors may run at
    bytes_per_second: float  # of a copy inside the device's memory, measured

    @classmethod
    def here(cls) -> Device:
        """The current GPU."""
        properties = torch.cuda.get_device_properties(0)
        source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        found = cls(
            type="cuda",
            name=properties.name,
            multiprocessors=properties.multi_processor_count,
            clock_ghz=_highest_clock(),
            bytes_per_second=0.0,
        )
        ms = found.milliseconds(lambda: target.copy_(source), 15)
        return cls(**{**vars(found), "bytes_per_second": 2 * source.numel() / ms * 1e3})

    @classmethod
    def rehearsal(cls) -> Device:
        """The CPU: what is timed on it says nothing, only that the commands run."""
        return cls(type="cpu", name="CPU, a rehearsal", multiprocessors=1, clock_ghz=1.0, bytes_per_second=1e9)

    def milliseconds(self, call: Callable[[], object], repeats: int) -> float:
        """Median time of a call, warm."""
        if self.type == "cpu":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        for _ in range(WARM_UP):
            call()
        times = []
        for _ in range(repeats):
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start_event.record()
            call()
            end_event.record()
            end_event.synchronize()
            times.append(start_event.elapsed_time(end_event))
        return statistics.median(times)

    def allocated(self) -> int:
        """Bytes of tensors now; what was the most is forgotten."""
        if self.type == "cpu":
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def most_gib(self, before: int = 0) -> float:
        """GiB of tensors at the most since `allocated`, beyond `before` bytes."""
        return 0.0 if self.type == "cpu" else (torch.cuda.max_memory_allocated() - before) / 2**30

    def free(self) -> None:
        """Give memory that no tensor uses back."""
        if self.type == "cuda":
            torch.cuda.empty_cache()

    def facts(self) -> dict[str, str]:
        """For the head of a report."""
        if self.type == "cpu":
            return {}
        return {
            "highest clock": f"{self.clock_ghz:.3f} GHz, {self.multiprocessors} multiprocessors",
            "memory": f"{self.bytes_per_second / 1e12:.2f} TB/s measured by a copy",
        }


def _highest_clock() -> float:
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) / 1e3
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 1.755
