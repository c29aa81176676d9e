"""What a run will do, before it does it: what is missing, who reads what, how long it takes.

python -m vtr.pretrain.plan 25M --ranks 512 --workers 12 --streams 6144 --batch-size 6144   # on paper: no shard is needed
"""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import tyro
from braceexpand import braceexpand
from tqdm import tqdm

from vtr.data.manifests import Corpus, CorpusMember, corpus_entries, why_captionless
from vtr.data.remote import remote_is_there
from vtr.data.stream import MediaOrder, StreamSettings, media_weights, owned_streams
from vtr.errors import UsageError, VtrError, reports_errors
from vtr.pretrain.loop import memory_gib
from vtr.pretrain.objectives import objectives_of
from vtr.pretrain.objectives.base import FusionObjective
from vtr.pretrain.objectives.matching import match_reach
from vtr.pretrain.recipes import STAGES, Recipe, Stage, recipe
from vtr.settings import parsed


def _missing_remote(corpus: Corpus) -> list[str]:
    """Remote shards that do not answer; each is asked for, many at a time."""
    remote = [(m.name, s) for m in corpus.members for s in m.shards if "://" in s]
    if not remote:
        return []
    with ThreadPoolExecutor(32) as pool:
        asked = pool.map(lambda item: remote_is_there(item[1]), remote)
        answers = list(tqdm(asked, total=len(remote), desc="remote shards", file=sys.stderr))
    return [f"{name}: {shard} does not answer" for (name, shard), there in zip(remote, answers) if not there]


def check_complete(corpus: Corpus, *, allow_missing: bool) -> None:
    """Refuse a corpus with missing shards, all of them listed.

    Raises:
        VtrError: Something is missing and `allow_missing` is off.
    """
    missing = (*corpus.missing, *_missing_remote(corpus))
    if not missing:
        return
    print(f"missing ({len(missing)}):", file=sys.stderr)
    for line in missing:
        print(f"  {line}", file=sys.stderr)
    for member in corpus.absent:
        if member.make:
            print(f"{member.name} ({member.source}) is made by:\n  {member.make}", file=sys.stderr)
    if not allow_missing:
        raise VtrError(
            f"corpus {corpus.name}: {len(missing)} shards or members are missing (listed above); make them, or accept "
            "the partial corpus with --allow-missing"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaPlan:
    """One media type in one epoch of a stage."""

    media: str
    samples: int
    used: int  # read in an epoch
    largest: int  # times the most-read sample is read
    shortest: int  # samples of the shortest and of the longest stream
    longest: int

    @property
    def left_out(self) -> float:
        """Share of the samples that an epoch leaves out."""
        return 1 - self.used / self.samples


def plan_media(corpus: Corpus, settings: StreamSettings, media: str, epoch: int = 0) -> MediaPlan:
    """Follow every canonical stream through one epoch and count how often each sample is read."""
    order = MediaOrder([m for m in corpus.members if m.media in (media, "auto")], settings, media)
    offsets = np.concatenate([[0], np.cumsum(order.sizes)])
    reads = np.zeros(order.total + 1, dtype=np.int32)
    lengths = []
    for stream in range(settings.streams):
        shard, low, high = order.span(epoch, stream, 0, order.blocks)
        np.add.at(reads, offsets[shard] + low, 1)
        np.add.at(reads, offsets[shard] + high, -1)
        lengths.append(int((high - low).sum()))
    times = np.cumsum(reads[:-1])
    return MediaPlan(
        media=media,
        samples=order.total,
        used=int((times > 0).sum()),
        largest=int(times.max()),
        shortest=min(lengths),
        longest=max(lengths),
    )


def reads(chosen: Recipe, stage: Stage, workers: int) -> StreamSettings:
    """How a stage reads a corpus, as far as the order of samples depends on it."""
    share = stage.video_share
    return StreamSettings(
        batch_size=stage.batch_size,
        streams=chosen.streams,
        workers=workers,
        block=stage.block,
        seed=chosen.seed,
        media_weights={"video": share, "image": 1 - share} if share else None,
    )


def check_stages(corpus: Corpus, chosen: Recipe, stages: tuple[str, ...], ranks: int, *, sharded: bool = False) -> None:
    """Refuse before the first step what would stop a later stage.

    Args:
        sharded: The ranks share the weights.

    Raises:
        UsageError: Streams, batch, groups of wrong partners and ranks do not divide; the message says what to set.
        VtrError: The corpus lacks a media type, or samples for as many streams.
    """
    worded = [s for s in stages if any(o.needs_text for o in objectives_of(getattr(chosen, s)).values())]
    for name in stages:
        stage: Stage = getattr(chosen, name)
        settings = reads(chosen, stage, 1)
        try:
            if name in worded[:1]:
                check_captions(corpus, chosen.max_bad_fraction)
            idle = [k for k, o in objectives_of(stage).items() if not isinstance(o, FusionObjective)]
            if stage.frozen and idle:
                raise UsageError(
                    f"frozen, so nothing that {', '.join(idle)} would train is trained: --set {name}.{idle[0]}=0, or "
                    f"{name}.frozen=false"
                )
            if stage.keep_features and sharded:
                raise UsageError(
                    f"ranks that share the weights (--fsdp) can't encode apart: --set {name}.keep_features=false, or no --fsdp"
                )
            owned_streams(settings, 0, ranks)
            for media in media_weights(corpus, settings):
                MediaOrder([m for m in corpus.members if m.media in (media, "auto")], settings, media)
            if stage.vtm > 0:
                match_reach(stage, stage.batch_size // ranks, ranks)
        except VtrError as error:
            raise type(error)(f"stage {name}: {error}") from None


def check_captions(corpus: Corpus, most_bad: float) -> None:
    """Refuse a corpus without captions, or with more than `most_bad` of it in members that have none; a few are looked at.

    Raises:
        VtrError: With a sample, what it is made of, and what is read.
    """
    remedy = "without captions only the masked stage trains (--stage masked)"
    if not any(m.captioned for m in corpus.members):
        raise VtrError(
            f"corpus {corpus.name} has no captions: give a list of files and captions (CSV, JSONL …) or put a .txt "
            f"beside each file; {remedy}"
        )
    for member in corpus.members:
        why = why_captionless(member.name, member.shards)
        if why and member.samples > most_bad * corpus.samples:
            raise VtrError(f"corpus {corpus.name}: {why}; {remedy}")


def stage_steps(stage: Stage, corpus: Corpus) -> int:
    """Steps of a stage: as set, else its epochs over what it reads."""
    if stage.steps:
        return stage.steps
    return max(1, round(stage.epochs * stage_samples(stage, corpus) / stage.batch_size))


def stage_samples(stage: Stage, corpus: Corpus) -> int:
    """Samples that a stage reads in an epoch: all, or the videos."""
    return sum(member.samples for member in corpus.members if stage.video_share < 1 or member.media != "image")


def plan(corpus: Corpus, chosen: Recipe, stages: tuple[str, ...], ranks: int, workers: int) -> str:
    """The division of labour of every stage as text.

    Raises:
        UsageError: Streams, batch and ranks do not divide; the message says what to set.
    """
    lines = []
    counted: dict[tuple, MediaPlan] = {}
    for name in stages:
        stage: Stage = getattr(chosen, name)
        settings = reads(chosen, stage, workers)
        own = [len(owned_streams(settings, rank, ranks)) for rank in range(ranks)]
        used_workers = min(workers, own[0])
        steps = stage_steps(stage, corpus)
        weights = media_weights(corpus, settings)
        total = sum(weights.values())
        lines.append(
            f"{name}: {steps:,} steps on every rank, batch {stage.batch_size} = {ranks} ranks × "
            f"{stage.batch_size // ranks}, {chosen.streams} streams = {ranks} × {own[0]}, "
            f"{used_workers} workers a rank × {own[0] / max(1, used_workers):g} streams"
            + (
                f" (of {workers} asked for: set streams to a multiple of {ranks * workers})"
                if used_workers < workers
                else ""
            )
        )
        for media, weight in weights.items():
            key = (media, settings.block, chosen.streams)
            if key not in counted:
                counted[key] = plan_media(corpus, settings, media)
            found = counted[key]
            epochs = steps * stage.batch_size * weight / total / found.used
            lines.append(
                f"  {media}: {found.samples:,} samples, {found.used:,} read in an epoch, each at most {found.largest} "
                f"time, {found.left_out:.4%} left out (others the next time); {weight / total:.1%} of the steps, "
                f"{epochs:.2f} epochs"
            )
    return "\n".join(lines)


def published_corpus(name: str) -> Corpus:
    """A corpus as its manifests say: every shard there, and all as full as published.

    Raises:
        UsageError: There is no such corpus, or its manifests lack counts or patterns.
    """
    members = []
    for entry in corpus_entries(name):
        total, shards = entry.get("texts") or entry.get("items") or 0, list(braceexpand(entry["shards"]))
        if not total:
            raise UsageError(f"{entry['name']}: its manifest has no published count")
        sizes = [(i + 1) * total // len(shards) - i * total // len(shards) for i in range(len(shards))]
        member = CorpusMember(
            name=entry["name"], media=entry["media"], shards=tuple(shards), sizes=tuple(sizes), published=total
        )
        members.append(member)
    return Corpus(name=name, members=tuple(members))


def expectation(measured: list[tuple[str, int, tuple[float, int]]], device: torch.device) -> str:
    """Times of whole stages from measured steps: (stage, its steps, (seconds, steps measured))."""
    lines, total = [], 0.0
    for name, steps, (seconds, done) in measured:
        if done == 0:
            continue
        whole = steps * seconds / done
        total += whole
        lines.append(f"{name}: {seconds / done:.3f} s a step over {done} steps, {steps:,} steps take {_hours(whole)}")
    what = "of the GPU" if device.type == "cuda" else "resident, without data workers"
    lines.append(f"all stages: {_hours(total)}; memory of a rank: {memory_gib(device)} GiB {what}")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The division of labour for a published corpus, without its shards."""

    corpus: tyro.conf.Positional[str]
    ranks: int = 8
    workers: int = 12
    streams: int = 1024
    batch_size: int = 2048
    recipe: str = "clean"


@reports_errors
def main() -> int:
    """Entry of `python -m vtr.pretrain.plan`."""
    settings = parsed(PlanSettings, None, "python -m vtr.pretrain.plan", __doc__ or "")
    corpus = published_corpus(settings.corpus)
    chosen = recipe(settings.recipe, settings.corpus)
    stages = {s: dataclasses.replace(getattr(chosen, s), batch_size=settings.batch_size) for s in STAGES}
    chosen = dataclasses.replace(chosen, streams=settings.streams, **stages)
    print(corpus.table())
    print(plan(corpus, chosen, STAGES, settings.ranks, settings.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
