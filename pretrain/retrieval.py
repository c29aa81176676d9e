"""Fine-tuning of a video-text model on a benchmark's training split, then the zero-shot evaluation on its test split."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vtr.errors import UsageError, VtrError, unknown_name
from vtr.eval import zero_shot
from vtr.eval.annotations import read_annotations
from vtr.eval.benchmarks import RootIndex, VideoFinder, load_protocol
from vtr.eval.zero_shot import ZeroShotSettings
from vtr.files import write_atomically
from vtr.pretrain.dry_run import dry_run
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.state import check_out
from vtr.pretrain.train import trained
from vtr.pretrain.watch import Watch
from vtr.ranks import Ranks

# Training annotations as the official code's data release, the data sets themselves and CLIP4Clip name them; the split
# of files that hold several, the captions that make one query, and lists of ids where the split is one.
_SOURCES: dict[str, tuple[tuple[str, str, str | None], ...]] = {
    "msrvtt": (
        ("msrvtt_ret_train9k.json", "train", None),
        ("msrvtt_ret_train7k.json", "train", None),
        ("MSRVTT_data.json", "train", "MSRVTT_train.9k.csv"),
        ("train_val_videodatainfo.json", "train", "MSRVTT_train.9k.csv"),
    ),
    "didemo": (("didemo_ret_train.json", "train", None), ("train_data.json", "train", None)),
    "anet": (("anet_ret_train.json", "train", None), ("train.json", "train", None)),
    "lsmdc": (("lsmdc_ret_train.json", "train", None), ("LSMDC16_annos_training.csv", "train", None)),
    "msvd": (("msvd_ret_train.json", "train", None), ("captions_msvd.json", "train", "train_list.txt")),
}
_FOLDERS = {"anet": ("anet", "activitynet", "ActivityNet"), "msrvtt": ("msrvtt", "MSRVTT"), "didemo": ("didemo", "DiDeMo"),
            "lsmdc": ("lsmdc", "LSMDC"), "msvd": ("msvd", "MSVD")}  # fmt: skip


def training_pairs(
    name: str, data_root: Path, file: Path | None = None
) -> tuple[list[tuple[Path, str]], list[str], Path]:
    """(video, caption) pairs of a benchmark's training split, the videos that are missing, and the annotation.

    Captions are joined to one paragraph where the benchmark's test queries are (DiDeMo, ActivityNet).

    Raises:
        VtrError: There is no training annotation.
    """
    if name not in _SOURCES:
        raise unknown_name("benchmark to fine-tune on", name, _SOURCES)
    protocol = load_protocol(name)
    ids: Path | None = None
    if file is None:
        for known, _split, listed in _SOURCES[name]:
            places = [data_root / f / known for f in (*_FOLDERS[name], ".")]
            file = next((p for p in places if p.is_file()), None)
            if file is not None:
                ids = file.parent / listed if listed and (file.parent / listed).is_file() else None
                break
    if file is None:
        names = ", ".join(known for known, _, _ in _SOURCES[name])
        raise VtrError(f"{name}: no training annotation under {data_root} (looked for {names}); give --train FILE")
    _, items = read_annotations(file, split="train", ids=ids)
    finder = VideoFinder(RootIndex(data_root), protocol.videos)
    paths, notes = finder.find_all(video for item in items for video in item.videos)
    pairs, missing = [], []
    for item in items:
        captions = [" ".join(item.captions)] if protocol.captions == "paragraph" else list(item.captions)
        for video in item.videos:
            path = paths[video]
            if path is None:
                missing.append(f"{video} ({notes[video]})" if video in notes else video)
            else:
                pairs += [(path, " ".join(caption.split())) for caption in captions]
    return pairs, missing, file


def tune_retrieval(settings: TuneSettings, watch: Watch | None = None) -> None:
    """Write the training pairs as a corpus, run the unmasked stage on it, evaluate.

    Raises:
        VtrError: Training videos are missing, or what a pretraining or an evaluation raises.
    """
    name = settings.data
    if name is None:
        raise UsageError(f"--task retrieval needs --data: {', '.join(_SOURCES)}")
    pairs, missing, file = training_pairs(name, settings.data_root, settings.train)
    total = len({p for p, _ in pairs}) + len(missing)
    print(f"{name}: {len(pairs)} pairs of {total - len(missing)} of {total} videos, from {file}", file=sys.stderr)
    if not pairs or (missing and not settings.allow_missing):
        raise VtrError(
            f"{name}: {len(missing)} of {total} training videos are missing, first {missing[0] if missing else ''}; "
            "--allow-missing goes on without them"
        )
    if settings.init is None and not settings.scratch and settings.resume is None:
        raise UsageError("fine-tuning for retrieval starts from a pretrained model: give it with --init")
    out = settings.out or Path("runs") / f"retrieval-{name}"
    check_out(out)
    corpus = out / f"{name}.jsonl"
    lines = [json.dumps({"video": str(path.resolve()), "caption": caption}) for path, caption in pairs]
    with write_atomically(corpus) as partial:
        partial.write_text("\n".join(lines) + "\n")
    ranks = None
    if not settings.test_only:
        chosen = training_settings(settings, corpus, out)
        if settings.dry_run:
            dry_run(chosen, watch)
            return
        ranks = trained(chosen, watch).ranks
    evaluation = ZeroShotSettings(
        model=str(out) if not settings.test_only or settings.init is None else settings.init,
        data=(name if settings.test is None else f"{name}={settings.test}",),
        data_root=settings.data_root,
        out=out / "results",
        allow_missing=settings.allow_missing,
    )
    if ranks is None:
        ranks = Ranks.join()
        if watch is not None:
            watch.start()
    zero_shot.run(evaluation, ranks)
    if watch is not None:
        watch.stop()
    ranks.end()


def training_settings(settings: TuneSettings, corpus: Path, out: Path) -> RunSettings:
    """The pretraining that a fine-tuning for retrieval is: the unmasked stage on the training pairs."""
    return RunSettings(
        corpus=str(corpus),
        stage="unmasked",
        out=out,
        data_root=settings.data_root,
        model=settings.model,
        init=settings.init,
        resume=settings.resume,
        accept_changes=settings.accept_changes,
        dry_run=settings.dry_run,
        steps=settings.steps,
        micro_batch=settings.micro_batch,
        checkpointing=settings.checkpointing,
        precision=settings.precision,
        workers=settings.workers,
        seed=settings.seed,
        log_every=settings.log_every,
        save_every=settings.save_every,
        keep=settings.keep,
        report_to=settings.report_to,
        set=settings.set,
    )
