"""What one value of a list means: captions, a file's name or an id; and why it is none."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import unicodedata

from vtr.data.tables import bare, what_is

# What programs write for a value that is not there.
NOTHING = frozenset((
    "nan", "NaN", "NAN", "null", "NULL", "Null", "None", "NA", "N/A", "<NA>",
    "#N/A", "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!",
))  # fmt: skip
_FORMULA = re.compile(r'="([^"]*)"')  # how a text is kept from Excel, which takes 007 for 7
_HALF = "holds half a character (a lone surrogate: cut text?)"
_LITTLE = frozenset(
    ("a", "an", "the", "is", "are", "of", "in", "on", "and", "with", "to", "at")
)  # no caption by themselves
_INNER = ("raw", "caption", "sentence", "text", "description")  # of a caption that is an object


def texts_of(value: object) -> tuple[tuple[str, ...], str]:
    """The captions that a value holds, and why it holds none: one text, or a list of texts."""
    if isinstance(value, str):
        listed = _listed(value)
        if listed is None:
            said = _bare(value)
            why = _wordless(said)
            return ((), why) if why else ((said,), "")
        value = listed
    if not isinstance(value, list):
        inner = _inner(value)
        return ((), f"the caption is {what_is(value)}, not text") if inner is None else texts_of(inner)
    texts: list[str] = []
    for number, one in enumerate(value, 1):
        text = one if isinstance(one, str) else _inner(one)
        if not isinstance(text, str):
            return (), f"caption {number} of {len(value)} is {what_is(one)}, not text"
        why = _wordless(bare(text))
        if why:
            return (), f"caption {number} of {len(value)}: {why}"
        texts.append(bare(text))
    if len(texts) > 1 and not any(" " in t for t in texts) and any(t.lower() in _LITTLE for t in texts):
        return (), f"its captions are single words ({', '.join(texts[:4])} …), as the tokens of one caption: join them"
    return tuple(texts), "" if texts else "no caption: an empty list"


def name_of(value: object) -> tuple[str, str]:
    """A file's name or an id, and why it is none: text, or a whole number (0 is one, and 007 is not 7)."""
    if isinstance(value, str):
        name = _bare(value)
        return name, ("is empty" if not name else _HALF if _halved(name) else "")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), ""
    return "", f"is {what_is(value)}"


def _bare(text: str) -> str:
    """A cell's text without blanks, marks and Excel's way to say that it is one (`="007"`)."""
    formula = _FORMULA.fullmatch(bare(text))
    return bare(formula[1] if formula else text)


def _halved(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _wordless(text: str) -> str:
    if _halved(text):
        return f"the caption {_HALF}"
    if not text:
        return "no caption: it is empty"
    if text in NOTHING:
        return f"no caption: {text!r} stands for a value that is missing"
    if not any(c.isalnum() or unicodedata.category(c) == "So" for c in text):
        return f"no caption: {text[:20]!r} holds no letter or digit"
    return ""


def _listed(text: str) -> list[object] | None:
    """A list of texts that was written into one cell, as pandas does."""
    text = text.strip()
    if not (text.startswith(("['", '["')) and text.endswith(("']", '"]'))) and text != "[]":
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
            texts = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.STRING]
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            return None
        if isinstance(found, list) and len(texts) > len(found):  # Python reads texts behind each other as one
            found = []
            for before, token in zip((None, *texts), texts):
                said = ast.literal_eval(token.string)
                if before is not None and before.end == token.start:  # 'it''s': a quote doubled as SQL has it
                    found[-1] += token.string[0] + said
                else:  # NumPy's ['a' 'b']
                    found.append(said)
    return found if isinstance(found, list) else None


def _inner(value: object) -> object:
    """The text of a caption that is an object, as in Karpathy's splits: {"raw": …, "tokens": …}."""
    if isinstance(value, dict):
        return next((value[k] for k in _INNER if isinstance(value.get(k), str)), None)
    return None
