"""PNG figures; matplotlib is an extra (`vtr[plot]`) that nothing else needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def pyplot() -> Any | None:
    """matplotlib.pyplot drawing to files, or None (said on stderr) where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install 'vtr[plot]'); the table is whole", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bars(
    path: Path,
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    paper: Sequence[float | None],
    *,
    chance: float,
    label: str,
) -> bool:
    """Horizontal bars of the means with every single value as a dot, and the paper's figures in a panel beside."""
    plt = pyplot()
    if plt is None:
        return False
    with_paper = any(p is not None for p in paper)
    figure, axes = plt.subplots(
        1, 1 + with_paper, figsize=(6 + 4 * with_paper, 0.5 * len(names) + 1.6), sharey=True, squeeze=False
    )
    places = list(range(len(names)))[::-1]
    own = axes[0][0]
    own.barh(places, [sum(v) / len(v) for v in values], color="#4878b8", alpha=0.75)
    for place, row in zip(places, values):
        own.plot(row, [place] * len(row), "k.", markersize=5)
    own.axvline(chance, color="#c04040", linestyle="--", linewidth=1)
    own.set_yticks(places, names)
    own.set_xlabel(label)
    own.set_title(title, fontsize=10)
    if with_paper:
        other = axes[0][1]
        known = [(place, p) for place, p in zip(places, paper) if p is not None]
        other.barh([k[0] for k in known], [k[1] for k in known], color="#999999")
        low = min(k[1] for k in known)
        other.set_xlim(low - 2, max(k[1] for k in known) + 1)
        other.set_xlabel("top-1, %")
        other.set_title("paper", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
