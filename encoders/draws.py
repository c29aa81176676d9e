"""Random draws tied to a sample instead of its place in a batch: the same on one device, on many, and in pieces.

Dropout and drop path ask for noise here. Inside `rows(seeds)` the noise of row b is a hash of (seeds[b], salt, position
in the row): a sample meets the same noise whatever batch, rank or re-computation it is part of. Outside, torch's own
generator is asked. The hash is integer arithmetic, so that a CPU and a GPU draw the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# A module-level variable, not a thread-local one: autograd re-computes checkpointed layers in threads of its own.
_active: Tensor | None = None


@contextlib.contextmanager
def rows(seeds: Tensor | None) -> Iterator[None]:
    """Tie the draws of the block to rows: `seeds` int64 (B,), one per row of the tensors that ask for noise."""
    global _active
    before, _active = _active, seeds
    try:
        yield
    finally:
        _active = before


def active() -> Tensor | None:
    """The seeds of the innermost `rows`, None outside."""
    return _active


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on int64 (products wrap around, shifts are made unsigned)."""
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -49064778989728563
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -4265267296055464877
    return x ^ ((x >> 33) & 0x7FFFFFFF)


def derived(seeds: Tensor, salt: int) -> Tensor:
    """New row seeds for another use of the same samples."""
    return _mixed(seeds + _wrapped((salt + 1) * -7046029254386353131))


def _wrapped(x: int) -> int:
    """A Python number as int64 arithmetic would have it."""
    return (x + 2**63) % 2**64 - 2**63


def row_uniform(seeds: Tensor, shape: tuple[int, ...], salt: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of `shape` (B, …), row b a function of (seeds[b], salt) alone."""
    if seeds.shape[0] != shape[0]:
        raise ValueError(f"{seeds.shape[0]} row seeds for a tensor of {shape[0]} rows")
    count = 1
    for n in shape[1:]:
        count *= n
    place = torch.arange(count, device=seeds.device, dtype=torch.int64) * -7046029254386353131
    bits = _mixed(derived(seeds, salt)[:, None] ^ _mixed(place)[None, :])
    return (((bits >> 40) & 0xFFFFFF).float() / 2**24).view(shape)


def pair_uniform(seeds: Tensor, others: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) (N, M): entry (i, j) a function of seeds[i] (N,) and others[j] (M,), wherever they stand."""
    bits = _mixed(seeds[:, None] ^ _mixed(others * -7046029254386353131)[None, :])
    return ((bits >> 40) & 0xFFFFFF).float() / 2**24


def uniform(shape: tuple[int, ...], salt: int, device: torch.device) -> Tensor:
    """Uniform numbers of `shape` (B, …): tied to rows inside `rows`, torch's own outside."""
    if _active is None:
        return torch.rand(shape, device=device)
    return row_uniform(_active.to(device), shape, salt)


def dropout(x: Tensor, rate: float, salt: int) -> Tensor:
    """Inverted dropout of (B, …)."""
    keep = uniform(tuple(x.shape), salt, x.device) >= rate
    return x * keep / (1 - rate)


class Dropout(nn.Module):
    """Dropout whose noise follows `rows`; `salt` tells layers apart (see `number_layers`)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.salt = rate, 0

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, self.salt) if self.training and self.rate > 0 else x


def number_layers(module: nn.Module) -> None:
    """Give every sub-module that draws noise (attribute `salt`) a number of its own."""
    for number, part in enumerate(module.modules()):
        if hasattr(part, "salt"):
            setattr(part, "salt", number)  # noqa: B010 - mypy takes a module's attributes for tensors


def checkpoint(function: Any, *args: Any) -> Any:
    """Activation checkpointing whose re-computation draws the same row noise as the first pass."""
    from torch.utils.checkpoint import checkpoint as torch_checkpoint

    seeds = _active
    return torch_checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), rows(seeds))
    )
