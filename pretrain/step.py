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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.data.text import TokenBatch
from vtr.encoders import draws
from vtr.encoders.masking import make_mask
from vtr.errors import UsageError, VtrError
from vtr.pretrain import objectives as obj
from vtr.pretrain.recipes import Stage
from vtr.pretrain.sharding import is_sharded

# Salts of the row noise, one per use.
_VIDEO, _TEXT, _MASK, _PAIR, _WRONG, _MLM = 0, 10, 20, 30, 40, 50


class _Piece(NamedTuple):
    """Inputs of one encoder pass."""

    rows: slice
    frames: Tensor  # uint8 (m, T, 3, H, W)
    mask: Tensor | None  # (m, 1 + T P)
    target: Tensor | None  # (K, m, visible, C)


class _Encoded(NamedTuple):
    """Outputs of one encoder pass; `texts` and `states` are missing where no text is used."""

    aligned: Tensor | None
    video: Tensor  # (m, F, E)
    tokens: Tensor  # (m, Lv, D)
    texts: tuple[Tensor, ...] = ()  # caption, then paraphrase and sibling where they are used: (m, E) each
    states: Tensor | None = None  # (m, L, H)


class PretrainStep:
    """The model with its objectives.

    Args:
        model: The student (`VideoTextModel`).
        stage: Which objectives, masks and weights.
        seed: Of the run; with the global step and the sample ids it fixes all noise.
        gather_ranks: The released code weakens the contrastive gradient by its number of ranks: that number, or 1.
        micro_batch: Rows encoded at once (m); 0 = all.
        autocast: Context of the encoders' forward passes.
    """

    def __init__(
        self,
        model: Any,
        stage: Stage,
        *,
        seed: int = 0,
        gather_ranks: int = 1,
        micro_batch: int = 0,
        autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self.model, self.stage, self.seed = model, stage, seed
        self.gather_ranks, self.micro_batch, self.autocast = gather_ranks, micro_batch, autocast
        self.world = obj.world_size()
        self.rank = dist.get_rank() if self.world > 1 else 0
        self.with_text = stage.vtc + stage.vtm + stage.mlm + stage.text > 0
        self._global_rows = 0
        self._subgroups: dict[int, Any] = {}
        # What a stage does not train is frozen, so that no optimiser state or all-reduce is spent on it.
        for name, parameter in model.named_parameters():
            used = self.with_text or name.startswith("vision_encoder.")
            if stage.uta == 0 and ".clip_decoder." in name:
                used = False
            if not self.with_text and "pool_norm" in name:
                used = False
            parameter.requires_grad_(used)

    def parameters(self) -> list[nn.Parameter]:
        """What the stage trains."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def __call__(
        self,
        frames: Tensor,
        captions: Sequence[str],
        ids: Tensor,
        meta: Sequence[dict],
        teacher: Any,
        step: int,
        matching: bool = True,
    ) -> dict[str, Tensor]:
        """Compute the losses of the global batch and add their gradients to the parameters' `.grad`, on all ranks alike.

        Args:
            frames: uint8 (n, T, 3, H, W); T = 1 for images. The ranks' batches in rank order are the global batch.
            captions: n texts.
            ids: (n,) 64-bit sample ids.
            meta: n dicts; `paraphrase` and `sibling_caption` are used where the recipe asks for them.
            teacher: Frozen CLIP teacher, or None in a stage without alignment.
            step: Global step, which with the ids seeds masks and draws.
            matching: Whether the matching loss is on at this step.

        Returns:
            Unweighted losses of the global batch by name, and `loss`, their weighted sum; equal on all ranks.
        """
        stage, n = self.stage, len(captions)
        self._global_rows = n * self.world
        size = self.micro_batch or n
        seeds = draws.derived(draws.derived(ids.cpu(), self.seed), step)
        pieces = [slice(i, min(n, i + size)) for i in range(0, n, size)]
        losses: dict[str, Tensor] = {}
        own = {name: torch.zeros((), device=ids.device) for name in ("uta", "vtm", "mlm") if getattr(stage, name) > 0}
        if teacher is None:
            own.pop("uta", None)
        if not matching:
            own.pop("vtm", None)
        if not self.with_text:
            for rows in pieces:
                piece = self._piece(frames, rows, seeds, teacher)
                self._carry_back(piece, self._encode(piece, None, seeds), [], own)
        else:
            with torch.no_grad():
                self.model.temp.clamp_(0.001, 0.5)
            texts = self._texts(captions, meta)
            once = len(pieces) == 1
            parts = []
            for rows in pieces:
                piece = self._piece(frames, rows, seeds, teacher)
                with torch.set_grad_enabled(once):
                    parts.append((piece, self._encode(piece, texts, seeds)))
            cache = _Cache([encoded for _, encoded in parts])
            self._contrast(cache, ids, texts, losses)
            if "vtm" in own:
                self._match(cache, ids, texts, seeds, pieces, own)
            if "mlm" in own:
                self._language(cache, texts, seeds, pieces, own)
            for piece, encoded in parts:
                if not once:
                    encoded = self._encode(piece, texts, seeds)
                self._carry_back(piece, encoded, cache.gradients(piece.rows), own)
        if own:
            values = torch.stack(list(own.values()))
            if self.world > 1:
                dist.all_reduce(values)
            losses.update(zip(own, values))
        self._reduce()
        losses["loss"] = sum((getattr(stage, name) * value for name, value in losses.items()), torch.zeros(()))
        return losses

    def _piece(self, frames: Tensor, rows: slice, seeds: Tensor, teacher: Any) -> _Piece:
        part, stage = frames[rows], self.stage
        if teacher is None or stage.uta == 0:
            return _Piece(rows, part, None, None)
        count, times, _, height, width = part.shape
        patch = self.model.config.video.patch_size
        with torch.no_grad(), self.autocast():
            out = teacher(self.model.normalise(part), self.model.config.video.align_layers)
        if stage.mask == "none":
            return _Piece(rows, part, None, out.layers)
        ratio = stage.video_mask_ratio if times > 1 else stage.image_mask_ratio
        attention = out.attention.float().cpu().unflatten(0, (count, times))
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
            for row, seed in enumerate(draws.derived(seeds[rows], _MASK).tolist())
        ]
        mask = torch.cat(masks).to(part.device)
        layers = out.layers
        visible = torch.stack([t[~mask].view(count, -1, t.shape[-1]) for t in layers])
        return _Piece(rows, part, mask, visible)

    def _texts(self, captions: Sequence[str], meta: Sequence[dict]) -> _Texts:
        """All texts of the rank's batch, padded to the longest of the global batch."""
        model, stage = self.model, self.stage
        kinds = [list(captions)]
        siblings = [m.get("sibling_caption") or "" for m in meta]
        if stage.text > 0:
            kinds.append([m.get("paraphrase") or c for m, c in zip(meta, captions)])
        if stage.text > 0 or stage.sibling_negatives:
            kinds.append(siblings)
        tokens = model.tokenizer([t for kind in kinds for t in kind], model.config.max_text_tokens)
        ids, mask = tokens.ids, tokens.mask
        if self.world > 1:
            longest = torch.tensor([ids.shape[1]], device=model.device)
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            extra = int(longest) - ids.shape[1]
            ids = F.pad(ids, (0, extra), value=model.tokenizer.pad_id)
            mask = F.pad(mask, (0, extra))
        shape = (len(kinds), len(captions), -1)
        has = torch.tensor([bool(s) for s in siblings], device=model.device)
        return _Texts(ids.view(shape).to(model.device), mask.view(shape).to(model.device), has)

    def _encode(self, piece: _Piece, texts: _Texts | None, seeds: Tensor) -> _Encoded:
        model, own = self.model, seeds[piece.rows]
        temporal = self.stage.keep_temporal and piece.mask is None
        with self.autocast(), draws.rows(draws.derived(own, _VIDEO)):
            video = model.encode_video(model.normalise(piece.frames), mask=piece.mask, keep_temporal=temporal)
        if texts is None:
            return _Encoded(video.aligned, video.frame_embeddings, video.tokens)
        ids, mask = texts.ids[:, piece.rows], texts.mask[:, piece.rows]
        kinds, count = ids.shape[:2]
        row_seeds = torch.cat([draws.derived(own, _TEXT + k) for k in range(kinds)])
        with self.autocast(), draws.rows(row_seeds):
            text = model.encode_text(TokenBatch(ids=ids.flatten(0, 1), mask=mask.flatten(0, 1)))
        return _Encoded(
            video.aligned,
            video.frame_embeddings,
            video.tokens,
            tuple(text.embedding.split(count)),
            text.tokens[:count],
        )

    def _contrast(self, cache: _Cache, ids: Tensor, texts: _Texts, losses: dict[str, Tensor]) -> None:
        """The objectives on embeddings: every rank computes them for the global batch and keeps its rows' gradient."""
        stage = self.stage
        video = obj.gathered(cache.video.float()).requires_grad_()
        embeddings = [obj.gathered(t.float()).requires_grad_() for t in cache.texts]
        ids, has_sibling = obj.gathered(ids), obj.gathered(texts.has_sibling)
        temperature = self.model.temp
        n = len(cache.video)
        mine = slice(self.rank * n, (self.rank + 1) * n)
        leaves = [video, *embeddings]

        def keep(loss: Tensor, weight: float, share: float, with_temperature: bool) -> None:
            found = torch.autograd.grad(
                weight * loss, [*leaves, *([temperature] if with_temperature else [])], allow_unused=True
            )
            for store, gradient in zip([cache.video_gradient, *cache.text_gradients], found):
                if gradient is not None:
                    store += gradient[mine] * share
            if with_temperature and found[-1] is not None and temperature.requires_grad:
                _add_gradient(temperature, found[-1] / self.world)

        if stage.vtc > 0:
            losses["vtc"] = obj.contrastive_loss(
                video,
                embeddings[0],
                ids,
                temperature,
                siblings=embeddings[-1] if stage.sibling_negatives else None,
                sibling_mask=has_sibling,
            )
            keep(losses["vtc"], stage.vtc, 1 / self.gather_ranks, True)
        if stage.text > 0:
            losses["text"] = obj.text_pair_loss(embeddings[0], embeddings[1], embeddings[2], has_sibling, 0.1)
            keep(losses["text"], stage.text, 1.0, False)
        for name in losses:
            losses[name] = losses[name].detach()

    def _reach(self, n: int) -> tuple[int, int, Any]:
        """(candidates of a matching group, ranks that hold them, their process group)."""
        span, ranks = match_reach(self.stage, n, self.world)
        if ranks == 1:
            return span, 1, None
        if ranks == self.world:
            return span, ranks, dist.group.WORLD
        if ranks not in self._subgroups:
            self._subgroups[ranks], _ = dist.new_subgroups(ranks)
        return span, ranks, self._subgroups[ranks]

    def _match(
        self,
        cache: _Cache,
        ids: Tensor,
        texts: _Texts,
        seeds: Tensor,
        pieces: list[slice],
        own: dict[str, Tensor],
    ) -> None:
        """VTM: each sample's pair, its text with a wrong video, its video with a wrong text."""
        n = len(ids)
        span, ranks, group = self._reach(n)

        def pool(x: Tensor) -> Tensor:
            return x if ranks == 1 else obj.gathered(x, group)

        states, tokens, mask = pool(cache.states), pool(cache.tokens), pool(texts.mask[0])
        first = (self.rank % ranks) * n
        caption, video, all_ids = pool(cache.texts[0].float()), pool(cache.video.float()).mean(1), pool(ids)
        rows = torch.arange(first, first + n, device=ids.device)
        place = torch.arange(len(all_ids), device=ids.device) // span
        allowed = (all_ids[rows, None] != all_ids[None]) & (place[rows, None] == place[None])
        temperature = self.model.temp.detach()
        picks = []
        for k, similarity in enumerate((caption[rows] @ video.T, video[rows] @ caption.T)):
            uniform = draws.row_uniform(draws.derived(seeds, _WRONG + k), (n,))
            try:
                picks.append(
                    obj.hard_negatives((similarity / temperature).cpu(), allowed.cpu(), uniform).to(ids.device)
                )
            except ValueError as error:
                raise VtrError(f"{error}; the batch is too small or holds one sample many times") from None
        state_gradient, token_gradient = torch.zeros_like(states), torch.zeros_like(tokens)
        for piece in pieces:
            me = rows[piece]
            text_index = torch.cat([me, me, picks[1][piece]])
            video_index = torch.cat([me, picks[0][piece], me])
            text, visual = states[text_index].requires_grad_(), tokens[video_index].requires_grad_()
            row_seeds = torch.cat([draws.derived(seeds[piece], _PAIR + k) for k in range(3)])
            with self.autocast(), draws.rows(row_seeds):
                logits = self.model.match(text, mask[text_index], visual)
            loss = obj.matching_loss(logits, len(me), "sum") / (3 * n * self.world)
            (self.stage.vtm * loss).backward()
            state_gradient.index_add_(0, text_index, _gradient(text))
            token_gradient.index_add_(0, video_index, _gradient(visual))
            own["vtm"] += loss.detach()
        if ranks > 1:
            dist.all_reduce(state_gradient, group=group)
            dist.all_reduce(token_gradient, group=group)
        cache.state_gradient += state_gradient[first : first + n]
        cache.token_gradient += token_gradient[first : first + n]

    def _language(
        self, cache: _Cache, texts: _Texts, seeds: Tensor, pieces: list[slice], own: dict[str, Tensor]
    ) -> None:
        """MLM: the mean over the chosen tokens of the global batch."""
        model, tokenizer = self.model, self.model.tokenizer
        ids, mask = texts.ids[0], texts.mask[0]
        masked, labels = obj.mask_tokens(
            ids,
            mask,
            probability=self.stage.mlm_probability,
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            seeds=draws.derived(seeds, _MLM),
        )
        count = (labels != -100).sum()
        if self.world > 1:
            dist.all_reduce(count)
        for piece in pieces:
            visual = cache.tokens[piece].clone().requires_grad_()
            row_seeds = draws.derived(seeds[piece], _MLM + 1)
            with self.autocast(), draws.rows(row_seeds):
                text = model.text_encoder
                fused = text.fuse(text.encode_text(masked[piece], mask[piece]), mask[piece], visual)
                logits = text.mlm_logits(fused)
            loss = obj.language_loss(logits, labels[piece], count)
            (self.stage.mlm * loss).backward()
            cache.token_gradient[piece] += _gradient(visual)
            own["mlm"] += loss.detach()

    def _carry_back(
        self, piece: _Piece, encoded: _Encoded, gradients: Sequence[Tensor], own: dict[str, Tensor]
    ) -> None:
        """Alignment of a piece, and the backward pass of its encoders."""
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        if piece.target is not None and encoded.aligned is not None and "uta" in own:
            share = len(piece.frames) / self._global_rows
            loss = obj.alignment_loss(encoded.aligned, piece.target) * share
            own["uta"] += loss.detach()
            outputs.append(self.stage.uta * loss)
            seeds.append(torch.ones_like(loss))
        if gradients:
            assert encoded.states is not None
            for output, gradient in zip((encoded.video, encoded.tokens, *encoded.texts, encoded.states), gradients):
                if output.requires_grad:
                    outputs.append(output)
                    seeds.append(gradient.to(output.dtype))
        torch.autograd.backward(outputs, seeds)

    def _reduce(self) -> None:
        """Sum the gradients of all ranks: each holds its rows' share of the global batch's gradient."""
        if self.world == 1:
            return
        every = [p.grad for p in self.model.parameters() if p.grad is not None]
        found = [g for g in every if not is_sharded(g)]
        for gradient in every:
            if is_sharded(gradient):
                gradient.mul_(self.world)  # FSDP has taken the mean over the ranks
        bucket: list[Tensor] = []
        size = 0
        for gradient in [*found, None]:
            if bucket and (gradient is None or size + gradient.numel() > _BUCKET or gradient.dtype != bucket[0].dtype):
                flat = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(flat)
                for g, part in zip(bucket, flat.split([g.numel() for g in bucket])):
                    g.copy_(part.view_as(g))
                bucket, size = [], 0
            if gradient is not None:
                bucket.append(gradient)
                size += gradient.numel()


_BUCKET = 16 << 20  # elements of one all-reduce


def match_reach(stage: Stage, n: int, world: int) -> tuple[int, int]:
    """(candidates of a group that wrong partners are drawn from, ranks that hold them).

    Args:
        n: Samples of a rank.

    Raises:
        UsageError: The group can be made neither of a part of a rank nor of whole ranks.
    """
    span = min(stage.match_group or n * world, n * world)
    if span <= n:
        if n % span:
            raise UsageError(f"match_group {span} does not divide the {n} samples of a rank (--set match_group=…)")
        return span, 1
    ranks = span // n
    if span % n or world % ranks:
        raise UsageError(
            f"match_group {span} cannot be made of ranks with {n} samples each out of {world} ranks "
            "(--set match_group=…)"
        )
    return span, ranks


class _Texts(NamedTuple):
    """Tokens of the rank's texts, by kind."""

    ids: Tensor  # (kinds, n, L)
    mask: Tensor
    has_sibling: Tensor  # (n,) bool


class _Cache:
    """The encoders' outputs of the rank's batch, cut off from their graphs, with room for their gradients."""

    def __init__(self, parts: Sequence[_Encoded]) -> None:
        def joined(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([t.detach() for t in tensors])

        self.video = joined([p.video for p in parts])
        self.tokens = joined([p.tokens for p in parts])
        self.texts = [joined(t) for t in zip(*(p.texts for p in parts))]
        self.states = joined([p.states for p in parts if p.states is not None])
        self.video_gradient = torch.zeros_like(self.video)
        self.token_gradient = torch.zeros_like(self.tokens)
        self.text_gradients = [torch.zeros_like(t) for t in self.texts]
        self.state_gradient = torch.zeros_like(self.states)

    def gradients(self, rows: slice) -> list[Tensor]:
        """In the order video, tokens, texts, states."""
        every = (self.video_gradient, self.token_gradient, *self.text_gradients, self.state_gradient)
        return [g[rows] for g in every]


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


def warm_up_text(
    model: Any, triples: list[tuple[str, str, str]], *, batch_size: int, lr: float, temperature: float
) -> float:
    """Teach a text encoder from scratch that captions which differ in direction alone differ (DEMO_RECIPE.md part B).

    Args:
        model: Its text layers and text projection are trained.
        triples: (caption, paraphrase, direction-swapped caption or ""); used once, in order.

    Returns:
        The mean cosine between caption and swapped caption in the last batch; below 0.8 direction can be learned.
    """
    import sys

    from tqdm import tqdm

    parameters = [p for m in (model.text_encoder, model.text_proj) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    cosine = 1.0
    starts = range(0, len(triples) - batch_size + 1, batch_size)
    for start in tqdm(starts, desc="text warm-up", file=sys.stderr, unit="step"):
        part = triples[start : start + batch_size]
        texts = [t[i] for i in range(3) for t in part]
        a, p, n = model.encode_text(texts).embedding.chunk(3)
        has = torch.tensor([bool(t[2]) for t in part], device=a.device)
        loss = obj.text_pair_loss(a, p, n, has, temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if bool(has.any()):
            cosine = F.cosine_similarity(a[has], n[has], dim=-1).mean().item()
    return cosine
