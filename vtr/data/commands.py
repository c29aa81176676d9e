"""The verbs of the data: `vtr shards build` and `vtr shards verify`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from vtr.data.build import build_shards
from vtr.data.shards import expand_shards
from vtr.data.verify import verify_shards


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Turn files and captions into WebDataset shards; calling it again continues, and builds what has changed."""

    listing: tyro.conf.Positional[Path]
    """CSV, TSV, JSON or JSON lines with columns video (or image) and caption; or a folder with such a list in it (metadata,
    captions, annotations) or a .txt beside each file."""
    out: Path
    """Folder of the shards."""
    root: Path | None = None
    """Folder that relative paths start from (default: the listing's)."""
    shard_size: int = 1000
    """Samples of a shard."""
    workers: int = 2
    """Processes."""
    short_side: int = 0
    """Re-encode videos to this many pixels on the short side; 0 copies the bytes, as is done with a video whose frames take
    more than 4 GiB."""
    gop: int = 0
    """Frames between key frames when re-encoding (default 8)."""
    split: str | None = None
    """Which part, where the list holds several."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check shards: every sample is read, its media looked into."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .tar files, brace and :: lists."""
    json: bool = False
    """Print as JSON."""


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
        split=settings.split,
    )
    for line in report.bad:
        print(f"left out: {line}", file=sys.stderr)
    print(
        f"{settings.out}: {report.written} samples in {report.shards} shards ({report.skipped_shards} were there"
        + (f", {report.rebuilt} had changed and were built again" if report.rebuilt else "")
        + (f", {report.removed} of rows no longer listed were removed" if report.removed else "")
        + f"), {len(report.bad)} left out",
        file=sys.stderr,
    )
    return 0 if report.written else 1


def verify(settings: VerifySettings) -> int:
    """`vtr shards verify`; exit code 1 when a shard can't be read, sizes.json disagrees, or no sample can be used."""
    report = verify_shards([s for spec in settings.shards for s in expand_shards(spec)])
    if settings.json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.shards} shards, {report.samples} samples: {report.videos} videos, {report.images} images")
        for line in report.bad:
            print(f"unusable: {line}")
        for line in report.equal:
            print(f"equal keys: {line}")
        for line in report.broken:
            print(f"broken: {line}")
        if report.unusable >= report.samples:
            print("nothing here can be used for training")
    return 1 if report.failed else 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "shards build": (BuildSettings, build),
    "shards verify": (VerifySettings, verify),
}
