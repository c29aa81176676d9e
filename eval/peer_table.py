"""Encoders side by side: published R@1, sense of time, speed, memory, parameters; what is not known is named.

vtr results --peers                     # from the results and measurements that are there
vtr results --peers --measure           # speed and memory measured here first, with random weights (minutes an encoder)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from vtr.encoders.base import VideoEncoder
from vtr.encoders.registry import build_encoder, find_encoder
from vtr.errors import VtrError, unknown_name
from vtr.eval.results import find_results
from vtr.files import read_manifest, write_atomically
from vtr.models.registry import OPEN_CLIP

STRIDE = 4.0  # seconds between the windows of a library
FRAMES = 8
_TIME = ("rtime", "vitatecs_msrvtt", "vitatecs_vatex", "cia_ssv2", "demo_reversed")


class _Entry(TypedDict, total=False):
    name: str
    load: str
    build: str
    row: str
    published: dict[str, float]
    source: str


class Measured(NamedTuple):
    """Of one encoder on this machine."""

    parameters: float  # millions, of the video side
    hours: float  # of video an hour of one thread: windows every 4 s, encoding alone
    gib: float  # the process's peak
    where: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder of the table; None where nothing is known."""

    name: str
    row: str
    published: Mapping[str, float]
    source: str
    direction: Mapping[str, float]  # right decisions by benchmark, chance 50
    measured: Measured | None

    def gaps(self) -> list[str]:
        """What is not known of it."""
        out = [] if self.published else ["published R@1"]
        out += [] if self.direction else ["direction accuracy"]
        return out + ([] if self.measured else ["speed, memory and parameters"])


def entries() -> list[_Entry]:
    """The encoders of `data_manifests/peers/encoders.toml`."""
    return cast("list[_Entry]", read_manifest("peers", "encoders")["encoder"])


def peer_rows(results: Iterable[Path], measured: Path) -> list[Row]:
    """The table from result files and the file of measurements; either may be absent."""
    known = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else {}
    there = [path for path in results if path.exists()]
    try:
        found = find_results(there) if there else []
    except VtrError:  # a folder without results: every direction is a gap
        found = []
    rows = []
    listed = entries()
    own = {r["model"] for r in found if r["benchmark"] in _TIME} - {e.get("load") for e in listed}
    for entry in [*listed, *({"name": name, "load": name} for name in sorted(own))]:
        direction = {
            r["benchmark"]: next(iter(r["order"].values()))["all"]
            for r in found
            if r["model"] == entry.get("load") and r["benchmark"] in _TIME and r.get("order")
        }
        name = str(entry["name"])
        rows.append(
            Row(
                name=name,
                row=str(entry.get("row", "")),
                published=cast("dict[str, float]", entry.get("published", {})),
                source=str(entry.get("source", "ours")),
                direction=direction,
                measured=Measured(**known[name]) if name in known else None,
            )
        )
    return rows


def peer_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and below it the sources and the gaps."""
    sets = list(dict.fromkeys(s for row in rows for s in row.published))
    titles = ["encoder", "row", *sets, "direction, %", "h of video an h", "GiB", "M parameters"]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        direction = ", ".join(f"{name} {value:.1f}" for name, value in row.direction.items())
        cells = [row.name, row.row, *(f"{row.published[s]:g}" if s in row.published else "" for s in sets), direction]
        of = row.measured
        lines.append(
            [*cells, *(("", "", "") if of is None else (f"{of.hours:.1f}", f"{of.gib:.2f}", f"{of.parameters:.0f}"))]
        )
    out = [f"| {' | '.join(line)} |" for line in lines]
    where = dict.fromkeys(row.measured.where for row in rows if row.measured)
    out += ["", "R@1: zero-shot, text to video, as published (re-ranked and embedding rows do not compare); direction: right "
            f"decisions, chance 50; speed: one thread, {FRAMES} frames a window, a window every {STRIDE:g} s, encoding alone, random "
            f"weights{'; ' + '; '.join(where) if where else ''}.", ""]  # fmt: skip
    out += [
        f"- {row.name}: {row.source}" + (f"; not known: {', '.join(gaps)}" if (gaps := row.gaps()) else "")
        for row in rows
    ]
    return "\n".join(out)


class _Frames(nn.Module):
    """An image tower over the frames of a clip."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, clip: Tensor) -> Tensor:
        return cast(Tensor, self.tower(clip.flatten(0, 1)))


def _built(build: str) -> tuple[nn.Module, int]:
    """A video side with random weights, and its frames' side in pixels."""
    if build.startswith(OPEN_CLIP):
        import open_clip

        name = build.removeprefix(OPEN_CLIP)
        config = open_clip.get_model_config(name)
        if config is None:
            raise unknown_name("model of open_clip", name, open_clip.list_models())
        least = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}  # no text is measured
        visual = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], least).visual
        size = visual.image_size
        return _Frames(visual).eval(), size if isinstance(size, int) else size[0]
    own = find_encoder(build)
    return build_encoder(own).eval(), own.image_size


@torch.inference_mode()
def measure(build: str, repeats: int = 1) -> Measured:
    """Speed, memory and parameters of an encoder, in this process and on one thread."""
    from vtr.eval.ablate import here
    from vtr.eval.zero_shot import peak_memory

    torch.set_num_threads(1)
    model, side = _built(build)
    clip = torch.rand(1, FRAMES, 3, side, side)
    run = model.features if isinstance(model, VideoEncoder) else model
    run(clip[:, :1])  # kernels are made
    start = time.process_time()
    for _ in range(repeats):
        run(clip)
    seconds = (time.process_time() - start) / repeats
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return Measured(round(millions, 2), round(STRIDE / seconds, 3), peak_memory(), here())


def measure_all(path: Path) -> None:
    """Measure what is not in the file yet, each in a process of its own; those that fail are named."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for entry in entries():
        if entry["name"] in known or "build" not in entry:
            continue
        print(f"measuring {entry['name']}", file=sys.stderr)
        call = [sys.executable, "-m", "vtr.eval.peer_table", entry["build"]]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            print(f"vtr: {entry['name']}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
            continue
        known[entry["name"]] = json.loads(done.stdout.splitlines()[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])._asdict()))
