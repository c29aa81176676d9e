"""What direction negatives teach: a small model trained on moving clips with free captions, with the option and without it.

python -m bench.direction                       # three seeds each way: direction.md and .json in docs/results
python -m bench.direction --seeds 0 --steps 20 --tests 18 --out /tmp/try     # a moment, to try it

The clips are those of `vtr.data.motion`; of each class that is another's reversal a clip and itself played backwards are
told apart, chance 50 %. Captions are put together from openings, names, colours, ways of moving and endings; those of the
tests use names and verbs that no caption of the training has. The words of direction themselves occur in both. Everything but
the option is the same: model, clips, captions, steps, order. The text side begins from random weights, as no real one does: it is
warmed up, with the option on turned captions too. Finished trainings are kept.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.command import RESULTS, parsed, save, table
from vtr.data.direction import lexicon, reach
from vtr.data.motion import CLASSES, PAIRS, MotionTask
from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import reports_errors
from vtr.eval.benchmarks import Question
from vtr.eval.decisions import Shown, contrast_rows
from vtr.eval.metrics import retrieval_metrics
from vtr.eval.orders import ordered
from vtr.eval.trials import once
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.pretrain.optim import build_optimizer, learning_rate
from vtr.pretrain.recipes import Optim, Stage
from vtr.pretrain.step import PretrainStep
from vtr.pretrain.warmup import warm_up_text

_TEST, _TRAIN = 1 << 20, 1 << 21  # seeds of clips: none meets another's


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Train with direction negatives and without, and test both."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each way for each."""
    steps: int = 2000
    """Of a training."""
    warmup_steps: int = 140
    """Of the text side alone, before."""
    batch_size: int = 16
    """Clips of a step."""
    tests: int = 180
    """Clips of the test."""
    lr: float = 2e-3
    """Peak learning rate."""
    threads: int = 1
    """Of torch."""
    out: Path = RESULTS
    """Folder of direction.md and direction.json."""
    kept: Path = Path("runs/direction")
    """Folder of finished trainings, which are not done again."""


class Words(NamedTuple):
    """What captions are put together from."""

    openings: tuple[str, ...]
    names: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]  # finite form, -ing form
    endings: tuple[str, ...]


TRAINING = Words(
    ("", "we see", "here is", "this shows", "a short clip of", "look at", "there is", "a recording of", "the camera films",
     "in this video we have", "what you see is", "again", "somebody filmed", "watch", "on the screen is"),
    ("disc", "ball", "dot", "circle", "button", "spot", "token", "lid", "plate", "wheel", "ring", "orb", "sphere", "bead",
     "pebble", "balloon", "medal", "bubble", "lamp", "plum", "berry", "cap"),
    (("moves", "moving"), ("goes", "going"), ("slides", "sliding"), ("drifts", "drifting"), ("rolls", "rolling"),
     ("runs", "running"), ("steps", "stepping"), ("crawls", "crawling"), ("swims", "swimming"), ("walks", "walking"),
     ("rides", "riding"), ("climbs", "climbing")),
    ("", "on a plain ground", "over a flat floor", "in front of nothing", "all alone", "with some noise around", "for a while",
     "in a room", "at night", "without a sound", "near the camera", "again and again", "on some paper", "today"),
)  # fmt: skip
HELD_OUT = TRAINING._replace(
    names=("coin", "puck", "marble"),
    verbs=(("glides", "gliding"), ("floats", "floating"), ("travels", "traveling"), ("flies", "flying")),
)
_COLOURS = {
    "red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230), "yellow": (230, 220, 40), "purple": (130, 40, 170),
    "cyan": (40, 210, 220), "orange": (240, 140, 30), "pink": (245, 150, 200), "brown": (110, 70, 40), "gray": (130, 130, 130),
}  # fmt: skip
_WAYS = (  # after the verb, by class of the motion task
    ("to the left", "left", "leftwards"),
    ("to the right", "right", "rightwards"),
    ("up", "upwards", "from bottom to top"),
    ("down", "downwards", "from top to bottom"),
)
_STILL = (
    ("turns white before it turns black", "turning white before it turns black"),
    ("turns white after it turns black", "turning white after it turns black"),
    ("hops once", "hopping once"), ("hops twice", "hopping twice"), ("hops four times", "hopping four times"),
)  # fmt: skip


def captions(labels: Tensor, colours: Tensor, words: Words, seed: int, *, backwards: bool = False) -> list[str]:
    """A sentence for each clip; `backwards`: the same one for the clip's reversal.

    Args:
        labels: (N,) classes.
        colours: (N, 2) numbers of the colours of disc and ground.
    """
    partner = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    rng, out, names = np.random.default_rng([seed, 7]), [], list(_COLOURS)
    for label, (disc, ground) in zip(labels.tolist(), colours.tolist()):
        draw = rng.integers(0, 60, 6).tolist()
        label = partner.get(label, label) if backwards else label
        opening = words.openings[draw[0] % len(words.openings)]
        form = draw[1] % 2 if not opening else 1
        if label < len(_WAYS):
            ways = _WAYS[label]
            does = f"{words.verbs[draw[2] % len(words.verbs)][form]} {ways[draw[3] % len(ways)]}"
        else:
            does = _STILL[label - len(_WAYS)][form]
        thing = f"{names[disc]} {words.names[draw[4] % len(words.names)]} on {names[ground]}"
        out.append(" ".join(f"{opening} a {thing} {does} {words.endings[draw[5] % len(words.endings)]}".split()))
    return out


class Clips(NamedTuple):
    """Clips uint8 (N, T, 3, S, S) with their captions and those of their reversals."""

    frames: Tensor
    captions: list[str]
    reversals: list[str]
    labels: Tensor
    colours: Tensor  # (N, 2): of disc and ground


def _colours(count: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Of disc and ground (N, 2), and the generator that drew them."""
    g = torch.Generator().manual_seed(seed + 1)
    disc = torch.randint(len(_COLOURS), (count,), generator=g)
    ground = (disc + 1 + torch.randint(len(_COLOURS) - 1, (count,), generator=g)) % len(_COLOURS)
    return torch.stack([disc, ground], 1), g


def sentences(count: int, seed: int, words: Words) -> list[str]:
    """The captions of `draw`, without its clips."""
    return captions(MotionTask().facts(count, seed)[0], _colours(count, seed)[0], words, seed)


def draw(task: MotionTask, count: int, seed: int, words: Words) -> Clips:
    """Clips with captions, a function of its arguments: the task's motions, in colours that tell clips apart.

    In a batch nearly every clip has colours of its own, as clips of a real corpus have: who knows them needs no direction.
    """
    labels, facts = task.facts(count, seed)
    colours, g = _colours(count, seed)
    shades, side = torch.tensor(list(_COLOURS.values())).float(), task.size
    lit = facts[..., 2:] * 255
    flashes = (lit.amin(-1) == 255) | (lit.amax(-1) == 0)
    colour = torch.where(flashes[..., None], lit, shades[colours[:, 0]][:, None])[..., None, None]
    along = torch.arange(side).float() + 0.5
    dx, dy = (along - facts[..., i, None] * side for i in (0, 1))
    cover = (0.16 * side - (dx[:, :, None, :] ** 2 + dy[..., None] ** 2).sqrt() + 0.5).clamp(0, 1)[:, :, None]
    noise = torch.randn(count, task.frames, 1, side, side, generator=g) * task.noise
    frames = (shades[colours[:, 1]][:, None, :, None, None] + noise) * (1 - cover) + colour * cover
    return Clips(
        frames.clamp(0, 255).to(torch.uint8), captions(labels, colours, words, seed),
        captions(labels, colours, words, seed, backwards=True), labels, colours,
    )  # fmt: skip


def build(seed: int) -> VideoTextModel:
    """A small model from random weights, with the words of the training captions."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(sentences(4000, _TRAIN, TRAINING), 160)  # rare words in pieces
    text = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden=64, layers=3, fusion_layer=2, heads=4, intermediate=128,
        max_positions=64, dropout=0.0, vision_width=64,
    )  # fmt: skip
    video = VideoMambaConfig(
        image_size=32, patch_size=16, num_frames=8, dim=64, depth=3, pool="cls+avg", pool_norm=True
    )
    half = (0.5, 0.5, 0.5)
    return VideoTextModel(
        ModelConfig(
            video=video,
            text=text,
            embed_dim=64,
            pixel_mean=half,
            pixel_std=half,
            max_text_tokens=64,
            memory="patches+pooled",
        ),
        tokenizer,
    )


def train(seed: int, settings: BenchSettings, *, direction: bool) -> VideoTextModel:
    """One training; its clips, captions and order are those of the seed."""
    task, size = MotionTask(), settings.batch_size
    model = build(seed).train()
    texts = sentences(settings.warmup_steps * size, _TRAIN + 7919 * (seed + 1), TRAINING)
    told = [lexicon().unfamiliar(t, number) if direction else ("", "") for number, t in enumerate(texts)]
    triples = [(t, same or t, turned) for t, (same, turned) in zip(texts, told)]
    cosine = warm_up_text(model, triples, batch_size=size, lr=1e-3, temperature=0.1)
    print(f"  after the warm-up: cosine of captions and turned ones {cosine:.2f}", file=sys.stderr)
    optim = Optim(lr=settings.lr, betas=(0.9, 0.98), clip_grad=3.0)
    stage = Stage(
        vtc=1.0, vtm=1.0, match_loss="list", keep_temporal=True, direction_negatives=direction, text=0.3, optim=optim
    )
    step = PretrainStep(model, stage, seed=seed)
    optimizer = build_optimizer(model, optim)
    for number in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, settings.steps, optim)
        clips = draw(task, size, _TRAIN + 104_729 * (seed + 1) + number, TRAINING)
        ids = torch.arange(size) + number * size
        optimizer.zero_grad(set_to_none=True)
        found = step(clips.frames, clips.captions, ids, [{}] * size, None, number)
        torch.nn.utils.clip_grad_norm_(step.parameters(), optim.clip_grad)
        optimizer.step()
        if number % 50 == 0 or number == settings.steps - 1:
            print(f"  step {number}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), file=sys.stderr)
    return model.eval()


@torch.no_grad()
def tested(model: VideoTextModel, clips: Clips) -> dict[str, float]:
    """Right decisions between clips and their reversals, and R@1 among clips that differ in what a caption tells."""
    pairs = [i for i, label in enumerate(clips.labels.tolist()) if label in {c for pair in PAIRS for c in pair}]
    texts = model.encode_text([*(clips.captions[i] for i in pairs), *(clips.reversals[i] for i in pairs)])
    asked = [Question(i, i, i + len(pairs), CLASSES[clips.labels[v]].split()[0]) for i, v in enumerate(pairs)]

    def scores(shown: str, backwards: bool) -> Mapping[str, Tensor]:
        own = torch.stack([ordered(clips.frames[i], shown, str(i), backwards=backwards) for i in pairs])
        video = model.encode_video(own)
        cosines = texts.embedding @ video.embedding.T
        odds = torch.zeros_like(cosines)
        for i in range(len(pairs)):
            both = [i, i + len(pairs)]
            logits = model.match(texts.tokens[both], texts.mask[both], video.tokens[i : i + 1])
            odds[both, i] = (logits[:, 1] - logits[:, 0]).float()
        return {"embedding": cosines, "match": odds}

    rows, _ = contrast_rows(asked, lambda shown: Shown(scores(shown, False), scores(shown, True)))
    found = {f"{row} {name}": value for row, values in rows.items() for name, value in values.items()}
    text = model.encode_text(clips.captions).embedding
    similarity = normalize(text, dim=-1) @ normalize(model.encode_video(clips.frames).embedding, dim=-1).T
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, (label, colours) in enumerate(zip(clips.labels.tolist(), clips.colours.tolist())):
        alike.setdefault((label, *colours), []).append(i)
    places = {i: group for group in alike.values() for i in group}
    return found | {"retrieval R@1": retrieval_metrics(similarity, [places[i] for i in range(len(text))]).r1}


def _trained(seed: int, settings: BenchSettings, clips: Clips, *, direction: bool) -> dict[str, float]:
    began = time.process_time()
    return {**tested(train(seed, settings, direction=direction), clips), "cpu seconds": time.process_time() - began}


def run(settings: BenchSettings) -> int:
    """Train, test, print and keep."""
    torch.set_num_threads(settings.threads)
    clips = draw(MotionTask(), settings.tests, _TEST, HELD_OUT)
    count, reached, _ = reach(sentences(900, _TRAIN, TRAINING))
    said = f"{reached} of {count} training captions tell a direction or an order"
    print(said, file=sys.stderr)
    rows: list[dict[str, object]] = []
    of = {name: value for name, value in asdict(settings).items() if name not in ("seeds", "out", "kept")}
    for seed in settings.seeds:
        for direction in (True, False):
            word = "on" if direction else "off"
            rows.append({"direction negatives": word, "seed": seed} | once(
                settings.kept / f"{word}-{seed}.json", of, partial(_trained, seed, settings, clips, direction=direction)
            ))  # fmt: skip
            print(rows[-1], file=sys.stderr)
    shown = ("direction negatives", "seed", "embedding all", "embedding frames shuffled", "embedding one frame repeated",
             "match all", "retrieval R@1", "cpu seconds")  # fmt: skip
    cells = [[row[name] for name in shown] for row in rows]
    if settings.steps < BenchSettings.steps:
        print(table(shown, cells))
        return 0
    text = f"# Direction negatives\n\n{(__doc__ or '').strip()}\n\n{table(shown, cells)}\n\n{said}.\n"
    save(settings.out / "direction.md", text)
    save(settings.out / "direction.json", json.dumps(rows, indent=1) + "\n")
    print(text)
    return 0


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(parsed(BenchSettings, __doc__, argv))


if __name__ == "__main__":
    sys.exit(main())
