"""Operators of ours in torch's registry, as `torch.ops.vtr.NAME`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._ops import OpOverload


def operator(name: str, schema: str, compute: Callable[..., object], fake: Callable[..., object]) -> OpOverload:
    """Define an operator that returns new tensors.

    Not by `torch.library.custom_op`: that loads torch's compiler with the first call, a second and 0.2 GiB in each process
    that computes without it.

    Args:
        name: In the namespace `vtr`.
        schema: Its arguments and results.
        compute: What it does, on every device.
        fake: The same for tensors without data.
    """
    qualified = f"vtr::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "default", compute)
    torch.library.register_fake(qualified, fake)
    found: OpOverload = getattr(torch.ops.vtr, name).default
    return found
