"""What the benchmarks share: flags with their examples, and results as a Markdown table or JSON in docs/results."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from vtr.errors import VtrError
from vtr.files import write_atomically

S = TypeVar("S")

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def split_doc(doc: str | None) -> tuple[str, str]:
    """A module's docstring as what it says and its examples, which are the lines that start with `python -m`."""
    lines = (doc or "").strip().splitlines()
    said = [line for line in lines if not line.startswith("python -m ")]
    examples = [f"  {line}" for line in lines if line.startswith("python -m ")]
    text = "\n".join(said).strip()
    return text, "\n".join(["examples:", *examples]) if examples else ""


def flags_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser for the commands that must run where tyro is not installed, with the docstring's examples in its help."""
    about, examples = split_doc(doc)
    return argparse.ArgumentParser(
        prog=_program(examples),
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole_number(least: int) -> Callable[[str], int]:
    """The type of a flag that is an integer and no less than this."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return int(text)

    return number


def _program(examples: str) -> str:
    return "python -m " + (examples.partition("python -m ")[2].split() or ["bench"])[0]


def parsed(kind: type[S], doc: str | None, argv: Sequence[str] | None = None) -> S:
    """The settings that the flags describe.

    Args:
        kind: A settings dataclass, or a union of them as subcommands.
        doc: The module's docstring; the first word after `python -m` of its examples is the program's name.
        argv: The flags; those of the process if not given.
    """
    import tyro

    about, examples = split_doc(doc)
    try:
        return tyro.cli(
            kind, args=argv, prog=_program(examples), description=about, config=(tyro.conf.FlagCreatePairsOff,)
        )
    except SystemExit as stop:
        if not stop.code and examples:  # --help
            print(examples)
        raise


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a `|` or a new line in a cell is made harmless."""
    lines = [list(titles), ["---"] * len(titles), *rows]
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def machine(device: str = "cpu") -> dict[str, str]:
    """Where and with what something was measured: device, date, versions."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    facts = {"device": name, "date": datetime.date.today().isoformat(), "torch": torch.__version__}
    if device == "cuda":
        facts["CUDA"] = str(torch.version.cuda)
    return {**facts, "Python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def call(command: Sequence[str | Path], shown: str) -> None:
    """Run a command for its messages and files.

    Args:
        shown: The command as a person would type it.

    Raises:
        VtrError: It ended with an error, which it has told itself.
    """
    print(f"$ {shown}", file=sys.stderr, flush=True)
    done = subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL)
    if done.returncode:
        raise VtrError(f"`{shown}` ended with exit code {done.returncode}; its messages are above")


def save(path: Path, text: str) -> None:
    """Write a result in one step, so that a measurement that is stopped leaves the last whole one.

    Raises:
        VtrError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            partial.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise VtrError(f"{path}: cannot be written ({error.strerror})") from error
