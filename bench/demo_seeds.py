"""Trains the demo's model with several seeds, and evaluates each on the benchmark and on the validation split.

python -m bench.demo_seeds                          # seeds 0, 1 and 2; demo_seeds.md and .json in docs/results
python -m bench.demo_seeds --seeds 0 --set unmasked.steps=100 refine.steps=50 --out /tmp/seeds --results /tmp/seeds

A run that is there goes on or is done already. Settings are chosen on the validation split; the benchmark is for the figures.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.command import RESULTS, call, machine, parsed, save, table
from vtr.errors import reports_errors

ROWS = ("embedding", "reranked", "combined")
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


@dataclass(frozen=True, kw_only=True)
class SeedSettings:
    """Which seeds, and where."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs: weights, order of the samples, noise. The corpus is the same."""
    set: tuple[str, ...] | None = None
    """Recipe settings for all of them, as in --set unmasked.steps=100."""
    ranks: int = 2
    """Processes that train, each with one thread."""
    out: Path = Path("runs/seeds")
    """Where the runs are."""
    data_root: Path = Path("data")
    """Where the demo corpus is, or is made."""
    results: Path = RESULTS
    """Folder of demo_seeds.md and .json."""


def _call(*words: str | Path) -> None:
    call([sys.executable, "-m", "vtr.cli", *words], " ".join(["vtr", *map(str, words)]))


def measured(settings: SeedSettings, seed: int) -> dict[str, dict[str, float]]:
    """R@1 of a seed by split, and its direction pairs."""
    run = settings.out / f"seed{seed}"
    words = ["--ranks", str(settings.ranks), "--threads", "1", "--seed", str(seed), "--resume", "latest"]
    words += ["--set", *settings.set] if settings.set else []
    _call("pretrain", "--corpus", "demo", "--out", run, "--data-root", settings.data_root, *words)
    validation = settings.data_root / "demo" / "validation" / "validation.json"
    found: dict[str, dict[str, float]] = {}
    for split, data in (("benchmark", "demo"), ("validation", str(validation))):
        folder = run / "results" / split
        _call(
            "eval", "--model", run, "--data", data, "--data-root", settings.data_root, "--rerank", "32", "--out", folder
        )
        [file] = folder.glob("*.json")
        result = json.loads(file.read_text())
        found[split] = {f"{DIRECTIONS[d]}, {row}": result[d][row]["r1"] for d in DIRECTIONS for row in ROWS}
        if split == "benchmark":
            pairs = {"embedding": result["direction_pairs"], "match head": result["match_direction_pairs"]}
            found["direction"] = {
                f"{by}, {kind}": share for by, kinds in pairs.items() for kind, share in kinds.items()
            }
    return found


def lines(found: Mapping[int, dict[str, dict[str, float]]]) -> Iterator[list[object]]:
    """A line of the table a figure: its mean and spread over the seeds, and each."""
    first = next(iter(found.values()))
    for split, figures in first.items():
        for name in figures:
            values = [one[split][name] for one in found.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            yield [split, name, f"{statistics.mean(values):.1f}", f"{spread:.1f}", *(f"{v:.1f}" for v in values)]


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(SeedSettings, __doc__, argv)
    found = {seed: measured(settings, seed) for seed in settings.seeds}
    facts = machine()
    command = " ".join(["python -m bench.demo_seeds", *(sys.argv[1:] if argv is None else argv)])
    save(
        settings.results / "demo_seeds.json",
        json.dumps({"machine": facts, "command": command, "seeds": found}, indent=1),
    )
    titles = ["split", "figure", "mean", "standard deviation", *(f"seed {seed}" for seed in found)]
    about = (
        "R@1 of the demo's recipe in %, 500 videos of combinations that training never shows (benchmark) and 200 of "
        "combinations that it does (validation); direction: pairs of a clip and its reversal told apart, chance 50 %. "
        f"{facts['device']}, {facts['date']}, torch {facts['torch']}."
    )
    text = f"# The demo's recipe by seeds\n\n{about}\n\n{table(titles, lines(found))}\n\n`{command}`\n"
    save(settings.results / "demo_seeds.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
