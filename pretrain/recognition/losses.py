"""The losses of a fine-tuning: classes or a regression, and a smaller model's guidance."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import vtr.models.load
from vtr.data.views import mix
from vtr.encoders import draws
from vtr.encoders.base import VideoEncoder
from vtr.encoders.distill import DistillHead, token_distillation_loss
from vtr.errors import UsageError
from vtr.models.recognition import RecognitionModel
from vtr.pretrain.recognition.data import Sample, seed_of
from vtr.pretrain.recognition.initial import sees_time
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.recognition.tasks import TuneRecipe
from vtr.ranks import Ranks


class Guide:
    """The teacher of self-distillation and the student's head for it."""

    def __init__(self, teacher: VideoEncoder, head: DistillHead) -> None:
        self.teacher, self.head = teacher, head

    @classmethod
    def load(cls, settings: TuneSettings, recipe: TuneRecipe, model: RecognitionModel, device: torch.device) -> Guide:
        """From a trained recognition model.

        Raises:
            UsageError: It has no tokens to match the student's.
        """
        teacher = vtr.models.load.load(str(settings.teacher), "cpu")
        if not isinstance(teacher, RecognitionModel):
            raise UsageError(f"--teacher {settings.teacher}: a video-text model; expected a recognition model")
        encoder = teacher.encoder
        own, theirs = model.config.video, encoder.config
        if own.patch_size != theirs.patch_size or own.tubelet != theirs.tubelet or sees_time(theirs) != sees_time(own):
            raise UsageError(
                f"--teacher {settings.teacher}: its tokens are not the student's (patch {theirs.patch_size}, tubelet "
                f"{theirs.tubelet}, {'video' if sees_time(theirs) else 'image'} model)"
            )
        encoder.to(device).eval().requires_grad_(False)
        return cls(encoder, DistillHead(own.dim, theirs.dim).to(device))


class TuneLosses:
    """One step's losses, their gradients added to the parameters."""

    def __init__(
        self, model: RecognitionModel, recipe: TuneRecipe, ranks: Ranks, guide: Guide | None, micro_batch: int
    ) -> None:
        self.model, self.recipe, self.ranks, self.guide, self.micro_batch = model, recipe, ranks, guide, micro_batch

    def __call__(self, rows: list[Sample], count: float, step: int, distilling: bool) -> dict[str, float]:
        """This rank's share of the losses of the global batch (they sum up over the ranks).

        Args:
            rows: Readable samples of this rank.
            count: Readable samples of all ranks.
        """
        recipe, encoder, device = self.recipe, self.model.encoder, self.ranks.device
        losses = {"loss": 0.0, **({"distill": 0.0} if distilling else {})}
        if not rows:
            return losses
        clips = torch.cat([r.clips for r in rows])
        labels = torch.tensor([r.label for r in rows for _ in r.seeds])
        seeds = torch.tensor([s for r in rows for s in r.seeds], dtype=torch.int64)
        target = labels
        if recipe.classes:
            own = seed_of(recipe.seed, step, self.ranks.rank)
            clips, target = mix(
                clips, labels.long(), recipe.classes, mixup=recipe.mixup, cutmix=recipe.cutmix, seed=own
            )
        total = count * recipe.repeats
        size = self.micro_batch or len(clips)
        for start in range(0, len(clips), size):
            piece = slice(start, start + size)
            video, wanted = clips[piece].to(device), target[piece].to(device)
            with self.ranks.autocast(), draws.rows(seeds[piece]):
                if distilling:
                    tokens = encoder.features(video)[0]
                    logits = encoder.get_submodule("head")(tokens[:, 0])
                else:
                    logits = encoder.classify(video)
            if recipe.classes:
                loss = F.cross_entropy(logits.float(), wanted, label_smoothing=recipe.smoothing, reduction="sum")
            else:
                loss = F.mse_loss(logits.float()[:, 0], wanted.float(), reduction="sum")
            loss = loss / total
            if distilling and self.guide is not None:
                with torch.no_grad(), self.ranks.autocast():
                    known = self.guide.teacher.features(video)[0]
                with self.ranks.autocast():
                    guided = self.guide.head(tokens)
                extra = token_distillation_loss(guided, known) * len(video) / total
                losses["distill"] += float(extra.detach())
                loss = loss + extra
            loss.backward()
            losses["loss"] += float(loss.detach())
        return losses
