"""Parameter groups of fine-tuning: weight decay, and a learning rate that falls with depth, right or as released."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from vtr.encoders.base import VideoEncoder
from vtr.errors import unknown_name

RULES = ("right", "released")
_EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed")
_STATE = ("A_log", "A_b_log")


class Group(TypedDict):
    """Of AdamW; `scale` is what the learning rate is multiplied by."""

    params: list[nn.Parameter]
    scale: float
    weight_decay: float


def layer_number(encoder: VideoEncoder, name: str, rule: str) -> int:
    """Which layer an encoder's parameter belongs to: 0 for the embeddings, 1 … depth, depth + 1 for norm and head.

    The released rule knows only cls_token, pos_embed and patch_embed: everything else counts as the head
    (docs/notes/videomamba.md, "Layer decay"; their fix "does not help" and was reverted).
    """
    if rule == "released":
        return 0 if name.split(".")[0] in _EMBEDDINGS else len(encoder.blocks) + 1
    return encoder.layer_of(name)


def parameter_groups(encoder: VideoEncoder, *, weight_decay: float, layer_decay: float, rule: str) -> list[Group]:
    """Groups for AdamW of an encoder with its head.

    Args:
        layer_decay: scale(l) = layer_decay ** (depth + 1 - l).
        rule: "right", or "released", which also decays A_log.
    """
    if rule not in RULES:
        raise unknown_name("rule of layer decay", rule, RULES)
    depth = len(encoder.blocks)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rsplit(".", 1)[-1]
        plain = parameter.ndim <= 1 or leaf == "bias" or leaf in ("pos_embed", "cls_token", "temporal_pos_embedding")
        plain = plain or (rule == "right" and leaf in _STATE)
        key = (layer_decay ** (depth + 1 - layer_number(encoder, name, rule)), 0.0 if plain else weight_decay)
        groups.setdefault(key, []).append(parameter)
    return [Group(params=params, scale=scale, weight_decay=decay) for (scale, decay), params in groups.items()]
