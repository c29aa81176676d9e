"""Measures how exactly moments are found in generated films: fixed windows, shots, shots with refined boundaries.

python -m bench.moments --model runs/demo/model                 # moments.md and .json in docs/results
python -m bench.moments --model runs/demo/model --films 4 --out /tmp/moments      # whether it runs

The films are made of the demo corpus's shapes: cuts and events (2 to 20 s) are known. Half of the events fill their shot, the
others begin and end within it, some two in one shot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from vtr.data.demo.captions import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, Thing, Wording, write
from vtr.data.demo.render import FPS, encode_clip, render

LEAD = (1.0, 4.0)  # seconds of a shot before and after its event, where it does not fill it
FADE = 4  # frames in which an event comes and goes that does not fill its shot


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens in a film, from second to second, and how it is asked for."""

    film: int
    start: float
    end: float
    scene: Scene
    query: str


@dataclass(frozen=True, kw_only=True)
class Film:
    """A generated film: its cuts and its events."""

    frames: np.ndarray
    cuts: list[float]
    events: list[Event]


def scenes(seed: int) -> Iterator[Scene]:
    """Scenes of one object, no two with the same background, colour and shape."""
    rng = np.random.default_rng([seed, 1])
    kinds = list(product(BACKGROUNDS, COLOURS, SHAPES))
    for i in rng.permutation(len(kinds)):
        background, colour, shape = kinds[i]
        motion, size = MOTIONS[rng.integers(len(MOTIONS))], SIZES[rng.integers(2)]
        yield Scene(background=background, things=(Thing(colour=colour, shape=shape, size=size, motion=motion),))


def films(count: int, seconds: float, seed: int = 0) -> Iterator[Film]:
    """Films of this mean length."""
    rng, drawn = np.random.default_rng([seed, 2]), scenes(seed)
    for number in range(count):
        wanted = rng.uniform(0.5, 1.5) * seconds
        parts: list[np.ndarray] = []
        cuts: list[float] = []
        events: list[Event] = []
        at, before = 0, ""
        while at < wanted * FPS:
            first = next(s for s in drawn if s.background != before)
            shot, own = _shot(rng, [first, next(drawn)] if rng.random() < 0.25 else [first])
            before = first.background
            for scene, start, end in own:
                query = write(scene, Wording.draw(rng, texture=0))
                events.append(
                    Event(film=number, start=(at + start) / FPS, end=(at + end) / FPS, scene=scene, query=query)
                )
            cuts += [at / FPS] if at else []
            parts.append(shot)
            at += len(shot)
        yield Film(frames=np.concatenate(parts), cuts=cuts, events=events)


def _shot(rng: np.random.Generator, inside: Sequence[Scene]) -> tuple[np.ndarray, list[tuple[Scene, int, int]]]:
    """Frames of a shot, and its events with their first and last+1 frame; one of two events is all there is of the shot."""
    background, seed = inside[0].background, int(rng.integers(1 << 30))
    fills = len(inside) == 1 and rng.random() < 0.5
    parts, events, at = [], [], 0

    def more(scene: Scene, frames: int) -> None:
        nonlocal at
        if frames:
            drawn = render(scene, np.random.default_rng(seed), frames=frames)
            if scene.things and not fills:  # nothing comes or goes at once, which would be a cut
                share = np.minimum(np.arange(frames) + 1, np.arange(frames, 0, -1)).clip(max=FADE + 1) / (FADE + 1)
                empty = render(replace(scene, things=()), np.random.default_rng(seed), frames=1)
                share = share[:, None, None, None]
                drawn = np.rint(share * drawn + (1 - share) * empty).astype(np.uint8)
            parts.append(drawn)
            at += frames

    for scene in inside:
        more(Scene(background=background, things=()), 0 if fills else round(FPS * rng.uniform(*LEAD)))
        lasts = round(FPS * min(20.0, 2.0 * 10 ** rng.uniform(0, 1)))
        scene = replace(scene, background=background)
        events.append((scene, at, at + lasts))
        more(scene, lasts)
    more(Scene(background=background, things=()), 0 if fills else round(FPS * rng.uniform(*LEAD)))
    return np.concatenate(parts), events


def write_films(folder: Path, made: Sequence[Film]) -> None:
    """The films as files of that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, film in enumerate(made):
        (folder / f"film{number:02d}.mp4").write_bytes(encode_clip(film.frames))
