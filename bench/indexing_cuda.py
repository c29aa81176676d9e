"""Times indexing: hours of video an hour, of generated H.264 files, by an untrained encoder of a size.

python -m bench.indexing_cuda --out runs/gpu                    # middle, sixteen minutes of video; indexing.json
python -m bench.indexing_cuda --out runs/gpu --size tiny --videos 4
python -m bench.indexing_cuda --out /tmp/gpu --rehearse         # tiny, on the CPU: whether it runs

Needs av beside torch.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.command import flags_of, whole_number
from bench.kernels_cuda import facts, the_device
from bench.loader import textured_clip
from bench.report import Figure, Part
from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
from vtr.errors import VtrError, reports_errors
from vtr.library import Library
from vtr.library.settings import Work
from vtr.models.video_text import ModelConfig, VideoTextModel


def index(
    size: str, videos: int, seconds: float, pixels: int, device: str, workers: Sequence[int]
) -> dict[int, tuple[float, int, float]]:
    """Index generated files: seconds of video, segments, seconds that it took, by the number of decoding processes."""
    torch.manual_seed(0)
    sizes = replace(VIDEOMAMBA_SIZES[size], image_size=pixels, pool_norm=True)
    text = BertConfig(hidden=64, layers=2, fusion_layer=1, heads=1, intermediate=64, vocab_size=200)
    tokenizer = Tokenizer.train(["a dog"], 200)
    model = VideoTextModel(ModelConfig(video=sizes, text=text), tokenizer).eval().to(device)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(videos + 1):
            path = folder / ("warm" if not number else "films") / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(textured_clip(rng, seconds=seconds if number else 2.0))
        out = {}
        for number in workers:
            library = Library.create(folder / f"library{number}", model)
            library.add(folder / "warm", work=Work(workers=number))
            start = time.perf_counter()
            report = library.add(folder / "films", work=Work(workers=number))
            out[number] = videos * seconds, report.segments, time.perf_counter() - start
            if report.failed:
                raise VtrError(f"{len(report.failed)} generated files could not be indexed: {report.failed[0]}")
    return out


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder of indexing.json (default: %(default)s)"
    )
    parser.add_argument("--size", choices=list(VIDEOMAMBA_SIZES), default="middle", help="of the encoder")
    parser.add_argument("--videos", type=whole_number(1), default=8, help="files")
    parser.add_argument("--seconds", type=whole_number(1), default=120, help="of a file")
    parser.add_argument("--workers", type=whole_number(0), nargs="+", default=[1, 8, 16], help="decoding processes")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: measures nothing")
    options = parser.parse_args(argv)
    device = the_device(options.rehearse)
    if options.rehearse:
        found = index("tiny", 1, 2.0, 32, device.type, options.workers[:1])
    else:
        found = index(options.size, options.videos, options.seconds, 224, device.type, options.workers)
    part = Part(options.out / "indexing.json", facts(device))
    for workers, (seconds, segments, took) in found.items():
        here = f"{workers} decoding processes"
        for what, value, unit in (
            (f"video, {here}", seconds, "s"),
            (f"segments, {here}", segments, ""),
            (f"time, {here}", round(took, 2), "s"),
            (f"{options.size}: hours of video an hour, {here}", round(seconds / took, 1), ""),
        ):
            part.add(Figure(what=what, value=value, unit=unit))
        print(f"{here}: {seconds:.0f} s of video in {took:.1f} s: {seconds / took:.1f} hours an hour; {part.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
