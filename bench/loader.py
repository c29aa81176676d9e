"""Throughput of the loader against what its files allow: decoding alone on the same cores, and a plain loader.

All three read the same shards with as many processes and the same frames of a clip (T of each, at random). Decoding
alone stops at the frames; the loader and the plain one (webdataset, decord, torchvision) go on to cropped, resized
batches in the main process.

python -m bench.loader /tmp/bench --generate 96                      # makes the shards first
python -m bench.loader 'shards/{000000..000009}.tar' --workers 8 --json
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import tyro

from bench.command import parsed
from vtr.data.shards import expand_shards
from vtr.errors import UsageError, VtrError, reports_errors


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Clips a second, each the median of the rounds."""

    loader: float
    decode_only: float
    plain: float | None  # webdataset + decord; None where it is not installed or fails
    workers: int
    rounds: tuple[tuple[float, float, float | None], ...]

    @property
    def share(self) -> float:
        """Loader over decoding alone, the median of the rounds' ratios (the machine's speed drifts)."""
        return median(loader / decode for loader, decode, _ in self.rounds)

    @property
    def against_plain(self) -> float | None:
        """Loader over the plain loader, likewise."""
        pairs = [(loader, plain) for loader, _, plain in self.rounds if plain]
        return median(a / b for a, b in pairs) if pairs else None


def generate_shards(
    folder: Path,
    clips: int,
    *,
    short_side: int = 336,
    seconds: float = 5.0,
    fps: int = 25,
    gop: int = 25,
    seed: int = 0,
) -> None:
    """Write shards of H.264 clips (16:9, textured, moving) unless the folder holds some."""
    from tqdm import tqdm

    from vtr.data.shards import ShardWriter

    if (folder / "sizes.json").is_file():
        return
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, 32) as writer:
        for number in tqdm(range(clips), desc="clips", file=sys.stderr, unit="clip"):
            data = textured_clip(rng, short_side=short_side, seconds=seconds, fps=fps, gop=gop)
            writer.write(f"{number:06d}", "mp4", data, f"texture {number}")


def textured_clip(
    rng: np.random.Generator, *, short_side: int = 336, seconds: float = 5.0, fps: int = 25, gop: int = 25
) -> bytes:
    """An H.264 clip (16:9) of smooth noise, larger than the picture, that moves: residuals and motion as films have."""
    import av

    width = round(short_side * 16 / 9 / 2) * 2
    coarse = rng.integers(0, 256, (short_side // 16 + 8, width // 16 + 8, 3), np.uint8).repeat(24, 0).repeat(24, 1)
    fine = rng.integers(0, 24, coarse.shape, np.uint8)
    texture = np.minimum(coarse.astype(np.int16) + fine, 255).astype(np.uint8)
    speed = rng.uniform(-1.5, 1.5, 2)
    room = np.asarray(texture.shape[:2]) - (short_side, width)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, short_side, "yuv420p", gop
        for i in range(round(seconds * fps)):
            top, left = (np.abs(speed * i).astype(int) % room).tolist()
            image = np.ascontiguousarray(texture[top : top + short_side, left : left + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def bench(
    shards: Sequence[str], *, workers: int, frames: int, size: int, batch_size: int, seconds: float, rounds: int
) -> BenchResult:
    """Measure all three, `rounds` times in turn.

    Raises:
        VtrError: The shards hold fewer samples than a batch.
    """
    from vtr.data.manifests import Corpus, CorpusMember
    from vtr.data.shards import shard_sizes

    sizes = shard_sizes(shards)
    total = sum(sizes)
    if total < 2 * batch_size:
        raise VtrError(f"{total} samples: too few for batches of {batch_size}; give larger shards or --batch-size")
    member = CorpusMember(name="bench", media="auto", shards=tuple(shards), sizes=tuple(sizes))
    corpus = Corpus(name="bench", members=(member,))
    jobs = [(shard, i) for shard, n in zip(shards, sizes) for i in range(n)]
    found: list[tuple[float, float, float | None]] = []
    for _ in range(rounds):
        # Decoding alone twice, around the loader: drift cancels.
        before = _decode_only(jobs, workers, frames, seconds / 2)
        loader = _loader(corpus, workers, frames, size, batch_size, seconds)
        after = _decode_only(jobs, workers, frames, seconds / 2)
        try:
            plain: float | None = _plain(shards, workers, frames, size, batch_size, seconds)
        except Exception as error:  # the peer is optional; its failure is said, not ours
            print(f"webdataset + decord: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            plain = None
        found.append((loader, (before + after) / 2, plain))
        said = ", ".join(f"{v:.1f}" if v else "-" for v in found[-1])
        print(f"round {len(found)} of {rounds}: loader, decoding alone, plain: {said} clips/s", file=sys.stderr)
    plains = [p for _, _, p in found if p]
    return BenchResult(
        loader=median(f[0] for f in found),
        decode_only=median(f[1] for f in found),
        plain=median(plains) if plains else None,
        workers=workers,
        rounds=tuple(found),
    )


def _rate(items: Iterator[int], seconds: float, warm: int) -> float:
    """Clips a second of an iterator of clip counts, after `warm` items."""
    for _ in range(warm):
        next(items)
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < seconds:
        count += next(items)
    return count / (time.perf_counter() - start)


def _decode_part(jobs: list[tuple[str, int]], frames: int, seconds: float, ready: Any, go: Any, answers: Any) -> None:
    import torch

    from vtr.data.decode import read_frames
    from vtr.data.sampling import random_frames
    from vtr.data.shard_reader import ShardCache

    torch.set_num_threads(1)
    cache = ShardCache()
    rng = np.random.default_rng(0)

    def one(place: int) -> None:
        raw = cache.read(*jobs[place % len(jobs)])
        if isinstance(raw, str):
            raise VtrError(raw)
        read_frames(raw.media, lambda n: random_frames(n, frames, rng))

    one(0)
    ready.release()
    go.wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        one(count)
        count += 1
    answers.put(count / (time.perf_counter() - start))


def _decode_only(jobs: list[tuple[str, int]], workers: int, frames: int, seconds: float) -> float:
    import multiprocessing

    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    ready, go, answers = context.Semaphore(0), context.Event(), context.Queue()
    shuffled = [jobs[i] for i in np.random.default_rng(1).permutation(len(jobs))]
    parts = [
        context.Process(
            target=_decode_part, args=(shuffled[i::workers], frames, seconds, ready, go, answers), daemon=True
        )
        for i in range(workers)
    ]
    for part in parts:
        part.start()
    for _ in parts:
        if not ready.acquire(timeout=120):
            raise VtrError("decoding alone: a process did not come up; its message is above")
    go.set()
    rates = [answers.get(timeout=seconds + 120) for _ in parts]
    for part in parts:
        part.join()
    return sum(rates)


def _loader(corpus: Any, workers: int, frames: int, size: int, batch_size: int, seconds: float) -> float:
    from vtr.data.stream import Stream, StreamSettings

    streams = next(n for n in range(workers, 0, -1) if batch_size % n == 0)
    settings = StreamSettings(
        frames=frames, size=size, batch_size=batch_size, streams=streams, workers=workers, flip=True
    )
    stream = Stream(corpus, settings)
    try:
        # The first batches come out of the queues filled while nobody looked.
        return _rate((len(b.captions) for b in stream), seconds, warm=6)
    finally:
        stream.close()


class _PlainClip:
    """What a training script writes: decord for the frames, torchvision for crop, resize and mirror."""

    def __init__(self, frames: int, size: int) -> None:
        self.frames, self.size = frames, size

    def __call__(self, sample: tuple[bytes, str]) -> tuple[Any, str]:
        import decord
        import torch
        from torchvision.transforms import v2

        from vtr.data.sampling import random_frames

        reader = decord.VideoReader(io.BytesIO(sample[0]), num_threads=1)
        picked = random_frames(len(reader), self.frames, np.random.default_rng())
        clip = torch.from_numpy(reader.get_batch(picked).asnumpy()).permute(0, 3, 1, 2)
        crop = v2.RandomResizedCrop(self.size, (0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=False)
        return v2.RandomHorizontalFlip()(crop(clip)), sample[1]


def _one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


def _plain(shards: Sequence[str], workers: int, frames: int, size: int, batch_size: int, seconds: float) -> float:
    import webdataset as wds

    data = (
        wds.WebDataset(list(shards), shardshuffle=len(shards), empty_check=False, nodesplitter=None, seed=0)
        .shuffle(32)
        .to_tuple("mp4", "txt")
        .map(_PlainClip(frames, size))
        .batched(batch_size, partial=False)
        .repeat()
    )
    loader = wds.WebLoader(
        data, batch_size=None, num_workers=workers, prefetch_factor=4, worker_init_fn=_one_thread,
        multiprocessing_context="forkserver" if sys.platform != "win32" else None,
    )  # fmt: skip
    batches = iter(loader)
    try:
        return _rate((len(b[1]) for b in batches), seconds, warm=6 * workers)
    finally:
        del batches


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Clips a second of the training loader, of decoding alone, and of a plain webdataset + decord loader."""

    shards: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS …", help_behavior_hint="(one or more)")
    ]
    """Folders, .tar files, brace and :: lists; with --generate, one folder to be made."""
    generate: int = 0
    """Make so many H.264 clips (336 pixels short side, 5 s) there first, unless shards are there."""
    workers: int = 2
    """Processes of each of the three."""
    frames: int = 8
    """Of a clip."""
    size: int = 224
    """Pixels of a side."""
    batch_size: int = 16
    """Clips of a batch."""
    seconds: float = 10.0
    """Measured time of each in a round."""
    rounds: int = 3
    """The median counts."""
    json: bool = False
    """Print the figures as JSON."""


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """`python -m bench.loader`."""
    settings = parsed(LoaderSettings, __doc__, argv)
    if not settings.shards:
        raise UsageError("which shards? Give folders, .tar files or brace lists, or --generate 96 and a folder")
    if settings.generate:
        if len(settings.shards) != 1:
            raise UsageError("--generate wants one folder")
        generate_shards(Path(settings.shards[0]), settings.generate)
    result = bench(
        [s for spec in settings.shards for s in expand_shards(spec)],
        workers=settings.workers,
        frames=settings.frames,
        size=settings.size,
        batch_size=settings.batch_size,
        seconds=settings.seconds,
        rounds=settings.rounds,
    )
    if settings.json:
        found = {**asdict(result), "share": result.share, "against_plain": result.against_plain}
        print(json.dumps(found))
        return 0
    print(f"loader             {result.loader:8.1f} clips/s with {result.workers} workers")
    print(f"decoding alone     {result.decode_only:8.1f} clips/s; the loader reaches {result.share:.1%} of it")
    if result.plain and result.against_plain:
        print(f"webdataset + decord{result.plain:8.1f} clips/s; the loader is {result.against_plain:.2f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
