"""One chooser for the kernels: what computes them here and why, what overrides that, what is said when nothing fast is there."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vtr.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class BackendRow:
    """One way to compute something: its name, whether it works here, why (not), and what it is chosen for."""

    name: str
    available: bool
    reason: str
    chosen_for: str


class Chooser:
    """The ways to compute one kernel: which was asked for, and what to do where it cannot be had.

    A kernel chooses by call, for its device and dtypes; `VTR_KERNEL` in the environment and `use` override the choice.

    Args:
        kernel: Its name, in messages and in the variable.
        backends: Every name, the preferred ones first; the last is plain torch, which is always there.
    """

    def __init__(self, kernel: str, backends: Sequence[str]) -> None:
        self.kernel, self.backends = kernel, tuple(backends)
        self.variable = f"VTR_{kernel.upper()}"
        self.warned: set[str] = set()
        self._used: str | None = None

    def forced(self) -> str | None:
        """The backend that was asked for.

        Raises:
            UsageError: the variable names none.
        """
        name = self._used or os.environ.get(self.variable) or None
        if name is not None and name not in self.backends:
            *first, last = self.backends
            raise UsageError(f"{self.variable} {name!r}: expected {', '.join(first)} or {last}")
        return name

    def by(self, name: str) -> str:
        """For a row's `chosen_for`: what asked for this backend; empty where nothing did."""
        if name != self.forced():
            return ""
        return f", by {'use_backend' if self._used else self.variable}"

    def missing(self, name: str, reason: str) -> UsageError:
        """The error where the backend that was asked for cannot be had."""
        return UsageError(f"{self.kernel} backend {name!r} is not available: {reason}{self.by(name)}")

    def plain(self, reason: str) -> str:
        """Plain torch, where something faster should be there and is not: the cause is said once."""
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(
                f"{self.kernel} runs in plain torch, many times slower: {reason}", RuntimeWarning, stacklevel=3
            )
        return self.backends[-1]

    @contextlib.contextmanager
    def use(self, name: str, rows: Callable[[], Sequence[BackendRow]]) -> Iterator[None]:
        """Within the block, compute by this backend, in every thread.

        Args:
            name: One of `backends`.
            rows: Gives a row of each.

        Raises:
            UsageError: no such backend, or it is not available here (with the reason).
        """
        if name not in self.backends:
            raise unknown_name(f"{self.kernel} backend", name, self.backends)
        row = next(r for r in rows() if r.name == name)
        if not row.available:
            raise self.missing(name, row.reason)
        before, self._used = self._used, name
        try:
            yield
        finally:
            self._used = before
