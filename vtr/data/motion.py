"""A generated action task whose classes differ in motion alone: the middle frame tells nothing about the class.

One disc on a noisy ground moves, flashes or hops. In every class the two middle frames show it at rest, at a place and
in a colour of the same distribution, so a model of the middle frame alone is at chance by construction. Left/right,
up/down and the two orders of flashes have the same set of frames each, so a model that ignores the order of the frames
guesses within these pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FRAMES = 8
CLASSES = (
    "moves left", "moves right", "moves up", "moves down",
    "flashes white, then black", "flashes black, then white",
    "hops once", "hops twice", "hops four times",
)  # fmt: skip
PAIRS = ((0, 1), (2, 3), (4, 5))  # each other's reversal: equal up to the order of the frames
_WAY = (-3, -2, -1, 0, 0, 1, 2, 3)  # steps from the place of rest
_HOPS = {6: ((1,), (6,)), 7: ((1, 6), (0, 6)), 8: ((0, 2, 5, 7),)}  # frames in the air, one of these
_COLOURS = ((230, 60, 50), (60, 210, 80), (70, 90, 240), (220, 200, 60))


@dataclass(frozen=True, kw_only=True)
class MotionTask:
    """How clips are drawn.

    Attributes:
        frames: T; more than 8 show the same action that much slower.
        size: Side in pixels; the other lengths are shares of it.
        noise: Standard deviation of the ground, grey levels.
    """

    frames: int = FRAMES
    size: int = 32
    noise: float = 8.0

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Clips and labels, a function of (count, seed).

        Returns:
            uint8 (count, T, 3, S, S) and int64 (count,), every class equally often up to one.
        """
        return self.scenes(count, seed)[:2]

    def scenes(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `draw`, and what is to be seen in each frame: (count, T, 5), place (x, y) and colour (r, g, b) in [0, 1]."""
        g = torch.Generator().manual_seed(seed)
        labels, facts = self._acted(count, g)
        side, place, colour = self.size, facts[..., :2] * self.size, facts[..., 2:] * 255
        along = torch.arange(side).float() + 0.5
        dx, dy = (along - place[..., i, None] for i in (0, 1))  # (count, T, S)
        distance = (dx[:, :, None, :] ** 2 + dy[:, :, :, None] ** 2).sqrt()
        cover = (0.14 * side - distance + 0.5).clamp(0, 1)[:, :, None]
        ground = 50 + 60 * torch.rand(count, 1, 3, 1, 1, generator=g)
        noise = torch.randn(count, self.frames, 1, side, side, generator=g) * self.noise
        clips = (ground + noise) * (1 - cover) + colour[..., None, None] * cover
        return clips.clamp(0, 255).to(torch.uint8), labels, facts

    def facts(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Labels and facts of `scenes` without its pictures."""
        return self._acted(count, torch.Generator().manual_seed(seed))

    def _acted(self, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=g)

        side = self.size
        first = int(torch.randint(len(CLASSES), (1,), generator=g))
        labels = (first + torch.arange(count)) % len(CLASSES)
        labels = labels[torch.randperm(count, generator=g)]
        rest = side * (0.5 + 0.2 * (uniform(count, 2) - 0.5))  # (x, y)
        step = side * (0.08 + 0.02 * uniform(count, 1))
        shift = torch.zeros(count, FRAMES, 2)
        for label, (axis, sign) in enumerate(((0, -1), (0, 1), (1, -1), (1, 1))):
            mine = labels == label
            shift[mine, :, axis] = sign * step[mine] * torch.tensor(_WAY)
        choice = uniform(count)
        for label, ways in _HOPS.items():
            for number, air in enumerate(ways):
                mine = (labels == label) & ((choice * len(ways)).long() == number)
                for frame in air:
                    shift[mine, frame, 1] = -3 * step[mine, 0]
        colour = torch.tensor(_COLOURS).float()[(uniform(count) * len(_COLOURS)).long()]
        colour = colour[:, None].repeat(1, FRAMES, 1)
        for label, (early, late) in ((4, (255, 0)), (5, (0, 255))):
            colour[labels == label, 1] = early
            colour[labels == label, 6] = late
        if self.frames != FRAMES:
            at = torch.arange(self.frames) * FRAMES // self.frames  # the same action, slower or faster
            shift, colour = shift[:, at], colour[:, at]
        return labels, torch.cat([(rest[:, None] + shift) / side, colour / 255], -1)


def shuffled_frames(clips: Tensor, seed: int) -> Tensor:
    """The same clips (B, T, …), each with its frames in a random order of its own."""
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(clips.shape[:2], generator=g).argsort(1)
    return clips[torch.arange(len(clips))[:, None], order]


def within_pairs(scores: Tensor, labels: Tensor) -> float:
    """Share of the clips of `PAIRS` that get the higher score for their class than for its reversal; chance 0.5."""
    partner = torch.full((len(CLASSES),), -1)
    for a, b in PAIRS:
        partner[a], partner[b] = b, a
    mine = partner[labels] >= 0
    rows, own = scores[mine], labels[mine]
    right = rows.gather(1, own[:, None]) > rows.gather(1, partner[own][:, None])
    return float(right.float().mean())
