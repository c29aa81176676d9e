"""Short trainings on the generated motion task (`vtr.data.motion`): what the ablations are made of.

B batch, T frames, P patches of a frame, C classes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.data.motion import CLASSES, MotionTask, shuffled_frames, within_pairs
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.distill import DistillHead, alignment_loss, token_distillation_loss
from vtr.encoders.masking import make_mask
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import VtrError
from vtr.files import write_atomically

# A narrow VideoMamba on nine patches a frame: one training takes half a minute on two cores.
SMALL = VideoMambaConfig(
    image_size=48, patch_size=16, num_frames=8, dim=64, depth=4, num_classes=len(CLASSES), pool="cls"
)
TEACHER_WIDTH = 64
TEST, _TRAIN, _UNLABELLED = 1 << 20, 1 << 21, 1 << 22  # seeds: none of them meets another's clips


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every row of a table may use."""

    steps: int = 300
    pretrain_steps: int = 300
    batch_size: int = 32
    labelled: int = 2000  # clips with a label; 0 = fresh ones at every step
    tests: int = 900
    lr: float = 1e-3
    weight_decay: float = 0.05


def once(path: Path, what: Mapping[str, object], figures: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The figures of a training: those of the file if it was made of the same `what`, or made now and kept there."""
    told = json.loads(json.dumps(what, default=str))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == told:
            return kept["figures"]
    found = {name: round(value, 3) for name, value in figures().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            partial.write_text(json.dumps({"of": told, "figures": found}) + "\n", encoding="utf-8")
    except OSError as error:
        raise VtrError(f"{path} cannot be written: {error.strerror}") from error
    return found


class Score(NamedTuple):
    """Of one training, in percent."""

    accuracy: float
    pairs: float  # right between a class and its reversal; chance 50
    shuffled: float  # accuracy with the frames of the test clips shuffled
    shuffled_pairs: float
    seconds: float  # of training


def pixels(clips: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return clips.float() / 127.5 - 1


def middle_frame(clips: Tensor) -> Tensor:
    """(B, T, …) -> (B, 1, …): the frame that the test protocol takes where one is wanted."""
    middle = (clips.shape[1] - 1) // 2
    return clips[:, middle : middle + 1]


def _optimizer(parameters: Any, budget: Budget) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=budget.lr, betas=(0.9, 0.98), weight_decay=budget.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Source:
    """Labelled batches: a fixed set met in random order, or fresh clips; a function of the seed."""

    def __init__(self, task: MotionTask, budget: Budget, seed: int) -> None:
        self.task, self.budget, self.seed = task, budget, seed
        self.fixed = task.draw(budget.labelled, _TRAIN + seed) if budget.labelled else None
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        size = self.budget.batch_size
        if self.fixed is None:
            return self.task.draw(size, _TRAIN * 2 + self.seed * 100_003 + step)
        rows = torch.randint(len(self.fixed[1]), (size,), generator=self.generator)
        return self.fixed[0][rows], self.fixed[1][rows]


def train(
    model: VideoMamba,
    task: MotionTask,
    budget: Budget,
    seed: int,
    *,
    view: Callable[[Tensor], Tensor] = lambda clips: clips,
    teacher: VideoMamba | None = None,
    teacher_until: float = 1.0,
    tell: Callable[[int, int], None] | None = None,
) -> Score:
    """Train a classifier on the task and test it.

    Args:
        view: What the model sees of a clip (all frames, the middle one, shuffled ones), in training and testing.
        teacher: A trained classifier whose tokens guide the student's (self-distillation, docs/notes/videomamba.md).
        teacher_until: Share of the steps after which it stops doing so.
        tell: Called with (steps done, steps).
    """
    source = Source(task, budget, seed)
    torch.manual_seed(seed)
    head = DistillHead(model.config.dim, teacher.config.dim) if teacher is not None else None
    parameters = [*model.parameters(), *(head.parameters() if head is not None else ())]
    optimizer = _optimizer(parameters, budget)
    start = time.perf_counter()
    model.train()
    for step in range(budget.steps):
        set_rate(optimizer, budget.lr, step, budget.steps)
        clips, labels = source(step)
        video = pixels(view(clips))
        tokens = model.features(video)[0]
        loss = F.cross_entropy(model.head(tokens[:, 0]), labels)
        if head is not None and teacher is not None and step < teacher_until * budget.steps:
            with torch.no_grad():
                target = teacher.features(video)[0]
            loss = loss + token_distillation_loss(head(tokens), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        if tell is not None:
            tell(step + 1, budget.steps)
    seconds = time.perf_counter() - start
    return score(model, task, budget, view=view, seconds=seconds)


@torch.no_grad()
def score(
    model: VideoMamba,
    task: MotionTask,
    budget: Budget,
    *,
    view: Callable[[Tensor], Tensor] = lambda clips: clips,
    seconds: float = 0.0,
    at_once: int = 50,
) -> Score:
    """Test on clips that no training sees, as they are and with their frames shuffled; `at_once` clips a pass."""
    model.eval()
    clips, labels = task.draw(budget.tests, TEST)
    figures = []
    for shown in (clips, shuffled_frames(clips, TEST)):
        found = torch.cat([model.classify(pixels(view(part))) for part in shown.split(at_once)])
        figures += [100 * float((found.argmax(1) == labels).float().mean()), 100 * within_pairs(found, labels)]
    accuracy, pairs, shuffled, shuffled_pairs = figures
    return Score(accuracy, pairs, shuffled, shuffled_pairs, seconds)


def image_teacher(task: MotionTask, *, layers: int = 4, steps: int = 250, seed: int = 0) -> ClipTeacher:
    """A small image transformer that knows what single frames show: its CLS token was trained to tell place and colour.

    It stands in for CLIP: an image model that has seen many frames, and no motion.
    """
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(seed)
    visual = VisionTransformer(
        image_size=task.size, patch_size=16, width=96, layers=layers, heads=3, mlp_ratio=4, output_dim=TEACHER_WIDTH
    )
    probe = nn.Linear(TEACHER_WIDTH, 5)
    optimizer = torch.optim.AdamW([*visual.parameters(), *probe.parameters()], lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        set_rate(optimizer, 1e-3, step, steps)
        clips, _, facts = task.scenes(16, _UNLABELLED * 2 + seed * 100_003 + step)
        loss = F.mse_loss(probe(visual(pixels(clips.flatten(0, 1)))), facts.flatten(0, 1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    state = {k: v for k, v in visual.state_dict().items() if not k.startswith("ln_post")}
    return ClipTeacher(state, 3, False)


def pretrain_masked(
    config: VideoMambaConfig,
    task: MotionTask,
    budget: Budget,
    seed: int,
    teacher: ClipTeacher,
    *,
    mask: str = "attention",
    ratio: float = 0.8,
    drop_path: float = 0.0,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[VideoMamba, float, float]:
    """Masked alignment on unlabelled clips (the paper's section 3.4).

    Returns:
        The encoder, the seconds it took, and the visible share of the patch tokens.
    """
    torch.manual_seed(seed)
    model = VideoMamba(replace(config, align_dim=TEACHER_WIDTH, drop_path=drop_path, num_classes=0))
    optimizer = _optimizer(model.parameters(), budget)
    generator = torch.Generator().manual_seed(seed)
    side = config.image_size // config.patch_size
    start, visible = time.perf_counter(), 1.0
    model.train()
    for step in range(budget.pretrain_steps):
        set_rate(optimizer, budget.lr, step, budget.pretrain_steps)
        clips, _ = task.draw(budget.batch_size, _UNLABELLED + seed * 100_003 + step)
        video = pixels(clips)
        known = teacher(video, layers=config.align_layers)
        dropped = make_mask(mask, len(clips), task.frames, side, side, ratio, generator, attention=known.attention)
        visible = float((~dropped[:, 1:]).float().mean())
        aligned = model.features(video, dropped)[1]
        rows = [layer[~dropped].view(len(clips), -1, TEACHER_WIDTH) for layer in known.layers]
        assert aligned is not None
        loss = alignment_loss(aligned, torch.stack(rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        if tell is not None:
            tell(step + 1, budget.pretrain_steps)
    return model, time.perf_counter() - start, visible


def classifier(config: VideoMambaConfig, seed: int, encoder: VideoMamba | None = None) -> VideoMamba:
    """A classifier, new or with the weights of a pretrained encoder."""
    torch.manual_seed(seed)
    model = VideoMamba(replace(config, align_dim=0, num_classes=len(CLASSES)))
    if encoder is not None:
        state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("clip_decoder.")}
        model.load_state_dict({**model.state_dict(), **state})
    return model
