"""Times whole encoders on a GPU: VideoMamba with our kernels and mamba-ssm's, and TimeSformer with joint attention.

python -m bench.encoders_cuda --out runs/gpu                 # inference and training; encoders.json grows row by row
python -m bench.encoders_cuda --out runs/gpu --minutes 2     # what the time allows, the most wanted first
python -m bench.encoders_cuda --out /tmp/gpu --rehearse      # tiny, on the CPU: whether it runs

B batch, T frames.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import vtr.encoders.videomamba as videomamba
from bench.command import flags_of
from bench.device import Device
from bench.kernels_cuda import Late, backends, facts, the_device
from bench.report import EncoderRow, Part
from vtr.errors import reports_errors
from vtr.eval.peers import TIMESFORMER_SIZES, TimeSformer

REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class Case:
    """One encoder at one batch."""

    size: str
    frames: int
    batch: int
    pixels: int = 224


ENCODERS = (
    Case(size="middle", frames=8, batch=32),
    Case(size="small", frames=8, batch=64),
    Case(size="tiny", frames=8, batch=128),
)
# Fig. 1 has a batch of 128; what does not fit is halved until it does, for both.
LENGTHS = tuple(Case(size="tiny", frames=frames, batch=128) for frames in (64, 8, 16, 32))


def _time_one(device: Device, model: nn.Module, case: Case, training: bool) -> tuple[float, float]:
    """Milliseconds of a batch, and GiB at the most."""
    video = torch.randn(case.batch, case.frames, 3, case.pixels, case.pixels, device=device.type)

    def call() -> None:
        with torch.set_grad_enabled(training), torch.autocast(device.type, dtype=torch.bfloat16):
            out = _features(model, video)
        if training:
            out.float().square().mean().backward()
            model.zero_grad(set_to_none=True)

    call()
    device.allocated()
    return device.milliseconds(call, REPEATS), device.most_gib()


def _features(model: nn.Module, video: Tensor) -> Tensor:
    return model(video).pooled if isinstance(model, videomamba.VideoMamba) else model.classify(video)


def build(name: str, case: Case, fused: bool = True) -> nn.Module:
    """An untrained encoder."""
    if name == "VideoMamba":
        sizes = replace(videomamba.VIDEOMAMBA_SIZES[case.size], num_frames=case.frames, image_size=case.pixels)
        return videomamba.VideoMamba(replace(sizes, depth=2) if case.pixels < 224 else sizes)
    return TimeSformer(
        replace(TIMESFORMER_SIZES[case.size], num_frames=case.frames, image_size=case.pixels, fused=fused)
    )


def _row(device: Device, model: nn.Module, case: Case, row: EncoderRow) -> EncoderRow:
    try:
        ms, peak = _time_one(
            device, model.to(device.type).train(row.passes == "training"), case, row.passes == "training"
        )
        return replace(row, ms=round(ms, 2), clips_per_second=round(case.batch / ms * 1e3, 1), peak_gib=round(peak, 3))
    except torch.OutOfMemoryError:
        return replace(row, note="out of memory")
    finally:
        del model
        device.free()


def encoder_rows(device: Device, cases: Sequence[Case], late: Late) -> Iterator[EncoderRow]:
    """VideoMamba by our kernels and by mamba-ssm's, inference and training."""
    for case in cases:
        for passes in ("training", "inference"):
            for name, compute in backends(device).items():
                if name == "eager":
                    continue
                row = _described("VideoMamba", case, passes, name)
                if late():
                    yield replace(row, note="no time left")
                    continue
                print(f"VideoMamba {case.size}, {passes}, {name}", file=sys.stderr, flush=True)
                ours, videomamba.bimamba = videomamba.bimamba, compute
                try:
                    yield _row(device, build("VideoMamba", case), case, row)
                finally:
                    videomamba.bimamba = ours


def peer_rows(device: Device, cases: Sequence[Case], late: Late) -> Iterator[EncoderRow]:
    """VideoMamba beside TimeSformer with fused and with naive joint attention, inference, at the batch that fits all."""
    for given in cases:
        case, wanted = given, [("naive", False), ("fused", True), ("cuda", True)]
        while wanted and not late():
            name, fused = wanted[0]
            model = "VideoMamba" if name == "cuda" else "TimeSformer"
            print(f"{model} {case.size}, {case.frames} frames, batch {case.batch}, {name}", file=sys.stderr, flush=True)
            row = _row(device, build(model, case, fused), case, _described(model, case, "inference", name))
            if row.note and case.batch > 1:
                case, wanted = replace(case, batch=case.batch // 2), [("naive", False), ("fused", True), ("cuda", True)]
                continue
            yield row
            wanted = wanted[1:]
        for name, _ in wanted:
            model = "VideoMamba" if name == "cuda" else "TimeSformer"
            yield replace(_described(model, case, "inference", name), note="no time left")


def _described(model: str, case: Case, passes: str, backend: str) -> EncoderRow:
    return EncoderRow(model=model, size=case.size, frames=case.frames, batch=case.batch, passes=passes, backend=backend)


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder of encoders.json (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="when to stop starting new measurements")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: measures nothing")
    options = parser.parse_args(argv)
    device = the_device(options.rehearse)
    encoders, lengths = ENCODERS, LENGTHS
    if options.rehearse:
        encoders, lengths = (
            tuple(replace(case, size="tiny", frames=2, batch=1, pixels=32) for case in cases)
            for cases in (ENCODERS[:1], LENGTHS[:1])
        )
    end = time.monotonic() + 60 * options.minutes
    half = time.monotonic() + 30 * options.minutes
    part = Part(options.out / "encoders.json", facts(device))
    for row in encoder_rows(device, encoders, lambda: time.monotonic() > half):
        part.add(row)
    for row in peer_rows(device, lengths, lambda: time.monotonic() > end):
        part.add(row)
    print(f"written: {part.path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
