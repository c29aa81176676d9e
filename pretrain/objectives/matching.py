"""VTM: does a caption belong to a video? Wrong partners are drawn among similar ones.

Legend: n rows of this rank, N pairs, M candidates.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vtr.encoders import draws
from vtr.errors import UsageError, VtrError
from vtr.pretrain.objectives.base import FusionObjective, Noise, Scene, gradient
from vtr.pretrain.recipes import Stage
from vtr.ranks import all_rows


class Matching(FusionObjective):
    """Each sample's pair, its text with a wrong video, its video with a wrong text: which of them belong together?"""

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
            text_index = torch.cat([me, me, picks[1][piece]])
            video_index = torch.cat([me, picks[0][piece], me])
            text, visual = states[text_index].requires_grad_(), tokens[video_index].requires_grad_()
            row_seeds = torch.cat([draws.derived(seeds[piece], Noise.PAIR + k) for k in range(3)])
            with scene.autocast(), draws.rows(row_seeds):
                logits = scene.model.match(text, mask[text_index], visual)
            loss = matching_loss(logits, len(me), "sum") / (3 * n * scene.world)
            (weight * loss).backward()
            state_gradient.index_add_(0, text_index, gradient(text))
            token_gradient.index_add_(0, video_index, gradient(visual))
            total += loss.detach()
        if ranks > 1:
            dist.all_reduce(state_gradient, group=group)
            dist.all_reduce(token_gradient, group=group)
        cache.state_gradient += state_gradient[first : first + n]
        cache.token_gradient += token_gradient[first : first + n]
        return total

    def _wrong(
        self, caption: Tensor, video: Tensor, ids: Tensor, rows: Tensor, span: int, scene: Scene
    ) -> list[Tensor]:
        """For each of this rank's rows a wrong video and a wrong text, among its group's candidates."""
        place = torch.arange(len(ids), device=ids.device) // span
        allowed = (ids[rows, None] != ids[None]) & (place[rows, None] == place[None])
        temperature = scene.model.temp.detach()
        picks = []
        for k, similarity in enumerate((caption[rows] @ video.T, video[rows] @ caption.T)):
            uniform = draws.row_uniform(draws.derived(scene.seeds, Noise.WRONG + k), (len(rows),))
            try:
                picks.append(hard_negatives((similarity / temperature).cpu(), allowed.cpu(), uniform).to(ids.device))
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


def hard_negatives(similarity: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
    """Draw one wrong partner per row, likelier the more similar it is.

    Args:
        similarity: (N, M) logits, rows query, columns candidates.
        allowed: (N, M) bool, False for right answers and for candidates out of reach.
        uniform: (N,) in [0, 1): the draw of each row.

    Returns:
        (N,) column indices. A row without an allowed partner raises ValueError.
    """
    if not bool(allowed.any(1).all()):
        raise ValueError("matching needs at least two different samples in each group of candidates")
    # The floor keeps every wrong partner possible: a row whose softmax underflows would have none.
    weights = similarity.detach().float().softmax(1).clamp_min(1e-6).masked_fill(~allowed, 0.0)
    cumulative = weights.double().cumsum(1)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform.double()[:, None] * total, total * (1 - 1e-12))
    return torch.searchsorted(cumulative, point, right=True).squeeze(1)


def matching_loss(logits: Tensor, positives: int, reduction: str = "mean") -> Tensor:
    """VTM: cross-entropy of (N, 2) match logits, the first `positives` of which are true pairs."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    return F.cross_entropy(logits.float(), labels, reduction=reduction)
