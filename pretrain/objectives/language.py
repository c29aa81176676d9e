"""MLM: masked words of a caption predicted, the video seen.

Legend: B rows, L tokens.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vtr.encoders import draws
from vtr.encoders.losses import language_loss
from vtr.pretrain.objectives.base import FusionObjective, Noise, Scene, gradient


class Language(FusionObjective):
    """The chosen tokens predicted from the caption's rest and the video; the mean over the chosen tokens of all ranks."""

    def backward(self, scene: Scene, weight: float) -> Tensor:
        """This rank's share."""
        model, tokenizer, cache = scene.model, scene.model.tokenizer, scene.cache
        ids, mask = scene.texts.ids[0], scene.texts.mask[0]
        masked, labels = mask_tokens(
            ids,
            mask,
            probability=self.stage.mlm_probability,
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            seeds=draws.derived(scene.seeds, Noise.WORDS),
        )
        share = draws.row_uniform(draws.derived(scene.seeds, Noise.WORDS + 2), (len(ids),)).to(ids.device)
        taken = share < self.stage.mlm_share
        labels = labels.masked_fill(~taken[:, None], -100)
        count = (labels != -100).sum()
        if scene.world > 1:
            dist.all_reduce(count)
        total = torch.zeros((), device=ids.device)
        every = torch.arange(len(ids), device=ids.device)
        for piece in scene.pieces:
            rows = every[piece][taken[piece]]
            rows = rows if len(rows) else every[piece][:1]  # ranks that share weights all run the layers, or none
            visual = cache.tokens[rows].requires_grad_()
            with scene.autocast(), draws.rows(draws.derived(scene.seeds[rows.to(scene.seeds.device)], Noise.WORDS + 1)):
                text = model.text_encoder
                fused = text.fuse(text.encode_text(masked[rows], mask[rows]), mask[rows], visual)
                logits = text.mlm_logits(fused)
            loss = language_loss(logits, labels[rows], count)
            (weight * loss).backward()
            cache.token_gradient.index_add_(0, rows, gradient(visual))
            total += loss.detach()
        return total


def mask_tokens(
    ids: Tensor,
    attention_mask: Tensor,
    *,
    probability: float,
    cls_id: int,
    mask_id: int,
    vocab_size: int,
    seeds: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict: 80 % [MASK], 10 % random, 10 % unchanged; never PAD or CLS (docs/notes/videomamba.md).

    Args:
        ids, attention_mask: (B, L).
        seeds: (B,) int64; a row's choice depends on its seed alone (`vtr.encoders.draws`).

    Returns:
        Masked ids and labels, both (B, L); labels are -100 where nothing is predicted.
    """
    shape = tuple(ids.shape)
    chosen, kind, other = (draws.row_uniform(seeds.to(ids.device), shape, salt) for salt in range(3))
    picked = (chosen < probability) & attention_mask.bool() & (ids != cls_id)
    masked = torch.where(picked & (kind < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(picked & (kind >= 0.8) & (kind < 0.9), (other * vocab_size).long(), masked)
    return masked, ids.masked_fill(~picked, -100)
