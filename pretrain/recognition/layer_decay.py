"""Parameter groups of fine-tuning: weight decay, and a learning rate that falls with depth, right or as released."""

from __future__ import annotations

from typing import Any

from torch import nn

from vtr.errors import unknown_name

RULES = ("right", "released")
_EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed")
_STATE = ("A_log", "A_b_log")


def layer_number(name: str, depth: int, rule: str) -> int:
    """Which layer an encoder's parameter belongs to: 0 for the embeddings, 1 … depth, depth + 1 for norm and head.

    The released rule knows only cls_token, pos_embed and patch_embed: everything else counts as the head
    (VIDEOMAMBA.md 4.3; their fix "does not help" and was reverted).
    """
    first = name.split(".")[0]
    if first in _EMBEDDINGS:
        return 0
    if rule == "released":
        return depth + 1
    if first == "temporal_pos_embedding":
        return 0
    return int(name.split(".")[1]) + 1 if first == "layers" else depth + 1


def parameter_groups(
    module: nn.Module, *, depth: int, weight_decay: float, layer_decay: float, rule: str, prefix: str = ""
) -> list[dict[str, Any]]:
    """Groups for AdamW; `scale` is what the learning rate of a group is multiplied by.

    Args:
        module: An encoder with its head, or one that holds it under `prefix`; the rest has scale 1.
        layer_decay: scale(l) = layer_decay ** (depth + 1 - l).
        rule: "right", or "released", which also decays A_log.
    """
    if rule not in RULES:
        raise unknown_name("rule of layer decay", rule, RULES)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix(prefix)
        number = layer_number(own, depth, rule) if name.startswith(prefix) else depth + 1
        leaf = own.rsplit(".", 1)[-1]
        plain = parameter.ndim <= 1 or leaf == "bias" or leaf in ("pos_embed", "cls_token", "temporal_pos_embedding")
        plain = plain or (rule == "right" and leaf in _STATE)
        key = (layer_decay ** (depth + 1 - number), 0.0 if plain else weight_decay)
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()]
