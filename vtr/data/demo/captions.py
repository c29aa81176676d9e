# The demo corpus's words: what a scene contains, which combinations are held out, and the sentences for it.
"""Scenes and captions of the demo corpus.

A scene is a background and one or two objects with a colour, a shape, a size, a texture and a motion.  A small grammar
turns it into sentences (several templates, one to three synonyms for each slot); the wording is drawn separately from
the content, so that the same wording can be written for a scene and for its sibling: such captions differ in the motion
phrase only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 235, 30),
    "green": (40, 210, 50),
    "cyan": (30, 225, 225),
    "blue": (45, 85, 255),
    "purple": (140, 40, 205),
    "pink": (255, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("night", "sand", "grass", "water", "bricks", "wall")
# Each kind of motion is a pair of opposite directions; playing a clip backwards turns one into the other.
KINDS: dict[str, tuple[str, str]] = {
    "left_right": ("left", "right"),
    "up_down": ("up", "down"),
    "grow_shrink": ("growing", "shrinking"),
    "turn": ("clockwise", "counterclockwise"),
    "appear_disappear": ("appearing", "disappearing"),
}
MOTIONS = tuple(motion for pair in KINDS.values() for motion in pair)
STILL = "still"
OPPOSITE = {a: b for pair in KINDS.values() for a, b in (pair, pair[::-1])} | {STILL: STILL}
KIND_OF = {motion: kind for kind, pair in KINDS.items() for motion in pair}

_COLOUR_WORDS = {name: (name,) for name in COLOURS} | {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}
_SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_TEXTURE_WORDS = {"striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
_BACKGROUND_WORDS = {
    "night": ("in the night sky", "in front of a starry night"),
    "sand": ("on the sand", "over a sandy beach"),
    "grass": ("on the grass", "over a green meadow"),
    "water": ("on the water", "over the sea"),
    "bricks": ("in front of a brick wall", "in front of red bricks"),
    "wall": ("in front of a gray wall", "in front of plain concrete"),
}
# (finite form, -ing form); the three wordings of the two directions of a kind run parallel.
_MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
        ("drifts leftwards", "drifting leftwards"),
    ),
    "right": (
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
        ("drifts rightwards", "drifting rightwards"),
    ),
    "up": (("moves up", "moving up"), ("rises", "rising"), ("goes upwards", "going upwards")),
    "down": (("moves down", "moving down"), ("falls", "falling"), ("goes downwards", "going downwards")),
    "growing": (("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding")),
    "shrinking": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("contracts", "contracting")),
    "clockwise": (
        ("turns clockwise", "turning clockwise"),
        ("spins clockwise", "spinning clockwise"),
        ("rotates clockwise", "rotating clockwise"),
    ),
    "counterclockwise": (
        ("turns counterclockwise", "turning counterclockwise"),
        ("spins counterclockwise", "spinning counterclockwise"),
        ("rotates counterclockwise", "rotating counterclockwise"),
    ),
    "appearing": (("appears", "appearing"), ("fades in", "fading in"), ("comes into view", "coming into view")),
    "disappearing": (("disappears", "disappearing"), ("fades out", "fading out"), ("vanishes", "vanishing")),
    STILL: (("stays still", "staying still"), ("does not move", "not moving"), ("rests", "resting")),
}
# {a} {b}: the objects; {va} {vb}: finite verbs; {ia} {ib}: -ing forms; {where}: the background.
_TEMPLATES = {
    ("video", 1): (
        "{a} {va} {where}",
        "{where} {a} {va}",
        "{a} is {ia} {where}",
        "a video of {a} {ia} {where}",
        "there is {a} {ia} {where}",
    ),
    ("video", 2): (
        "{a} {va} and {b} {vb} {where}",
        "{where} {a} {va} while {b} {vb}",
        "{a} is {ia} and {b} is {ib} {where}",
        "a video of {a} {ia} and {b} {ib} {where}",
        "there is {a} {ia} {where} while {b} {vb}",
    ),
    ("image", 1): ("{a} {where}", "{where} there is {a}", "a picture of {a} {where}", "we see {a} {where}"),
    ("image", 2): (
        "{a} and {b} {where}",
        "{where} there are {a} and {b}",
        "a picture of {a} next to {b} {where}",
        "we see {a} with {b} {where}",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene."""

    colour: str
    shape: str
    size: str
    motion: str = STILL
    texture: str = "plain"

    @property
    def triple(self) -> tuple[str, str, str]:
        return (self.colour, self.shape, self.motion)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip or an image shows: one or two objects on a background."""

    background: str
    things: tuple[Thing, ...]

    def reversed(self) -> Scene:
        """The sibling: the same scene played backwards."""
        things = tuple(replace(thing, motion=OPPOSITE[thing.motion]) for thing in self.things)
        return replace(self, things=things)

    @property
    def group(self) -> str:
        """Scenes of one group share background, first colour and number of objects: they are hard to tell apart."""
        return f"{self.background}-{self.things[0].colour}-{len(self.things)}"

    def attributes(self) -> dict[str, object]:
        """The scene as plain data for the sample's json."""
        return {"background": self.background, "objects": [dict(vars(thing)) for thing in self.things]}


@dataclass(frozen=True)
class Wording:
    """One draw of all the choices of the grammar; numbers are reduced to each slot's options when it is written."""

    choices: tuple[int, ...]
    texture: bool = True

    @classmethod
    def draw(cls, rng: np.random.Generator, *, texture: float = 0.5) -> Wording:
        """Draw a wording; `texture` is the probability that a texture other than plain is mentioned."""
        return cls(tuple(int(x) for x in rng.integers(0, 60, size=10)), bool(rng.random() < texture))


def write(scene: Scene, wording: Wording, medium: str = "video") -> str:
    """The sentence for `scene` in `wording`; captions of images (`medium="image"`) say nothing about motion."""
    choice = iter(wording.choices)

    def pick(options: Sequence[Any]) -> Any:
        return options[next(choice) % len(options)]

    templates = _TEMPLATES[medium, len(scene.things)]
    template: str = pick(templates)
    words: dict[str, object] = {"where": pick(_BACKGROUND_WORDS[scene.background])}
    for slot, thing in zip("ab", scene.things, strict=False):
        size, colour = pick(_SIZE_WORDS[thing.size]), pick(_COLOUR_WORDS[thing.colour])
        texture = f"{_TEXTURE_WORDS[thing.texture][0]} " if wording.texture and thing.texture != "plain" else ""
        article_free = f"{size} {texture}{colour} {pick(_SHAPE_WORDS[thing.shape])}"
        words[slot] = f"a {article_free}"
        words["v" + slot], words["i" + slot] = pick(_MOTION_WORDS[thing.motion])
    return template.format(**words)


def held_out_triples(seed: int) -> frozenset[tuple[str, str, str]]:
    """The (colour, shape, motion) triples that training never shows: one in five, closed under reversing the motion.

    Each colour gives up five of its 25 cells of shape x kind of motion, at most two in one shape or kind, and each kind
    enough of them for the direction pairs.  Drawn at random rather than as a Latin square: with a square, colour and
    motion alone would give away the shape of every benchmark object.
    """
    rng = np.random.default_rng([seed, 11])
    while True:
        per_kind = dict.fromkeys(KINDS, 0)
        held = set()
        for colour in COLOURS:
            cells = _draw_cells(rng)
            for shape, kind in cells:
                per_kind[kind] += 1
                held |= {(colour, shape, motion) for motion in KINDS[kind]}
        if min(per_kind.values()) >= 6:
            return frozenset(held)


def _draw_cells(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Five cells (shape, kind) of which at most two share a shape or a kind."""
    kinds = list(KINDS)
    while True:
        cells = [(SHAPES[i // 5], kinds[i % 5]) for i in rng.permutation(25)[:5]]
        names = [name for cell in cells for name in cell]
        if max(names.count(name) for name in names) <= 2:
            return cells


class SceneSampler:
    """Draws training scenes: never a held-out triple, and two objects only in motions that keep them apart."""

    def __init__(self, seed: int) -> None:
        held = held_out_triples(seed)
        self.cells = {
            colour: [(shape, kind) for shape in SHAPES for kind in KINDS if (colour, shape, KINDS[kind][0]) not in held]
            for colour in COLOURS
        }

    def group(self, rng: np.random.Generator, *, count: int, scenes: int, medium: str = "video") -> list[Scene]:
        """`scenes` scenes of one hard group with `count` objects each; no two with the same first shape and motion."""
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        cells = self.cells[colour]
        order = rng.permutation(len(cells))[:scenes]
        return [self._scene(rng, background, colour, cells[i], count, medium) for i in order]

    def _scene(
        self, rng: np.random.Generator, background: str, colour: str, cell: tuple[str, str], count: int, medium: str
    ) -> Scene:
        things = [self._thing(rng, colour, cell, medium)]
        if count == 2:
            other = [name for name in COLOURS if name != colour]
            second = other[rng.integers(len(other))]
            # Crossing paths would hide one object behind the other.
            banned = {"left_right": "up_down", "up_down": "left_right"}.get(cell[1])
            cells = [c for c in self.cells[second] if c[1] != banned]
            thing = self._thing(rng, second, cells[rng.integers(len(cells))], medium)
            things.append(replace(thing, motion=STILL) if rng.random() < 0.15 else thing)
        return Scene(background=background, things=tuple(things))

    @staticmethod
    def _thing(rng: np.random.Generator, colour: str, cell: tuple[str, str], medium: str) -> Thing:
        return Thing(
            colour=colour,
            shape=cell[0],
            size=SIZES[rng.integers(2)],
            motion=STILL if medium == "image" else KINDS[cell[1]][rng.integers(2)],
            texture=TEXTURES[max(0, int(rng.integers(5)) - 2)],
        )


def warmup_triples(n: int, seed: int, *, corpus_seed: int = 0, two_objects: float = 0.3) -> list[tuple[str, str, str]]:
    """`n` times (caption, another wording of it, the caption with every motion reversed), never of a held-out triple.

    The third is worded as the first: the two differ in the motion phrase only.
    """
    rng = np.random.default_rng([corpus_seed, 12, seed])
    sampler = SceneSampler(corpus_seed)
    triples = []
    for _ in range(n):
        scene = sampler.group(rng, count=2 if rng.random() < two_objects else 1, scenes=1)[0]
        first, second = Wording.draw(rng), Wording.draw(rng)
        second = replace(second, texture=first.texture)
        triples.append((write(scene, first), write(scene, second), write(scene.reversed(), first)))
    return triples
