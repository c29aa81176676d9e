"""Measures how exactly moments are found in generated films: fixed windows, shots, shots with refined boundaries.

python -m bench.moments --model runs/demo/model                 # moments.md and .json in docs/results
python -m bench.moments --model runs/demo/model --films 4 --out /tmp/moments      # whether it runs

The films are made of the demo corpus's shapes: cuts and events (2 to 20 s) are known. Half of the events fill their shot, the
others begin and end within it, some two in one shot.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.command import RESULTS, machine, parsed, save, table
from bench.indexing import film as smooth_film
from vtr.data.decode import read_windows
from vtr.data.demo.captions import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, Thing, Wording, write
from vtr.data.demo.render import FPS, encode_clip, render
from vtr.errors import reports_errors
from vtr.library import Hit, Library
from vtr.library.calibrate import MARKED
from vtr.library.encode import load_encoder
from vtr.library.settings import Work

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

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


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of cutting: shares of queries, and what it costs."""

    how: str
    segments: int
    film: float  # whose first hit is in the right film
    moment: float  # whose first hit has an IoU of 0.5 or more with the event
    iou: float  # mean
    cpu: float  # seconds of indexing, a minute of film
    bytes: int  # of the library, a minute of film


WAYS: dict[str, dict[str, object]] = {
    "fixed windows": {"segments": "windows"},
    "fixed windows, refined": {"segments": "windows", "frame_vectors": True},
    "shots": {"segments": "shots"},
    "shots, refined": {"segments": "shots", "frame_vectors": True},
}


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Of two spans."""
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / (max(a[1], b[1]) - min(a[0], b[0]))


def library_of(folder: Path, videos: Path, model: VideoTextEncoder, **how: object) -> tuple[Library, float]:
    """A library of a folder of films, made in this process; and the CPU seconds that took."""
    library = Library.create(folder, model, **how)  # type: ignore[arg-type]
    before = time.process_time()
    library.add(videos, work=Work(workers=0))
    return library, time.process_time() - before


def measured(how: str, made: Sequence[Film], place: Path, model: VideoTextEncoder) -> Row:
    """What one way of cutting finds and costs."""
    library, cpu = library_of(place / how.replace(", ", " "), place / "films", model, **WAYS[how])
    right: list[bool] = []
    found: list[float] = []
    for event in (event for film in made for event in film.events):
        hit = library.search(event.query, 1)[0]
        right.append(Path(hit.path).stem == f"film{event.film:02d}")
        found.append(iou((hit.start, hit.end), (event.start, event.end)) if right[-1] else 0.0)
    minutes = sum(len(film.frames) for film in made) / FPS / 60
    kept = [p for p in library.path.rglob("*") if p.suffix in (".f32", ".i8")]
    segments = library.store.segments()
    library.close()
    return Row(
        how=how,
        segments=segments,
        film=float(np.mean(right)),
        moment=float(np.mean(np.array(found) >= 0.5)),
        iou=float(np.mean(found)),
        cpu=cpu / minutes,
        bytes=round(sum(p.stat().st_size for p in kept) / minutes),
    )


@dataclass(frozen=True, kw_only=True)
class Sure:
    """How many queries keep a hit at a least confidence."""

    least: float
    answered: float  # queries with an answer
    right: float  # whose kept first hit is the answer
    unanswered: float  # queries of the same world without an answer
    unrelated: float | None  # captions of another folder

    @property
    def precision(self) -> float:
        """The share of queries with an answer among those that keep a hit, of as many with as without."""
        return self.answered / max(1e-9, self.answered + self.unanswered)


def sureness(corpus: Path, place: Path, model: VideoTextEncoder, captions: Path | None) -> list[Sure]:
    """Every other clip of the demo benchmark is indexed; all captions are asked for, and those of other clips."""
    texts = json.loads((corpus / "benchmark" / "test.json").read_text())
    own = place / "half"
    own.mkdir()
    for row in texts[::2]:
        (own / row["video"]).write_bytes((corpus / "benchmark" / "videos" / row["video"]).read_bytes())
    library, _ = library_of(place / "half library", own, model)

    def best(queries: Sequence[str]) -> list[Hit]:
        return [library.search(query, 1)[0] for query in queries]

    yes = best([row["caption"] for row in texts[::2]])
    no = best([row["caption"] for row in texts[1::2]])
    other = None
    if captions is not None:
        other = best([json.loads(line)["caption"] for line in captions.read_text().splitlines() if line.strip()])
    library.close()
    right = [Path(hit.path).name == row["video"] for hit, row in zip(yes, texts[::2])]

    def share(hits: Sequence[Hit], least: float) -> float:
        return float(np.mean([(hit.confidence or 0.0) >= least for hit in hits]))

    return [
        Sure(
            least=least,
            answered=share(yes, least),
            right=float(np.mean([ok and (hit.confidence or 0.0) >= least for ok, hit in zip(right, yes)])),
            unanswered=share(no, least),
            unrelated=None if other is None else share(other, least),
        )
        for least in (0.5, MARKED, 0.95)
    ]


def orders(place: Path, model: VideoTextEncoder, pairs: int, seed: int = 0) -> tuple[float, float, int]:
    """Films of two shots and of the same shots the other way round: how often the right order comes first.

    Returns:
        Among the two films, and among all; and the number of queries.
    """
    folder, drawn, rng = place / "orders", scenes(seed + 1), np.random.default_rng([seed, 3])
    folder.mkdir()
    asked: list[tuple[str, str]] = []
    for number in range(pairs):
        first = next(drawn)
        both = [first, next(s for s in drawn if s.background != first.background)]
        shots = [render(s, rng, frames=round(FPS * rng.uniform(2, 6))) for s in both]
        asked.append((write(both[0], Wording.draw(rng, texture=0)), write(both[1], Wording.draw(rng, texture=0))))
        for name, order in (("there", shots), ("back", shots[::-1])):
            (folder / f"{number:03d}{name}.mp4").write_bytes(encode_clip(np.concatenate(order)))
    library, _ = library_of(place / "orders library", folder, model, segments="shots")
    own: list[bool] = []
    first_of_all: list[bool] = []
    for number, (one, two) in enumerate(asked):
        for name, query, then in (("there", one, two), ("back", two, one)):
            paths = [Path(hit.path).stem for hit in library.search(query, 2 * pairs, then=then)]
            mine = [p for p in paths if p.startswith(f"{number:03d}")]
            own.append(mine[:1] == [f"{number:03d}{name}"])
            first_of_all.append(paths[:1] == [f"{number:03d}{name}"])
    library.close()
    return float(np.mean(own)), float(np.mean(first_of_all)), len(own)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds a minute of film that cutting it takes, without encoding."""

    film: str
    windows: float
    shots: float
    every: float  # fixed windows, every frame decoded


def costs(seconds: int) -> list[Cost]:
    """Of films of smooth motion, as `bench.indexing` makes them; frames of 224 pixels, one thread."""
    out = []
    for lines, codec in ((360, "h264"), (720, "h264"), (720, "hevc"), (1080, "h264")):
        data = smooth_film(lines, codec, seconds)

        def cpu(data: bytes = data, **how: object) -> float:
            before = time.process_time()
            cut = {"window": 8.0, "stride": 4.0, "frames": 8, "size": 224, "threads": 1}
            for _ in read_windows(data, **cut, **how):  # type: ignore[arg-type]
                pass
            return (time.process_time() - before) / seconds * 60

        out.append(Cost(film=f"{lines}p {codec}", windows=cpu(), shots=cpu(segments="shots"), every=cpu(thorough=True)))
    return out


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured with."""

    model: Path
    """A run or model folder of the demo."""
    corpus: Path = Path("data/demo")
    """The demo corpus, for queries without an answer."""
    captions: Path | None = None
    """Captions of clips that are nowhere in it: a file of JSON lines with `caption`."""
    films: int = 30
    seconds: float = 12.0
    """Mean length of a film, without what its last shot goes on."""
    cost_seconds: int = 30
    """Length of the films whose cutting is timed."""
    pairs: int = 60
    """Films of two shots, each there and back."""
    seeds: int = 3
    """Sets of films; the figures are means."""
    first: int = 0
    """Number of the first set; settings are chosen on sets that the page does not show."""
    out: Path = RESULTS


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write moments.md and moments.json."""
    settings = parsed(Settings, __doc__, argv)
    model = load_encoder(str(settings.model))
    with tempfile.TemporaryDirectory() as scratch:
        every: dict[str, list[Row]] = {how: [] for how in WAYS}
        minutes, events = 0.0, 0
        for seed in range(settings.first, settings.first + settings.seeds):
            place, made = Path(scratch) / str(seed), list(films(settings.films, settings.seconds, seed))
            write_films(place / "films", made)
            minutes += sum(len(film.frames) for film in made) / FPS / 60
            events += sum(len(film.events) for film in made)
            for how in WAYS:
                every[how].append(measured(how, made, place, model))
        rows = [_mean(every[how]) for how in WAYS]
        sure = sureness(settings.corpus, Path(scratch), model, settings.captions)
        order = orders(Path(scratch), model, settings.pairs)
    cost = costs(settings.cost_seconds)
    text = _report(settings, rows, cost, sure, order, minutes / settings.seeds, events)
    values = {
        "moments": [asdict(r) for r in rows],
        "cutting": [asdict(c) for c in cost],
        "sure": [{**asdict(s), "precision": s.precision} for s in sure],
        "order": {"right": order[0], "first_of_all": order[1], "queries": order[2]},
        "machine": machine(),
    }
    save(settings.out / "moments.md", text)
    save(settings.out / "moments.json", json.dumps(values, indent=1))
    print(text)
    return 0


def _mean(rows: Sequence[Row]) -> Row:
    means = {k: float(np.mean([getattr(r, k) for r in rows])) for k in ("film", "moment", "iou", "cpu")}
    counts = {k: round(np.mean([getattr(r, k) for r in rows])) for k in ("segments", "bytes")}
    return Row(how=rows[0].how, **means, **counts)  # type: ignore[arg-type]


def _report(
    settings: Settings,
    rows: Sequence[Row],
    cost: Sequence[Cost],
    sure: Sequence[Sure],
    order: tuple[float, float, int],
    minutes: float,
    events: int,
) -> str:
    moments = [
        (r.how, r.segments, f"{r.film:.1%}", f"{r.moment:.1%}", f"{r.iou:.2f}", f"{r.cpu:.2f}", f"{r.bytes:,}")
        for r in rows
    ]
    kept = [
        (
            f"{s.least:g}" + (" (marked below)" if s.least == MARKED else ""),
            *(f"{v:.1%}" for v in (s.answered, s.right, s.unanswered)),
            "not asked" if s.unrelated is None else f"{s.unrelated:.1%}",
            f"{s.precision:.1%}",
        )
        for s in sure
    ]
    parts = [
        "# Moments",
        f"`python -m bench.moments`, model `{settings.model.name}` of the demo, {', '.join(machine().values())}.",
        f"## Where a moment begins and ends\n\n{settings.seeds} sets (from number {settings.first} on) of {settings.films} generated "
        f"films of {minutes:.1f} minutes each, {events} events of 2 to 20 s in all; windows of 8 s every 4 s; means over the sets.",
        table(
            ["cut into", "segments", "right film first", "IoU ≥ 0.5", "mean IoU", "CPU s a minute", "bytes a minute"],
            moments,
        ),
        "## What finding cuts costs\n\nCPU seconds a minute of film, decoding and resizing alone, of one thread.",
        table(
            ["film", "fixed windows", "shots", "fixed windows, every frame decoded"],
            [(c.film, *(f"{v:.1f}" for v in (c.windows, c.shots, c.every))) for c in cost],
        ),
        "## Whether there is anything like it\n\nHalf of the demo benchmark is indexed. Queries that keep a hit at a least "
        "confidence: with an answer (and the answer is that hit), without one, and captions of real clips.",
        table(["--min-score", "with answer", "right hit", "without", "real clips", "precision"], kept),
        f"## In order\n\n{order[2]} queries for two things in order, over films of two shots and the same shots swapped: the "
        f"right order is before the other in {order[0]:.1%}; it is the first hit of all in {order[1]:.1%}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
