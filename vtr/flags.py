"""Flags into settings: one line for what is wrong, and help without the noise of types."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TypeVar

import tyro

from vtr.errors import UsageError

S = TypeVar("S")


def parsed(settings_type: type[S], words: list[str] | None, program: str | None = None, header: str = "") -> S:
    """The settings that flags describe.

    Args:
        settings_type: A dataclass; its fields are the flags.
        words: The flags; None: those of this process.
        program: What the usage line calls it.
        header: A module's docstring: its first paragraph is the description, the rest are examples, shown as they are.

    Raises:
        UsageError: Wrong flags, in one line.
        SystemExit: After `--help`.
    """
    about, _, examples = header.strip().partition("\n\n")
    said, helped = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(helped):
            return tyro.cli(
                settings_type,
                args=words,
                prog=program,
                description=about or None,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            print(_calmer(helped.getvalue()).rstrip())
            if examples:
                print("\nexamples:\n" + "\n".join(f"  {line}".rstrip() for line in examples.strip().splitlines()))
            raise
        lines = [line for line in said.getvalue().splitlines() if "\u256d" not in line]  # without the box's title
        text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{5,}", " ", "\n".join(lines))
        raise UsageError(" ".join(text.split())) from None


def _calmer(text: str) -> str:
    """Help without `(default: )`, `(default: None)`, `{None}|STR` and `[STR [STR ...]]`; columns stay where they are."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\s\u2500-\u257f]", " ", match.group())

    calm = re.sub(r"\(default:[\s\u2502]*(?:None)?[\s\u2502]*\)", blank, text)
    kept = [new for old, new in zip(text.splitlines(), calm.splitlines()) if new.strip(" \u2502") or old == new]
    text = "\n".join(kept)
    text = re.sub(r"\{None\}\|(\S+)", r"\1       ", text)
    text = re.sub(r"\[(\[?)([A-Z]+) \[\2 \.\.\.\]\](\]?)", lambda m: f"[{m[2]} ...]".ljust(len(m.group())), text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
