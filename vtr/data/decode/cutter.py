"""What cuts a film into windows while it is played, and plays no more of it than is looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.decode.pyav import VideoReader
from vtr.data.decode.types import Player, Shot, Window

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Cutter(ABC):
    """Cuts what a player shows into windows.

    Attributes:
        player: Of the file.
        window, stride: Seconds.
        count: T, frames of a window.
        tensor: Makes the picture (3, S, S) of pixels.
        keys: Only key frames are decoded.
        sparse: What is not looked at may be passed over.
        duration: Seconds of the file, once the last window is out.
    """

    player: Player
    window: float
    stride: float
    count: int
    tensor: Callable[[np.ndarray], torch.Tensor]
    _: KW_ONLY
    keys: bool = False
    sparse: bool = True
    duration: float = field(default=0.0, init=False)

    @abstractmethod
    def __post_init__(self) -> None:
        """Nothing is under way yet."""

    @abstractmethod
    def windows(self) -> Iterator[Window]:
        """The windows, in one pass."""

    @abstractmethod
    def looks(self, start: float, end: float) -> bool:
        """Whether a frame that is on display between two times is looked at."""

    def playing(self) -> Iterator[tuple[float, Shot]]:
        """Every frame with its time; those that are not looked at need not be decoded."""
        if isinstance(self.player, VideoReader):
            return self.player.play_for(self.looks if self.sparse else None, keys=self.keys)
        return self.player.play()
