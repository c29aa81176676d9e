"""A recipe fitted to the user's own data: batch, streams and steps by how many samples there are.

The paper's values are for 2.5 million to 25 million pairs (240,436 clips in the masked stage); from there on they stay. Of
fewer samples a batch is a 32nd, so that an epoch has steps; the masked stage gets fewer passes and the other two more,
100 at most each, so that no stage is all of the run. Of more samples than the paper's largest corpus as many are read as
of that. What the user has set is never changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from vtr.data.manifests import Corpus, corpus_names
from vtr.data.stream import media_weights
from vtr.errors import UsageError
from vtr.pretrain.plan import reads, stage_samples, stage_steps
from vtr.pretrain.recipes import K400_CLIPS, STAGES, Recipe, Stage

_PER_EPOCH = 32  # steps that an epoch has at least, as far as a batch of 16 lets it
_LEAST_BATCH = 16
_MOST_EPOCHS = 100  # of a stage on little data
_USUAL = 5_000_000  # pairs of the paper's smallest corpus, and of its largest: between them its epochs hold
_LARGEST = 25_000_000
_REHEARSAL = _PER_EPOCH * 2048  # a named corpus with fewer samples is a part of it, or a small copy
FEW = 10_000  # samples from which nothing is learned that holds for other videos


def given_keys(overrides: Iterable[str], steps: int | None = None) -> frozenset[str]:
    """The settings that --set and --steps give, in full: a key without a stage is one of every stage."""
    names = [f.name for f in dataclasses.fields(Stage)]
    keys = set() if steps is None else {f"{s}.steps" for s in STAGES}
    for text in overrides:
        key = text.partition("=")[0].strip().replace("-", "_")
        keys |= {f"{s}.{key}" for s in STAGES} if key.split(".")[0] in names else {key}
    return frozenset(keys)


def is_fitted(name: str, corpus: Corpus) -> bool:
    """Whether a corpus is one that the paper's values are not made for: own data, or little of a named one."""
    if name == "demo":
        return False
    return name not in corpus_names() or corpus.samples < _REHEARSAL


def fitted(recipe: Recipe, corpus: Corpus, stages: tuple[str, ...], given: frozenset[str] = frozenset()) -> Recipe:
    """The recipe with batches, streams, groups of wrong partners and epochs for a corpus.

    Args:
        stages: Those that run.
        given: Settings that stay as they are (`given_keys`).

    Raises:
        UsageError: There is a single sample, and a stage that contrasts samples.
        VtrError: The corpus lacks a media type that a stage reads.
    """
    smallest = {name: _smallest_medium(corpus, recipe, getattr(recipe, name)) for name in stages}
    made: dict[str, Stage] = {}
    for name in stages:
        stage: Stage = getattr(recipe, name)
        batch = stage.batch_size
        if f"{name}.batch_size" not in given:
            least = min(_LEAST_BATCH, smallest[name])
            batch = min(batch, _power_of_two(max(least, smallest[name] // _PER_EPOCH)))
            batch = _beside(batch, recipe.streams) if "streams" in given else batch
        if batch < 2 and stage.vtc > 0:
            raise UsageError(f"corpus {corpus.name}: {smallest[name]} sample; contrasting captions needs two or more")
        made[name] = dataclasses.replace(stage, batch_size=batch)
        if not {f"{name}.steps", f"{name}.epochs"} & given:
            epochs = _epochs(name, stage, stage_samples(stage, corpus))
            made[name] = dataclasses.replace(made[name], epochs=epochs, steps=0)
        if f"{name}.match_group" not in given and stage.match_group:
            made[name] = dataclasses.replace(made[name], match_group=math.gcd(stage.match_group, batch))
    streams = recipe.streams
    if "streams" not in given:
        streams = _streams(min(smallest.values()), [s.batch_size for s in made.values()], streams)
    return dataclasses.replace(
        recipe,
        streams=streams,
        masked=made.get("masked", recipe.masked),
        multimodal=made.get("multimodal", recipe.multimodal),
        unmasked=made.get("unmasked", recipe.unmasked),
        refine=made.get("refine", recipe.refine),
        matching=made.get("matching", recipe.matching),
    )


def fit_line(recipe: Recipe, corpus: Corpus, stages: tuple[str, ...]) -> str:
    """What was chosen for a corpus, in one line."""
    parts = []
    for name in stages:
        stage: Stage = getattr(recipe, name)
        steps = stage_steps(stage, corpus)
        epochs = steps * stage.batch_size / max(1, stage_samples(stage, corpus))
        parts.append(f"{name} {steps:,} steps of {stage.batch_size} ({epochs:.3g} epochs) at lr {stage.optim.lr:g}")
    return (
        f"plan for {corpus.samples:,} samples: {', '.join(parts)}; {recipe.streams} streams "
        "(other values: --set batch_size=… streams=… masked.epochs=… unmasked.optim.lr=…)"
    )


def _smallest_medium(corpus: Corpus, recipe: Recipe, stage: Stage) -> int:
    """Samples of the medium that a stage has the fewest of; a step reads one medium."""
    counts = [
        sum(m.samples for m in corpus.members if m.media in (medium, "auto"))
        for medium in media_weights(corpus, reads(recipe, stage, 1))
    ]
    return max(1, min(counts, default=1))


def _epochs(name: str, stage: Stage, samples: int) -> float:
    """Passes of a stage over so many samples; the recipe's where its own corpora are as large."""
    paper = stage.epochs
    if name == "masked":
        if samples >= K400_CLIPS:
            return paper * K400_CLIPS / samples
        return min(paper, max(_MOST_EPOCHS, paper * math.sqrt(samples / K400_CLIPS)))
    if samples > _LARGEST:
        return paper * _LARGEST / samples
    return max(paper, min(_MOST_EPOCHS, paper * math.sqrt(_USUAL / max(1, samples))))


def _power_of_two(most: int) -> int:
    """The largest power of two that is no larger."""
    return 1 << max(1, most).bit_length() - 1


def _beside(batch: int, streams: int) -> int:
    """The batch that goes with so many streams: a multiple of them, or a part."""
    if batch >= streams:
        return batch // streams * streams
    return next(b for b in range(batch, 0, -1) if streams % b == 0)


def _streams(samples: int, batches: list[int], most: int) -> int:
    """Streams of a hundred samples or so (on little data four) that go with every batch: few are left over."""
    streams = _power_of_two(min(most, max(min(_LEAST_BATCH, samples // 4), samples // 64)))
    while any(b % streams and streams % b for b in batches):
        streams //= 2
    return streams
