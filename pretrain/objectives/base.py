"""What an objective is: three kinds, told apart by what of the step they see.

The step encodes a rank's batch in pieces and caches the outputs (`vtr.pretrain.step`). An objective compares embeddings
of the global batch, or scores cached tokens of this rank, or compares a piece's outputs with a target.

Legend: n rows of this rank, W ranks, G = n W, m rows of a piece, F pooled vectors, E joint width, L text tokens.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtr.data.text import TokenBatch
from vtr.encoders.losses import Reversal
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.recipes import Stage


class Noise(IntEnum):
    """Salts of the row noise (`vtr.encoders.draws`), one a use; each owns the nine numbers after it."""

    VIDEO = 0
    TEXT = 10
    MASK = 20
    PAIR = 30
    WRONG = 40
    WORDS = 50


class Texts(NamedTuple):
    """Tokens of the rank's texts."""

    kinds: tuple[str, ...]  # caption, then paraphrase and sibling where an objective wants them
    ids: Tensor  # (kinds, n, L)
    mask: Tensor
    has_sibling: Tensor  # (n,) bool
    turned: TokenBatch | None = None  # (n, L) captions of the clips played backwards, where the stage wants them
    has_turned: Tensor | None = None  # (n,) bool


class Features(NamedTuple):
    """What a frozen video encoder made of a batch's clips, in the place of their frames."""

    video: Tensor  # (n, F, E) unit vectors
    tokens: Tensor  # (n, Lv, D)

    def part(self, rows: slice) -> Features:
        """Those of some rows."""
        return Features(self.video[rows], self.tokens[rows])


class Piece(NamedTuple):
    """Inputs of one encoder pass."""

    rows: slice
    frames: Tensor | Features  # uint8 (m, T, 3, H, W)
    mask: Tensor | None  # (m, 1 + T P)
    target: Tensor | None  # (K, m, visible, C), the teacher's


class Encoded(NamedTuple):
    """Outputs of one encoder pass; `texts` and `states` are missing where no text is used."""

    aligned: Tensor | None
    video: Tensor  # (m, F, E)
    tokens: Tensor  # (m, Lv, D)
    texts: tuple[Tensor, ...] = ()  # (m, E) each, in the order of `Texts.kinds`
    states: Tensor | None = None  # (m, L, H)


class Cache:
    """The encoders' outputs of the rank's batch, cut off from their graphs, with room for their gradients."""

    def __init__(self, parts: Sequence[Encoded]) -> None:
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


class Turned:
    """Reversed clips and turned captions of the rank's batch (k of its n rows), as `Cache` holds the others.

    Attributes:
        rows: (k,) their places in the batch; a piece without any has its first row here, which `has` does not count.
        has: (k,) bool.
        parts: Of each piece its part of the k.
    """

    def __init__(self, rows: Sequence[Tensor], has: Tensor, encoded: Sequence[Encoded]) -> None:
        self.rows = torch.cat(list(rows))
        self.has = has[self.rows]
        ends = list(itertools.accumulate(map(len, rows)))
        self.parts = [slice(end - len(r), end) for end, r in zip(ends, rows)]
        self.outputs = [torch.cat([o.detach() for o in outputs]) for outputs in zip(*map(turned_outputs, encoded))]
        self.gradients = [torch.zeros_like(o) for o in self.outputs]
        self.video, self.tokens, self.text, self.states = self.outputs

    def spread(self, values: Tensor, count: int) -> Tensor:
        """Values (k, …) at their places among `count` rows, 0 elsewhere."""
        out = values.new_zeros(count, *values.shape[1:])
        out[self.rows[self.has]] = values[self.has]
        return out


def turned_outputs(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a pass over reversed clips and turned captions: video, visual tokens, text, its states."""
    assert encoded.states is not None
    return encoded.video, encoded.tokens, encoded.texts[0], encoded.states


class Embeddings(NamedTuple):
    """The whole global batch, for objectives that compare embeddings."""

    video: Tensor  # (G, F, E) unit vectors
    texts: dict[str, Tensor]  # (G, E) unit vectors, by kind
    ids: Tensor  # (G,)
    has_sibling: Tensor  # (G,) bool
    temperature: Tensor
    reversal: Reversal | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """This rank's cached batch, for objectives that run the fusion layers over it."""

    model: VideoTextModel
    autocast: Callable[[], AbstractContextManager]
    cache: Cache
    texts: Texts
    ids: Tensor  # (n,)
    seeds: Tensor  # (n,)
    pieces: list[slice]
    rank: int
    world: int
    turned: Turned | None = None


class Objective:
    """What all kinds say of themselves.

    Args:
        stage: Its settings; the weight is the stage's field of the objective's name.
    """

    needs_text: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ()  # of the model, which nothing else trains

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def kinds(self) -> tuple[str, ...]:
        """Texts it wants beside the caption: paraphrase, sibling."""
        return ()


class EmbeddingObjective(Objective):
    """Compares embeddings of the global batch."""

    uses_temperature: ClassVar[bool] = False
    weakened: ClassVar[bool] = False  # the released gather divides its gradient at the encoders by the number of ranks

    @abstractmethod
    def loss(self, batch: Embeddings) -> Tensor:
        """A scalar, equal on all ranks."""


class FusionObjective(Objective):
    """Runs the fusion layers over cached states and tokens of this rank, piece by piece."""

    @abstractmethod
    def backward(self, scene: Scene, weight: float) -> Tensor:
        """This rank's share of the loss, unweighted; the weighted gradients are added to parameters and cache."""


class PieceObjective(Objective):
    """Compares the outputs of an encoder pass with what the piece brings along."""

    @abstractmethod
    def loss(self, piece: Piece, encoded: Encoded) -> Tensor | None:
        """The mean over the piece's rows, with its graph; None where there is nothing to compare."""


def gradient(leaf: Tensor) -> Tensor:
    """Of a leaf after a backward pass; zeros where none came."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
