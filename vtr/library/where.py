"""`--where`: comparisons over a segment's columns, parsed into SQL with parameters, never evaluated.

duration < 60 and path ~ "dog"        columns: path, duration, start, end; operators: = != < <= > >= ~ (contains)
"""

from __future__ import annotations

import re

from vtr.errors import UsageError, unknown_name

_COLUMNS = {"path": "videos.path", "duration": "videos.duration", "start": "segments.start", "end": "segments.end"}
_TOKEN = re.compile(r"""\s*(?:(<=|>=|!=|=|<|>|~|\(|\))|"([^"]*)"|'([^']*)'|(-?\d+(?:\.\d+)?)|([A-Za-z_]\w*))""")


def parse_where(text: str) -> tuple[str, list[object]]:
    """Return an SQL condition with placeholders, and its parameters.

    Raises:
        UsageError: The text does not parse; the place is named.
    """
    tokens: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if not match:
            raise UsageError(f"--where: cannot read {text[at:].strip()[:20]!r} in {text!r}")
        sign, double, single, number, word = match.groups()
        if sign:
            tokens.append(("sign", sign))
        elif number:
            tokens.append(("number", number))
        elif word:
            tokens.append(("word", word))
        else:
            tokens.append(("text", double if double is not None else single))
        at = match.end()
    tokens.append(("end", ""))
    parameters: list[object] = []
    place = 0

    def peek() -> tuple[str, str]:
        return tokens[place]

    def take() -> tuple[str, str]:
        nonlocal place
        place += 1
        return tokens[place - 1]

    def either() -> str:
        left = both()
        while peek() == ("word", "or"):
            take()
            left = f"({left} OR {both()})"
        return left

    def both() -> str:
        left = one()
        while peek() == ("word", "and"):
            take()
            left = f"({left} AND {one()})"
        return left

    def one() -> str:
        if peek() == ("word", "not"):
            take()
            return f"(NOT {one()})"
        if peek() == ("sign", "("):
            take()
            inside = either()
            if take() != ("sign", ")"):
                raise UsageError(f"--where: a closing parenthesis is missing in {text!r}")
            return inside
        kind, name = take()
        if kind != "word":
            raise UsageError(f"--where: expected a column ({', '.join(_COLUMNS)}), found {name!r} in {text!r}")
        if name not in _COLUMNS:
            raise unknown_name("column in --where:", name, _COLUMNS)
        kind, sign = take()
        if kind != "sign" or sign in "()":
            raise UsageError(f"--where: expected a comparison after {name}, found {sign!r}")
        kind, value = take()
        if kind not in ("number", "text"):
            raise UsageError(f"--where: expected a number or a quoted text after {name} {sign}, found {value!r}")
        if sign == "~":
            parameters.append(value.lower())
            return f"(instr(lower({_COLUMNS[name]}), ?) > 0)"
        parameters.append(float(value) if kind == "number" else value)
        return f"({_COLUMNS[name]} {sign} ?)"

    condition = either()
    if peek()[0] != "end":
        raise UsageError(f"--where: {peek()[1]!r} is left over in {text!r}")
    return condition, parameters
