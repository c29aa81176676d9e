"""Filters such as `duration < 60 and path ~ "dog"`: parsed into a tree, then SQL with parameters; never evaluated.

Columns: path, duration, start, end (seconds), date (of the file, compared with a quoted ISO date), and every metadata
column of the library by its name (`meta.NAME` where a name above is also a metadata column; `upload day` in backquotes
where the name is no word). Operators: = != < <= > >=, and for texts ~ (contains, whatever the case). Joined by and, or,
not and parentheses. A video without a value for a column matches no comparison with it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection
from dataclasses import dataclass

from vtr.errors import UsageError, unknown_name

_COLUMNS = {"path": "videos.path", "duration": "videos.duration", "start": "segments.start", "end": "segments.end"}
BUILT_IN = (*_COLUMNS, "date")
_TOKEN = re.compile(
    r"""\s*(?:(<=|>=|!=|=|<|>|~|\(|\))|"([^"]*)"|'([^']*)'|(-?(?:\d+\.?\d*|\.\d+)(?![\w.]))|([A-Za-z_][\w.]*)|`([^`]+)`)"""
)
_FIRST, _LAST = -62135596800.0, 253402300800.0  # time stamps of the years 1 and 10000, the ends of the calendar (UTC)
_LONGEST = 200  # tokens: far below what SQLite or the recursion here can bear


@dataclass(frozen=True)
class Joined:
    """Conditions joined by "and" or "or"."""

    by: str
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    part: Node


@dataclass(frozen=True)
class Comparison:
    """`column sign value`; `meta` columns are metadata. A date's value is the interval (from, to) of time stamps."""

    column: str
    meta: bool
    sign: str
    value: str | float | tuple[float, float]


Node = Joined | Not | Comparison


def parse(text: str, columns: Collection[str] = ()) -> Node:
    """Return the tree of a filter.

    Args:
        text: The filter.
        columns: Names of the library's metadata columns.

    Raises:
        UsageError: The text does not parse, or compares a column with the wrong kind of value; the place is named.
    """
    return _Parser(text, columns).parse()


def parse_where(text: str, columns: Collection[str] = ()) -> tuple[str, list[object]]:
    """Return an SQL condition with placeholders, and its parameters; arguments and errors as in `parse`."""
    parameters: list[object] = []
    return to_sql(parse(text, columns), parameters), parameters


def to_sql(node: Node, parameters: list[object]) -> str:
    if isinstance(node, Joined):
        return "(" + f" {node.by.upper()} ".join(to_sql(p, parameters) for p in node.parts) + ")"
    if isinstance(node, Not):
        return f"(NOT {to_sql(node.part, parameters)})"
    if isinstance(node.value, tuple):
        signs, bounds = interval(node.sign, node.value)
        parameters += bounds
        inside = " AND ".join(f"videos.modified {s} ?" for s in signs)
        inside = f"NOT ({inside})" if node.sign == "!=" else inside
        return f"(videos.modified IS NOT NULL AND {inside})"
    if not node.meta:
        parameters.append(node.value)
        column = _COLUMNS[node.column]
        return f"contains({column}, ?)" if node.sign == "~" else f"({column} {node.sign} ?)"
    place = f'$."{node.column}"'
    types = "('text')" if isinstance(node.value, str) else "('integer', 'real', 'true', 'false')"
    kind = f"COALESCE(json_type(videos.meta, ?) IN {types}, 0)"
    value = "json_extract(videos.meta, ?)"
    parameters += [place, place, node.value]
    return f"({kind} AND " + (f"contains({value}, ?))" if node.sign == "~" else f"{value} {node.sign} ?)")


def shadowed(node: Node, columns: Collection[str]) -> list[str]:
    """One line for each column of ours in a filter whose name is also a metadata column's."""
    names = {n for n in _own_columns(node) if n in columns}
    return [f"{n} in the filter is the file's own; the metadata column is meta.{n}" for n in sorted(names)]


def _own_columns(node: Node) -> set[str]:
    if isinstance(node, Joined):
        return set().union(*map(_own_columns, node.parts))
    if isinstance(node, Not):
        return _own_columns(node.part)
    return set() if node.meta else {node.column}


def interval(sign: str, value: tuple[float, float]) -> tuple[list[str], list[float]]:
    """Comparisons of a time stamp that mean `sign` an interval (from, to); of = and != both must hold, or not."""
    low, high = value
    if sign in ("=", "!="):
        return [">=", "<"], [low, high]
    return {"<": (["<"], [low]), "<=": (["<"], [high]), ">": ([">="], [high]), ">=": ([">="], [low])}[sign]


def _day(text: str) -> tuple[float, float] | None:
    """Time stamps of the beginning of a year, month, day or minute in local time, and of the next one's."""
    try:
        if match := re.fullmatch(r"(\d{4})(?:-(\d{2}))?", text):
            year, month = int(match[1]), int(match[2] or 1)
            first = datetime.datetime(year, month, 1)
            later = (year + (month == 12), month % 12 + 1) if match[2] else (year + 1, 1)
            after = datetime.datetime(*later, 1) if later[0] <= datetime.MAXYEAR else None
        elif re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            first = datetime.datetime.fromisoformat(text)
            after = _later(first, datetime.timedelta(days=1))
        elif re.fullmatch(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2})?", text):
            first = datetime.datetime.fromisoformat(text)
            after = _later(first, datetime.timedelta(seconds=1 if text.count(":") == 2 else 60))
        else:
            return None
    except ValueError:
        return None
    return _stamp(first, _FIRST), _LAST if after is None else _stamp(after, _LAST)


def _later(first: datetime.datetime, step: datetime.timedelta) -> datetime.datetime | None:
    return first + step if datetime.datetime.max - first >= step else None


def _stamp(when: datetime.datetime, beyond: float) -> float:
    """Its time stamp, or `beyond` at the ends of the calendar, where local time cannot be reckoned."""
    try:
        return when.timestamp()
    except (ValueError, OverflowError, OSError):
        return beyond


def _wrong(what: str) -> UsageError:
    return UsageError(lambda say: f"{say.name('where')}: {what}")


class _Parser:
    def __init__(self, text: str, columns: Collection[str]) -> None:
        self.text = text
        self.columns = columns
        self.tokens = _tokens(text)
        self.place = 0

    def parse(self) -> Node:
        condition = self.either()
        if self.peek()[0] != "end":
            raise self.wrong(f"{self.peek()[1]!r} is left over")
        return condition

    def wrong(self, what: str) -> UsageError:
        return _wrong(f'{what} in {self.text[:200]!r}; expected as in: duration < 60 and path ~ "dog"')

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place]

    def take(self) -> tuple[str, str]:
        self.place += 1
        return self.tokens[self.place - 1]

    def either(self) -> Node:
        parts = [self.both()]
        while self.peek() == ("word", "or"):
            self.take()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Joined("or", tuple(parts))

    def both(self) -> Node:
        parts = [self.one()]
        while self.peek() == ("word", "and"):
            self.take()
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))

    def one(self) -> Node:
        if self.peek() == ("word", "not"):
            self.take()
            return Not(self.one())
        if self.peek() == ("sign", "("):
            self.take()
            inside = self.either()
            if self.peek() != ("sign", ")"):
                raise self.wrong("a closing parenthesis is missing")
            self.take()
            return inside
        return self.comparison()

    def comparison(self) -> Node:
        kind, name = self.peek()
        if kind not in ("word", "name"):
            raise self.wrong(f"expected a column ({', '.join(BUILT_IN)}), found {name or 'the end'!r}")
        self.take()
        meta = kind == "name" or name not in BUILT_IN
        if meta and kind == "word":
            name = name.removeprefix("meta.") if name not in self.columns else name
        if meta and name not in self.columns:
            raise _wrong(str(unknown_name("column", name, {*BUILT_IN, *self.columns})))
        kind, sign = self.peek()
        if kind != "sign" or sign in "()":
            raise self.wrong(f"expected a comparison after {name}, found {sign or 'the end'!r}")
        self.take()
        kind, found = self.peek()
        value: str | float | tuple[float, float] = found
        if kind not in ("text", "number"):
            raise self.wrong(f"{name} is compared with a number or a quoted text, found {found or 'the end'!r}")
        if kind == "number":
            value = float(found)
        if not meta and name == "path" and kind != "text":
            raise self.wrong(f"path is compared with a quoted text, found {found!r}")
        if not meta and name == "date":
            day = _day(found) if kind == "text" and sign != "~" else None
            if day is None:
                raise self.wrong(
                    f'date is compared by = != < <= > >= as in date >= "2024-05-31", found {sign} {found!r}'
                )
            value = day
        if (kind == "number" and sign == "~") or (not meta and name not in ("path", "date") and kind == "text"):
            raise self.wrong(f"{name} is compared with a number by = != < <= > >=, found {sign} {found!r}")
        self.take()
        return Comparison(name, meta, sign, value)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if not match:
            raise _wrong(f"cannot read {text[at:].strip()[:20]!r} in {text[:200]!r}")
        sign, double, single, number, word, name = match.groups()
        if sign:
            tokens.append(("sign", sign))
        elif number:
            tokens.append(("number", number))
        elif word:
            tokens.append(("word", word.lower() if word.lower() in ("and", "or", "not") else word))
        elif name:
            tokens.append(("name", name))
        else:
            tokens.append(("text", double if double is not None else single))
        at = match.end()
        if len(tokens) > _LONGEST:
            raise _wrong(f"longer than {_LONGEST} words and signs")
    tokens.append(("end", ""))
    return tokens
