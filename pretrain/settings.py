"""The flags of a pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Pretrain a video-text model on a corpus, all stages in order."""

    corpus: str
    """5M, 17M, 25M or a member (CC3M, WebVid-2M …), demo, or your own: a list of files and captions (CSV, JSONL …), a folder
    of files with a list or texts in it, shards (folder, a.tar, x-{000..009}.tar, A::B), a corpus TOML."""
    short_side: int = 0
    """Of a list or folder of files: make copies of so many pixels once, as shards below the data root, and train on
    those: reading large files each time is slow (0: read the files as they are)."""
    stage: str | None = None
    """Only this stage: masked, multimodal, unmasked, or beyond a recipe's own: refine (unmasked, with look-alikes in a
    batch), matching (cross-modal decoder and matching head alone, the encoders frozen; with --init on any finished model)."""
    model: str | None = None
    """tiny, small, middle (default; the paper's), base; UMT's umt_base, umt_large; or demo: 64 pixels, text side from scratch."""
    text: str = "bert"
    """Text side of tiny to base: bert (bert-base-uncased), any other BERT of the hub (OWNER/NAME) or in a folder, or
    scratch (six layers of 384, words of the corpus)."""
    recipe: str = "clean"
    """clean (ours) or official (what the released scripts do)."""
    out: Path | None = None
    """Run folder (default runs/CORPUS): log.jsonl, checkpoints/, model/."""
    data_root: Path = Path("data")
    """Where the corpora's shards are."""
    init: str | None = None
    """Start from this model: a run, a model folder or a checkpoint of ours."""
    init_vision: str | None = None
    """Start the video side alone from this model, as the released recipe does from a masked Kinetics-400 run."""
    teacher: str | None = None
    """Teacher as open_clip ARCHITECTURE/PRETRAINED (default ViT-B-16/openai; the demo trains a small one; PE-Core-B-16/meta
    is a modern one, any vision transformer of CLIP, SigLIP 2, PE-Core or EVA will do), or none: the multimodal stage then
    runs without token alignment and masks, and there is no masked stage."""
    resume: str | None = None
    """`latest`, `best`, or a checkpoint file of this run; any number of ranks and workers may continue it."""
    accept_changes: bool = False
    """Resume although recipe or corpus differ from the checkpoint's: no longer the same run."""
    dry_run: bool = False
    """Resolve every shard, count, plan, measure 20 steps of each stage, write nothing; fail when shards are missing."""
    allow_missing: bool = False
    """Let a dry run go on with a partial corpus."""
    plan_ranks: int = 0
    """In a dry run: plan for so many ranks without starting them."""
    steps: int | None = None
    """Steps of each stage, instead of the recipe's."""
    micro_batch: int = 0
    """Samples encoded at once on each rank; the losses still see the whole global batch (0 = all of the rank's)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    fsdp: bool = False
    """Share the blocks' weights and optimiser state among the ranks (FSDP2); accelerate's FSDP configuration asks for it too."""
    precision: str = "auto"
    """bf16 (autocast; parameters stay fp32), fp32, or auto: bf16 on a GPU."""
    workers: int = 1
    """Data worker processes of each rank."""
    threads: int = 0
    """Threads of each rank's computing (0 = its share of the cores, or OMP_NUM_THREADS where you have set it)."""
    decode_threads: int = 1
    """Decoding threads of each worker."""
    cache: Path | None = None
    """Folder for local copies of remote shards."""
    seed: int | None = None
    """Seed of data order, masks and weights (default: the recipe's)."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 2
    """Latest checkpoints kept, beside the best (0 = all)."""
    validate: str | None = None
    """Benchmark name or annotation file (.json, .csv) for validation retrieval (the demo: its own)."""
    validate_every: int = 0
    """Steps between validations (0 = none)."""
    validate_samples: int = 1000
    """Videos of the validation at most."""
    report_to: tuple[str, ...] = ()
    """Trackers of accelerate: tensorboard, wandb, …"""
    demo_clips: int = 8000
    """Clips of the demo corpus; fewer for a quick look."""
    demo_images: int = 2000
    """Images of the demo corpus."""
    set: tuple[str, ...] = ()
    """Recipe settings, as in --set unmasked.optim.lr=1e-3 multimodal.steps=100."""
