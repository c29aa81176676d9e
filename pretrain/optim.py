"""AdamW with parameter groups, and the warm-up + cosine schedule."""

from __future__ import annotations

import math
from inspect import unwrap

import torch
from torch import nn

from vtr.pretrain.recipes import Optim
from vtr.pretrain.sharding import any_sharded

# State dynamics and positions: two-dimensional, yet not weights that a pull towards zero regularises.
_STATE = ("A_log", "A_b_log", "pos_embed", "cls_token", "temporal_pos_embedding", "temp")


class AdamW(torch.optim.AdamW):
    """torch's, less what keeps torch.compile out of it: that loads the compiler, a second and 0.1 GiB in every rank of a
    training that compiles nothing."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)


def parameter_groups(module: nn.Module, optim: Optim) -> list[dict]:
    """Split trainable parameters into decayed and not decayed (1-D tensors, biases; state unless `decay_state`)."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rsplit(".", 1)[-1]
        state = leaf in _STATE
        if (state and optim.decay_state) or (parameter.ndim > 1 and leaf != "bias" and not state):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    return [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(module: nn.Module, optim: Optim) -> AdamW:
    """AdamW over the trainable parameters of `module`."""
    sharded = any_sharded(module)  # shares and whole tensors cannot go through one call
    return AdamW(
        parameter_groups(module, optim),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        foreach=False if sharded else None,
        fused=None if sharded else True,
    )


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Linear warm-up, then a cosine to `min_lr_ratio * lr`; `step` counts from 0."""
    warmup = max(1, round(steps * optim.warmup_fraction))
    if step < warmup:
        return optim.lr * max(optim.min_lr_ratio, (step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return optim.lr * max(optim.min_lr_ratio, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
