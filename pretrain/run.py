"""Pretrain a video-text model: masked distillation, joint image+video, unmasked tuning, in this order.

accelerate launch pretrain/run.py --corpus demo                      # minutes on a laptop CPU
accelerate launch pretrain/run.py --corpus 5M --data-root /data      # CC3M + WebVid-2M, VideoMamba-M
torchrun --nproc_per_node 2 pretrain/run.py --corpus demo --steps 20 # two ranks on a CPU
accelerate launch pretrain/run.py --corpus 5M --resume latest        # continue where it stopped
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there, so that `vtr` is found un-installed
    # and nothing in this folder shadows an installed package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import vtr.settings
from vtr.errors import UsageError, VtrError
from vtr.pretrain.recipes import STAGES, Recipe, Stage, recipe, stage_settings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Pretrain a video-text model on a corpus, all stages in order."""

    corpus: str
    """5M, 17M, 25M, demo, or the path of a corpus TOML."""
    stage: str | None = None
    """Only this stage: masked, multimodal or unmasked."""
    model: str | None = None
    """tiny, small, middle (default; the paper's), base, or demo: 64 pixels, text side from scratch."""
    recipe: str = "clean"
    """clean (ours) or official (what the released scripts do)."""
    out: Path | None = None
    """Run folder (default runs/CORPUS): log.jsonl, checkpoints/, model/."""
    data_root: Path = Path("data")
    """Where the corpora's shards are."""
    init: str | None = None
    """Start from this model: a run, a model folder or a checkpoint of ours."""
    teacher: str | None = None
    """CLIP teacher as open_clip ARCHITECTURE/PRETRAINED (default ViT-B-16/openai; the demo trains a small one)."""
    resume: str | None = None
    """`latest`, or a checkpoint file of this run."""
    steps: int | None = None
    """Steps of each stage, instead of the recipe's."""
    workers: int = 1
    """Data worker processes of each rank."""
    seed: int | None = None
    """Seed of data order, masks and weights (default: the recipe's)."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    demo_clips: int = 8000
    """Clips of the demo corpus; fewer for a quick look."""
    demo_images: int = 2000
    """Images of the demo corpus."""
    set: tuple[str, ...] = ()
    """Recipe settings, as in --set unmasked.optim.lr=1e-3 multimodal.steps=100."""


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, train, return the exit code."""
    import tyro

    settings = tyro.cli(RunSettings, args=argv, description=__doc__)
    try:
        train(settings)
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vtr: stopped; --resume latest continues", file=sys.stderr)
        return 130
    return 0


def resolve(settings: RunSettings) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with all overrides, and the stages to run."""
    chosen = recipe(settings.recipe, settings.corpus)
    for text in settings.set:
        # A key without a stage (optim.lr) goes to every stage.
        names = [f.name for f in dataclasses.fields(Stage)]
        if text.split("=")[0].split(".")[0].replace("-", "_") in names:
            chosen = vtr.settings.apply_overrides(chosen, [f"{s}.{text}" for s in STAGES])
        else:
            chosen = vtr.settings.apply_overrides(chosen, [text])
    if settings.seed is not None:
        chosen = dataclasses.replace(chosen, seed=settings.seed)
    if settings.steps is not None:
        if settings.steps < 1:
            raise UsageError(f"--steps {settings.steps}: expected a positive number")
        chosen = dataclasses.replace(
            chosen, **{s: dataclasses.replace(getattr(chosen, s), steps=settings.steps) for s in STAGES}
        )
    stages = (settings.stage,) if settings.stage else STAGES
    for name in stages:
        stage_settings(chosen, name)
    return chosen, stages


def train(settings: RunSettings) -> Path:
    """Run the stages; returns the folder of the final model."""
    chosen, stages = resolve(settings)
    out = settings.out or Path("runs") / Path(settings.corpus).stem
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(
            f"--out {out}: cannot be created ({error.strerror}); choose a folder you can write to"
        ) from error
    if not os.access(out, os.W_OK):
        raise VtrError(f"--out {out}: not writable; choose a folder you can write to")
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import set_seed

    cuda = torch.cuda.is_available()
    _warn_missing_ranks(cuda)
    # Without cpu=True, Accelerator ignores torchrun's ranks on a machine without a GPU. Images leave the temporal
    # embedding without a gradient and matching starts late, hence find_unused_parameters.
    accelerator = Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if cuda else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    main_process = accelerator.is_main_process
    from vtr.pretrain import build

    corpus = build.prepare_corpus(
        settings.corpus,
        settings.data_root,
        first=main_process,
        wait=accelerator.wait_for_everyone,
        demo_clips=settings.demo_clips,
        demo_images=settings.demo_images,
    )
    set_seed(chosen.seed)
    size = settings.model or ("demo" if settings.corpus == "demo" else "middle")
    model = build.build_model(size, corpus, settings.data_root, settings.recipe)
    resumed = _resume_state(settings, out, stages)
    if settings.init:
        import vtr.model

        model.load_state_dict(vtr.model.load(settings.init).state_dict())
    if resumed is None and not settings.init:
        build.warm_up(model, chosen)
    from vtr.pretrain.loop import RunLog

    if main_process:
        record = {"settings": _plain(settings), "recipe": _plain(chosen), "started": time.time()}
        (out / "run.json").write_text(json.dumps(record, indent=1, default=str))
    log = RunLog(out / "log.jsonl" if main_process else None)
    done_before = 0
    for index, name in enumerate(stages):
        steps = _stage_steps(getattr(chosen, name), corpus)
        if resumed is None or index >= resumed["stage_index"]:
            _run_stage(settings, chosen, name, index, steps, done_before, model, corpus, accelerator, log, out, resumed)
            resumed = None
        done_before += steps
    accelerator.wait_for_everyone()
    if main_process:
        model.save_pretrained(out / "model")
        print(f"model: {out / 'model'}", file=sys.stderr)
    _print_rank_check(model, accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / "model"


def _run_stage(
    settings: RunSettings,
    chosen: Recipe,
    name: str,
    index: int,
    steps: int,
    done_before: int,
    model: Any,
    corpus: Any,
    accelerator: Any,
    log: Any,
    out: Path,
    resumed: dict[str, Any] | None,
) -> None:
    from vtr.pretrain import loop
    from vtr.pretrain.optim import build_optimizer
    from vtr.pretrain.state import save_checkpoint
    from vtr.pretrain.step import PretrainStep

    stage: Stage = getattr(chosen, name)
    teacher = _teacher(settings, chosen, stage, model, corpus, accelerator) if stage.uta > 0 else None
    step_module = PretrainStep(model, stage, chosen.full_gather_gradient)
    set_drop_path = getattr(model.vision_encoder, "set_drop_path", None)
    if set_drop_path is not None:
        set_drop_path(stage.drop_path)
    optimizer = build_optimizer(step_module, stage.optim)
    first_step, positions = 0, None
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        first_step = resumed["stage_step"]
        positions = resumed["positions"][accelerator.process_index] if first_step else None
        if first_step:
            optimizer.load_state_dict(resumed["optimizer"])
    model.train()
    prepared, optimizer = accelerator.prepare(step_module, optimizer)
    batches = _stream(
        settings, chosen, stage, model, corpus, accelerator, seed=chosen.seed + index, start=positions, step=first_step
    )

    def save(stage_step: int, batch: Any) -> Path:
        from accelerate.utils import gather_object

        everyone = gather_object([batch.positions if batch is not None else {}])
        path = out / "checkpoints"
        if accelerator.is_main_process:
            path = save_checkpoint(
                path,
                done_before + stage_step,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "stage": name,
                    "stage_index": index,
                    "stage_step": stage_step,
                    "positions": everyone,
                    "world_size": accelerator.num_processes,
                },
            )
        accelerator.wait_for_everyone()
        return path

    try:
        last = loop.train_stage(
            name=name,
            stage=stage,
            steps=steps,
            first_step=first_step,
            done_before=done_before,
            batches=iter(batches),
            module=prepared,
            optimizer=optimizer,
            accelerator=accelerator,
            teacher=teacher,
            seed=chosen.seed,
            log=log,
            log_every=settings.log_every,
            save_every=settings.save_every,
            save=save,
        )
        if last is not None:
            save(steps, last)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    accelerator.free_memory()


def _stage_steps(stage: Stage, corpus: Any) -> int:
    if stage.steps:
        return stage.steps
    total = sum(member.samples for member in corpus.members if stage.video_share < 1 or member.media == "video")
    return max(1, round(stage.epochs * total / stage.batch_size))


def _stream(
    settings: RunSettings,
    chosen: Recipe,
    stage: Stage,
    model: Any,
    corpus: Any,
    accelerator: Any,
    *,
    seed: int,
    start: Any = None,
    step: int = 0,
) -> Any:
    from vtr.data.stream import Stream, StreamSettings

    share = stage.video_share
    crops = chosen.crop_scale != (1.0, 1.0)
    stream_settings = StreamSettings(
        frames=model.config.video.num_frames,
        size=model.config.video.image_size,
        batch_size=stage.batch_size,
        streams=chosen.streams,
        workers=settings.workers,
        block=stage.block,
        seed=seed,
        crop_scale=chosen.crop_scale if crops else None,
        flip=chosen.flip,
        max_bad_fraction=chosen.max_bad_fraction,
        media_weights={"video": share, "image": 1 - share} if share else None,
    )
    return Stream(
        corpus,
        stream_settings,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        start=start,
        first_step=step,
    )


def _teacher(settings: RunSettings, chosen: Recipe, stage: Stage, model: Any, corpus: Any, accelerator: Any) -> Any:
    from vtr.pretrain.teacher import ensure_demo_teacher, load_teacher

    name = settings.teacher
    if name is None and settings.corpus == "demo":
        folder = settings.data_root / "demo" / "teacher"
        if accelerator.is_main_process and not (folder / "teacher.safetensors").is_file():
            from vtr.data.stream import Stream, StreamSettings

            video = model.config.video
            source = Stream(
                corpus,
                StreamSettings(
                    frames=video.num_frames,
                    size=video.image_size,
                    batch_size=128,
                    streams=8,
                    workers=settings.workers,
                    block=1,
                    seed=chosen.seed,
                    crop_scale=None,
                    flip=False,
                ),
                rank=0,
                world=1,
            )
            try:
                ensure_demo_teacher(folder, iter(source), model)
            finally:
                source.close()
        accelerator.wait_for_everyone()
        name = str(folder)
    return load_teacher(name or "ViT-B-16/openai").to(accelerator.device)


def _resume_state(settings: RunSettings, out: Path, stages: tuple[str, ...]) -> dict[str, Any] | None:
    if settings.resume is None:
        return None
    from vtr.pretrain.state import load_checkpoint

    state = load_checkpoint(out / "checkpoints", settings.resume)
    if state is None:
        print(f"--resume latest: no checkpoint in {out / 'checkpoints'}, starting from the beginning", file=sys.stderr)
        return None
    if state["stage"] not in stages:
        raise VtrError(f"the checkpoint is of stage {state['stage']}, this run has only {', '.join(stages)}")
    state["stage_index"] = stages.index(state["stage"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if state["world_size"] != world:
        raise VtrError(
            f"the checkpoint was written by {state['world_size']} ranks, this run has {world}: use the same number"
        )
    return state


def _warn_missing_ranks(cuda: bool) -> None:
    """`accelerate launch --num_processes N` starts one process on a machine without a GPU: say so."""
    if cuda or "WORLD_SIZE" in os.environ:
        return
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return
    for i, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--num_processes", "--num-processes"):
            value = value or (words[i + 1] if i + 1 < len(words) else "1")
            if value.isdigit() and int(value) > 1:
                print(
                    f"note: {value} ranks were asked for, but accelerate launch starts a single process on a machine "
                    f"without a GPU; for {value} ranks on a CPU: torchrun --nproc_per_node {value} pretrain/run.py …",
                    file=sys.stderr,
                )


def _print_rank_check(model: Any, accelerator: Any) -> None:
    """With several ranks, show that all hold the same weights."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    sums = gather_object([model.fingerprint()])
    if accelerator.is_main_process:
        if len(set(sums)) > 1:
            raise VtrError(f"the ranks hold different weights: {sums}")
        print(f"{len(sums)} ranks hold equal weights ({sums[0][:12]})", file=sys.stderr)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value)


if __name__ == "__main__":
    sys.exit(main())
