"""How a kernel's backends are described to a user: what is there, why, and what it is chosen for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BackendRow:
    """One way to compute something: its name, whether it works here, why (not), and what it is chosen for."""

    name: str
    available: bool
    reason: str
    chosen_for: str
