"""What each remedy of the matching head gives at equal processor seconds, from the same half-trained models.

python -m bench.matching                        # seeds 0, 1 and 2; matching.md and .json in docs/results
python -m bench.matching --seeds 0 --base 40 --budget 5 --pilot 4 --out /tmp/matching --results /tmp/matching     # to try it

For each seed a model of the demo is trained as it was before the remedies; then it is trained on by each arm for as many
steps as fit into the budget by the arm's own processor seconds a step (one thread, measured in a pilot, start-up excluded).
A training that is there is not made again. The arms:

old     one wrong partner of each, drawn by a softmax that holds the right one and floors the rest at 1e-6; right or
        wrong; the decoder reads patches; neighbours in pairs
draw    old, but drawn among the wrong ones alone
list    old, but three wrong partners and a listwise loss
pooled  old, but the decoder reads the pooled vectors beside the patches
groups  old, but look-alikes in fours
tail    old for three fifths of the budget, then decoder and head alone on frozen encoders, seven wrong partners, listwise
all     draw, list, pooled and groups for three fifths, then the tail
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.command import RESULTS, call, machine, parsed, save, table
from bench.demo_seeds import DIRECTIONS, ROWS
from vtr.errors import VtrError, reports_errors

_TAIL = 0.4  # of the budget


class Arm(NamedTuple):
    """How a base is trained on."""

    draw: bool = False  # among wrong partners alone
    list: bool = False  # three of them, listwise
    pooled: bool = False  # the decoder reads pooled vectors too
    groups: bool = False  # look-alikes in fours
    tail: bool = False  # decoder and head alone at the end


ARMS = {
    "old": Arm(),
    **{name: Arm(**{name: True}) for name in Arm._fields},
    "all": Arm(*[True] * len(Arm._fields)),
}


@dataclass(frozen=True, kw_only=True)
class MatchingSettings:
    """Train each arm for the same processor seconds, and evaluate it."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """A base for each, and all arms from it."""
    base: int = 500
    """Unmasked steps of a base, after the recipe's masked and multimodal ones."""
    budget: float = 45.0
    """Processor seconds of an arm's training steps."""
    pilot: int = 40
    """Steps that the processor seconds of a step are taken from."""
    out: Path = Path("runs/matching")
    """Where the runs are."""
    data_root: Path = Path("data")
    """Where the demo corpus is, or is made."""
    results: Path = RESULTS
    """Folder of matching.md and .json."""


def floored_draw(similarity: Tensor, allowed: Tensor, uniform: Tensor, count: int = 1) -> Tensor:
    """The draw as it was: a softmax over all candidates, the right one among them, floored; arguments of `hard_negatives`."""
    weights = (similarity.detach().float().softmax(1) + 1e-6).masked_fill(~allowed, 0)
    keys = weights.log() - torch.log(-torch.log(uniform.float().clamp(1e-7, 1 - 1e-7)))
    return keys.topk(count, dim=1).indices


def train_child(argv: Sequence[str], *, draw: bool, pooled: bool) -> int:
    """`vtr pretrain` as it was before some remedies, in a process of its own; returns the exit code."""
    from vtr.cli import main as vtr_main
    from vtr.models.video_text import ModelConfig
    from vtr.pretrain import build
    from vtr.pretrain.objectives import matching

    if not draw:
        matching.hard_negatives = floored_draw
    if not pooled:
        build.ModelConfig = lambda **fields: ModelConfig(**{**fields, "memory": "patches"})
    return vtr_main(["pretrain", *argv])


def _run(words: Sequence[str], what: str) -> None:
    code = f"import sys; from bench.matching import train_child; from vtr.cli import main; sys.exit({what})"
    call([sys.executable, "-c", code, *words], " ".join(words))


def _train(settings: MatchingSettings, seed: int, out: Path, arm: Arm, words: Sequence[str]) -> None:
    """A training with one process and one thread, unless it is there."""
    if (out / "model").exists():
        return
    common = ["--corpus", "demo", "--out", str(out), "--data-root", str(settings.data_root), "--seed", str(seed)]
    common += ["--workers", "0", "--threads", "1", "--log-every", "5", "--resume", "latest"]
    _run([*common, *words], f"train_child(sys.argv[1:], draw={arm.draw}, pooled={arm.pooled})")


def _logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def processor_seconds(entries: Sequence[Mapping[str, float]], batch: int = 32) -> float:
    """Those of a step, mean over the log's entries but the first, which holds the start."""
    used = [e["cpu_s_per_s"] * batch / e["samples_per_s"] for e in entries[1:] if e.get("samples_per_s")]
    if not used:
        raise VtrError("the pilot is too short: its log holds one entry; give --pilot more steps")
    return statistics.mean(used)  # not the median: steps of stills and of clips cost differently


def _base(settings: MatchingSettings, seed: int) -> Path:
    out = settings.out / f"base{seed}"
    old = ["match_negatives=1", "match_loss=pairs", f"unmasked.steps={settings.base}"]
    ended = ["refine.steps=1", "matching.steps=1"]  # the recipe's later stages, which the arms are instead
    _train(settings, seed, out, Arm(), ["--set", *old, *ended])
    return out / "model"


def with_memory(model: Path, out: Path, memory: str) -> Path:
    """The model with another memory of its decoder: the same weights, another line of its configuration."""
    if not out.exists():
        out.mkdir(parents=True)
        for file in model.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        config = json.loads((out / "config.json").read_text())
        config["memory"] = memory
        (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def _stage(arm: Arm, name: str, steps: int) -> list[str]:
    sets = [f"{name}.steps={steps}"]
    if name == "refine":
        sets += ["refine.video_share=0.7", f"refine.block={4 if arm.groups else 2}"]
        sets += [] if arm.list else ["refine.match_negatives=1", "refine.match_loss=pairs"]
    return ["--stage", name, "--set", *sets]


def trained(settings: MatchingSettings, seed: int, name: str) -> dict[str, float]:
    """An arm's figures: R@1 by direction and row, steps, processor seconds."""
    arm, model = ARMS[name], _base(settings, seed)
    if arm.pooled:
        model = with_memory(model, settings.out / f"base{seed}_pooled", "patches+pooled")
    parts = [("refine", 1 - _TAIL), ("matching", _TAIL)] if arm.tail else [("refine", 1.0)]
    used, all_steps = 0.0, 0
    for stage, share in parts:
        pilot = settings.out / f"{name}_{stage}_pilot"
        _train(settings, 0, pilot, arm, ["--init", str(model), *_stage(arm, stage, settings.pilot)])
        steps = max(1, round(share * settings.budget / processor_seconds(_logged(pilot))))
        run = settings.out / f"{name}_{stage}{seed}"
        _train(settings, seed, run, arm, ["--init", str(model), *_stage(arm, stage, steps)])
        used += processor_seconds(_logged(run)) * steps
        all_steps, model = all_steps + steps, run / "model"
    folder = model.parent / "results"
    if not folder.exists():
        words = ["eval", "--model", str(model), "--data", "demo", "--data-root", str(settings.data_root)]
        _run([*words, "--rerank", "32", "--out", str(folder)], "main(sys.argv[1:])")
    [file] = folder.glob("*.json")
    result = json.loads(file.read_text())
    rows = {f"{d}, {row}": result[d][row]["r1"] for d in DIRECTIONS for row in ROWS}
    pairs = {"pairs by match": result["match_direction_pairs"]["all"]}
    return {**rows, **pairs, "steps": float(all_steps), "CPU s": round(used, 1)}


def lines(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[list[object]]:
    """A line of the table an arm: mean and standard deviation over the seeds."""
    for name, seeds in found.items():
        cells = []
        for key in seeds[0]:
            values = [one[key] for one in seeds]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if "," in key else f"{statistics.mean(values):.0f}")
        yield [name, *cells]


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(MatchingSettings, __doc__, argv)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    command = " ".join(["python -m bench.matching", *(sys.argv[1:] if argv is None else argv)])
    for seed in settings.seeds:
        for name in ARMS:
            found[name].append(trained(settings, seed, name))
        _save(settings, found, command)  # what is there after each seed
    return 0


def _save(settings: MatchingSettings, found: Mapping[str, Sequence[Mapping[str, float]]], command: str) -> None:
    facts = machine()
    save(
        settings.results / "matching.json", json.dumps({"machine": facts, "command": command, "arms": found}, indent=1)
    )
    about = (
        f"R@1 in % on the demo's benchmark (500 videos, re-ranked: 32 candidates), {len(found['old'])} seeds, mean ± standard "
        f"deviation. Every arm goes on from the same model of its seed ({settings.base} unmasked steps as before the remedies) for "
        f"{settings.budget:.0f} processor seconds. {facts['device']}, {facts['date']}, torch {facts['torch']}."
    )
    arms = "\n".join((__doc__ or "").split("The arms:")[1].strip().splitlines())
    text = f"# The match head's remedies at equal processor seconds\n\n{about}\n\n{table(['arm', *found['old'][0]], lines(found))}\n\n"
    text += f"```\n{arms}\n```\n\n`{command}`\n"
    save(settings.results / "matching.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
