"""One training step: a batch and a stage in; the losses of the global batch, and their exact gradients, out.

The step is the same function of the global batch whatever computes it. Encoders run over pieces of the rank's batch;
their outputs are cached; the objectives that compare samples are computed on the cached outputs of the whole global
batch; the gradients at the outputs are then carried back through the encoders, piece by piece (cached features, as in
GradCache, arXiv 2101.06983). With one piece nothing is encoded twice. Noise (masks, dropout, wrong partners) is tied to
samples, see `vtr.encoders.draws`.

Legend: n rows of this rank, W ranks, G = n W, m rows of a piece, F pooled vectors, E joint width, L text tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.data.direction import lexicon
from vtr.data.text import TokenBatch
from vtr.encoders import draws
from vtr.encoders.clip_teacher import FrameTeacher
from vtr.encoders.losses import Reversal
from vtr.encoders.masking import make_mask
from vtr.models.base import TextFeatures
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.objectives import objective_kinds, objectives_of
from vtr.pretrain.objectives.base import (
    Cache,
    EmbeddingObjective,
    Embeddings,
    Encoded,
    Features,
    FusionObjective,
    Noise,
    Piece,
    PieceObjective,
    Scene,
    Texts,
    Turned,
    turned_outputs,
)
from vtr.pretrain.recipes import Stage
from vtr.pretrain.sharding import sum_gradients
from vtr.ranks import all_rows, world_size

Meta = Mapping[str, object]  # what a shard says of a sample beside its caption


class PretrainStep:
    """The model with its objectives.

    Args:
        model: The student.
        stage: Which objectives, masks and weights.
        seed: Of the run; with the global step and the sample ids it fixes all noise.
        gather_ranks: The released code weakens the contrastive gradient by its number of ranks: that number, or 1.
        micro_batch: Rows encoded at once (m); 0 = all.
        autocast: Context of the encoders' forward passes.
        mirrored: Clips are mirrored at random: captions that tell left from right say nothing of direction then.
    """

    turned: int = 0
    """Samples of the last global batch whose caption tells a direction, where `direction_negatives` is on."""

    def __init__(
        self,
        model: VideoTextModel,
        stage: Stage,
        *,
        seed: int = 0,
        gather_ranks: int = 1,
        micro_batch: int = 0,
        autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
        mirrored: bool = False,
    ) -> None:
        self.model, self.stage, self.seed = model, stage, seed
        self._lexicon = lexicon(mirrored=mirrored) if stage.direction_negatives else None
        self.gather_ranks, self.micro_batch, self.autocast = gather_ranks, micro_batch, autocast
        self.world = world_size()
        self.rank = dist.get_rank() if self.world > 1 else 0
        self.objectives = objectives_of(stage)
        self.with_text = any(o.needs_text for o in self.objectives.values())
        self._global_rows = 0
        self._freeze()

    def _freeze(self) -> None:
        """What a stage does not train is frozen, so that no optimiser state or all-reduce is spent on it."""
        if self.stage.frozen:
            trained = self._decoder()
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith(trained))
            return
        idle = [part for name, kind in objective_kinds().items() if name not in self.objectives for part in kind.parts]
        if not self.with_text:
            idle.append("pool_norm")
        for name, parameter in self.model.named_parameters():
            used = self.with_text or name.startswith("vision_encoder.")
            parameter.requires_grad_(used and not any(part in name for part in idle))

    def frozen_weights(self) -> dict[str, Tensor]:
        """What of the model a frozen stage leaves as it is, by name."""
        trained = self._decoder()
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith(trained)}

    def _decoder(self) -> tuple[str, ...]:
        """What the names of the cross-modal decoder's and the matching head's parameters start with."""
        text = self.model.config.text
        layers = range(text.fusion_layer, text.layers)
        return ("itm_head.", *(f"text_encoder.encoder.layer.{i}." for i in layers))

    def _still(self) -> None:
        """No noise in frozen encoders: the head learns to read what it will be given."""
        self.model.eval()
        trained = self._decoder()
        for name, part in self.model.named_modules():
            if f"{name}.".startswith(trained):
                part.train()

    def parameters(self) -> list[nn.Parameter]:
        """What the stage trains."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def __call__(
        self,
        frames: Tensor | Features,
        captions: Sequence[str],
        ids: Tensor,
        meta: Sequence[Meta],
        teacher: FrameTeacher | None,
        step: int,
        waiting: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Compute the losses of the global batch and add their gradients to the parameters' `.grad`, on all ranks alike.

        Args:
            frames: uint8 (n, T, 3, H, W); T = 1 for images. The ranks' batches in rank order are the global batch.
                Of a frozen encoder its features will do.
            captions: n texts.
            ids: (n,) 64-bit sample ids.
            meta: n dicts; `paraphrase` and `sibling_caption` are used where the recipe asks for them.
            teacher: Frozen CLIP teacher, or None in a stage without alignment.
            step: Global step, which with the ids seeds masks and draws.
            waiting: Objectives that are not on yet at this step.

        Returns:
            Unweighted losses of the global batch by name, and `loss`, their weighted sum; equal on all ranks.
        """
        if self.stage.frozen and self.model.training:
            self._still()
        n = len(captions)
        self._global_rows = n * self.world
        size = self.micro_batch or n
        seeds = draws.derived(draws.derived(ids.cpu(), self.seed), step)
        pieces = [slice(i, min(n, i + size)) for i in range(0, n, size)]
        losses: dict[str, Tensor] = {}
        own = self._own(teacher, waiting, ids.device)
        if not self.with_text:
            for rows in pieces:
                piece = self._piece(frames, rows, seeds, teacher)
                self._carry_back(piece, self._encode(piece, None, seeds), [], own)
        else:
            with torch.no_grad():
                self.model.temp.clamp_(0.001, 0.5)
            moving = isinstance(frames, Tensor) and frames.shape[1] > 1
            texts = self._texts(captions, meta, moving, seeds)
            once = len(pieces) == 1 and not self.stage.frozen
            parts = []
            for rows in pieces:
                piece = self._piece(frames, rows, seeds, teacher)
                with torch.set_grad_enabled(once):
                    parts.append((piece, self._encode(piece, texts, seeds)))
            cache = Cache([encoded for _, encoded in parts])
            backwards = self._turned_rows(texts, pieces)
            with torch.set_grad_enabled(once):
                turned_parts = [self._encode_turned(p, r, texts, seeds) for (p, _), r in zip(parts, backwards)]
            turned = None
            if turned_parts and texts.has_turned is not None:
                turned = Turned(backwards, texts.has_turned, turned_parts)
            losses = self._compare(cache, ids, texts, turned)
            self._fuse(cache, ids, texts, seeds, pieces, own, turned)
            for piece, encoded in [] if self.stage.frozen else parts:
                if not once:
                    encoded = self._encode(piece, texts, seeds)
                self._carry_back(piece, encoded, cache.gradients(piece.rows), own)
            if turned is not None and not self.stage.frozen:
                for number, encoded in enumerate(turned_parts):
                    if not once:
                        encoded = self._encode_turned(parts[number][0], backwards[number], texts, seeds)
                    carry_back(turned_outputs(encoded), [g[turned.parts[number]] for g in turned.gradients])
        if own:
            values = torch.stack(list(own.values()))
            if self.world > 1:
                dist.all_reduce(values)
            losses.update(zip(own, values))
        sum_gradients(self.model.parameters())
        losses["loss"] = sum((getattr(self.stage, k) * value for k, value in losses.items()), torch.zeros(()))
        return losses

    def _own(self, teacher: FrameTeacher | None, waiting: Collection[str], device: torch.device) -> dict[str, Tensor]:
        """Room for this rank's shares of the losses that are not computed for the global batch at once."""
        return {
            name: torch.zeros((), device=device)
            for name, objective in self.objectives.items()
            if not isinstance(objective, EmbeddingObjective)
            and name not in waiting
            and not (objective.needs_teacher and teacher is None)
        }

    def _piece(self, frames: Tensor | Features, rows: slice, seeds: Tensor, teacher: FrameTeacher | None) -> Piece:
        if isinstance(frames, Features):
            return Piece(rows, frames.part(rows), None, None)
        part, stage = frames[rows], self.stage
        if teacher is None or not any(o.needs_teacher for o in self.objectives.values()):
            return Piece(rows, part, None, None)
        count, times, _, height, width = part.shape
        patch = self.model.config.video.patch_size
        with torch.no_grad(), self.autocast():
            out = teacher(self.model.normalise(part), self.model.config.video.align_layers)
        own = 1 - self.model.vision_encoder.prefix  # an encoder without a CLS token is aligned with the patches alone
        if stage.mask == "none":
            return Piece(rows, part, None, out.layers[:, :, own:])
        ratio = stage.video_mask_ratio if times > 1 else stage.image_mask_ratio
        drawn = stage.mask == "attention"
        attention = out.attention.float().cpu().unflatten(0, (count, times)) if drawn else [None] * count
        masks = [
            make_mask(
                stage.mask,
                1,
                times,
                height // patch,
                width // patch,
                ratio,
                torch.Generator().manual_seed(int(seed)),
                attention=attention[row],
            )
            for row, seed in enumerate(draws.derived(seeds[rows], Noise.MASK).tolist())
        ]
        mask = torch.cat(masks).to(part.device)
        visible = torch.stack([t[~mask].view(count, -1, t.shape[-1]) for t in out.layers])
        return Piece(rows, part, mask, visible[:, :, own:])

    def _texts(self, captions: Sequence[str], meta: Sequence[Meta], moving: bool, seeds: Tensor) -> Texts:
        """All texts of the rank's batch, padded to the longest of the global batch."""
        model = self.model
        wanted = {kind for objective in self.objectives.values() for kind in objective.kinds()}
        told = self._lexicon if moving else None
        turned = [told.turned(c) if told else "" for c in captions] if self._lexicon else []
        paraphrases = [str(m.get("paraphrase") or c) for m, c in zip(meta, captions)]
        siblings = [str(m.get("sibling_caption") or "") for m in meta]
        if told and "sibling" in wanted and not self.stage.sibling_negatives:
            for row, seed in enumerate(seeds.tolist()):
                if turned[row] and not siblings[row]:
                    paraphrases[row], siblings[row] = told.unfamiliar(captions[row], seed)
        every = {"caption": list(captions), "paraphrase": paraphrases, "sibling": siblings}
        kinds = tuple(kind for kind in every if kind == "caption" or kind in wanted)
        tokens = model.tokenizer([t for kind in kinds for t in every[kind]] + turned, model.config.max_text_tokens)
        ids, mask = tokens.ids, tokens.mask
        if self.world > 1:
            longest = torch.tensor([ids.shape[1]], device=model.device)
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            extra = int(longest) - ids.shape[1]
            ids = F.pad(ids, (0, extra), value=model.tokenizer.pad_id)
            mask = F.pad(mask, (0, extra))
        n, k, ids, mask = len(captions), len(kinds), ids.to(model.device), mask.to(model.device)
        has, has_turned = (torch.tensor([bool(s) for s in said], device=model.device) for said in (siblings, turned))
        plain = Texts(kinds, ids[: k * n].view(k, n, -1), mask[: k * n].view(k, n, -1), has)
        if not turned:
            return plain
        return plain._replace(turned=TokenBatch(ids=ids[k * n :], mask=mask[k * n :]), has_turned=has_turned)

    def _turned_rows(self, texts: Texts, pieces: Sequence[slice]) -> list[Tensor]:
        """Of each piece the rows whose caption tells a direction, one at least; none where no sample of any rank does."""
        if texts.has_turned is None:
            return []
        count = texts.has_turned.sum()
        if self.world > 1:
            dist.all_reduce(count)
        self.turned = int(count)
        if not self.turned:
            return []
        every = torch.arange(len(texts.has_turned), device=count.device)
        found = [every[rows][texts.has_turned[rows]] for rows in pieces]
        # Ranks that share weights all run the layers, or none.
        return [rows if len(rows) else every[piece][:1] for rows, piece in zip(found, pieces)]

    def _encode_turned(self, piece: Piece, rows: Tensor, texts: Texts, seeds: Tensor) -> Encoded:
        """Clips of a piece played backwards, the same patches of them masked, and their turned captions."""
        assert texts.turned is not None
        assert isinstance(piece.frames, Tensor)
        inside = (rows - piece.rows.start).to(piece.frames.device)
        frames, mask = piece.frames[inside].flip(1), piece.mask
        if mask is not None:
            patches = mask[inside, 1:].unflatten(1, (frames.shape[1], -1)).flip(1).flatten(1)
            mask = torch.cat([mask[inside, :1], patches], 1)
        chosen = TokenBatch(ids=texts.turned.ids[rows], mask=texts.turned.mask[rows])
        own = seeds[rows.to(seeds.device)]
        return self._encoded(frames, mask, chosen, 1, own, (Noise.VIDEO + 1, Noise.TEXT + 9))

    def _encode(self, piece: Piece, texts: Texts | None, seeds: Tensor) -> Encoded:
        own = seeds[piece.rows]
        if texts is None:
            return self._encoded(piece.frames, piece.mask, None, 0, own, (Noise.VIDEO, Noise.TEXT))
        ids, mask = texts.ids[:, piece.rows], texts.mask[:, piece.rows]
        chosen = TokenBatch(ids=ids.flatten(0, 1), mask=mask.flatten(0, 1))
        return self._encoded(piece.frames, piece.mask, chosen, len(ids), own, (Noise.VIDEO, Noise.TEXT))

    def _encoded(
        self,
        frames: Tensor | Features,
        mask: Tensor | None,
        texts: TokenBatch | None,
        kinds: int,
        seeds: Tensor,
        noise: tuple[int, int],
    ) -> Encoded:
        """Encoder outputs of m clips, and of `kinds` times as many texts."""
        model = self.model
        if isinstance(frames, Features):
            aligned, (pooled, tokens) = None, frames
        else:
            temporal = self.stage.keep_temporal and mask is None
            with self.autocast(), draws.rows(draws.derived(seeds, noise[0])):
                video = model.encode_video(model.normalise(frames), mask=mask, keep_temporal=temporal)
            aligned, pooled, tokens = video.aligned, video.frame_embeddings, video.tokens
        if texts is None:
            return Encoded(aligned, pooled, tokens)
        row_seeds = torch.cat([draws.derived(seeds, noise[1] + k) for k in range(kinds)])
        with self.autocast(), draws.rows(row_seeds):
            text: TextFeatures = model.encode_text(texts)
        count = len(tokens)
        embeddings = tuple(text.embedding.split(count))
        return Encoded(aligned, pooled, tokens, embeddings, text.tokens[:count])

    def _compare(self, cache: Cache, ids: Tensor, texts: Texts, turned: Turned | None) -> dict[str, Tensor]:
        """The objectives on embeddings: every rank computes them for the global batch and keeps its rows' gradient."""
        video = all_rows(cache.video.float()).requires_grad_()
        embeddings = [all_rows(t.float()).requires_grad_() for t in cache.texts]
        temperature, n = self.model.temp, len(cache.video)
        reversal = None
        stores = [cache.video_gradient, *cache.text_gradients]
        if turned is not None:
            clips, said = (all_rows(turned.spread(x.float(), n)).requires_grad_() for x in (turned.video, turned.text))
            reversal = Reversal(clips, said, all_rows(turned.spread(turned.has, n)))
        batch = Embeddings(
            video, dict(zip(texts.kinds, embeddings)), all_rows(ids), all_rows(texts.has_sibling), temperature, reversal
        )
        mine = slice(self.rank * n, (self.rank + 1) * n)
        leaves = [video, *embeddings, *([reversal.video, reversal.text] if reversal else [])]
        losses = {}
        for name, objective in self.objectives.items():
            if not isinstance(objective, EmbeddingObjective):
                continue
            loss = objective.loss(batch)
            moved = [temperature] if objective.uses_temperature else []
            found = torch.autograd.grad(getattr(self.stage, name) * loss, [*leaves, *moved], allow_unused=True)
            share = 1 / self.gather_ranks if objective.weakened else 1.0
            for store, gradient in zip(stores, found):
                if gradient is not None:
                    store += gradient[mine] * share
            if turned is not None:
                for place, gradient in zip((0, 2), found[len(stores) :]):  # video and text
                    if gradient is not None:
                        turned.gradients[place] += gradient[mine][turned.rows] * share
            if moved and found[-1] is not None and temperature.requires_grad:
                _add_gradient(temperature, found[-1] / self.world)
            losses[name] = loss.detach()
        return losses

    def _fuse(
        self,
        cache: Cache,
        ids: Tensor,
        texts: Texts,
        seeds: Tensor,
        pieces: list[slice],
        own: dict[str, Tensor],
        turned: Turned | None,
    ) -> None:
        """The objectives that run the fusion layers over what was encoded."""
        scene = Scene(
            model=self.model,
            autocast=self.autocast,
            cache=cache,
            texts=texts,
            ids=ids,
            seeds=seeds,
            pieces=pieces,
            rank=self.rank,
            world=self.world,
            turned=turned,
        )
        for name, objective in self.objectives.items():
            if isinstance(objective, FusionObjective) and name in own:
                own[name] += objective.backward(scene, getattr(self.stage, name))

    def _carry_back(self, piece: Piece, encoded: Encoded, gradients: Sequence[Tensor], own: dict[str, Tensor]) -> None:
        """Objectives of a piece by itself, and the backward pass of its encoders."""
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        for name, objective in self.objectives.items():
            if not isinstance(objective, PieceObjective) or name not in own:
                continue
            loss = objective.loss(piece, encoded)
            if loss is not None:
                loss = loss * (len(encoded.tokens) / self._global_rows)
                own[name] += loss.detach()
                outputs.append(getattr(self.stage, name) * loss)
                seeds.append(torch.ones_like(loss))
        if gradients:
            assert encoded.states is not None
            outputs += [encoded.video, encoded.tokens, *encoded.texts, encoded.states]
            seeds += gradients
        carry_back(outputs, seeds)


def carry_back(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """The backward pass from outputs with their gradients; outputs that nothing trains are left out."""
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, gradients) if o.requires_grad]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
