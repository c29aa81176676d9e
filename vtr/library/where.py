"""Filters such as `duration < 60 and path ~ "dog"`: parsed into SQL with parameters, never evaluated.

Columns: path, duration, start, end (seconds). Operators: = != < <= > >=, and for path ~ (contains, whatever the case).
Joined by and, or, not and parentheses.
"""

from __future__ import annotations

import re

from vtr.errors import UsageError, unknown_name

_COLUMNS = {"path": "videos.path", "duration": "videos.duration", "start": "segments.start", "end": "segments.end"}
_TOKEN = re.compile(
    r"""\s*(?:(<=|>=|!=|=|<|>|~|\(|\))|"([^"]*)"|'([^']*)'|(-?(?:\d+\.?\d*|\.\d+)(?![\w.]))|([A-Za-z_]\w*))"""
)
_LONGEST = 200  # tokens: far below what SQLite or the recursion here can bear


def parse_where(text: str) -> tuple[str, list[object]]:
    """Return an SQL condition with placeholders, and its parameters.

    Raises:
        UsageError: The text does not parse, or compares a column with the wrong kind of value; the place is named.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.place = 0
        self.parameters: list[object] = []

    def parse(self) -> tuple[str, list[object]]:
        condition = self.either()
        if self.peek()[0] != "end":
            raise self.wrong(f"{self.peek()[1]!r} is left over")
        return condition, self.parameters

    def wrong(self, what: str) -> UsageError:
        return UsageError(f'--where: {what} in {self.text[:200]!r}; expected as in: duration < 60 and path ~ "dog"')

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place]

    def take(self) -> tuple[str, str]:
        self.place += 1
        return self.tokens[self.place - 1]

    def either(self) -> str:
        parts = [self.both()]
        while self.peek() == ("word", "or"):
            self.take()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def both(self) -> str:
        parts = [self.one()]
        while self.peek() == ("word", "and"):
            self.take()
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def one(self) -> str:
        if self.peek() == ("word", "not"):
            self.take()
            return f"(NOT {self.one()})"
        if self.peek() == ("sign", "("):
            self.take()
            inside = self.either()
            if self.peek() != ("sign", ")"):
                raise self.wrong("a closing parenthesis is missing")
            self.take()
            return inside
        return self.comparison()

    def comparison(self) -> str:
        kind, name = self.peek()
        if kind != "word":
            raise self.wrong(f"expected a column ({', '.join(_COLUMNS)}), found {name or 'the end'!r}")
        self.take()
        if name not in _COLUMNS:
            raise unknown_name("column in --where:", name, _COLUMNS)
        kind, sign = self.peek()
        if kind != "sign" or sign in "()":
            raise self.wrong(f"expected a comparison after {name}, found {sign or 'the end'!r}")
        self.take()
        kind, value = self.peek()
        if name == "path":
            if kind != "text":
                raise self.wrong(f"path is compared with a quoted text, found {value or 'the end'!r}")
            self.parameters.append(value)
        else:
            if kind != "number" or sign == "~":
                raise self.wrong(f"{name} is compared with a number by = != < <= > >=, found {sign} {value!r}")
            self.parameters.append(float(value))
        self.take()
        return f"contains({_COLUMNS[name]}, ?)" if sign == "~" else f"({_COLUMNS[name]} {sign} ?)"


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if not match:
            raise UsageError(f"--where: cannot read {text[at:].strip()[:20]!r} in {text[:200]!r}")
        sign, double, single, number, word = match.groups()
        if sign:
            tokens.append(("sign", sign))
        elif number:
            tokens.append(("number", number))
        elif word:
            tokens.append(("word", word.lower() if word.lower() in ("and", "or", "not") else word))
        else:
            tokens.append(("text", double if double is not None else single))
        at = match.end()
        if len(tokens) > _LONGEST:
            raise UsageError(f"--where: longer than {_LONGEST} words and signs")
    tokens.append(("end", ""))
    return tokens
