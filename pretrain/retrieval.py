"""Fine-tuning of a video-text model on a benchmark's training split, then the zero-shot evaluation on its test split."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from vtr.data.finder import RootIndex
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.eval import zero_shot
from vtr.eval.annotations import read_annotations
from vtr.eval.benchmarks import Benchmark, find_videos, load_benchmark, load_protocol
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


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The pairs that a fine-tuning for retrieval reads.

    Attributes:
        name: Of the benchmark, or of the annotation file.
        pairs: (video, caption).
        searched: Folders that the videos were looked for in.
    """

    name: str
    pairs: tuple[tuple[Path, str], ...]
    missing: tuple[str, ...]
    file: Path
    searched: tuple[Path, ...]


def training_data(name: str | None, data_root: Path, file: Path | None = None) -> TrainingData:
    """The training split of a benchmark, or an annotation file of the user's.

    Captions are joined to one paragraph where the benchmark's test queries are (DiDeMo, ActivityNet). The videos of a file
    that is given lie under the data root or beside it.

    Args:
        name: A benchmark, an annotation file, or None: `file` alone.

    Raises:
        UsageError: There is no such benchmark.
        VtrError: There is no training annotation.
    """
    if name is not None and name not in _SOURCES:
        if not Path(name).suffix:
            raise unknown_name("benchmark to fine-tune on (or annotation file)", name, _SOURCES)
        file = file or Path(name)
        name = None
    if name is None and file is None:
        raise UsageError(f"--task retrieval needs --data: {', '.join(_SOURCES)}, or an annotation file of your own")
    protocol = load_protocol(name or str(file))
    ids: Path | None = None
    given = file
    if file is None and name is not None:
        for known, _split, listed in _SOURCES[name]:
            places = [data_root / f / known for f in (*_FOLDERS[name], ".")]
            file = next((p for p in places if p.is_file()), None)
            if file is not None:
                ids = file.parent / listed if listed and (file.parent / listed).is_file() else None
                break
        if file is None:
            names = ", ".join(known for known, _, _ in _SOURCES[name])
            raise VtrError(f"{name}: no training annotation under {data_root} (looked for {names}); give --train FILE")
    assert file is not None
    _, items = read_annotations(file, split="train", ids=ids)
    beside = given.resolve().parent if given is not None else None
    listed_names = [video for item in items for video in item.videos]
    found, notes, searched = find_videos(listed_names, RootIndex(data_root), protocol.videos, beside)
    pairs, missing = [], []
    for item in items:
        captions = [" ".join(item.captions)] if protocol.captions == "paragraph" else list(item.captions)
        for video in item.videos:
            path = found[video]
            if path is None:
                missing.append(f"{video} ({notes[video]})" if video in notes else video)
            else:
                pairs += [(path, " ".join(caption.split())) for caption in captions]
    return TrainingData(
        name=name or file.stem, pairs=tuple(pairs), missing=tuple(missing), file=file, searched=searched
    )


def tune_retrieval(settings: TuneSettings, watch: Watch | None = None) -> None:
    """Write the training pairs as a corpus, run the unmasked stage on it, evaluate.

    Raises:
        VtrError: Training videos are missing, or what a pretraining or an evaluation raises.
    """
    data = training_data(settings.data, settings.data_root, settings.train)
    name, pairs, missing = data.name, data.pairs, data.missing
    total = len({p for p, _ in pairs}) + len(missing)
    print(f"{name}: {len(pairs)} pairs of {total - len(missing)} of {total} videos, from {data.file}", file=sys.stderr)
    if not pairs or (missing and not settings.allow_missing):
        folders = ", ".join(map(str, data.searched))
        raise VtrError(
            f"{name}: {len(missing)} of {total} training videos are missing, first {missing[0] if missing else ''} (looked "
            f"for in {folders}; --data-root names another folder); --allow-missing goes on without them"
        )
    if settings.init is None and not settings.scratch and settings.resume is None:
        raise UsageError("fine-tuning for retrieval starts from a pretrained model: give it with --init")
    test = _test_of(settings, data)
    # What it will be tested on is looked for now, not after the training.
    tested = load_benchmark(test, settings.data_root)
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
        data=(test,),
        data_root=settings.data_root,
        out=out / "results",
        allow_missing=settings.allow_missing,
    )
    if ranks is None:
        ranks = Ranks.join()
        if watch is not None:
            watch.start()
    zero_shot.run(evaluation, ranks)
    note = _seen_in_training(data, tested)
    if ranks.main:
        print(note or "checkpoint: the last; no video of the test is in this training list (--init may have seen some)")
        record = {"task": "retrieval", "train": str(data.file), "test": test, "checkpoint": "the last", "note": note}
        with write_atomically(out / "results.json") as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")
    if watch is not None:
        watch.stop()
    ranks.end()


def _test_of(settings: TuneSettings, data: TrainingData) -> str:
    """What the model is tested on: the benchmark, an annotation file, or without one the training's own."""
    if data.name in _SOURCES:
        return data.name if settings.test is None else f"{data.name}={settings.test}"
    return str(settings.test or data.file)


def _seen_in_training(data: TrainingData, tested: Benchmark) -> str:
    """What to know of a test on videos that were trained on; "" where none was."""
    trained_on = {path.resolve() for path, _ in data.pairs}
    seen = sum(1 for path in tested.videos if path.resolve() in trained_on)
    if not seen:
        return ""
    return (
        f"note: {seen} of the {len(tested.videos)} test videos were trained on: these figures say that it learned, not what "
        "it finds among videos of others; --test FILE with other videos says that"
    )


def training_settings(settings: TuneSettings, corpus: Path, out: Path) -> RunSettings:
    """The pretraining that a fine-tuning for retrieval is: the unmasked stage on the training pairs."""
    return RunSettings(
        corpus=str(corpus),
        stage="unmasked",
        out=out,
        data_root=settings.data_root,
        short_side=settings.short_side,
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
