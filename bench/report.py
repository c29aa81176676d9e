"""Measurements that are kept as they come: a JSON file a benchmark, and docs/results/gpu.md of all of a GPU's.

python -m bench.report FOLDER               # FOLDER/*.json -> docs/results/gpu.md and gpu.json
python -m bench.report FOLDER --out OTHER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.command import RESULTS, flags_of, save, table
from vtr.errors import UsageError, reports_errors


@dataclass(frozen=True, kw_only=True)
class ScanRow:
    """bimamba at one shape by one backend."""

    encoder: str
    shape: str
    batch: int
    length: int
    width: int
    passes: str  # "forward" | "forward+backward"
    backend: str
    floor_ms: float
    ms: float | None = None
    peak_gib: float | None = None  # beyond the arguments
    note: str = ""  # why there is no time


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """A whole encoder: VideoMamba by one backend, or TimeSformer with joint attention."""

    model: str
    size: str
    frames: int
    batch: int
    passes: str  # "inference" | "training"
    backend: str
    ms: float | None = None
    clips_per_second: float | None = None
    peak_gib: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A single figure of some other benchmark."""

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""


class Part:
    """The file of one benchmark; written anew with every row, so that a stop loses nothing.

    Args:
        path: The JSON file. Rows that are there from the same machine and day stay, but those measured again.
        machine: Where and with what it is measured.
    """

    def __init__(self, path: Path, machine: Mapping[str, str]) -> None:
        self.path, self.machine = path, dict(machine)
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            before = json.loads(path.read_text())
            if before["machine"] == self.machine:
                self.rows = before["rows"]

    def add(self, row: ScanRow | EncoderRow | Figure) -> None:
        """Keep a row."""
        new = asdict(row)
        same = [place for place, old in enumerate(self.rows) if _case(old) == _case(new)]
        place = same[0] if same else len(self.rows)
        self.rows[place : place + 1] = [new]
        command = " ".join([f"python -m bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        save(self.path, json.dumps({"machine": self.machine, "command": command, "rows": self.rows}, indent=1))


_MEASURED = ("ms", "clips_per_second", "peak_gib", "note", "floor_ms", "value")


def _case(row: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple((name, value) for name, value in row.items() if name not in _MEASURED)


def _shown(row: Mapping[str, Any] | None, name: str, digits: int) -> str:
    if row is None:
        return "-"
    return f"{row[name]:.{digits}f}" if row.get(name) is not None else row.get("note") or "-"


def _ratio(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, name: str = "ms") -> str:
    return f"{a[name] / b[name]:.2f}x" if a and b and a.get(name) and b.get(name) else "-"


def _beside(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, dict[str, Any]]]:
    """Rows that differ in `name` alone, by it."""
    groups: dict[object, dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(pair for pair in _case(row) if pair[0] != name), {})[row[name]] = row
    return list(groups.values())


def scan_table(rows: Iterable[dict[str, Any]]) -> str:
    """Ours, mamba-ssm's two passes and plain torch, beside the floor."""
    cells = []
    for found in _beside(rows, "backend"):
        ours, theirs, plain = (found.get(name) for name in ("cuda", "mamba_ssm", "eager"))
        case = next(iter(found.values()))
        floor = case["floor_ms"]
        of_floor = f"{ours['ms'] / floor:.2f}" if ours and ours["ms"] else "-"
        cells.append((
            case["encoder"], f"{case['shape']} {case['batch']} x {case['length']}", case["passes"], f"{floor:.3f}",
            _shown(ours, "ms", 3), of_floor, _shown(theirs, "ms", 3), _ratio(theirs, ours), _shown(plain, "ms", 3),
            _ratio(plain, ours), _shown(ours, "peak_gib", 2), _shown(theirs, "peak_gib", 2),
        ))  # fmt: skip
    titles = ("encoder", "shape", "pass", "floor ms", "ours ms", "of floor", "mamba-ssm ms", "times faster", "eager ms",
              "times faster", "ours GiB", "mamba-ssm GiB")  # fmt: skip
    return table(titles, cells)


def encoder_table(rows: Iterable[dict[str, Any]]) -> str:
    """VideoMamba with our kernels and with mamba-ssm's."""
    cells = []
    for found in _beside((r for r in rows if r["model"] == "VideoMamba"), "backend"):
        ours, theirs = found.get("cuda"), found.get("mamba_ssm")
        case = next(iter(found.values()))
        cells.append((
            case["size"], case["frames"], case["batch"], case["passes"], _shown(ours, "clips_per_second", 1),
            _shown(theirs, "clips_per_second", 1), _ratio(theirs, ours), _shown(ours, "peak_gib", 2),
            _shown(theirs, "peak_gib", 2),
        ))  # fmt: skip
    titles = ("encoder", "frames", "batch", "pass", "ours clips/s", "with mamba-ssm clips/s", "times faster", "ours GiB",
              "with mamba-ssm GiB")  # fmt: skip
    return table(titles, cells)


def peer_table(rows: Iterable[dict[str, Any]]) -> str:
    """VideoMamba beside joint attention at growing numbers of frames: how many times faster, and how much less memory."""
    own = [r for r in rows if r["backend"] == "cuda" and r["passes"] == "inference"]
    ours = {(r["size"], r["frames"], r["batch"]): r for r in own if r["model"] == "VideoMamba"}
    cells = []
    for row in rows:
        if row["model"] != "VideoMamba":
            mine = ours.get((row["size"], row["frames"], row["batch"]))
            cells.append((
                row["size"], row["frames"], row["batch"], row["backend"], _shown(mine, "clips_per_second", 1),
                _shown(row, "clips_per_second", 1), _ratio(row, mine), _shown(mine, "peak_gib", 2),
                _shown(row, "peak_gib", 2), _ratio(row, mine, "peak_gib"),
            ))  # fmt: skip
    titles = ("size", "frames", "batch", "attention", "VideoMamba clips/s", "TimeSformer clips/s", "times faster",
              "VideoMamba GiB", "TimeSformer GiB", "times less")  # fmt: skip
    return table(titles, cells)


def markdown(parts: Mapping[str, dict[str, Any]]) -> str:
    """gpu.md of the parts by name."""
    lines = ["# Measured on a GPU"]
    for name, part in parts.items():
        facts = "; ".join(f"{key} {value}" for key, value in part["machine"].items())
        head = [f"`{part['command']}`: {facts}."]
        if name == "kernels":
            words = (
                "Milliseconds are medians of warm calls with rotating inputs, bfloat16; memory is the peak beyond the"
            )
            words += " arguments. The floor is what the exponentials, or the bytes, take at the least on this GPU."
            lines += ["", "## The operator bimamba", "", *head, "", words, "", scan_table(part["rows"])]
        elif name == "encoders":
            lines += ["", "## Whole encoders", "", *head, "", "Frames of 224 pixels, bfloat16 autocast.", ""]
            lines += [
                encoder_table(part["rows"]),
                "",
                "### Beside joint attention (the paper's Fig. 1: 6x and 40x at 64",
            ]
            lines[-1] += " frames)"
            lines += ["", peer_table(part["rows"])]
        else:
            titles = list(part["rows"][0]) if part["rows"] else ["nothing"]
            lines += ["", f"## {name.capitalize()}", "", *head, ""]
            lines += [table(titles, ([row.get(title, "") for title in titles] for row in part["rows"]))]
    return "\n".join(lines) + "\n"


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = flags_of(__doc__)
    parser.add_argument("folder", type=Path, help="with the JSON files that the benchmarks wrote")
    parser.add_argument("--out", type=Path, default=RESULTS, help="gets gpu.md and gpu.json")
    options = parser.parse_args(argv)
    parts = {}
    for path in sorted(
        options.folder.glob("*.json"), key=lambda p: (p.stem != "kernels", p.stem != "encoders", p.stem)
    ):
        found = json.loads(path.read_text())
        if {"machine", "command", "rows"} <= set(found):
            parts[path.stem] = found
    if not parts:
        raise UsageError(f"{options.folder}: no file of a benchmark there; expected kernels.json, encoders.json, …")
    if any("rehearsal" in part["machine"].get("device", "") for part in parts.values()) and options.out == RESULTS:
        raise UsageError(f"{options.folder}: of a rehearsal, not measured on a GPU: it goes to --out OTHER at the most")
    save(options.out / "gpu.json", json.dumps(parts, indent=1))
    save(options.out / "gpu.md", markdown(parts))
    print(f"written: {options.out / 'gpu.md'}, {options.out / 'gpu.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
