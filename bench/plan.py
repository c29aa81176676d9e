"""A plan on paper for embedding many hours of video: cores, GPUs, bytes, parts, index. Rates are yours to measure.

python -m bench.plan                                       # a million hours, at the rates that the flags name
python -m bench.plan --hours 1e4 --decode 60 --encode 200  # rates as `python -m bench.indexing` prints them on your machine

What is computed: segments from windows, core-hours and GPU-hours from the rates, bytes from the width. What is measured
here and now: the bytes and seconds of one part of so many random vectors, written and read as `vtr embed` and `vtr index
build --from` do.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.command import parsed
from vtr.errors import reports_errors
from vtr.library.index import plan as index_plan
from vtr.library.parts import Part, PartVideo, read_part, write_part
from vtr.library.rows import Span


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Work out what an archive takes."""

    hours: float = 1e6
    """Of video."""
    decode: float = 24.0
    """Hours of video that a core decodes in an hour."""
    encode: float = 400.0
    """Hours of video that a GPU encodes in an hour."""
    width: int = 512
    """Of the embedding."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""
    media: float = 1.0
    """Gigabytes of an hour of video: what a part of --part holds."""
    part: float = 64.0
    """Gigabytes of media in a part."""
    memory: float = 256.0
    """Gigabytes for the index of a machine that searches."""
    json: bool = False
    """Print the figures as JSON."""


def part_cost(segments: int, width: int) -> tuple[float, float]:
    """Bytes, and seconds of processor time to write and read it, of one part of so many segments."""
    vectors = np.random.default_rng(0).standard_normal((segments, width), dtype=np.float32)
    of_film = 900
    videos = [
        PartVideo(
            path=f"/archive/{v:06d}.mp4",
            spans=[Span(4.0 * i, 4.0 * i + 8) for i in range(min(of_film, segments - v * of_film))],
        )
        for v in range(-(-segments // of_film))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder) / "p.parquet", time.process_time()
        write_part(path, Part(videos=videos, vectors=vectors), origin={"width": width})
        read_part(path, width)
        return path.stat().st_size, time.process_time() - begun


def worked_out(settings: PlanSettings) -> dict[str, float | str]:
    """Figures by name."""
    segments = settings.hours * 3600 / settings.stride
    parts = max(1.0, settings.hours * settings.media / settings.part)
    inside = min(100_000, max(1, round(segments / parts)))
    size, seconds = part_cost(inside, settings.width)
    cores, gpus = settings.hours / settings.decode, settings.hours / settings.encode
    return {
        "hours": settings.hours,
        "segments": segments,
        "core_hours": cores,
        "gpu_hours": gpus,
        "cores_a_gpu": cores / gpus,
        "days_on_1000_cores": cores / 24e3,
        "vectors_TB": segments * settings.width * 4 / 1e12,
        "parts": parts,
        "part_MB": size * (segments / parts) / inside / 1e6,
        "parts_TB": size * segments / inside / 1e12,
        "parts_core_hours": seconds * segments / inside / 3600,
        "index": str(index_plan(int(segments), settings.width, int(settings.memory * 1e9))["type"]),
    }


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(PlanSettings, __doc__, argv)
    figures = worked_out(settings)
    if settings.json:
        print(json.dumps(figures))
        return 0
    for name, value in figures.items():
        print(f"{name:<20}{value if isinstance(value, str) else f'{value:,.4g}'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
