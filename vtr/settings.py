"""Frozen settings dataclasses out of flags, `--set optim.weight_decay=0.02`, and dicts from TOML files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from vtr.errors import UsageError, unknown_name

LAUNCHED = "VTR_LAUNCHED"  # in the environment of ranks that vtr has started: the same words were read before

S = TypeVar("S")


def apply_overrides(settings: S, overrides: Iterable[str]) -> S:
    """Return `settings` with each `path.to.key=value` applied.

    Args:
        settings: A frozen dataclass, possibly nested.
        overrides: Strings `key=value`; values are JSON where they parse as JSON, else plain strings.

    Raises:
        UsageError: The text is not `key=value`, a key is unknown (the nearest one is named), or the type is wrong.
    """
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text!r}: expected KEY=VALUE, as in --set unmasked.optim.lr=1e-3")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
        settings = _replaced(settings, key.strip().replace("-", "_").split("."), parsed, key)
    return settings


def from_mapping(settings: S, values: Mapping[str, Any], prefix: str = "") -> S:
    """Return `settings` with the (nested) values of a TOML table applied; unknown keys are errors."""
    for name, value in values.items():
        if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(settings, name, None)):
            inner = from_mapping(getattr(settings, name), value, f"{prefix}{name}.")
            settings = dataclasses.replace(settings, **{name: inner})  # type: ignore[type-var]
        else:
            settings = _replaced(settings, [name], value, prefix + name)
    return settings


def _replaced(settings: Any, path: list[str], value: Any, full: str) -> Any:
    names = {f.name: f for f in dataclasses.fields(settings)}
    if path[0] not in names:
        raise unknown_name(f"setting in {full!r}:", path[0], names)
    old = getattr(settings, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise UsageError(f"setting {full!r}: {path[0]} is a value, not a group of settings")
        return dataclasses.replace(settings, **{path[0]: _replaced(old, path[1:], value, full)})
    if dataclasses.is_dataclass(old):
        inner = ", ".join(f.name for f in dataclasses.fields(old))
        raise UsageError(f"setting {full!r} is a group: name one of its keys ({inner})")
    return dataclasses.replace(settings, **{path[0]: _coerced(old, value, full)})


def _coerced(old: Any, value: Any, full: str) -> Any:
    if old is None or value is None:
        return value
    if isinstance(old, bool) != isinstance(value, bool):
        raise UsageError(f"setting {full!r}: expected {type(old).__name__}, got {value!r}")
    if isinstance(old, float) and isinstance(value, int | float):
        return float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(old, int) and isinstance(value, float) and value == int(value):
        return int(value)
    if not isinstance(value, type(old)):
        raise UsageError(f"setting {full!r}: expected {type(old).__name__}, got {value!r}")
    return value


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
    gathered = _gathered(settings_type, sys.argv[1:] if words is None else words)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(helped):
            return tyro.cli(
                settings_type,
                args=gathered,
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
        raise UsageError(_one_line(said.getvalue())) from None


def _gathered(settings_type: type, words: Sequence[str]) -> list[str]:
    """The same words; values of a flag that takes several and is given again stand behind its first ones, or they were lost.

    Of a flag that takes one the last counts, as everywhere (an alias has the first); that is said.
    """
    known = dataclasses.fields(settings_type) if dataclasses.is_dataclass(settings_type) else ()
    named = {("-" if len(f.name) == 1 else "--") + f.name.replace("_", "-"): str(f.type) for f in known}
    several = {flag for flag, kind in named.items() if re.fullmatch(r"tuple\[\w+, \.\.\.\]", kind)}
    once = {flag for flag, kind in named.items() if "tuple" not in kind and kind != "bool"}
    current: list[str] = []
    groups, first = [current], dict[str, list[str]]()
    for word in words:
        flag, sign, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not re.match(r"--?[A-Za-z]", word):
            current.append(word)
        elif flag in first and flag in several:
            current = first[flag]
            current += [value] if sign else []
        else:
            if flag in first and LAUNCHED not in os.environ and os.environ.get("RANK", "0") == "0":
                print(f"note: {flag} is given twice: the last counts", file=sys.stderr)
            current = [flag, value] if sign and flag in several else [word]
            groups.append(current)
            if flag in several or flag in once:
                first[flag] = current
    return [word for group in groups for word in group]


def _one_line(text: str) -> str:
    """What tyro says of wrong flags in a box, without the box, its title and the descriptions of similar flags."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{5,}", " ", line).rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    start = len(lines[1]) - len(lines[1].lstrip()) if len(lines) > 1 else 0
    said: list[str] = []
    missing = similar = False
    for line in lines[1:] or lines:
        words, deep = line.strip(), len(line) - len(line.lstrip()) - start
        if deep <= 0:
            missing = words.startswith("Missing from")
            similar = words.startswith(("Arguments similar", "Perhaps you meant", "Argument helptext"))
            said.append(words.replace("Argument helptext:", ""))
        elif not similar or (words.startswith("-") and "Argument helptext" not in text):
            said.append(f"{words}:" if missing and deep == 4 else words)
    told = " ".join(filter(None, said)).removesuffix(":")
    for pattern, instead in _SPOKEN:
        told = re.sub(pattern, instead, told)
    return told


_SPOKEN = (
    (r" ?For full helptext, (?:run|see):? (.+ --help)", r" (\1)"),
    (r"Missing from .+?: ", "missing "),
    (r"\.? \(required\)", ";"),
    (r";(?= \()", ""),
    (r"Missing value for argument '(.+?)'\. Expected 1 values\.", r"\1 needs a value"),
    (r"Unrecognized options:", "unknown:"),
    (r" ?Arguments similar to (\S+):", r"; for \1 did you mean"),
    (r" ?Perhaps you meant:", "; did you mean"),
    (
        r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.+?)(?= \(|$)",
        r"\1: expected a whole number, got \2",
    ),
    (r"Error parsing (\S+): could not convert string to float: (.+?)(?= \(|$)", r"\1: expected a number, got \2"),
    (r" +;", ";"),
    (r"\{None\}\|", ""),
)


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
