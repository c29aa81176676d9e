"""Several processes of `vtr embed` on uneven films: how long they wait for each other, and what a killed one costs.

python -m bench.embedding --out /tmp/embedding                  # 3 processes, 40 films of 4 to 60 s
python -m bench.embedding --out /tmp/embedding --kill           # the second process is killed in the middle
python -m bench.embedding --out /tmp/embedding --films 6 --longest 8 --json    # a moment, to try it

Idle is the time that processes wait because others have claimed all that is left, from when each has its model until all
is done, as a share of the time of all processes together.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.command import parsed
from vtr.errors import VtrError, reports_errors
from vtr.files import import_root


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Embed films of uneven lengths with several processes."""

    out: Path
    """A folder; films and model that are there are used again."""
    films: int = 40
    """Films."""
    longest: float = 60.0
    """Seconds of the longest; the shortest has a fifteenth, most are short."""
    processes: int = 3
    """Of vtr embed."""
    kill: bool = False
    """Kill one of them in the middle."""
    json: bool = False
    """Print the figures as JSON."""


def make_films(folder: Path, count: int, longest: float) -> list[float]:
    """Films of 320x240 whose lengths are spread as those of real folders are; returns their seconds."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    seconds = longest * np.exp(-rng.uniform(0, np.log(15), count))
    picture = rng.integers(0, 255, (240, 640, 3), np.uint8)
    for number, length in enumerate(seconds):
        path = folder / f"film{number:03d}.mp4"
        if path.is_file():
            continue
        with av.open(str(path.with_suffix(".tmp")), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for frame in range(max(10, int(length * 10))):
                shown = np.ascontiguousarray(picture[:, frame % 320 : frame % 320 + 320])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            file.mux(stream.encode())
        os.replace(path.with_suffix(".tmp"), path)
    return [float(s) for s in seconds]


def make_model(folder: Path) -> None:
    """An untrained model of the demo's size."""
    if (folder / "config.json").is_file():
        return
    import torch

    from vtr.data.text import Tokenizer
    from vtr.encoders.bert import BertConfig
    from vtr.encoders.videomamba import VideoMambaConfig
    from vtr.models.video_text import ModelConfig, VideoTextModel

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red square moves left"], 100)
    video = VideoMambaConfig(image_size=64, dim=64, depth=4, num_frames=8, pool_norm=True)
    text = BertConfig(vocab_size=tokenizer.vocab_size, hidden=64, layers=3, fusion_layer=2, heads=4, vision_width=64)
    VideoTextModel(ModelConfig(video=video, text=text, embed_dim=64), tokenizer).save_pretrained(folder)


def _start(out: Path, rank: int, world: int) -> subprocess.Popen[str]:
    words = ["embed", str(out / "films"), "--model", str(out / "model"), "--out", str(out / "parts")]
    words += ["--window", "4", "--stride", "1", "--json"]
    own = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vtr.cli", *words], cwd=import_root(), env=own, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _kill_in_the_middle(process: subprocess.Popen[str], parts: Path) -> None:
    """SIGKILL once a few parts are there and this process holds a claim."""
    while process.poll() is None:
        claims = [p for p in parts.glob("work/*/*.claim") if p.name != "plan.claim"]
        mine = False
        for claim in claims:
            with contextlib.suppress(OSError):
                mine = mine or f".{process.pid}." in claim.read_text()
        if mine and len(list(parts.glob("*.parquet"))) >= 3:
            process.send_signal(signal.SIGKILL)
            return
        time.sleep(0.01)
    raise VtrError("the process ended before it could be killed: make more films")


def measure(settings: EmbeddingSettings) -> dict[str, float]:
    """Run them; figures by name."""
    import pyarrow.parquet as pq

    out = settings.out
    seconds = make_films(out / "films", settings.films, settings.longest)
    make_model(out / "model")
    shutil.rmtree(out / "parts", ignore_errors=True)
    processes = [_start(out, rank, settings.processes) for rank in range(settings.processes)]
    if settings.kill:
        _kill_in_the_middle(processes[1], out / "parts")
    said = [process.communicate() for process in processes]
    reports = []
    for number, (process, (answer, talk)) in enumerate(zip(processes, said)):
        if settings.kill and number == 1:
            continue
        if process.returncode:
            raise VtrError(f"process {number}: {talk.splitlines()[-1]}")
        reports.append(json.loads(answer))
    paths = [
        path for p in (out / "parts").glob("*.parquet") for path in pq.read_table(p, columns=["id"])["id"].to_pylist()
    ]
    waited, busy = sum(r["waited"] for r in reports), sum(r["busy"] for r in reports)
    return {
        "processes": settings.processes,
        "killed": int(settings.kill),
        "films": settings.films,
        "longest_s": max(seconds),
        "shortest_s": min(seconds),
        "parts": len(list((out / "parts").glob("*.parquet"))),
        "segments": len(paths),
        "segments_twice": len(paths) - len(set(paths)),
        "idle_share": waited / max(waited + busy, 1e-9),
    }


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(EmbeddingSettings, __doc__, argv)
    figures = measure(settings)
    if settings.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<16}{value:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
