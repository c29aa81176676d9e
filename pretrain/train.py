"""A pretraining: corpus, model and teacher made ready, then stage by stage."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from torch import nn

from vtr.data.build import ensure_shards, shards_of
from vtr.data.demo import open_demo_corpus
from vtr.data.manifests import Corpus
from vtr.data.shard_reader import FILES
from vtr.data.stream import Batch, Positions, Stream, StreamSettings, check_bad, merge_positions
from vtr.encoders.base import EncoderConfig
from vtr.encoders.clip_teacher import FrameTeacher
from vtr.errors import UsageError, VtrError
from vtr.models.base import load_strictly
from vtr.models.bert import locate_text
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.pretrain import build, sharding
from vtr.pretrain.export import initial_model, initial_weights
from vtr.pretrain.features import Keeper, KeptFeatures, keeping_note
from vtr.pretrain.fit import FEW, fit_line, fitted, given_keys, is_fitted
from vtr.pretrain.join import call_facts, join, more_ranks, say_how, trackers_begin
from vtr.pretrain.loop import Bench, Loop, Schedule, batch_digest
from vtr.pretrain.objectives import objectives_of
from vtr.pretrain.objectives.base import Features
from vtr.pretrain.optim import build_optimizer, learning_rate
from vtr.pretrain.plan import check_stages, stage_samples, stage_steps
from vtr.pretrain.recipes import Recipe, Stage
from vtr.pretrain.resolve import resolve, run_folder
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.state import Progress, RunLog, State, check_out, check_same_run, to_continue, write_record
from vtr.pretrain.step import PretrainStep
from vtr.pretrain.stop import Stop, Stopped
from vtr.pretrain.teacher import check_teacher, demo_teacher, load_teacher, made_on_the_spot, teacher_name
from vtr.pretrain.validation import Validation
from vtr.pretrain.warmup import warm_up
from vtr.pretrain.watch import Watch
from vtr.ranks import Ranks
from vtr.threads import cores


def train(settings: RunSettings, watch: Watch | None = None) -> Path:
    """Run the stages; returns the folder of the final model."""
    run = trained(settings, watch)
    if watch is not None:
        watch.stop()
    run.ranks.end()
    return run.out / "model"


def trained(settings: RunSettings, watch: Watch | None = None) -> Run:
    """Run the stages and write the final model; the ranks stay together for what comes after."""
    chosen, stages = resolve(settings)
    out = run_folder(settings)
    check_out(out)
    run = Run(settings, chosen, stages, out, join_ranks(settings, out, watch), watch.request if watch else Stop())
    run.prepare_corpus()
    if run.ranks.main:
        print(run.corpus.table(), file=sys.stderr)
    resumed = run.prepare_model()
    run.begin(resumed)
    done_before = 0
    for index, name in enumerate(stages):
        steps = stage_steps(getattr(run.recipe, name), run.corpus)
        if resumed is None or index >= resumed["stage_index"]:
            if all(getattr(run.recipe, later).uta == 0 for later in stages[index:]):
                run.teacher = None  # its memory is for others
            run.stage(Place(name, index, steps, done_before), resumed)
            resumed = None
        done_before += steps
    run.finish()
    return run


def join_ranks(settings: RunSettings, out: Path, watch: Watch | None) -> Ranks:
    """Join the other ranks, and watch them."""
    ranks = join(settings, out)
    if watch is not None:
        watch.start()
    return ranks


class Place(NamedTuple):
    """A stage of a run."""

    name: str
    number: int
    steps: int
    before: int  # steps of earlier stages


class Run:
    """What the stages of a run share.

    Attributes:
        corpus: After `prepare_corpus`.
        model, teacher, validation: After `prepare_model`, equal on all ranks; None where no stage needs them.
    """

    corpus: Corpus
    model: VideoTextModel
    teacher: FrameTeacher | None = None
    validation: Validation | None = None

    def __init__(
        self, settings: RunSettings, chosen: Recipe, stages: tuple[str, ...], out: Path, ranks: Ranks, stop: Stop
    ) -> None:
        self.settings, self.recipe, self.stages, self.out, self.ranks, self.stop = (
            settings, chosen, stages, out, ranks, stop,
        )  # fmt: skip
        self.log = RunLog(out / "log.jsonl" if ranks.main and not settings.dry_run else None)
        self.progress = Progress()

    def prepare_corpus(self) -> None:
        """Find the corpus, and fit the recipe to own data; the demo's is made first."""
        self.corpus = build.prepare_corpus(
            self._small_copies() or self.settings.corpus,
            self.settings.data_root,
            self.ranks,
            demo_clips=self.settings.demo_clips,
            demo_images=self.settings.demo_images,
        )
        if not is_fitted(self.settings.corpus, self.corpus):
            return
        if self.ranks.main and any(s.startswith(FILES) for m in self.corpus.members for s in m.shards):
            print(
                "files are read as they are; where the steps `wait` for them, --short-side 256 makes small copies once",
                file=sys.stderr,
            )
        self.recipe = fitted(self.recipe, self.corpus, self.stages, given_keys(self.settings.set, self.settings.steps))
        if self.ranks.main:
            print(fit_line(self.recipe, self.corpus, self.stages), file=sys.stderr)
            fresh = not (self.settings.init or self.settings.resume)
            if fresh and self.stages[0] == "unmasked":
                print(
                    "note: the unmasked stage's lr is for a model that other stages have trained; for a new one: --set "
                    f"unmasked.optim.lr={self.recipe.multimodal.optim.lr:g}",
                    file=sys.stderr,
                )
            if self.corpus.samples < FEW and fresh:
                print(
                    f"note: {self.corpus.samples:,} samples teach a new model these videos, not others; --init MODEL starts "
                    "from a trained one (vtr models)",
                    file=sys.stderr,
                )

    def _small_copies(self) -> str | None:
        """The shards of a list's or folder's small copies, made by one rank while the others wait; None: not asked for."""
        settings = self.settings
        side, source = settings.short_side, Path(settings.corpus)
        if not side:
            return None
        if not (source.is_file() or source.is_dir()) or source.suffix in (".tar", ".toml") or any(source.glob("*.tar")):
            raise UsageError(f"--short-side {side}: expected --corpus to be a list or a folder of files, not {source}")
        if side < 16:
            raise UsageError(f"--short-side {side}: expected 16 pixels or more, or 0")
        if settings.dry_run:
            if self.ranks.main:
                print(
                    f"a run would first make copies of {side} pixels; measured here on the files themselves",
                    file=sys.stderr,
                )
            return None
        folder = settings.data_root / "shards"
        workers = max(2, cores())
        self.ranks.main_only(lambda: ensure_shards(source, folder, side, workers))
        return str(shards_of(source, folder, side))

    @property
    def identity(self) -> State:
        """What makes the run this run."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "corpus": self.corpus.fingerprint(),
            "model": self.model.config.to_dict(),
        }

    def prepare_model(self) -> State | None:
        """Make ready all that the stages need, so that nothing is found wanting after the first step.

        The model is built or loaded, the same on all ranks to the last bit; so are the teacher and the validation set.

        Returns:
            The checkpoint to continue from.
        """
        settings, ranks = self.settings, self.ranks
        sharded = ranks.size > 1 and (settings.fsdp or ranks.sharding_asked_for)
        ranks.together(lambda: check_stages(self.corpus, self.recipe, self.stages, ranks.size, sharded=sharded))
        found = None if settings.dry_run else to_continue(self.out, settings.resume, ranks)
        left = ranks.together(lambda: self._left(found[1] if found else None))
        ranks.together(lambda: self._find_weights(left))
        ranks.together(lambda: self._build(found))
        self.model.to(ranks.device)
        if found is None and not settings.init:
            warm_up(self.model, self.recipe)
        if ranks.size > 1:
            for value in self.model.state_dict().values():
                dist.broadcast(value, 0)
        self._guides(left)
        self.model.vision_encoder.checkpointing = self.model.text_encoder.checkpointing = settings.checkpointing
        if sharded:
            sharding.shard_blocks(self.model, ranks.device, reshard=ranks.reshard)
        return found[1] if found else None

    def _build(self, found: tuple[Path, State] | None) -> None:
        """The model of the checkpoint's settings, or of --init, or new."""
        settings = self.settings
        set_seed(self.recipe.seed)
        own = initial_model(settings.init) if settings.init and settings.model is None else None
        self.model = own or build.build_model(
            self._size(),
            self.corpus,
            settings.data_root,
            self.recipe,
            settings.text,
            align_dim=self._align_dim(found[1] if found else None),
        )
        if found is not None:
            plain = ModelConfig(video=type(self.model.config.video)())
            defaults = {"recipe": dataclasses.asdict(Recipe()), "model": plain.to_dict()}
            check_same_run(*found, self.identity, defaults, self.ranks, accept_changes=settings.accept_changes)
        self._load_initial(own is not None)

    def _size(self) -> str:
        return self.settings.model or ("demo" if self.settings.corpus == "demo" else "middle")

    def _align_dim(self, state: State | None) -> int | None:
        """Width of the tokens that the model is aligned with: the teacher's, or where it is not needed any more, as before."""
        if self.teacher is not None:
            return self.teacher.width
        return None if state is None else state["identity"]["model"]["video"]["align_dim"]

    def _left(self, state: State | None) -> list[Stage]:
        """The stages that are still to run."""
        first = 0
        if state is not None:
            if state["stage"] not in self.stages:
                raise VtrError(
                    f"the checkpoint is of stage {state['stage']}, this run has only {', '.join(self.stages)}"
                )
            first = state["stage_index"] = self.stages.index(state["stage"])
        return [getattr(self.recipe, name) for name in self.stages[first:]]

    def _find_weights(self, left: list[Stage]) -> None:
        """Look for everything that is downloaded, and say of all that is missing at once."""
        settings, problems = self.settings, []
        own = settings.init is not None and settings.model is None
        if not own and settings.text != "scratch" and self._size() != "demo":
            try:
                locate_text(settings.text)
            except VtrError as error:
                problems.append(error)
        if any(stage.uta > 0 for stage in left) and not made_on_the_spot(settings):
            try:
                self.teacher = load_teacher(teacher_name(settings))
            except VtrError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            raise VtrError("; and ".join(map(str, problems)))

    def _load_initial(self, whole: bool) -> None:
        """Take over the weights of --init, where it is not the `whole` model already, and of --init-vision."""
        settings = self.settings
        if settings.init and not whole:
            load_strictly(self.model, initial_weights(settings.init), settings.init)
        if settings.init_vision:
            found = initial_weights(settings.init_vision)
            vision = {k.removeprefix("vision_encoder."): v for k, v in found.items() if k.startswith("vision_encoder.")}
            load_strictly(self.model.vision_encoder, vision, settings.init_vision)

    def _guides(self, left: list[Stage]) -> None:
        """The teacher and the validation set of the stages that are left."""
        settings, ranks = self.settings, self.ranks
        said = []
        if any(stage.uta > 0 for stage in left):
            if made_on_the_spot(settings):
                self.teacher = demo_teacher(settings, self.recipe, self.model, self.corpus, ranks)
            assert self.teacher is not None
            name = teacher_name(settings, self.model.config.video.image_size)
            check_teacher(self.teacher, name, left, self.model)
            config = self.model.config
            self.teacher.fit(config.video, config.pixel_mean, config.pixel_std)
            self.teacher.to(ranks.device)
            said.append(f"teacher: {name}")
        if settings.validate_every and any(stage.vtc > 0 for stage in left):
            self.validation = ranks.together(self._validation)
            said.append(f"validation: {self.validation.name}, {len(self.validation.videos)} videos")
        say_how(ranks, *said)
        if ranks.main and (better := more_ranks(self.model, ranks)):
            print(better, file=sys.stderr)

    def _validation(self) -> Validation:
        """Retrieval on held-out videos."""
        settings = self.settings
        name = settings.validate
        if name is None and settings.corpus == "demo":
            name = str(open_demo_corpus(settings.data_root / "demo").validation_json)
        if name is None:
            raise UsageError("--validate-every needs --validate: a benchmark name or an annotation file (.json, .csv)")
        return Validation(self.model, name, settings.data_root, settings.validate_samples, self.ranks)

    def begin(self, resumed: State | None) -> None:
        """Write down what the run is, and take over what a checkpoint carries."""
        if self.ranks.main:
            self._record()
            self.model.tokenizer.save(self.out / "tokenizer.json")  # what `vtr export` needs beside a checkpoint
        self.log.cut(resumed["log_bytes"] if resumed else 0)
        if resumed:
            self.progress = Progress(**{**resumed["progress"], "judged_seen": 0, "judged_bad": 0})
        trackers_begin(self.ranks, {"settings": self.settings, "recipe": self.recipe}, self.out)

    def _record(self) -> None:
        """run.json: settings, recipe, what of the corpus was found, and each call that worked on the run."""
        record = {
            "settings": dataclasses.asdict(self.settings),
            "recipe": dataclasses.asdict(self.recipe),
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
                for m in (*self.corpus.members, *self.corpus.absent)
            ],
            "torch": torch.__version__,
            "device": str(self.ranks.device),
        }
        call = {**call_facts(self.ranks), "workers": self.settings.workers}
        write_record(self.out, record, call, resumed=self.settings.resume is not None)

    def stage(self, place: Place, resumed: State | None, most: int = 0) -> tuple[float, int]:
        """Run one stage, or what a checkpoint has left of it; returns (seconds, steps done).

        Args:
            most: Steps at most, without writing anything (a dry run); 0 = all.
        """
        loop = StageLoop.of(self, place, resumed, most)
        if loop is not None:
            try:
                loop.run()
            finally:
                loop.close()
        if getattr(self.recipe, place.name).keep_features and not most:
            self.ranks.main_only(lambda: shutil.rmtree(self._features, ignore_errors=True))
        if loop is None:
            return 0.0, 0
        if self.ranks.accelerator is not None:
            self.ranks.accelerator.free_memory()
        return loop.seconds, loop.schedule.end - loop.schedule.first

    @property
    def _features(self) -> Path:
        """The folder of a frozen stage's features, while it runs."""
        return self.out / "features"

    def features(self, place: Place, step: PretrainStep, reading: StreamSettings) -> KeptFeatures:
        """The features of every sample of a frozen stage, computed now or by an earlier call."""
        threads = max(1, self.settings.workers) * self.settings.decode_threads
        keeper = Keeper(self._features, step, self.corpus, reading, self.ranks, threads=threads)
        found = keeper.run(self.stop, again=self.settings.resume is not None)
        if found is None:
            raise Stopped(self.stop.number, place.before, None)
        return found

    def finish(self) -> None:
        """Write the final model."""
        ranks, folder = self.ranks, self.out / "model"
        ranks.wait()
        model = sharding.portable(self.model)
        ranks.main_only(lambda: model.save_pretrained(folder))
        if ranks.main:
            print(f"model: {folder}", file=sys.stderr)
        if ranks.size > 1:
            sums = ranks.gathered(model.fingerprint())
            if ranks.main:
                if len(set(sums)) > 1:
                    raise VtrError(f"the ranks hold different weights: {sums}")
                print(f"{len(sums)} ranks hold equal weights ({sums[0][:12]})", file=sys.stderr)
        ranks.wait()


class StageLoop(Loop[Batch]):
    """One stage of a pretraining."""

    def __init__(
        self,
        run: Run,
        place: Place,
        schedule: Schedule,
        step: PretrainStep,
        optimizer: torch.optim.Optimizer,
        batches: Stream,
        features: KeptFeatures | None,
    ) -> None:
        bench = Bench(
            ranks=run.ranks, log=run.log, progress=run.progress, folder=run.out / "checkpoints", stop=run.stop
        )
        super().__init__(schedule, bench, run.model, optimizer, step.stage.optim.clip_grad)
        self._run, self._place, self._step = run, place, step
        self._stage = step.stage
        self._stream, self._batches, self._features = batches, iter(batches), features
        self._teacher = run.teacher if self._stage.uta > 0 else None

    @classmethod
    def of(cls, run: Run, place: Place, resumed: State | None, most: int) -> StageLoop | None:
        """The loop of a stage, in the state of a checkpoint; None when that has nothing left to do."""
        settings, chosen, model, ranks = run.settings, run.recipe, run.model, run.ranks
        stage: Stage = getattr(chosen, place.name)
        step = PretrainStep(
            model,
            stage,
            seed=chosen.seed,
            gather_ranks=chosen.gather_ranks,
            micro_batch=settings.micro_batch,
            autocast=ranks.autocast,
            mirrored=chosen.flip,
        )
        model.vision_encoder.set_drop_path(stage.drop_path)
        optimizer = build_optimizer(model, stage.optim)
        first, positions = 0, None
        if resumed is not None:
            sharding.load_state(model, resumed["model"])
            first = resumed["stage_step"]
            if first:
                positions = resumed["positions"]
                sharding.load_optimizer(optimizer, resumed["optimizer"])
        if first >= place.steps:
            return None
        schedule = Schedule(
            name=place.name,
            staged=True,
            steps=place.steps,
            first=first,
            before=place.before,
            log_every=settings.log_every,
            save_every=settings.save_every,
            validate_every=settings.validate_every if stage.vtc > 0 else 0,
            most=most,
            keep=settings.keep,
        )
        reading = stream_settings(chosen, stage, settings, model.config.video, chosen.seed + place.number)
        features = None
        if stage.keep_features and not most:
            features = run.features(place, step, reading)
        elif ranks.main and (note := keeping_note(place.name, stage, place.steps, stage_samples(stage, run.corpus))):
            print(note, file=sys.stderr)
        stream = Stream(
            run.corpus,
            reading,
            rank=ranks.rank,
            world=ranks.size,
            start=positions,
            first_step=first,
            judge=False,
            unread=features.reasons if features else None,
        )
        return cls(run, place, schedule, step, optimizer, stream, features)

    def close(self) -> None:
        """End the data workers."""
        self._stream.close()

    def next_batch(self) -> Batch:
        return next(self._batches)

    def counts(self, batch: Batch) -> list[float]:
        return [float(batch.seen), float(len(batch.bad))]

    def took(self, batch: Batch, sums: list[float]) -> None:
        progress = self.progress
        seen, bad = sums
        progress.add(seen, bad, batch.bad)
        check_bad(
            progress.judged_seen,
            progress.judged_bad,
            self._run.recipe.max_bad_fraction,
            progress.bad_lines or ["(on another rank)"],
        )

    def set_rate(self, step: int) -> float:
        rate = learning_rate(step, self.schedule.steps, self._stage.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def losses(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        device = self.ranks.device
        frames: torch.Tensor | Features
        if self._features is not None:
            frames = Features(*(part.to(device) for part in self._features.of(batch.ids)))
        else:
            frames = batch.frames.to(device, non_blocking=True)
        return self._step(
            frames,
            batch.captions,
            batch.ids.to(device),
            batch.meta,
            self._teacher,
            self.schedule.before + step,
            self._stage.waiting(step, self.schedule.steps),
        )

    def parameters(self) -> list[nn.Parameter]:
        return self._step.parameters()

    def samples(self, batch: Batch) -> list[str]:
        return batch.keys

    def facts(self, batch: Batch, step: int) -> dict[str, object]:
        told = {"turned": self._step.turned} if self._stage.direction_negatives else {}
        return {"media": batch.media, "batch": batch_digest(batch.ids.to(self.ranks.device)), **told}

    def state(self, done: int) -> State:
        place, run = self._place, self._run
        mine: Positions = self.last.positions if self.last is not None else {}
        return {
            "model": sharding.whole_state(run.model),
            "optimizer": sharding.whole_optimizer(self.optimizer),
            "step": place.before + done,
            "stage": place.name,
            "stage_index": place.number,
            "stage_step": done,
            "positions": merge_positions(self.ranks.gathered(mine)),
            "world_size": self.ranks.size,
            "progress": dataclasses.asdict(self.progress),
            "log_bytes": self.log_file.size(),
            "identity": run.identity,
        }

    def validate(self) -> dict[str, float]:
        assert self._run.validation is not None
        return self._run.validation()

    def score(self, found: dict[str, float]) -> float:
        return found["t2v_r1"] + found["v2t_r1"]


def stream_settings(
    recipe: Recipe, stage: Stage, settings: RunSettings, video: EncoderConfig, seed: int
) -> StreamSettings:
    """How a stage reads the corpus."""
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
        captions=any(o.needs_text for o in objectives_of(stage).values()),
        max_bad_fraction=recipe.max_bad_fraction,
        media_weights={"video": share, "image": 1 - share} if share else None,
        cache=str(settings.cache) if settings.cache else None,
        pin_memory=torch.cuda.is_available(),
    )
