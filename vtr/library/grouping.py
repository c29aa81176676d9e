"""`vtr shards group`: shards written anew with look-alikes side by side, by the embeddings of their samples.

Training keeps neighbours in one batch (`block`, as in the stage `refine`), so that a batch holds wrong partners that are
hard to tell from the right one (grouped mini-batches: GRIT-VLP, 2208.04060). The grouping is made once, in files; the
stream's exactness - the same global batches for any number of ranks, resumed at any step - has nothing to do with it.

Legend: N samples, w width of an embedding.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from vtr.data.shard_reader import ShardCache
from vtr.data.shards import ShardWriter, expand_shards, sample_keys, split_member
from vtr.errors import UsageError, VtrError
from vtr.library.parts import ENDING, read_part, read_settings

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """Write shards anew with samples that look alike side by side; train on them with --set refine.block=GROUP."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .tar files, brace and :: lists."""
    embeddings: Path
    """What `vtr embed` made of these shards, with whatever model is to say what looks alike."""
    out: Path
    """Folder of the new shards."""
    group: int = 8
    """Samples of a group; a block of a stage is a group, or an even part of one."""
    shard_size: int = 1000
    """Samples of a shard, rounded to whole groups."""


def group_shards(settings: GroupSettings) -> int:
    """`vtr shards group`.

    Raises:
        UsageError: A group of fewer than two, or a folder that holds shards already.
        VtrError: The embeddings are not of these shards.
    """
    size, out = settings.group, settings.out
    if size < 2 or settings.shard_size < size:
        raise UsageError(
            f"--group {size} --shard-size {settings.shard_size}: expected groups of 2 or more that fit a shard"
        )
    if any(out.glob("*.tar")):
        raise UsageError(f"{out} holds shards already; choose a new folder, or remove it")
    shards = [s for spec in settings.shards for s in expand_shards(spec)]
    known = _vectors(settings.embeddings)
    places, vectors, total = [], [], 0
    for shard in shards:
        base, keys_here = os.path.abspath(shard), sample_keys(shard)
        total += len(keys_here)
        for number, key in enumerate(keys_here):
            found = known.get((base, key))
            if found is not None:
                places.append((shard, number))
                vectors.append(found)
    if not places:
        raise VtrError(f"{settings.embeddings} holds no sample of {', '.join(settings.shards)}; run: vtr embed SHARDS")
    order = look_alikes(np.stack(vectors), size)
    reader, keys, left_out = ShardCache(), Counter[str](), total - len(places)
    with ShardWriter(out, settings.shard_size // size * size) as writer:
        for place in tqdm(order.tolist(), desc="group", unit="sample", file=sys.stderr):
            sample = reader.read(*places[place])
            if isinstance(sample, str) or not sample.captions:
                left_out += 1
                continue
            keys[sample.key] += 1  # shards may have used a key twice; one of the new ones may not
            key = sample.key if keys[sample.key] == 1 else f"{sample.key}_{keys[sample.key]}"
            writer.write(key, sample.extension, sample.media, sample.captions, sample.meta or None)
    print(
        f"{out}: {total - left_out} samples in groups of {size}; {left_out} without embedding or caption left out",
        file=sys.stderr,
    )
    return 0


def look_alikes(vectors: np.ndarray, size: int) -> np.ndarray:
    """An order of N samples in which each run of `size` looks alike; which group follows which is drawn.

    The samples are halved along the direction in which they differ most, and the halves again, down to groups: each step
    costs one pass, N log N in all, and no group is larger than another.

    Args:
        vectors: (N, w) unit vectors.
    """
    order = np.arange(len(vectors))
    todo = [(0, len(vectors))]
    while todo:
        low, high = todo.pop()
        groups = -(-(high - low) // size)
        if groups < 2:
            continue
        part = vectors[order[low:high]].astype(np.float32)
        part -= part.mean(0)
        along = np.linalg.eigh(part.T @ part)[1][:, -1]
        along *= np.sign(along[np.abs(along).argmax()])  # either sign is an eigenvector: one of them
        order[low:high] = order[low:high][np.argsort(part @ along, kind="stable")]
        middle = low + groups // 2 * size
        todo += [(low, middle), (middle, high)]
    whole = len(order) // size * size
    mixed = np.random.default_rng(_SEED).permutation(whole // size)
    return np.concatenate([order[:whole].reshape(-1, size)[mixed].reshape(-1), order[whole:]])


def _vectors(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """The mean vector of each sample's segments, by shard and key."""
    width = read_settings(folder).width
    found: dict[tuple[str, str], np.ndarray] = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        part = read_part(path, width)
        first = 0
        for video in part.videos:
            last = first + len(video.spans)
            shard, sign, member = video.path.partition(".tar/")
            if sign and last > first and (named := split_member(member)):
                mean = part.vectors[first:last].mean(0)
                found[f"{shard}.tar", named[0]] = mean / max(float(np.linalg.norm(mean)), 1e-12)
            first = last
    return found


COMMANDS: dict[str, tuple[Any, Any]] = {"shards group": (GroupSettings, group_shards)}
