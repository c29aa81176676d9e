"""The flags of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Fine-tune on a recognition task, or for retrieval."""

    task: str
    """imagenet, k400, ssv2, breakfast, coin, lvu-relation|speak|scene|director|genre|writer|year|like|view; own: your
    classes; retrieval."""
    data: str | None = None
    """Folder of the data set (default data/TASK); of own: where its files are, if not beside the lists; of retrieval:
    msrvtt, didemo, anet, lsmdc or msvd."""
    train: Path | None = None
    """List `path label` of the training split, instead of the data set's own layout (own: words may be labels; retrieval:
    an annotation file of videos and captions, with or without --data)."""
    val: Path | None = None
    """List of the validation split."""
    test: Path | None = None
    """List of the test split (retrieval: an annotation file)."""
    model: str | None = None
    """tiny (default), small, middle, base, or demo: narrow, 64 pixels. Retrieval: that of --init."""
    recipe: str = "paper"
    """paper (Tables III to VI) or released (the scripts, where they differ)."""
    masked: bool = False
    """The recipe for a model from masked pretraining (M†)."""
    init: str | None = None
    """Weights to start from: an official name (`vtr models`), a run, a model folder, or a checkpoint file."""
    scratch: bool = False
    """Start from random weights although the recipe starts from a trained model."""
    teacher: str | None = None
    """Self-distillation: a trained, smaller model of the same task."""
    distill_until: float = 1.0
    """Share of the steps after which the teacher stops guiding (early stopping)."""
    frames: int | None = None
    """Frames of a clip, instead of the recipe's."""
    pixels: int | None = None
    """Side of a frame, instead of the recipe's."""
    short_side: int = 0
    """Make copies of the videos with this many pixels on the short side once (below --data-root), and read those; 0: read
    the files as they are."""
    out: Path | None = None
    """Run folder (default runs/TASK): log.jsonl, checkpoints/, model/, results.json, views.*"""
    data_root: Path = Path("data")
    """Where data/TASK is looked for, and the benchmarks of retrieval."""
    resume: str | None = None
    """`latest`, `best`, or a checkpoint file of this run."""
    accept_changes: bool = False
    """Resume although recipe or data differ from the checkpoint's: no longer the same run."""
    test_only: bool = False
    """Only the multi-view test, of --init (or of the run's best checkpoint with --resume best)."""
    dry_run: bool = False
    """Print the recipe, look at every file, run two steps and two test clips, write nothing."""
    allow_missing: bool = False
    """Go on without files that are listed but not there; the result then says so."""
    steps: int | None = None
    """Steps, instead of the recipe's epochs."""
    validate_every: int = 0
    """Steps between validations (0 = once an epoch)."""
    micro_batch: int = 0
    """Clips encoded at once on each rank; the gradient stays that of the whole batch (0 = all)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 on a GPU."""
    workers: int = 2
    """Data worker processes of each rank."""
    threads: int = 0
    """Threads of each rank's computing (0 = its share of the cores, or OMP_NUM_THREADS where you have set it)."""
    seed: int | None = None
    """Seed of order, augmentation and new weights (default: the recipe's)."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 2
    """Latest checkpoints kept, beside the best (0 = all)."""
    max_bad_fraction: float = 0.05
    """Share of unreadable files among those read so far at which the run stops."""
    report_to: tuple[str, ...] = ()
    """Trackers of accelerate: tensorboard, wandb, …"""
    set: tuple[str, ...] = ()
    """Recipe settings, as in --set lr=1e-3 epochs=3 batch_size=16."""
