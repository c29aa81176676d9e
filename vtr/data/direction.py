"""Captions that tell a direction or an order in time, turned to what the same clip played backwards would be called.

python -m vtr.data.direction LIST_OR_SHARDS …     # how many captions of a corpus hold such words, and which
"""

from __future__ import annotations

import random
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from vtr.data.lists import read_list
from vtr.data.shard_reader import captions_in
from vtr.errors import VtrError, reports_errors
from vtr.files import read_manifest

_WORD = re.compile(r"[^\W\d_]+")
_INVENTED = 0.3  # of the words beside those of direction
_ADVERB = r"(?:\s+\w+ly)?"  # "walks slowly up"


class _Opposite(TypedDict, total=False):
    a: list[str]
    b: list[str]
    but_before: list[str]
    mirrored: bool


class _AfterVerb(TypedDict, total=False):
    verbs: list[str]
    pairs: list[list[str]]
    mirrored: bool


class _Order(TypedDict):
    between: list[str]
    subjects: list[str]


class _Side(NamedTuple):
    """One phrase of a pair: which pair, which side of it, and what it is exchanged for."""

    pair: int
    second: bool
    other: str


class Lexicon:
    """Phrases of direction and order with their opposites (`data_manifests/lexicons/direction.toml`).

    Args:
        content: The file's.
        mirrored: Whether clips are mirrored at random in training: left and right then say nothing and are left out.
    """

    def __init__(self, content: Mapping[str, object], *, mirrored: bool = False) -> None:
        self._phrases: dict[str, _Side] = {}
        self._particles: dict[str, _Side] = {}
        opposites = [e for e in cast("list[_Opposite]", content["opposite"]) if not (mirrored and e.get("mirrored"))]
        verbs = [e for e in cast("list[_AfterVerb]", content["after_verb"]) if not (mirrored and e.get("mirrored"))]
        kept = [phrase for e in opposites for phrase in e.get("but_before", ())]
        for number, entry in enumerate(opposites):
            _enter(self._phrases, number, entry["a"], entry["b"])
        moved = []
        for entry_number, after in enumerate(verbs):
            for number, (one, other) in enumerate(after["pairs"]):
                _enter(self._particles, -1 - 100 * entry_number - number, [one], [other])
            forms, ends = " ".join(after["verbs"]).split(), [p for pair in after["pairs"] for p in pair]
            moved.append(rf"(?:{_any(forms)}){_ADVERB}\s+(?P<particle{entry_number}>{_any(ends)})")
        parts = [rf"(?P<kept>{_any(kept)})", rf"(?P<phrase>{_any(self._phrases)})", *moved]
        self._pattern = re.compile(rf"\b(?:{'|'.join(parts)})\b", re.IGNORECASE)
        order = cast("_Order", content["order"])
        self._between = re.compile(f"^(?P<first>.+?)(?P<between>{'|'.join(map(re.escape, order['between']))})(?P<second>.+?)(?P<end>[.!]*)$")  # fmt: skip
        self._subjects = frozenset(order["subjects"])

    def words(self, caption: str) -> list[str]:
        """The phrases of a caption that can be exchanged, as the lexicon has them."""
        return [said for said, *_ in self._found(caption)]

    def turned(self, caption: str) -> str:
        """The caption of the reversed clip; "" where it tells no direction or order, or both directions of one kind."""
        return "".join(other for _, other in self._parts(caption))

    def unfamiliar(self, caption: str, seed: int) -> tuple[str, str]:
        """The caption and the turned one, some of the words that they share invented, the same in both; "" as `turned`.

        Texts are full of words that training never showed, which a text encoder must read a direction beside.
        """
        rng = random.Random(seed)

        def word(found: re.Match[str]) -> str:
            return _invented(rng) if rng.random() < _INVENTED else found[0]

        parts = [(own, other) if own != other else (_WORD.sub(word, own),) * 2 for own, other in self._parts(caption)]
        return "".join(own for own, _ in parts), "".join(other for _, other in parts)

    def _parts(self, caption: str) -> list[tuple[str, str]]:
        """A caption cut into what it shares with the turned one and what it does not; nothing where there is none."""
        found = list(self._found(caption))
        if not found:
            exchanged = self._exchanged_clauses(caption)
            return [(caption, exchanged)] if exchanged else []
        sides: dict[int, set[bool]] = {}
        for _, side, _ in found:
            sides.setdefault(side.pair, set()).add(side.second)
        if any(len(both) > 1 for both in sides.values()):
            return []
        parts, place = [], 0
        for _, side, (start, end) in found:
            other = side.other[0].upper() + side.other[1:] if caption[start].isupper() else side.other
            parts += [(caption[place:start],) * 2, (caption[start:end], other)]
            place = end
        return [*parts, (caption[place:],) * 2]

    def _found(self, caption: str) -> Iterator[tuple[str, _Side, tuple[int, int]]]:
        """Each phrase, what is known of it, and where it stands."""
        for match in self._pattern.finditer(caption):
            name = next(n for n, said in match.groupdict().items() if said is not None)
            if name != "kept":
                said = " ".join(match[name].lower().split())
                yield said, (self._phrases if name == "phrase" else self._particles)[said], match.span(name)

    def _exchanged_clauses(self, caption: str) -> str:
        match = self._between.match(caption)
        if match is None or self._between.match(match["second"]):
            return ""
        first, second = match["first"].split(), match["second"].split()
        if min(len(first), len(second)) < 3 or not {first[0].lower(), second[0].lower()} <= self._subjects:
            return ""
        if first[0][0].isupper():
            first[0], second[0] = first[0].lower(), second[0].capitalize()
        return " ".join(second) + match["between"] + " ".join(first) + match["end"]


def _invented(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 7)))


def _enter(phrases: dict[str, _Side], number: int, one: Sequence[str], other: Sequence[str]) -> None:
    if len(one) != len(other):
        raise VtrError(f"the lexicon of directions: {one[0]!r}: {len(one)} forms, {len(other)} of {other[0]!r}")
    for a, b in zip(one, other):
        phrases.setdefault(a, _Side(number, False, b))
        phrases.setdefault(b, _Side(number, True, a))


def _any(phrases: Iterable[str]) -> str:
    """A pattern of any of these, the longest first."""
    longest = sorted(set(phrases), key=lambda p: (-len(p), p))
    return "|".join(r"\s+".join(map(re.escape, p.split())) for p in longest)


@cache
def lexicon(*, mirrored: bool = False) -> Lexicon:
    """The lexicon that comes with vtr."""
    return Lexicon(read_manifest("lexicons", "direction"), mirrored=mirrored)


def reach(captions: Iterable[str], *, mirrored: bool = False) -> tuple[int, int, Counter[str]]:
    """How many captions there are, how many of them can be turned, and how often by which phrase."""
    words, count, reached, found = lexicon(mirrored=mirrored), 0, 0, Counter[str]()
    for caption in captions:
        count += 1
        if words.turned(caption):
            reached += 1
            found.update(words.words(caption) or ["(order of clauses)"])
    return count, reached, found


def _captions(place: str) -> Iterator[str]:
    if Path(place).is_file() and Path(place).suffix != ".tar":
        for entry in read_list(Path(place)).entries:
            yield from entry.captions
        return
    shards = sorted(map(str, Path(place).rglob("*.tar"))) if Path(place).is_dir() else [place]
    if not shards:
        raise VtrError(
            f"{place}: no shards (.tar) in it; expected a list with captions, a shard, or a folder of shards"
        )
    for shard in shards:
        yield from captions_in(shard)


_USAGE = "usage: python -m vtr.data.direction LIST_OR_SHARDS … [--flip]"


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m vtr.data.direction`."""
    given = list(sys.argv[1:] if argv is None else argv)
    places = [word for word in given if not word.startswith("-")]
    if not places or set(given) - {*places, "--flip"}:
        print(
            f"{_USAGE}\n--flip: clips are mirrored at random in training, left and right do not count", file=sys.stderr
        )
        return 2
    for place in places:
        count, reached, found = reach(_captions(place), mirrored="--flip" in given)
        print(
            f"{place}: {reached:,} of {count:,} captions ({100 * reached / max(1, count):.1f} %) tell a direction or an order"
        )
        print("  " + ", ".join(f"{word} {n:,}" for word, n in found.most_common(30)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
