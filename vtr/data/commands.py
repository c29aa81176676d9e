"""The verbs of the data: `vtr shards build`, `vtr shards verify` and `vtr shards bench`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from vtr.data.build import build_shards, verify_shards
from vtr.data.shards import expand_shards
from vtr.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Turn files and captions into WebDataset shards; calling it again continues."""

    listing: tyro.conf.Positional[Path]
    """CSV, TSV or JSONL with columns video (or image) and caption."""
    out: Path
    """Folder of the shards."""
    root: Path | None = None
    """Folder that relative paths start from (default: the listing's)."""
    shard_size: int = 1000
    """Samples of a shard."""
    workers: int = 2
    """Processes."""
    short_side: int = 0
    """Re-encode videos to this many pixels on the short side; 0 copies the bytes."""
    gop: int = 0
    """Frames between key frames when re-encoding (default 8)."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check shards: every sample is read, its media looked into."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .tar files, brace and :: lists."""
    json: bool = False


def build(settings: BuildSettings) -> int:
    """`vtr shards build`."""
    report = build_shards(
        settings.listing,
        settings.out,
        root=settings.root,
        shard_size=settings.shard_size,
        workers=settings.workers,
        short_side=settings.short_side,
        gop=settings.gop,
    )
    for line in report.bad:
        print(f"left out: {line}", file=sys.stderr)
    print(
        f"{settings.out}: {report.written} samples in {report.shards} shards ({report.skipped_shards} were there), "
        f"{len(report.bad)} left out",
        file=sys.stderr,
    )
    return 0 if report.written else 1


def verify(settings: VerifySettings) -> int:
    """`vtr shards verify`; exit code 1 when a shard can't be read or sizes.json disagrees."""
    report = verify_shards([s for spec in settings.shards for s in expand_shards(spec)])
    if settings.json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.shards} shards, {report.samples} samples: {report.videos} videos, {report.images} images")
        for line in report.bad:
            print(f"unusable: {line}")
        for line in report.broken:
            print(f"broken: {line}")
    return 1 if report.broken else 0


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Clips a second of the training loader, of decoding alone, and of a plain webdataset + decord loader."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .tar files, brace and :: lists; with --generate, one folder to be made."""
    generate: int = 0
    """Make so many H.264 clips (336 pixels short side, 5 s) there first, unless shards are there."""
    workers: int = 2
    """Processes of each of the three."""
    frames: int = 8
    size: int = 224
    batch_size: int = 16
    seconds: float = 10.0
    """Measured time of each in a round."""
    rounds: int = 3
    json: bool = False


def bench(settings: BenchSettings) -> int:
    """`vtr shards bench`."""
    from vtr.data import bench as benchmark

    if settings.generate:
        if len(settings.shards) != 1:
            raise UsageError("--generate wants one folder")
        benchmark.generate_shards(Path(settings.shards[0]), settings.generate)
    result = benchmark.bench(
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


COMMANDS: dict[str, tuple[Any, Any]] = {
    "shards build": (BuildSettings, build),
    "shards verify": (VerifySettings, verify),
    "shards bench": (BenchSettings, bench),
}
