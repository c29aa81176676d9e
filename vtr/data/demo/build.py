# Makes the files of the demo corpus, one task at a time; runs as a worker process too.
"""The parts of the demo corpus: training shards, validation clips, benchmark, direction pairs.

Every part is made from the seed and its own number alone, so the files do not depend on how many processes share the
work.  `python -m vtr.data.demo.build FOLDER SEED` reads one task per line on stdin and answers each on stdout.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtr.data.demo.captions import (
    BACKGROUNDS,
    COLOURS,
    KIND_OF,
    KINDS,
    OPPOSITE,
    SHAPES,
    SIZES,
    Scene,
    SceneSampler,
    Thing,
    Wording,
    held_out_triples,
    write,
)
from vtr.data.demo.render import encode_clip, encode_image, render
from vtr.data.shards import ShardFile

BLOCK = 8  # samples of one hard group written next to each other (clips: four clips and their siblings)
SHARD = 400  # samples per shard, a multiple of BLOCK
BENCHMARK = 500
VALIDATION = 200
PAIR_KINDS = ("left_right", "up_down", "grow_shrink")
PAIRS_PER_KIND = 50
TWO_OBJECTS = 0.3


@dataclass(frozen=True)
class Sample:
    """One sample of a training shard before it is written."""

    key: str
    extension: str
    media: bytes
    meta: dict[str, object]


def shard_count(samples: int) -> int:
    """How many shards `samples` samples fill."""
    return -(-samples // SHARD)


def tasks(clips: int, images: int) -> list[str]:
    """Every task of a corpus, one line each: NAME FIRST COUNT."""
    names = []
    for medium, total in (("video", clips), ("image", images)):
        names += [f"{medium} {first} {min(SHARD, total - first)}" for first in range(0, total, SHARD)]
    step = BENCHMARK // 4
    names += [f"benchmark {first} {step}" for first in range(0, BENCHMARK, step)]
    step = VALIDATION // 4
    names += [f"validation {first} {step}" for first in range(0, VALIDATION, step)]
    step = PAIRS_PER_KIND
    return names + [f"pairs {first} {step}" for first in range(0, PAIRS_PER_KIND * len(PAIR_KINDS), step)]


def run_task(root: Path, seed: int, task: str) -> None:
    """Make the files of one line of `tasks` under `root`."""
    name, first, count = task.split()
    start, stop = int(first), int(first) + int(count)
    if name in ("video", "image"):
        samples = _clips(seed, start, stop) if name == "video" else _images(seed, start, stop)
        with ShardFile(root / "train" / name / f"{start // SHARD:06d}.tar") as shard:
            for sample in samples:
                shard.write(sample.key, sample.extension, sample.media, str(sample.meta["caption"]), sample.meta)
    elif name == "benchmark":
        for i, scene in list(enumerate(benchmark_scenes(seed)))[start:stop]:
            frames = render(scene, np.random.default_rng([seed, 31, i]))
            (root / "benchmark" / "videos" / f"{_video_id(i)}.mp4").write_bytes(encode_clip(frames))
    elif name == "validation":
        for i, scene in list(enumerate(validation_scenes(seed)))[start:stop]:
            frames = render(scene, np.random.default_rng([seed, 51, i]))
            (root / "validation" / "videos" / f"valid{i:04d}.mp4").write_bytes(encode_clip(frames))
    elif name == "pairs":
        for i, scene in list(enumerate(pair_scenes(seed)))[start:stop]:
            frames = render(scene, np.random.default_rng([seed, 41, i]))
            folder = root / "pairs" / "videos"
            (folder / f"pair{i:04d}a.mp4").write_bytes(encode_clip(frames))
            (folder / f"pair{i:04d}b.mp4").write_bytes(encode_clip(frames[::-1]))
    else:
        raise ValueError(f"unknown task {task!r}")


def _clips(seed: int, start: int, stop: int) -> Iterator[Sample]:
    sampler = SceneSampler(seed)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        rng = np.random.default_rng([seed, 21, block])
        scenes = sampler.group(rng, count=_count(rng), scenes=BLOCK // 2)
        for i, scene in enumerate(scenes):
            frames = render(scene, rng)
            number = block * BLOCK + 2 * i
            keys = (f"v{number:06d}", f"v{number + 1:06d}")
            for turn, (content, pixels) in enumerate(((scene, frames), (scene.reversed(), frames[::-1]))):
                first, second = _wordings(rng)
                meta = _meta(keys[turn], content, write(content, first), write(content, second))
                meta |= {"sibling": keys[1 - turn], "sibling_caption": write(content.reversed(), first)}
                yield Sample(keys[turn], "mp4", encode_clip(pixels), meta)


def _images(seed: int, start: int, stop: int) -> Iterator[Sample]:
    sampler = SceneSampler(seed)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        rng = np.random.default_rng([seed, 22, block])
        for i, scene in enumerate(sampler.group(rng, count=_count(rng), scenes=BLOCK, medium="image")):
            key = f"i{block * BLOCK + i:06d}"
            first, second = _wordings(rng)
            texts = (write(scene, first, "image"), write(scene, second, "image"))
            meta = _meta(key, scene, *texts) | {"sibling": None, "sibling_caption": None}
            yield Sample(key, "jpg", encode_image(render(scene, rng, frames=1)[0]), meta)


def _count(rng: np.random.Generator) -> int:
    return 2 if rng.random() < TWO_OBJECTS else 1


def _wordings(rng: np.random.Generator) -> tuple[Wording, Wording]:
    """Two wordings that say the same: either both name the texture or neither does."""
    first, second = Wording.draw(rng), Wording.draw(rng)
    return first, Wording(second.choices, first.texture)


def _meta(key: str, scene: Scene, caption: str, paraphrase: str) -> dict[str, object]:
    return {
        "key": key,
        "caption": caption,
        "paraphrase": paraphrase,
        "group": scene.group,
        "attributes": scene.attributes(),
    }


def _held_out_scenes(seed: int, motions: set[str]) -> list[Scene]:
    """Every one-object scene of a held-out triple with one of `motions`, textures left plain."""
    return _scenes_of(triple for triple in held_out_triples(seed) if triple[2] in motions)


def _scenes_of(triples: Iterable[tuple[str, str, str]]) -> list[Scene]:
    return [
        Scene(background=background, things=(Thing(colour=colour, shape=shape, motion=motion, size=size),))
        for colour, shape, motion in sorted(triples)
        for size in SIZES
        for background in BACKGROUNDS
    ]


def benchmark_scenes(seed: int) -> list[Scene]:
    """The 500 scenes of the benchmark: all different, one object, every triple held out.

    Each colour, size and background comes with every held-out shape and kind of motion once, in either direction, so
    that the ceilings are near those of the study that the demo's recipe comes from; the rest (500 - 8 * 2 * 6 * 5 = 20)
    are opposites of clips in the set.  Direction is measured by the pairs.
    """
    rng = np.random.default_rng([seed, 30])
    scenes = _held_out_scenes(seed, {motion for motion, _ in KINDS.values()})
    chosen = [scene.reversed() if rng.random() < 0.5 else scene for scene in scenes]
    chosen += [chosen[i].reversed() for i in rng.permutation(len(chosen))[: BENCHMARK - len(chosen)]]
    return [chosen[i] for i in rng.permutation(BENCHMARK)]


def validation_scenes(seed: int) -> list[Scene]:
    """Scenes to choose settings and checkpoints by, all different: of triples that training has, in clips that it has not.

    The benchmark is of held-out triples, and nothing is chosen by it.
    """
    every = {(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in KIND_OF}
    scenes = _scenes_of(every - held_out_triples(seed))
    order = np.random.default_rng([seed, 50]).permutation(len(scenes))
    return [scenes[i] for i in order[:VALIDATION]]


def pair_scenes(seed: int) -> list[Scene]:
    """The first clips of the direction pairs, 50 of each kind in the order of `PAIR_KINDS`; all triples held out."""
    rng = np.random.default_rng([seed, 40])
    chosen: list[Scene] = []
    for kind in PAIR_KINDS:
        scenes = _held_out_scenes(seed, {KINDS[kind][0]})
        if len(scenes) < PAIRS_PER_KIND:
            raise ValueError(f"only {len(scenes)} held-out scenes for {kind}, expected {PAIRS_PER_KIND}")
        picked = [scenes[i] for i in rng.permutation(len(scenes))[:PAIRS_PER_KIND]]
        # Either direction may be the first clip.
        chosen += [scene.reversed() if rng.random() < 0.5 else scene for scene in picked]
    return chosen


def ceilings(scenes: list[Scene]) -> dict[str, float]:
    """R@1 in percent that a model blind to an attribute could reach at most: distinct keys without it / scenes."""

    def distinct(*names: str) -> float:
        keys = set()
        for scene in scenes:
            thing = scene.things[0]
            kind = min(thing.motion, OPPOSITE[thing.motion])
            keys.add(tuple((vars(thing) | {"background": scene.background, "kind": kind})[name] for name in names))
        return round(100.0 * len(keys) / len(scenes), 1)

    return {
        "everything": distinct("colour", "size", "background", "shape", "motion"),
        "blind_to_motion": distinct("colour", "size", "background", "shape"),
        "blind_to_shape": distinct("colour", "size", "background", "motion"),
        "blind_to_direction": distinct("colour", "size", "background", "shape", "kind"),
        "colour_size_background_only": distinct("colour", "size", "background"),
    }


def write_annotations(root: Path, seed: int) -> dict[str, float]:
    """Write the captions of benchmark and pairs; the benchmark's ceilings come back."""
    rng = np.random.default_rng([seed, 32])
    scenes = benchmark_scenes(seed)
    captions = [write(scene, Wording.draw(rng)) for scene in scenes]
    top = ceilings(scenes)
    folder = root / "benchmark"
    rows = [{"video": f"{_video_id(i)}.mp4", "caption": caption} for i, caption in enumerate(captions)]
    _write_json(folder / "test.json", rows)
    with (folder / "msrvtt_jsfusion.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(("key", "vid_key", "video_id", "sentence"))
        for i, caption in enumerate(captions):
            table.writerow((f"ret{i}", f"msr{i:04d}", _video_id(i), caption))
    _write_json(
        folder / "benchmark.json",
        {
            "name": "demo",
            "gallery": len(scenes),
            "chance_r1": 100.0 / len(scenes),
            "ceilings": top,
            "attributes": {_video_id(i): scene.attributes() for i, scene in enumerate(scenes)},
        },
    )

    own = np.random.default_rng([seed, 52])
    rows = [
        {"video": f"valid{i:04d}.mp4", "caption": write(scene, Wording.draw(own))}
        for i, scene in enumerate(validation_scenes(seed))
    ]
    _write_json(root / "validation" / "validation.json", rows)

    pairs = []
    for i, scene in enumerate(pair_scenes(seed)):
        wording = Wording.draw(rng)
        pairs.append(
            {
                "kind": PAIR_KINDS[i // PAIRS_PER_KIND],
                "video_a": f"pair{i:04d}a.mp4",
                "caption_a": write(scene, wording),
                "video_b": f"pair{i:04d}b.mp4",
                "caption_b": write(scene.reversed(), wording),
            }
        )
    _write_json(root / "pairs" / "pairs.json", pairs)
    return top


def write_description(root: Path, seed: int, clips: int, images: int) -> None:
    """`sizes.json` of both media and the list of what is held out."""
    for medium, total in (("video", clips), ("image", images)):
        sizes = {f"{i:06d}.tar": min(SHARD, total - i * SHARD) for i in range(shard_count(total))}
        _write_json(root / "train" / medium / "sizes.json", sizes)
    _write_json(
        root / "held_out.json", {"triples": sorted(held_out_triples(seed)), "colours": list(COLOURS), "shapes": SHAPES}
    )


def _video_id(i: int) -> str:
    return f"video{i:04d}"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Worker: `FOLDER SEED` as arguments, one task per line on stdin, `done TASK` on stdout after each."""
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        run_task(root, seed, line.strip())
        print(f"done {line.strip()}", flush=True)


if __name__ == "__main__":
    main()
