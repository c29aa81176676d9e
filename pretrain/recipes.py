"""Recipes as data: every hyperparameter of the three stages, `clean` (ours) and `official` (the released scripts)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vtr.errors import UsageError, unknown_name

STAGES = ("masked", "multimodal", "unmasked")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and its schedule."""

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_grad: float = 0.0  # global gradient norm; 0 = no clipping
    warmup_fraction: float = 0.1  # of the stage's steps
    min_lr_ratio: float = 0.01  # floor of the cosine, as a share of lr
    decay_state: bool = False  # also decay A_log, position embeddings and the temperature, as the official code does


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: how long, on what, with which objectives."""

    steps: int = 0
    epochs: float = 10.0  # used when steps is 0
    batch_size: int = 2048  # over all ranks
    video_share: float = 0.0  # share of video steps; 0 = in proportion to the corpus
    block: int = 1  # samples that are neighbours in the shards and stay together in a batch
    mask: str = "none"  # none | random | tube | frame_row | clip_row | attention
    video_mask_ratio: float = 0.8
    image_mask_ratio: float = 0.5
    uta: float = 0.0  # weights of the objectives
    vtc: float = 0.0
    vtm: float = 0.0
    mlm: float = 0.0
    text: float = 0.0  # caption-to-paraphrase contrast, for corpora that carry paraphrases
    vtm_from: float = 0.0  # share of the stage after which matching starts
    mlm_probability: float = 0.5
    sibling_negatives: bool = False  # each clip's sibling caption is one more negative, where the corpus has one
    drop_path: float = 0.0
    keep_temporal: bool = False  # contrast each frame's pooled vector instead of the clip's
    optim: Optim = field(default_factory=Optim)


@dataclass(frozen=True, kw_only=True)
class TextWarmup:
    """Contrast of captions with their paraphrases before any video is seen; for text encoders from scratch."""

    steps: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    temperature: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All three stages and what they share."""

    masked: Stage = field(default_factory=Stage)
    multimodal: Stage = field(default_factory=Stage)
    unmasked: Stage = field(default_factory=Stage)
    warmup: TextWarmup = field(default_factory=TextWarmup)
    full_gather_gradient: bool = True
    seed: int = 42
    streams: int = 1024
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    max_bad_fraction: float = 0.05


# Where the recipes differ, and why. `official` reproduces the released scripts (VIDEOMAMBA.md 4.1, 5.3 to 5.9).
DIFFERENCES = (
    (
        "gather gradient",
        "true gradient of the global batch",
        "1/world_size of it",
        "the loss balance should not depend on the number of GPUs",
    ),
    (
        "aligned layer",
        "last block's output, normed",
        "stream before the last mixer, un-normed",
        "the last mixer is trained too",
    ),
    ("dt initialisation", "log-uniform in [1e-3, 0.1]", "zero bias", "a spread of time scales at the start"),
    (
        "weight decay",
        "not on A_log, positions, temperature",
        "on all of them",
        "decay pulls the state dynamics to A = -1",
    ),
    (
        "parameters",
        "fp32, bf16 autocast",
        "fp32, bf16 autocast (theirs: bf16)",
        "bf16 weights near 1 never move at this lr",
    ),
    ("gradient clipping", "norm 3", "none", "Mamba's rare spikes"),
    (
        "sample ids",
        "hash of corpus and key",
        "hash of corpus and key (theirs: row number)",
        "row numbers collide between corpora",
    ),
)


def _paper(clip: float, decay_state: bool, full_gather: bool) -> Recipe:
    optim = Optim(clip_grad=clip, decay_state=decay_state)
    return Recipe(
        masked=Stage(
            epochs=800,
            batch_size=2048,
            video_share=1.0,
            mask="attention",
            uta=1.0,
            drop_path=0.4,
            optim=replace(optim, lr=1.2e-3, betas=(0.9, 0.95), warmup_fraction=0.05, min_lr_ratio=0.0667),
        ),
        multimodal=Stage(
            epochs=10,
            batch_size=2048,
            mask="attention",
            uta=1.0,
            vtc=1.0,
            vtm=1.0,
            mlm=1.0,
            drop_path=0.25,
            optim=optim,
        ),
        unmasked=Stage(
            epochs=1,
            batch_size=1024,
            vtc=1.0,
            vtm=1.0,
            mlm=1.0,
            drop_path=0.25,
            keep_temporal=True,
            optim=replace(optim, lr=8e-5, warmup_fraction=0.2),
        ),
        full_gather_gradient=full_gather,
    )


def _demo(base: Recipe) -> Recipe:
    """Ten minutes on two CPU cores: small batches, no drop path, captions that say left and right are never flipped."""
    optim = Optim(
        lr=2e-3, betas=(0.9, 0.98), clip_grad=3.0, warmup_fraction=0.06, decay_state=base.unmasked.optim.decay_state
    )
    common: dict[str, Any] = {"batch_size": 32, "block": 2, "optim": optim}
    return replace(
        base,
        masked=Stage(**common, steps=60, video_share=1.0, mask="attention", uta=1.0),
        multimodal=Stage(
            **common,
            steps=160,
            video_share=0.8,
            mask="attention",
            uta=0.5,
            vtc=1.0,
            vtm=1.0,
            mlm=0.5,
            text=0.3,
            vtm_from=0.5,
            sibling_negatives=True,
        ),
        unmasked=Stage(
            **common,
            steps=1500,
            video_share=0.9,
            vtc=1.0,
            vtm=1.0,
            mlm=0.5,
            text=0.3,
            vtm_from=0.45,
            sibling_negatives=True,
            keep_temporal=True,
        ),
        warmup=TextWarmup(steps=140),
        streams=8,
        crop_scale=(1.0, 1.0),
        flip=False,
        seed=0,
    )


def recipe(name: str, corpus: str) -> Recipe:
    """The recipe `clean` or `official` for a corpus.

    Raises:
        UsageError: There is no recipe of that name.
    """
    if name not in ("clean", "official"):
        raise unknown_name("recipe", name, ("clean", "official"))
    base = _paper(3.0, False, True) if name == "clean" else _paper(0.0, True, False)
    return _demo(base) if corpus == "demo" else base


def stage_settings(settings: Recipe, stage: str) -> Stage:
    """The settings of one stage by name."""
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    found = getattr(settings, stage)
    if found.batch_size % settings.streams and settings.streams % found.batch_size:
        raise UsageError(f"{stage}.batch_size {found.batch_size} does not divide into {settings.streams} streams")
    return found
