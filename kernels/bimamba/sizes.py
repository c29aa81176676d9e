"""The sizes of a call of bimamba."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

_S = TypeVar("_S", bound="Sizes")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """B, L, E, K, R and N of the fifteen arguments of `bimamba`."""

    batch: int
    length: int
    width: int
    taps: int
    rank: int
    n: int

    @classmethod
    def of(cls: type[_S], tensors: Sequence[Tensor]) -> _S:
        """From the arguments' shapes."""
        batch, length, _ = tensors[0].shape
        width, taps = tensors[1].shape
        return cls(batch=batch, length=length, width=width, taps=taps, rank=tensors[4].shape[1], n=tensors[6].shape[1])
