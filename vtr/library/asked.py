"""What a query may ask for: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtr.errors import UsageError

MOST = 1000  # hits of one query; more is an export


def listed(texts: object) -> list[str]:
    """A text or texts as a list."""
    found = [texts] if isinstance(texts, str) else texts
    if not isinstance(found, list | tuple) or not all(isinstance(t, str) for t in found):
        raise UsageError(f"expected a text or a list of texts, found {texts!r}"[:200])
    return list(found)


def check(
    texts: list[str],
    likes: Sequence[object],
    more: int | None,
    *,
    k: int,
    rerank: int,
    moments: int,
    all_moments: bool,
) -> None:
    """UsageError where a query asks for nothing, or for what cannot be."""
    for name, value, least in (("k", k, 1), ("rerank", rerank, 0), ("moments", moments, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= MOST:
            raise out_of_range(name, value, least)
    if all_moments and moments > 1:
        raise UsageError(
            lambda say: (
                f"{say.name('all_moments')} and {say.name('moments')} exclude each other: ranks of their own, or by video"
            )
        )
    if not texts and not likes and more is None:
        raise UsageError(
            lambda say: f"an empty query: ask for something in words, with {say.name('like')} or {say.name('more')}"
        )
    if rerank and not texts:
        raise UsageError(
            lambda say: f"{say.name('rerank')} needs a text: the cross-modal decoder compares videos with words"
        )


def out_of_range(name: str, value: object, least: int) -> UsageError:
    return UsageError(lambda say: f"{say.given(name, repr(value))}: expected a whole number from {least} to {MOST}")
