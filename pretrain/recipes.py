"""Recipes as data: every hyperparameter of the three stages, `clean` (ours) and `official` (the released scripts)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypedDict

from vtr.encoders.masking import KINDS
from vtr.errors import UsageError, unknown_name

K400_CLIPS = 240_436  # training videos of Kinetics-400, which the paper's masked stage reads 800 times

STAGES = ("masked", "multimodal", "unmasked", "refine", "matching")
PAPER_STAGES = STAGES[:3]
RECIPES = ("clean", "official")
MASKS = ("none", *KINDS)
INITS = ("clean", "official")
MATCH_LOSSES = ("pairs", "list", "both")


def objective(place: str) -> float:
    """A stage's weight of the training objective at `vtr.pretrain.objectives.PLACE`; 0 = off."""
    return field(default=0.0, metadata={"objective": place})


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and its schedule."""

    lr: float = 4e-4  # the highest, after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.05  # of matrices; not of norms, biases and (see decay_state) states
    clip_grad: float = 0.0  # global gradient norm; 0 = no clipping
    warmup_fraction: float = 0.1  # of the stage's steps
    min_lr_ratio: float = 0.01  # floor of the cosine, as a share of lr
    decay_state: bool = False  # also decay A_log, position embeddings and the temperature, as the official code does


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: how long, on what, with which objectives."""

    steps: int = 0  # 0: as many as `epochs` needs
    epochs: float = 10.0  # used when steps is 0
    batch_size: int = 2048  # over all ranks
    video_share: float = 0.0  # share of video steps; 0 = in proportion to the corpus
    block: int = 1  # samples that are neighbours in the shards and stay together in a batch
    mask: str = "none"  # one of MASKS
    video_mask_ratio: float = 0.8  # share of a clip's patches that are hidden
    image_mask_ratio: float = 0.5  # share of an image's

    # Every training objective with its weight, in the order in which they are computed and logged.
    uta: float = objective("alignment.Alignment")  # weight of aligning unmasked tokens with the teacher's
    vtc: float = objective("contrastive.Contrastive")  # weight of video-text contrast
    vtm: float = objective("matching.Matching")  # weight of video-text matching
    mlm: float = objective("language.Language")  # weight of masked language modelling
    text: float = objective("text_pair.TextPair")  # weight of contrast between a caption and its paraphrase

    vtm_from: float = 0.0  # share of the stage after which matching starts
    mlm_probability: float = 0.5  # share of the words that are masked
    sibling_negatives: bool = False  # each clip's sibling caption is one more negative, where the corpus has one
    # A clip played backwards is one more wrong partner of a caption that tells a direction or an order, and the caption
    # turned to it one more of the clip (vtr.data.direction): in VTC and in VTM. Where a corpus has no siblings, `text` tells the
    # caption from the turned one amid invented words: a text side from random weights needs it, or neither side moves first.
    direction_negatives: bool = False
    drop_path: float = 0.0  # stochastic depth of the video encoder: the last block's rate
    keep_temporal: bool = False  # contrast each frame's pooled vector instead of the clip's
    match_group: int = 0  # samples, neighbours in the global batch, that wrong partners are drawn from; 0 = all
    match_negatives: int = 1  # wrong videos of each text, and wrong texts of each video
    match_loss: str = "pairs"  # one of MATCH_LOSSES: right or wrong, which of the list is right, or both
    mlm_share: float = 1.0  # of the batch's samples, whose words are masked
    frozen: bool = False  # the encoders are: cross-modal decoder and matching head alone are trained
    # Of frozen encoders: each clip is encoded once, its middle frames whole, before the first step, and its features read from
    # the run folder after that. For little data that is read many times; a part of an epoch needs them once anyway.
    keep_features: bool = False
    optim: Optim = field(default_factory=Optim)  # its keys are below

    def waiting(self, step: int, steps: int) -> frozenset[str]:
        """Objectives that are not on yet at a step."""
        return frozenset({"vtm"} if step < self.vtm_from * steps else ())


def objective_places() -> dict[str, str]:
    """Where each objective is, below `vtr.pretrain.objectives`, by name."""
    return {f.name: f.metadata["objective"] for f in fields(Stage) if "objective" in f.metadata}


@dataclass(frozen=True, kw_only=True)
class TextWarmup:
    """Contrast of captions with their paraphrases before any video is seen; for text encoders from scratch."""

    steps: int = 0  # 0: none
    batch_size: int = 64  # captions of a step
    lr: float = 1e-3  # of AdamW, constant
    temperature: float = 0.1  # of the contrast


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All three stages and what they share."""

    masked: Stage = field(default_factory=Stage)  # the video side alone, from the teacher
    multimodal: Stage = field(default_factory=Stage)  # videos and texts, masked, with the teacher
    unmasked: Stage = field(default_factory=Stage)  # videos and texts, whole
    refine: Stage = field(default_factory=Stage)  # unmasked, with look-alikes in one batch
    matching: Stage = field(default_factory=Stage)  # decoder and head alone
    stages: tuple[str, ...] = PAPER_STAGES  # that run where none is named
    warmup: TextWarmup = field(default_factory=TextWarmup)  # of a text side from scratch
    gather_ranks: int = 1  # the contrastive gradient is divided by this (see DIFFERENCES)
    align_layers: int = 1  # last layers of the encoder aligned with as many of the teacher's
    init: str = "clean"  # one of INITS: dt's initialisation and the layer that is aligned
    official_frames: bool = False  # frames are chosen as the released loader does (see DIFFERENCES)
    seed: int = 42  # of order, masks and new weights
    streams: int = 1024  # canonical streams: a multiple of every number of ranks it may run on
    crop_scale: tuple[float, float] = (0.5, 1.0)  # share of a frame that a random crop covers
    flip: bool = True  # mirror half of the clips
    max_bad_fraction: float = 0.05  # share of unreadable samples at which a run stops


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One way in which the recipes differ, or in which ours reproduces a choice that may surprise."""

    what: str
    clean: str
    official: str
    why: str
    setting: str = ""  # the key of `Recipe` that decides, "" where both recipes do the same


# `official` reproduces the released scripts (docs/notes/videomamba.md) with the hyperparameters of
# the paper's Table II; this table is the one place that says where `clean` departs from it, and why.
DIFFERENCES = (
    Difference(
        what="gather gradient",
        clean="the gradient of the global batch",
        official="1/16 of it at the encoders (their gather drops the other 15 ranks' share), all of it at the temperature",
        why="the balance of the losses should not depend on the number of GPUs",
        setting="gather_ranks",
    ),
    Difference(
        what="aligned layer",
        clean="the last block's output, after the norm",
        official="the stream before the last mixer's output, without the norm",
        why="in the masked stage the last mixer and the final norm would get no gradient at all",
        setting="init",
    ),
    Difference(
        what="dt initialisation",
        clean="log-uniform in [1e-3, 0.1]",
        official="zero bias (0.69 everywhere)",
        why="a spread of time scales at the start, as Mamba means it",
        setting="init",
    ),
    Difference(
        what="teacher",
        clean="ViT-B-16/openai; an option is --teacher PE-Core-B-16/meta: its 768 channels after the final norm instead of 512 "
        "through the projection, frames with its own pixel statistics, masks drawn by its pooling query's attention",
        official="ViT-B-16/openai, which sees ImageNet-normalised frames; before ln_post for VideoMamba, after it for UMT",
        why="zero-shot on MSRVTT the modern tower alone reaches 47.6, more than the students of the 2021 one (35.6)",
    ),
    Difference(
        what="weight decay",
        clean="not on A_log, positions, CLS token, temperature",
        official="on all of them",
        why="decay pulls the state dynamics to A = -1 and the temperature to 0",
        setting="multimodal.optim.decay_state",
    ),
    Difference(
        what="gradient clipping",
        clean="norm 3",
        official="none",
        why="Mamba's rare spikes",
        setting="multimodal.optim.clip_grad",
    ),
    Difference(
        what="frames in training",
        clean="one at random of each interval",
        official="never the last frame of an interval",
        why="an off-by-one that hides frames of short clips",
        setting="official_frames",
    ),
    Difference(
        what="parameters",
        clean="fp32, bf16 autocast, scan in fp32",
        official="the same here; theirs were bf16 in the multimodal stages",
        why="bf16 weights near 1 never move at these learning rates: norms, D and the temperature stay as loaded",
    ),
    Difference(
        what="sample ids",
        clean="hash of corpus and key",
        official="the same here; theirs were row numbers of each corpus",
        why="row numbers collide between corpora and become false positives",
    ),
    Difference(
        what="wrong partners (VTM)",
        clean="drawn among 128 (masked) or 64 (unmasked) neighbours of the global batch",
        official="the same: it is what one of their GPUs held",
        why="tied to the global batch, so that it does not depend on the number of ranks",
    ),
    Difference(
        what="choices (VTM)",
        clean="an option (match_loss, match_negatives); the optional stages refine and matching use it",
        official="right or wrong, of one wrong video and one wrong text",
        why="re-ranking orders the first hits: a choice among look-alikes is what it does (LCE, 2101.08751)",
        setting="matching.match_loss",
    ),
    Difference(
        what="masked words (MLM)",
        clean="50 %; the mean is over the global batch",
        official="50 %; theirs averaged the means of ranks",
        why="exact whatever the number of ranks",
    ),
    Difference(
        what="broken sample",
        clean="dropped and listed; the stream's next sample takes its place, with its own caption",
        official="the same here; theirs put another video under the broken one's caption",
        why="a wrong pair teaches nothing",
    ),
    Difference(
        what="layer decay",
        clean="none",
        official="none",
        why="their scripts use it in fine-tuning only",
    ),
    Difference(
        what="batch size of 17M and 25M",
        clean="2048",
        official="2048, as in the paper; their run files ask for 4096 with the same learning rate",
        why="the paper's table is the reference",
    ),
)


def _paper(*, clip: float, decay_state: bool, choices: bool) -> Recipe:
    optim = Optim(clip_grad=clip, decay_state=decay_state)
    tuning = Stage(
        epochs=1,
        batch_size=1024,
        vtc=1.0,
        vtm=1.0,
        mlm=1.0,
        drop_path=0.25,
        keep_temporal=True,
        match_group=64,
        optim=replace(optim, lr=8e-5, warmup_fraction=0.2),
    )
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
            match_group=128,
            optim=optim,
        ),
        unmasked=tuning,
        refine=_choices(replace(tuning, block=4), 3 if choices else 0),
        matching=_choices(_head_only(tuning), 7 if choices else 0),
    )


def _choices(stage: Stage, wrong: int) -> Stage:
    """Matching by choices, among so many wrong partners; 0: by pairs, as released."""
    return replace(stage, match_negatives=wrong, match_loss="list") if wrong else stage


def _head_only(like: Stage) -> Stage:
    """The tail of a recipe: decoder and matching head on frozen encoders."""
    off = {name: 0.0 for name in objective_places() if name != "vtm"}
    return replace(like, **off, sibling_negatives=False, drop_path=0.0, vtm_from=0.0, frozen=True)  # type: ignore[arg-type]


class _Common(TypedDict):
    batch_size: int
    block: int
    optim: Optim


def _demo(base: Recipe) -> Recipe:
    """Ten minutes on two CPU cores: small batches, no drop path, captions that say left and right are never flipped.

    Neighbours in its shards look alike: a clip and its sibling, then another pair of the same colours (`vtr.data.demo`).
    """
    optim = Optim(
        lr=2e-3, betas=(0.9, 0.98), clip_grad=3.0, warmup_fraction=0.06, decay_state=base.unmasked.optim.decay_state
    )
    common: _Common = {"batch_size": 32, "block": 2, "optim": optim}
    unmasked = Stage(
        **common,
        steps=1400,
        video_share=0.6,  # stills show every colour in every shape: without them unseen combinations stay strange
        vtc=1.0,
        vtm=1.0,
        mlm=0.5,
        mlm_share=0.5,
        text=0.3,
        vtm_from=0.6,
        sibling_negatives=True,
        keep_temporal=True,
        match_negatives=3,
        match_loss="list",
    )  # choices in both recipes: it is what the demo is there to show
    # Batches of look-alikes from the start would unteach colours.
    refine = replace(unmasked, steps=800, video_share=0.7, vtm_from=0.0, block=4, optim=replace(optim, lr=1e-3))
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
        unmasked=unmasked,
        refine=refine,
        matching=replace(_choices(_head_only(refine), 7), steps=300, video_share=0.9),
        stages=STAGES,
        warmup=TextWarmup(steps=140),
        streams=8,
        crop_scale=(1.0, 1.0),
        flip=False,
        seed=0,
    )


def recipe(name: str, corpus: str) -> Recipe:
    """The recipe `clean` or `official` for a corpus.

    The masked stage is 800 epochs of a folder, list or TOML of the user's (Kinetics-400, as in the paper), and as many
    clips as that for a corpus that comes with vtr.

    Raises:
        UsageError: There is no recipe of that name.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    if name == "clean":
        base = _paper(clip=3.0, decay_state=False, choices=True)
    else:
        base = replace(
            _paper(clip=0.0, decay_state=True, choices=False), gather_ranks=16, init="official", official_frames=True
        )
    if corpus == "demo":
        return _demo(base)
    if not Path(corpus).exists():  # a named corpus: its videos are ten to forty times as many as Kinetics-400's
        clips = base.masked.epochs * K400_CLIPS
        base = replace(base, masked=replace(base.masked, steps=round(clips / base.masked.batch_size)))
    return base


def check(settings: Recipe, stages: tuple[str, ...]) -> None:
    """Refuse a recipe with values that mean nothing, before anything is built.

    Raises:
        UsageError: The stage, key and value, and what was expected.
    """
    if settings.init not in INITS:
        raise unknown_name("init", settings.init, INITS)
    if settings.streams < 1 or settings.align_layers < 1 or settings.gather_ranks < 1:
        raise UsageError("streams, align_layers and gather_ranks: expected positive numbers (--set streams=…)")
    for name in stages:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
        stage: Stage = getattr(settings, name)
        if stage.mask not in MASKS:
            raise unknown_name(f"mask of the {name} stage", stage.mask, MASKS)
        for key in (
            "video_mask_ratio",
            "image_mask_ratio",
            "mlm_probability",
            "mlm_share",
            "drop_path",
            "vtm_from",
            "video_share",
        ):
            value = getattr(stage, key)
            if not 0 <= value <= 1:
                raise UsageError(f"{name}.{key} {value:g}: expected a share between 0 and 1")
        for key in objective_places():
            if getattr(stage, key) < 0:
                raise UsageError(f"{name}.{key} {getattr(stage, key):g}: a weight is 0 (off) or positive")
        if not any(getattr(stage, key) for key in objective_places()):
            raise UsageError(f"stage {name} has no objective: give one a weight (--set {name}.vtc=1)")
        if stage.keep_features and (not stage.frozen or stage.direction_negatives):
            what = (
                "clips played backwards are encoded anew" if stage.frozen else "encoders that learn have none to keep"
            )
            raise UsageError(
                f"{name}.keep_features: {what}; expected {name}.frozen=true and {name}.direction_negatives=false"
            )
        if stage.match_loss not in MATCH_LOSSES:
            raise unknown_name(f"match_loss of the {name} stage", stage.match_loss, MATCH_LOSSES)
        for key in ("batch_size", "block", "match_negatives"):
            if getattr(stage, key) < 1:
                raise UsageError(f"{name}.{key} {getattr(stage, key)}: expected a positive number")
