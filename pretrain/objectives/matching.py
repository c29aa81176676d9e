"""VTM: does a caption belong to a video? Wrong partners are drawn among similar ones.

Legend: n rows of this rank, m of a piece, K wrong partners of each, N pairs, M candidates.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vtr.encoders import draws
from vtr.encoders.bert import KeysValues
from vtr.errors import UsageError, VtrError
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.objectives.base import FusionObjective, Noise, Scene, gradient
from vtr.pretrain.recipes import Stage
from vtr.pretrain.sharding import any_sharded
from vtr.ranks import all_rows


class Matching(FusionObjective):
    """Each sample's pair, its text with K wrong videos, its video with K wrong texts: which of them belong together?"""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._groups: dict[int, dist.ProcessGroup] = {}

    def backward(self, scene: Scene, weight: float) -> Tensor:
        """This rank's share; wrong partners may come from other ranks, which get their gradients back."""
        cache, texts, seeds, device = scene.cache, scene.texts, scene.seeds, scene.ids.device
        n = len(scene.ids)
        span, ranks, group = self._reach(n, scene.world)

        def pool(x: Tensor) -> Tensor:
            return x if ranks == 1 else all_rows(x, group)

        states, tokens, mask = pool(cache.states), pool(cache.tokens), pool(texts.mask[0])
        first = (scene.rank % ranks) * n
        caption, video, ids = pool(cache.texts[0].float()), pool(cache.video.float()).mean(1), pool(scene.ids)
        rows = torch.arange(first, first + n, device=device)
        picks = self._wrong(caption, video, ids, rows, span, scene)
        state_gradient, token_gradient = torch.zeros_like(states), torch.zeros_like(tokens)
        total = torch.zeros((), device=device)
        for piece in scene.pieces:
            me = rows[piece]
            count = picks[0].shape[1]
            each = me.repeat_interleave(count)
            text_index = torch.cat([me, each, picks[1][piece].flatten()])
            video_index = torch.cat([me, picks[0][piece].flatten(), each])
            used, place = video_index.unique(return_inverse=True)
            text, visual = states[text_index], tokens[used]
            if not self.stage.frozen:
                text.requires_grad_(), visual.requires_grad_()
            with scene.autocast(), draws.rows(_pair_seeds(seeds[piece], count)):
                logits = scene.model.match(text, mask[text_index], _memory(scene.model, visual, place))
            loss = self._loss(logits, len(me), count) / (n * scene.world)
            (weight * loss).backward()
            state_gradient.index_add_(0, text_index, gradient(text))
            token_gradient.index_add_(0, used, gradient(visual))
            total += loss.detach()
        total += self._turned(scene, weight)
        if self.stage.frozen:
            return total
        if ranks > 1:
            dist.all_reduce(state_gradient, group=group)
            dist.all_reduce(token_gradient, group=group)
        cache.state_gradient += state_gradient[first : first + n]
        cache.token_gradient += token_gradient[first : first + n]
        return total

    def _turned(self, scene: Scene, weight: float) -> Tensor:
        """Captions with their clips played backwards, and clips with their captions turned, as one more wrong partner each."""
        turned, cache, texts = scene.turned, scene.cache, scene.texts
        total = torch.zeros((), device=scene.ids.device)
        if turned is None or texts.turned is None:
            return total
        for part in turned.parts:
            rows, real = turned.rows[part], turned.has[part].repeat(3)
            count = len(rows)
            text = torch.cat([cache.states[rows], cache.states[rows], turned.states[part]])
            visual = torch.cat([cache.tokens[rows], turned.tokens[part]])
            mask = torch.cat([texts.mask[0][rows], texts.mask[0][rows], texts.turned.mask[rows]])
            place = torch.arange(2 * count, device=rows.device)
            place = torch.cat([place, place[:count]])  # its clip, its reversal; the clip again, of the turned caption
            if not self.stage.frozen:
                text.requires_grad_(), visual.requires_grad_()
            seeds = scene.seeds[rows.to(scene.seeds.device)]
            with scene.autocast(), draws.rows(_pair_seeds(seeds, 1)):
                logits = scene.model.match(text, mask, _memory(scene.model, visual, place))
            if real.any():
                loss = self._loss(logits[real], int(real.sum()) // 3, 1) / (len(scene.ids) * scene.world)
            else:
                loss = 0 * logits.sum()
            (weight * loss).backward()
            if not self.stage.frozen:
                own, again, other = gradient(text).split(count)
                cache.state_gradient[rows] += own + again
                cache.token_gradient[rows] += gradient(visual)[:count]
                turned.gradients[3][part] += other
                turned.gradients[1][part] += gradient(visual)[count:]
            total += loss.detach()
        return total

    def _loss(self, logits: Tensor, positives: int, count: int) -> Tensor:
        """Summed over the samples; logits as `ranking_loss` takes them."""
        kind, parts = self.stage.match_loss, []
        if kind != "list":
            parts.append(matching_loss(logits, positives, "sum") / 3)
        if kind != "pairs":
            parts.append(ranking_loss(logits, positives, count))
        return torch.stack(parts).sum()

    def _wrong(
        self, caption: Tensor, video: Tensor, ids: Tensor, rows: Tensor, span: int, scene: Scene
    ) -> list[Tensor]:
        """For each of this rank's rows K wrong videos and K wrong texts (n, K), among its group's candidates."""
        place = torch.arange(len(ids), device=ids.device) // span
        allowed = (ids[rows, None] != ids[None]) & (place[rows, None] == place[None])
        temperature = scene.model.temp.detach()
        picks = []
        for k, similarity in enumerate((caption[rows] @ video.T, video[rows] @ caption.T)):
            uniform = draws.pair_uniform(draws.derived(scene.seeds, Noise.WRONG + k), ids.cpu())
            logits = (similarity / temperature).cpu()
            try:
                picks.append(hard_negatives(logits, allowed.cpu(), uniform, self.stage.match_negatives).to(ids.device))
            except ValueError as error:
                raise VtrError(f"{error}; the batch is too small or holds one sample many times") from None
        return picks

    def _reach(self, n: int, world: int) -> tuple[int, int, dist.ProcessGroup | None]:
        """(candidates of a matching group, ranks that hold them, their process group)."""
        span, ranks = match_reach(self.stage, n, world)
        if ranks == 1:
            return span, 1, None
        if ranks == world:
            return span, ranks, dist.group.WORLD
        if ranks not in self._groups:
            self._groups[ranks], _ = dist.new_subgroups(ranks)
        return span, ranks, self._groups[ranks]


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


def _memory(model: VideoTextModel, visual: Tensor, place: Tensor) -> Tensor | list[KeysValues]:
    """What each of N pairs reads: visual tokens (U, Lv, D) at its place (N,) among them, each projected once."""
    if any_sharded(model):  # a layer's weights are whole only inside its forward pass
        return visual[place]
    return [(keys[place], values[place]) for keys, values in model.visual_memory(visual)]


def _pair_seeds(seeds: Tensor, count: int) -> Tensor:
    """A seed for each pair of a piece, in the order of its pairs; seeds (m,), `count` wrong partners of each."""
    own = draws.derived(seeds, Noise.PAIR)
    wrong = torch.stack([draws.derived(own, k) for k in range(2 * count)], 1)
    return torch.cat([own, wrong[:, :count].flatten(), wrong[:, count:].flatten()])


def hard_negatives(similarity: Tensor, allowed: Tensor, uniform: Tensor, count: int = 1) -> Tensor:
    """Draw `count` different wrong partners a row by the softmax of their similarities, without putting back.

    The softmax is over the wrong partners alone, as in the released code: with the right ones in it, those of a trained
    model have nearly all of the weight, and what is left to draw by is rounding.

    Args:
        similarity: (N, M) logits, rows query, columns candidates.
        allowed: (N, M) bool, False for right answers and for candidates out of reach.
        uniform: (N, M) in [0, 1): the draws of each row.

    Returns:
        (N, count) column indices; a row with fewer partners repeats its first. One without any raises ValueError.
    """
    if not bool(allowed.any(1).all()):
        raise ValueError("matching needs at least two different samples in each group of candidates")
    weights = similarity.detach().float().masked_fill(~allowed, -torch.inf).log_softmax(1)
    keys = weights - torch.log(-torch.log(uniform.float().clamp(1e-7, 1 - 1e-7)))  # Gumbel top-k (1903.06059)
    best = keys.topk(min(count, keys.shape[1]), dim=1)
    drawn = torch.where(best.values > -torch.inf, best.indices, best.indices[:, :1])
    return F.pad(drawn, (0, count - drawn.shape[1]), mode="replicate") if drawn.shape[1] < count else drawn


def matching_loss(logits: Tensor, positives: int, reduction: str = "mean") -> Tensor:
    """VTM: cross-entropy of (N, 2) match logits, the first `positives` of which are true pairs.

    Wrong pairs weigh twice what true ones do in all, however many there are.
    """
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    wrong = each[positives:]
    total = each[:positives].sum() + wrong.sum() * (2 * positives / max(1, len(wrong)))
    return total if reduction == "sum" else total / (3 * positives)


def ranking_loss(logits: Tensor, positives: int, count: int) -> Tensor:
    """VTM as a choice: each text picks its video among `count` wrong ones, each video its text, by the log-odds.

    It is how the head is used: to order the first hits of the embedding (localised contrast, 2101.08751).

    Args:
        logits: (positives (1 + 2 count), 2): true pairs, then texts with wrong videos, then videos with wrong texts.

    Returns:
        Summed over the samples: the mean of both cross-entropies.
    """
    odds = (logits[:, 1] - logits[:, 0]).float()
    right, wrong = odds[:positives, None], odds[positives:].view(2, positives, count)
    choices = torch.cat([right.expand(2, -1, -1), wrong], 2)
    return -choices.log_softmax(2)[..., 0].sum() / 2
