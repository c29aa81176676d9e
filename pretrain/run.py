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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import vtr.settings
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.pretrain.recipes import STAGES, Recipe, Stage, recipe, stage_settings
from vtr.pretrain.watch import Watch


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Pretrain a video-text model on a corpus, all stages in order."""

    corpus: str
    """5M, 17M, 25M or a member (CC3M, WebVid-2M …), demo, the path of a corpus TOML, or a folder of shards or videos."""
    stage: str | None = None
    """Only this stage: masked, multimodal or unmasked."""
    model: str | None = None
    """tiny, small, middle (default; the paper's), base, or demo: 64 pixels, text side from scratch."""
    text: str = "bert"
    """Text side of tiny to base: bert (bert-base-uncased), or scratch (six layers of 384, words of the corpus)."""
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
    """CLIP teacher as open_clip ARCHITECTURE/PRETRAINED (default ViT-B-16/openai; the demo trains a small one)."""
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


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, train, return the exit code."""
    import tyro

    settings = tyro.cli(RunSettings, args=argv, description=__doc__)
    return guarded(lambda watch: train(settings, watch))


def guarded(work: Callable[[Watch], Any]) -> int:
    """Do the work of one rank under a watch: every failure ends in one line, on all ranks; returns the exit code."""
    watch = Watch(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    try:
        work(watch)
    except VtrError as error:
        watch.fail(str(error))
        print(f"vtr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        watch.fail("stopped by hand")
        print("vtr: stopped; --resume latest continues", file=sys.stderr)
        return 130
    except Exception as error:
        # A collective fails when another rank dies: what that one said, or that it is gone, is worth more than ours.
        cause = watch.cause(3.0) if watch.active else None
        if cause is None and watch.active and _lost_connection(error):
            gone = watch.gone(6.0)
            cause = f"rank {', '.join(map(str, gone))} is gone" if gone else None
        if cause is None:
            watch.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            raise
        watch.fail(cause)
        print(f"vtr: rank {watch.rank} stops: {cause}; --resume latest continues", file=sys.stderr)
        return 1
    finally:
        watch.stop()
    return 0


def _lost_connection(error: Exception) -> bool:
    """Whether a collective failed because of another process."""
    text = str(error).lower()
    words = ("connection", "socket", "remote", "nccl", "gloo", "peer", "timed out")
    return isinstance(error, RuntimeError) and any(w in text for w in words)


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


def train(settings: RunSettings, watch: Watch | None = None) -> Path:
    """Run the stages; returns the folder of the final model."""
    chosen, stages = resolve(settings)
    out = settings.out or Path("runs") / Path(settings.corpus).stem
    if not settings.dry_run:
        _check_out(out)
    import torch
    from accelerate.utils import set_seed

    accelerator = _accelerator(settings, out)
    if watch is not None:
        watch.start()
    main_process = accelerator.is_main_process
    from vtr.pretrain import build
    from vtr.pretrain.loop import Progress, RunLog

    corpus = build.prepare_corpus(
        settings.corpus,
        settings.data_root,
        first=main_process,
        wait=accelerator.wait_for_everyone,
        demo_clips=settings.demo_clips,
        demo_images=settings.demo_images,
    )
    if settings.dry_run:
        from vtr.pretrain.plan import check_complete, plan

        if main_process:
            print(corpus.table())
        check_complete(corpus, allow_missing=settings.allow_missing)
        ranks = settings.plan_ranks or accelerator.num_processes
        text = plan(corpus, chosen, stages, ranks, settings.workers)
        if main_process:
            print(text, flush=True)
        if settings.plan_ranks:
            return out
    elif main_process:
        print(corpus.table(), file=sys.stderr)
    from vtr.pretrain.plan import check_stages

    check_stages(corpus, chosen, stages, accelerator.num_processes)
    set_seed(chosen.seed)
    size = settings.model or ("demo" if settings.corpus == "demo" else "middle")
    own = _initial_model(settings) if settings.init and settings.model is None else None
    model = own or build.build_model(size, corpus, settings.data_root, chosen, settings.text)
    identity = {"recipe": _plain(chosen), "corpus": corpus.fingerprint(), "model": _plain(model.config)}
    resumed = None if settings.dry_run else _resume_state(settings, out, stages, identity, accelerator)
    if settings.init and own is None:
        from vtr.models.base import load_strictly
        from vtr.pretrain.export import initial_weights

        load_strictly(model, initial_weights(settings.init), settings.init)
    if settings.init_vision:
        from vtr.models.base import load_strictly
        from vtr.pretrain.export import initial_weights

        found = initial_weights(settings.init_vision)
        vision = {k.removeprefix("vision_encoder."): v for k, v in found.items() if k.startswith("vision_encoder.")}
        load_strictly(model.vision_encoder, vision, settings.init_vision)
    model.to(accelerator.device)
    if resumed is None and not settings.init:
        build.warm_up(model, chosen)
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():  # the same start on all ranks, to the last bit
            torch.distributed.broadcast(value, 0)
    model.vision_encoder.checkpointing = model.text_encoder.checkpointing = settings.checkpointing
    if accelerator.num_processes > 1 and (settings.fsdp or accelerator.distributed_type == "FSDP"):
        from vtr.pretrain.sharding import shard_blocks

        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        shard_blocks(model, accelerator.device, reshard=getattr(plugin, "reshard_after_forward", True) is not False)
    log = RunLog(out / "log.jsonl" if main_process and not settings.dry_run else None)
    if not settings.dry_run:
        if main_process:
            _record(out, settings, chosen, corpus, accelerator)
            model.tokenizer.save(out / "tokenizer.json")  # what `vtr export` needs beside a checkpoint
        log.cut(resumed["log_bytes"] if resumed else 0)
    run = _Run(
        settings=settings,
        recipe=chosen,
        model=model,
        corpus=corpus,
        accelerator=accelerator,
        log=log,
        out=out,
        identity=identity,
        progress=Progress(**{**resumed["progress"], "judged_seen": 0, "judged_bad": 0}) if resumed else Progress(),
    )
    accelerator.init_trackers("vtr", config=None)
    done_before = 0
    measured = []
    for index, name in enumerate(stages):
        steps = stage_steps(getattr(chosen, name), corpus)
        if resumed is None or index >= resumed["stage_index"]:
            seconds = run.stage(name, index, steps, done_before, resumed)
            measured.append((name, steps, seconds))
            resumed = None
        done_before += steps
    if settings.dry_run:
        from vtr.pretrain.plan import expectation

        if main_process:
            print(expectation(measured, accelerator.device))
        return out
    accelerator.wait_for_everyone()
    from vtr.pretrain.sharding import portable

    model = portable(model)
    run.main_only(lambda: model.save_pretrained(out / "model"))
    if main_process:
        print(f"model: {out / 'model'}", file=sys.stderr)
    _print_rank_check(model, accelerator)
    accelerator.wait_for_everyone()
    if watch is not None:
        watch.stop()
    accelerator.end_training()
    return out / "model"


def _initial_model(settings: RunSettings) -> Any:
    """The model of --init itself, with its sizes and tokenizer: what no --model asks for otherwise."""
    import vtr.models.load
    from vtr.models.video_text import VideoTextModel
    from vtr.pretrain.export import checkpoint_model

    path = Path(str(settings.init))
    if path.suffix == ".pt":
        return checkpoint_model(path.resolve().parent.parent, str(path))[0]
    model = vtr.models.load.load(str(settings.init), "cpu")
    if not isinstance(model, VideoTextModel):
        raise UsageError(
            f"--init {settings.init}: not a video-text model; pretrain/finetune.py trains recognition models"
        )
    return model


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(
            f"--out {out}: cannot be created ({error.strerror}); choose a folder you can write to"
        ) from error
    if not os.access(out, os.W_OK):
        raise VtrError(f"--out {out}: not writable; choose a folder you can write to")


def _accelerator(settings: RunSettings, out: Path) -> Any:
    import torch
    from accelerate import Accelerator

    cuda = torch.cuda.is_available()
    _warn_missing_ranks(cuda)
    precision = {"auto": "bf16" if cuda else "no", "bf16": "bf16", "fp32": "no"}.get(settings.precision)
    if precision is None:
        raise unknown_name("precision", settings.precision, ("auto", "bf16", "fp32"))
    if settings.report_to:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        installed = [str(getattr(t, "value", t)) for t in get_available_trackers()]
        for name in settings.report_to:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise unknown_name("tracker", name, list(LOGGER_TYPE_TO_CLASS))
            if name not in installed:  # accelerate would go on without it
                raise UsageError(f"--report-to {name}: not installed; run: pip install {name}")
    try:
        # Without cpu=True, Accelerator ignores torchrun's ranks on a machine without a GPU.
        return Accelerator(
            cpu=not cuda,
            mixed_precision=precision,
            log_with=list(settings.report_to) or None,
            project_dir=str(out) if settings.report_to else None,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(f"--report-to {' '.join(settings.report_to)}: {str(error).splitlines()[0]}") from error


@dataclass(kw_only=True)
class _Run:
    """What the stages of a run share."""

    settings: RunSettings
    recipe: Recipe
    model: Any
    corpus: Any
    accelerator: Any
    log: Any
    out: Path
    identity: dict[str, Any]
    progress: Any

    def main_only(self, work: Callable[[], Any]) -> None:
        """Do something on the main process; if it fails there, it fails everywhere."""
        from vtr.pretrain.loop import everyone

        error = None
        if self.accelerator.is_main_process:
            try:
                work()
            except VtrError as caught:
                error = caught
        everyone(error, self.accelerator.device)

    def stage(
        self, name: str, index: int, steps: int, done_before: int, resumed: dict[str, Any] | None
    ) -> tuple[float, int]:
        """Run one stage, or what a checkpoint has left of it; returns (seconds, steps done)."""
        from vtr.pretrain import loop, sharding
        from vtr.pretrain.optim import build_optimizer
        from vtr.pretrain.step import PretrainStep

        settings, chosen, model, accelerator = self.settings, self.recipe, self.model, self.accelerator
        stage: Stage = getattr(chosen, name)
        teacher = _teacher(settings, chosen, stage, model, self.corpus, accelerator) if stage.uta > 0 else None
        step_function = PretrainStep(
            model,
            stage,
            seed=chosen.seed,
            gather_ranks=chosen.gather_ranks,
            micro_batch=settings.micro_batch,
            autocast=accelerator.autocast,
        )
        model.vision_encoder.set_drop_path(stage.drop_path)
        optimizer = build_optimizer(model, stage.optim)
        first_step, positions = 0, None
        if resumed is not None:
            sharding.load_state(model, resumed["model"])
            first_step = resumed["stage_step"]
            if first_step:
                positions = resumed["positions"]
                sharding.load_optimizer(optimizer, resumed["optimizer"])
        if first_step >= steps:
            return 0.0, 0
        model.train()
        batches = self._stream(stage, seed=chosen.seed + index, start=positions, step=first_step)

        def save(stage_step: int, batch: Any) -> Path:
            from vtr.data.stream import merge_positions
            from vtr.pretrain.state import save_checkpoint

            parts = _gathered(batch.positions if batch is not None else {}, accelerator)
            path = self.out / "checkpoints" / f"step-{done_before + stage_step:08d}.pt"
            state = {
                "model": sharding.whole_state(model),
                "optimizer": sharding.whole_optimizer(optimizer),
                "step": done_before + stage_step,
                "stage": name,
                "stage_index": index,
                "stage_step": stage_step,
                "positions": merge_positions(parts),
                "world_size": accelerator.num_processes,
                "progress": _plain(self.progress),
                "log_bytes": self.log.size(),
                "identity": self.identity,
            }
            self.main_only(lambda: save_checkpoint(path.parent, done_before + stage_step, state, settings.keep))
            return path

        def keep_best(found: dict[str, float], stage_step: int, batch: Any) -> None:
            from vtr.pretrain.state import mark_best

            score = found["t2v_r1"] + found["v2t_r1"]
            if score > self.progress.best:
                self.progress.best = score
                path = save(stage_step, batch)
                self.main_only(lambda: mark_best(path.parent, path))

        validate = None
        if settings.validate_every and stage.vtc > 0 and not settings.dry_run:
            validate = self._validation()
        start = time.perf_counter()
        try:
            last = loop.train_stage(
                name=name,
                stage=stage,
                steps=steps,
                first_step=first_step,
                done_before=done_before,
                batches=iter(batches),
                step_function=step_function,
                optimizer=optimizer,
                accelerator=accelerator,
                teacher=teacher,
                max_bad_fraction=chosen.max_bad_fraction,
                progress=self.progress,
                log=self.log,
                log_every=settings.log_every,
                save_every=0 if settings.dry_run else settings.save_every,
                save=save,
                validate_every=settings.validate_every,
                validate=validate,
                keep_best=keep_best,
                stop_after=DRY_STEPS if settings.dry_run else None,
            )
            seconds = time.perf_counter() - start
            if last is not None and not settings.dry_run:
                save(steps, last)
        finally:
            batches.close()
        accelerator.free_memory()
        return seconds, min(steps - first_step, DRY_STEPS if settings.dry_run else steps)

    def _stream(self, stage: Stage, *, seed: int, start: Any = None, step: int = 0) -> Any:
        from vtr.data.stream import Stream

        settings = stream_settings(self.recipe, stage, self.settings, self.model.config.video, seed)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return Stream(self.corpus, settings, rank=rank, world=world, start=start, first_step=step, judge=False)

    def _validation(self) -> Callable[[], dict[str, float]]:
        from vtr.pretrain.validation import Validation

        name = self.settings.validate or ("demo" if self.settings.corpus == "demo" else None)
        if name is None:
            raise UsageError("--validate-every needs --validate: a benchmark name or an annotation file (.json, .csv)")
        return Validation(self.model, name, self.settings.data_root, self.settings.validate_samples, self.accelerator)


DRY_STEPS = 20  # steps that a dry run measures of each stage


def stage_steps(stage: Stage, corpus: Any) -> int:
    """Steps of a stage: as set, else its epochs over what it reads."""
    if stage.steps:
        return stage.steps
    total = sum(member.samples for member in corpus.members if stage.video_share < 1 or member.media != "image")
    return max(1, round(stage.epochs * total / stage.batch_size))


def stream_settings(recipe: Recipe, stage: Stage, settings: RunSettings, video: Any, seed: int) -> Any:
    """How a stage reads the corpus."""
    import torch

    from vtr.data.stream import StreamSettings

    share = stage.video_share
    return StreamSettings(
        frames=video.num_frames,
        size=video.image_size,
        batch_size=stage.batch_size,
        streams=recipe.streams,
        workers=settings.workers,
        decode_threads=settings.decode_threads,
        block=stage.block,
        seed=seed,
        crop_scale=recipe.crop_scale if recipe.crop_scale != (1.0, 1.0) else None,
        flip=recipe.flip,
        official_frames=recipe.official_frames,
        captions=stage.vtc + stage.vtm + stage.mlm > 0,
        max_bad_fraction=recipe.max_bad_fraction,
        media_weights={"video": share, "image": 1 - share} if share else None,
        cache=str(settings.cache) if settings.cache else None,
        pin_memory=torch.cuda.is_available(),
    )


def _gathered(value: Any, accelerator: Any) -> list[Any]:
    """A value of every rank, in rank order."""
    if accelerator.num_processes == 1:
        return [value]
    import torch.distributed as dist

    parts: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(parts, value)
    return parts


def _teacher(settings: RunSettings, chosen: Recipe, stage: Stage, model: Any, corpus: Any, accelerator: Any) -> Any:
    from vtr.pretrain.teacher import ensure_demo_teacher, load_teacher

    name = settings.teacher
    if name is None and settings.corpus == "demo":
        size = model.config.video.image_size
        folder = settings.data_root / "demo" / ("teacher" if size == 64 else f"teacher-{size}")
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
    teacher = load_teacher(name or "ViT-B-16/openai").to(accelerator.device)
    config, wanted = model.config.video, chosen.align_layers
    if wanted > min(teacher.depth, config.depth):
        raise UsageError(
            f"align_layers {wanted}: the teacher has {teacher.depth} layers, the model {config.depth} (--set align_layers=…)"
        )
    if teacher.width != config.align_dim:
        raise UsageError(
            f"--teacher {name}: its tokens have {teacher.width} channels, this model is made for {config.align_dim}"
        )
    return teacher


def _resume_state(
    settings: RunSettings, out: Path, stages: tuple[str, ...], identity: dict[str, Any], accelerator: Any
) -> dict[str, Any] | None:
    from vtr.pretrain.state import checkpoints, find_checkpoint, read_checkpoint

    folder = out / "checkpoints"
    if settings.resume is None:
        # All ranks look before the first checkpoint can be written.
        if checkpoints(folder):
            raise VtrError(
                f"{out} holds a run with checkpoints: continue it with --resume latest, or choose another --out"
            )
        return None
    # The main process decides which file is meant: others might see a later listing of a shared folder.
    path = _gathered(find_checkpoint(folder, settings.resume), accelerator)[0]
    if path is None:
        if accelerator.is_main_process:
            print(f"--resume latest: no checkpoint in {folder}, starting from the beginning", file=sys.stderr)
        return None
    if not path.is_file():
        raise VtrError(f"{path}: rank 0 sees it, this rank does not; --out must be a folder that all nodes share")
    state = read_checkpoint(path)
    if state["stage"] not in stages:
        raise VtrError(f"the checkpoint is of stage {state['stage']}, this run has only {', '.join(stages)}")
    state["stage_index"] = stages.index(state["stage"])
    changes = _changes(state["identity"], identity)
    if changes and not settings.accept_changes:
        raise VtrError(
            f"{path} is of another run: {'; '.join(changes[:5])}; give the same settings, or --accept-changes to go on"
        )
    if accelerator.is_main_process:
        for line in changes:
            print(f"resume: {line}", file=sys.stderr)
        print(
            f"resume: {path}, written by {state['world_size']} rank(s), continues on {accelerator.num_processes}",
            file=sys.stderr,
        )
    return state


def _changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two nested tables differ, as lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for k in keys for c in _changes(old.get(k), new.get(k), f"{name}.{k}" if name else str(k))]
    same = list(old) == list(new) if isinstance(old, list | tuple) and isinstance(new, list | tuple) else old == new
    return [] if same else [f"{name} was {old}, is {new}"]


def _record(out: Path, settings: RunSettings, chosen: Recipe, corpus: Any, accelerator: Any) -> None:
    """run.json: settings, recipe, what of the corpus was found, and each call that worked on the run."""
    import torch

    path = out / "run.json"
    calls: list[Any] = []
    if path.is_file() and settings.resume:
        try:
            calls = json.loads(path.read_text()).get("calls", [])
        except (json.JSONDecodeError, UnicodeDecodeError):
            calls = []
    call = {"started": time.time(), "ranks": accelerator.num_processes, "workers": settings.workers}
    record = {
        "settings": _plain(settings),
        "recipe": _plain(chosen),
        "corpus": [
            {
                "member": m.name,
                "media": m.media,
                "shards": len(m.shards),
                "samples": m.samples,
                "published": m.published,
                "fraction": m.fraction,
                "licence": m.licence,
                "missing": len(m.missing),
                "missing_first": list(m.missing[:20]),
            }
            for m in (*corpus.members, *corpus.absent)
        ],
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "calls": [*calls, call],
    }
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=1, default=str))
    os.replace(partial, path)


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
    sums = _gathered(model.fingerprint(), accelerator)
    if accelerator.is_main_process:
        if len(set(sums)) > 1:
            raise VtrError(f"the ranks hold different weights: {sums}")
        print(f"{len(sums)} ranks hold equal weights ({sums[0][:12]})", file=sys.stderr)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value)


if __name__ == "__main__":
    sys.exit(main())
