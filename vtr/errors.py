"""The errors a user sees as one clear line: what happened, what was expected, what to do."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec

_P = ParamSpec("_P")


class VtrError(Exception):
    """Something failed in a way the user can act on. The command line prints it as one line and exits 1."""

    exit_code = 1


class UsageError(VtrError):
    """A flag, key or value that makes no sense. The command line prints it as one line and exits 2."""

    exit_code = 2


def reports_errors(main: Callable[_P, int]) -> Callable[_P, int]:
    """For the entry of a `python -m` command: an error becomes its line on stderr and its exit code."""

    @functools.wraps(main)
    def reported(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except VtrError as error:
            print(f"vtr: {error}", file=sys.stderr)
            return error.exit_code

    return reported


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        what: What kind of name it is, in words ("model", "setting").
        name: The name as given.
        known: Every name that would have been right.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {what} {name!r}: {hint}")
