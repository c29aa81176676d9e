"""The errors a user sees as one clear line: what happened, what was expected, what to do."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec

_P = ParamSpec("_P")
_PARTS = 6  # names that begin as one that was asked for: all are named
_LISTED = 40  # names in a message where none is near; verbs and settings are fewer


class Speech(NamedTuple):
    """How parameters and functions are called where a message is read: in Python, on the command line, over HTTP."""

    parameter: Callable[[str], str]
    setting: Callable[[str, object], str]
    function: Callable[[str], str]

    def name(self, parameter: str) -> str:
        """A parameter, as in `all_moments` or `--all-moments`."""
        return self.parameter(parameter)

    def given(self, parameter: str, value: object) -> str:
        """A parameter with its value, as in `rerank=-1` or `--rerank -1`."""
        return self.setting(parameter, value)

    def call(self, verb: str) -> str:
        """What a verb of the command line does, as in `vtr index remove` or `Library.remove`."""
        return self.function(verb)


def _flag(name: str) -> str:
    return f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")


PYTHON = Speech(lambda n: n, lambda n, v: f"{n}={v}", lambda verb: f"Library.{verb.split()[-1]}")
COMMAND_LINE = Speech(_flag, lambda n, v: f"{_flag(n)} {v}", lambda verb: f"vtr {verb}")
HTTP = Speech(lambda n: n, lambda n, v: f"{n}={v}", lambda verb: f"vtr {verb}")


class VtrError(Exception):
    """Something failed in a way the user can act on. The command line prints it as one line and exits 1.

    Args:
        text: The message; or, where it names parameters, what gives it for a way of speaking.
    """

    exit_code = 1

    def __init__(self, text: str | Callable[[Speech], str] = "") -> None:
        self._says = None if isinstance(text, str) else text
        super().__init__(text if isinstance(text, str) else text(PYTHON))

    def said(self, speech: Speech) -> str:
        """The message with parameters as they are called there."""
        return str(self) if self._says is None else self._says(speech)

    def __reduce__(self) -> str | tuple[object, ...]:
        # Functions cannot be sent to another process: the message can.
        return super().__reduce__() if self._says is None else (type(self), (str(self),))


class UsageError(VtrError):
    """A flag, key or value that makes no sense. The command line prints it as one line and exits 2."""

    exit_code = 2


def reports_errors(main: Callable[_P, int]) -> Callable[_P, int]:
    """For the entry of a command: an error becomes its line on stderr and its exit code.

    The entry returns 0 done, 1 failed, 2 bad usage, 130 stopped by Ctrl-C, 141 the reader of the output has gone.
    """

    @functools.wraps(main)
    def reported(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except VtrError as error:
            print(f"vtr: {' '.join(error.said(COMMAND_LINE).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("vtr: stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader (head, less) has gone; nothing more can be said on stdout, also not when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    return reported


def unknown_name(what: str, name: str, known: Iterable[str], before: str = "") -> UsageError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        what: What kind of name it is, in words ("model", "setting").
        name: The name as given.
        known: Every name that would have been right.
        before: What stands before the name, and would before each of the known ones.
    """
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in reversed(names)}
    asked = name.casefold()
    near = difflib.get_close_matches(asked, folded, n=1, cutoff=0.6)
    near = near or [known_name for known_name in sorted(folded) if name and known_name.startswith(asked)]
    parts = [n for n in sorted(folded) if name and n.startswith(asked) and not n.removeprefix(asked)[:1].isalnum()]
    near = parts if asked not in folded and 1 < len(parts) <= _PARTS else near[:1]  # "vitatecs", of which there are two
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    meant = " or ".join(repr(before + folded[one]) for one in near)
    hint = f"did you mean {meant}?" if near else f"known: {', '.join(names[:_LISTED])}{more}"
    return UsageError(f"unknown {what} {before + name!r}: {hint}")
