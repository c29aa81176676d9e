"""Verify shards: every sample is read as training reads it; what no reader can use is named with what is there."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from vtr.data.decode import DecodeError, probe
from vtr.data.media import VIDEO, is_image
from vtr.data.shards import RULE, RawSample, iterate_samples
from vtr.data.whole import cut_off
from vtr.errors import VtrError


@dataclass(kw_only=True)
class VerifyReport:
    """What a check found.

    Attributes:
        bad: Samples that can't be used.
        broken: Shards that can't be read, sizes.json that disagrees.
        equal: Keys that several samples have.
        unusable: How many samples `bad` is about.
    """

    shards: int = 0
    samples: int = 0
    videos: int = 0
    images: int = 0
    bad: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    unusable: int = 0

    @property
    def failed(self) -> bool:
        """Whether a shard is broken, or no sample at all can be used."""
        return bool(self.broken) or self.unusable >= self.samples


def verify_shards(shards: list[str], *, decode: bool = True) -> VerifyReport:
    """Read every sample of every shard; with `decode` look into the media too."""
    report = VerifyReport(shards=len(shards))
    seen: dict[str, str] = {}
    bar = tqdm(desc="verify", file=sys.stderr, unit="sample")
    for shard in shards:
        name, count = shard.rsplit("/", 1)[-1], 0
        try:
            for sample in iterate_samples(shard):
                count += 1
                bar.update()
                where = f"{name}#{sample.key}"
                if sample.key in seen:
                    other = seen[sample.key]
                    report.equal.append(f"{where}: " + ("twice in this shard" if other == shard else f"in {other} too"))
                seen.setdefault(sample.key, shard)
                faults = _faults(sample, report, decode)
                report.bad += [f"{where}: {fault}" for fault in faults]
                report.unusable += bool(faults)
        except VtrError as error:
            report.broken.append(str(error))
        report.samples += count
        report.broken += _wrong_size(shard, name, count)
    bar.close()
    return report


def _faults(sample: RawSample, report: VerifyReport, decode: bool) -> list[str]:
    """Why a sample can't be used; counts what it is."""
    if not sample.media:
        return [f"no image or video; its members are {sample.made_of}; the rule: {RULE}"]
    faults = [sample.fault] if sample.fault else []
    if not decode:
        report.images += is_image(f"x.{sample.extension}")
        report.videos += not is_image(f"x.{sample.extension}")
        return faults
    why = cut_off(sample.media)
    if why:
        return [*faults, why]
    try:
        kind = probe(sample.media).kind
    except DecodeError as error:
        return [*faults, str(error)]
    if kind == "image" and sample.extension in VIDEO and sample.extension != "gif":
        faults.append(f"named {sample.extension}, but it is an image")
    report.videos += kind == "video"
    report.images += kind == "image"
    return faults


def _wrong_size(shard: str, name: str, count: int) -> list[str]:
    sizes = Path(shard).parent / "sizes.json"
    if "://" in shard or not sizes.is_file():
        return []
    try:
        listed = json.loads(sizes.read_text()).get(name)
    except (ValueError, AttributeError) as error:
        return [f"{sizes}: not a table of shards and their samples ({error})"]
    return [] if listed == count else [f"{sizes} says {listed} samples for {name}, found {count}"]
