"""Files of rows that other people wrote (CSV, TSV, JSON, JSON lines, plain lists) to records: read as meant, or refused.

This is the layer of characters, lines and cells; what a column means is told by `vtr.data.lists`. Lines end at "\\n" alone
("\\r\\n" too), so U+2028, NEL, VT and FF stay inside the cell they stand in. Commas, semicolons and bars quote as RFC 4180
says, tabs do not quote unless the whole file shows that its writer did (Excel, `csv.writer`).
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtr.data.media import ending
from vtr.errors import VtrError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
_MAX_ZIP_BYTES = 1 << 30  # of a member once unpacked
_INVISIBLE = (
    "\ufeff\u200b\u200e\u200f\u2060"  # marks that stand at the ends of cells, and in the middle of joined files
)
_NO_TEXT = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive; in Excel save it as `CSV UTF-8`"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; in Excel save it as `CSV UTF-8`"),
    (b"PAR1", "a Parquet file; write it as JSON lines: pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first: gunzip FILE"),
    (b"BZh", "bzip2-compressed; unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ", "xz-compressed; unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first: unzstd FILE"),
    (b"SQLite format 3", "an SQLite database; write the table as CSV: sqlite3 -header -csv FILE 'SELECT …'"),
    (b"ARROW1", "an Arrow file; write it as JSON lines: pandas.read_feather(FILE).to_json(OUT, orient='records', lines=True)"),
    (b"FEA1", "a Feather file; write it as JSON lines: pandas.read_feather(FILE).to_json(OUT, orient='records', lines=True)"),
    (b"\x93NUMPY", "a NumPy array; write it as JSON"),
    (b"\x80\x04", "a Python pickle, which is not opened; write it as JSON"),
    (b"\x80\x03", "a Python pickle, which is not opened; write it as JSON"),
    (b"\x80\x02", "a Python pickle, which is not opened; write it as JSON"),
    (b"version https://git-lfs", "a git-LFS pointer, not the list itself: git lfs pull"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row.

    Attributes:
        line: Where it begins, the file's first line is 1.
        place: The same in words, for messages: "line 3", "entry 7 (line 12)".
        cells: Its values by column, as the file has them.
    """

    line: int
    place: str
    cells: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a file.

    Attributes:
        kind: The format in words.
        columns: Names in the order of the file; none where it has no header. A plain list's only column is "".
        records: The rows; without a header their cells are called "1", "2", …
        text: The file's text.
    """

    path: Path
    kind: str
    columns: tuple[str, ...]
    records: tuple[Record, ...]
    text: str


def bare(text: str) -> str:
    """A text without blanks and invisible marks (a byte order mark, a zero-width space) at its ends."""
    return text.strip().strip(_INVISIBLE).strip()


def normal(name: str) -> str:
    """A column's name with case, blanks, `_`, `-` and a comment's `#` ignored: "Video ID" is "videoid"."""
    return re.sub(r"[\s_\-]", "", bare(name).lstrip("#")).lower()


def refuse(path: Path, place: str, found: str, expected: str) -> VtrError:
    """The error of a list: file, place, what is there, what was expected."""
    return VtrError(f"{path}: {place}: {found}; expected {expected}")


def read_text(path: Path) -> str:
    """The text of a list: UTF-8 with or without a mark, UTF-16 with one; of a .zip its largest .json file.

    Raises:
        VtrError: The file is missing or no text; the message says what it is and what to do.
    """
    if not path.is_file():
        raise VtrError(f"{path}: no such file; expected a list: CSV, TSV, JSON or JSON lines")
    try:
        data = _unzipped(path) if path.suffix.lower() == ".zip" else path.read_bytes()
    except (zipfile.BadZipFile, OSError) as error:
        raise VtrError(f"{path}: cannot be read ({error})") from error
    for magic, what in _NO_TEXT:
        if data.startswith(magic):
            raise VtrError(f"{path}: is {what}")
    if data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise VtrError(f"{path}: is a web page (HTML or XML), not a list; a download that failed?")
    try:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        how = "begins as UTF-16, but is not" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "is not UTF-8"
        raise VtrError(f"{path}: line {line} {how}; convert the file, e.g. with iconv") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise VtrError(f"{path}: line {line} holds a zero byte (another encoding?); save the file as UTF-8")
    if "\r" in text and "\n" not in text and text.strip().count("\r"):
        raise VtrError(f"{path}: line 1: its lines end in carriage returns alone; expected line feeds (tr '\\r' '\\n')")
    return text


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [i for i in archive.infolist() if i.filename.endswith(".json")]
        if not members:
            raise VtrError(f"{path}: holds no .json file")
        largest = max(members, key=lambda i: i.file_size)
        if largest.file_size > _MAX_ZIP_BYTES:
            raise VtrError(f"{path}: {largest.filename} unpacks to {largest.file_size} bytes; that is no list")
        return archive.read(largest)


def split_lines(text: str) -> list[str]:
    """Lines that end at "\\n" or "\\r\\n" and at nothing else."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def read_names(path: Path) -> list[str]:
    """The names of a plain list, one a line: ids, classes; blank ends and empty lines are left out.

    Raises:
        VtrError: It cannot be read.
    """
    return [line.strip() for line in split_lines(read_text(path)) if line.strip()]


def read_table(path: Path, known: Collection[str] = ()) -> Table | dict[str, object]:
    """Read a list of any of the formats, told by its content.

    Args:
        known: Names of columns (see `normal`) that make a line a header and tell its delimiter.

    Returns:
        Its rows, or the object itself where a JSON file holds one.

    Raises:
        VtrError: It cannot be meant as any of them: with file, line, what was found and what was expected.
    """
    return table_of(path, read_text(path), known)


def table_of(path: Path, text: str, known: Collection[str] = ()) -> Table | dict[str, object]:
    """As `read_table`, of a text that was read; the path's ending tells what the text does not."""
    first = text.lstrip("\ufeff \t\r\n")[:1]
    if first == "{" or (first == "[" and path.suffix.lower() not in (".csv", ".tsv", ".txt")):
        return _json(path, text, known)
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson") and first:
        line = next(line for line in split_lines(text) if line.strip())
        raise VtrError(
            f"{path}: not JSON: it begins {line.strip()[:60]!r}; name it .csv or .txt if it is a table or a list"
        )
    return _delimited(path, text, known)


# ---- JSON -----------------------------------------------------------------------------------------------------------


class _Twice(ValueError):
    """An object that has a name twice."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        name = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise _Twice(f"the name {name!r} stands twice in one object")
    return made


# Control characters inside a text are no JSON by the letter, and harmless.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, strict=False)
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")


def _json(path: Path, text: str, known: Collection[str]) -> Table | dict[str, object]:
    start = _BLANK.match(text).end()  # type: ignore[union-attr]
    try:
        if text[start] == "[":
            return _rows(path, "JSON", text, list(_elements(path, text, start + 1)))
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _no_json(path, error) from None
    except _Twice as error:
        raise VtrError(f"{path}: line {text.count(chr(10), 0, start) + 1}: {error}; expected each once") from None
    except RecursionError:
        raise VtrError(f"{path}: nested too deeply for a list") from None
    if _BLANK.match(text, end).end() == len(text) and not _is_row(value, known):  # type: ignore[union-attr]
        return dict(value)
    lines = _json_lines(path, text) if "\n" not in text[start:end] else _json_objects(path, text, start)
    return _rows(path, "JSON lines", text, list(lines))


def _is_row(value: dict[str, object], known: Collection[str]) -> bool:
    """Whether an object alone in its file is one row, and not the whole of a list."""
    nested = any(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values())
    return not nested and any(normal(k) in known and isinstance(v, (str, int)) for k, v in value.items())


def _no_json(path: Path, error: json.JSONDecodeError) -> VtrError:
    hint = "; is there a comma too many?" if error.doc[error.pos : error.pos + 1] in ("]", "}") else ""
    return VtrError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}{hint})")


def _elements(path: Path, text: str, place: int) -> Iterator[tuple[int, str, object]]:
    """(line, place in words, value) of an array whose bracket was read."""
    line, seen, number = 1, 0, 0
    several = "\n" in text.strip()
    while True:
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == "]" and number == 0:
            break
        line, seen = line + text.count("\n", seen, place), place
        number += 1
        words = f"entry {number} (line {line})" if several else f"entry {number}"
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _no_json(path, error) from None
        except _Twice as error:
            raise VtrError(f"{path}: {words}: {error}; expected each once") from None
        yield line, words, value
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]
        mark, place = text[place : place + 1], place + 1
        if mark == "]":
            place -= 1
            break
        if mark != ",":
            raise _no_json(path, json.JSONDecodeError("Expecting ',' delimiter", text, place - 1))
    rest = _BLANK.match(text, place + 1).end()  # type: ignore[union-attr]
    if rest != len(text):
        raise _no_json(path, json.JSONDecodeError("Extra data", text, rest))


def _json_objects(path: Path, text: str, place: int) -> Iterator[tuple[int, str, object]]:
    """Objects behind each other, of several lines each, as programs print them."""
    line, seen = 1, 0
    while place < len(text):
        line, seen = line + text.count("\n", seen, place), place
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _no_json(path, error) from None
        except _Twice as error:
            raise VtrError(f"{path}: line {line}: {error}; expected each once") from None
        yield line, f"line {line}", value
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, str, object]]:
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            try:
                value, end = _DECODER.raw_decode(line, _BLANK.match(line).end())  # type: ignore[union-attr]
                if line[end:].strip():
                    raise json.JSONDecodeError("Extra data", line, end)
            except json.JSONDecodeError as error:
                hint = "; is there a comma too many?" if line.rstrip().endswith(",") else ""
                raise VtrError(
                    f"{path}: line {number} is not JSON ({error.msg} at column {error.colno}{hint})"
                ) from None
            except _Twice as error:
                raise VtrError(f"{path}: line {number}: {error}; expected each once") from None
            yield number, f"line {number}", value


def _rows(path: Path, kind: str, text: str, found: list[tuple[int, str, object]]) -> Table:
    plain = bool(found) and isinstance(found[0][2], str)
    records = []
    columns: dict[str, None] = {}
    for line, place, value in found:
        cells = {"": value} if plain and isinstance(value, str) else value
        if not isinstance(cells, dict) or (plain and cells is value):
            expected = "a text, as the first" if plain else 'an object, as {"video": …, "caption": …}'
            raise refuse(path, place, f"found {what_is(value)}", expected)
        records.append(Record(line=line, place=place, cells=cells))
        columns.update(dict.fromkeys(cells))
    return Table(path=path, kind=kind, columns=tuple(columns), records=tuple(records), text=text)


def what_is(value: object) -> str:
    """A JSON value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return "a list" if isinstance(value, list) else "an object"


# ---- delimited text -------------------------------------------------------------------------------------------------


def _delimited(path: Path, text: str, known: Collection[str]) -> Table:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    first, forced = 0, ""
    while first < len(lines):
        line = lines[first].strip()
        told = re.fullmatch(r'"?sep=(.)"?', line, re.IGNORECASE)
        if told:  # Excel's own first line
            forced = told[1]
        elif line and not _comment(line, known):
            break
        first += 1
    if first == len(lines):
        raise VtrError(f"{path}: no rows")
    top = _ended(lines[first])
    delimiter = forced or _delimiter(path, top, known)
    header = _cells(top, delimiter) if delimiter else []
    # A row of a file and, say, the class "action" is no header.
    if not any(normal(h) in known for h in header) or any(ending(h.strip()) for h in header):
        header = []
    body = first + 1 if header else first
    if not delimiter:
        kind = "list"
        rows = [(i + 1, [line.strip()]) for i, line in enumerate(lines) if i >= first and line.strip()]
    elif delimiter == "\t":
        kind, rows = "TSV", _tab_rows(path, lines, body, quoted_header=bool(header) and top.startswith('"'))
    else:
        # `a, b, c`: the blank belongs to the delimiter where the header has it everywhere.
        raw = top.split(delimiter)[1:] if header else []
        spaced = bool(raw) and all(cell.startswith(" ") for cell in raw)
        kind, rows = "CSV", list(_comma_rows(path, lines, body, delimiter, max(1, len(header)), spaced))
    names = _names(path, first + 1, header)
    records = tuple(_record(path, line, row, names, len(header), delimiter) for line, row in rows)
    columns = tuple(n for n in names if n) if delimiter else ("",)
    return Table(path=path, kind=kind, columns=columns, records=records, text=text)


def _ended(line: str) -> str:
    return line[:-1] if line.endswith("\r") else line


def _comment(line: str, known: Collection[str]) -> bool:
    """Whether a line before the rows is a remark; a header may be written as one (`# video,caption`)."""
    named = any(normal(c) in known for d in DELIMITERS for c in line.split(d))
    return re.match(r"#(\W|$)", line) is not None and not named


def _delimiter(path: Path, line: str, known: Collection[str]) -> str:
    """The mark that splits a header into most known names; without a header, the one that the first line has."""
    order = sorted(DELIMITERS, key=lambda d: d != "\t") if path.suffix.lower() == ".tsv" else list(DELIMITERS)
    score = {d: sum(normal(c) in known for c in _cells(line, d)) for d in order}
    best = max(order, key=lambda d: (score[d], len(_cells(line, d)) if score[d] else 0))
    if score[best]:
        return best
    return next((d for d in ("\t", ",", ";", "|") if d in line), "")


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == "\t":
        return [_unquoted(c) if _quoted(c) else c for c in line.split("\t")]
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True), [])
    except csv.Error:
        return line.split(delimiter)


def _names(path: Path, line: int, header: list[str]) -> list[str]:
    names = [h.strip().lstrip("#").strip() if i == 0 else h.strip() for i, h in enumerate(header)]
    while names and not names[-1]:
        names.pop()  # Excel's empty columns at the right
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(normal(name)) if name else None
        if other is not None:
            both = f"{name!r}" if other == name else f"{other!r} and {name!r}"
            raise refuse(path, f"line {line}", f"the header has the column {both} twice", "each name once")
        seen[normal(name)] = name
    return names


def _record(path: Path, line: int, row: list[str], names: list[str], width: int, delimiter: str) -> Record:
    place = f"line {line}"
    if not delimiter:
        return Record(line=line, place=place, cells={"": row[0]})
    if not names:
        return Record(line=line, place=place, cells={str(i): cell for i, cell in enumerate(row, 1)})
    nameless = [c for i, c in enumerate(row) if i and (i >= len(names) or not names[i])]
    if len(names) <= len(row) <= width and not any(c.strip() for c in nameless):
        return Record(line=line, place=place, cells={n: c for n, c in zip(names, row) if n})
    mark = DELIMITERS.get(delimiter, repr(delimiter))
    how = "no tab inside a cell" if delimiter == "\t" else f'a cell that holds a {mark} in quotes: "…"'
    raise refuse(
        path,
        place,
        f"{len(row)} cells ({delimiter.join(row)[:60]!r}) under {len(names)} columns ({', '.join(names)[:60]})",
        f"as many as the header has, and {how}",
    )


def _comma_rows(
    path: Path, lines: list[str], body: int, delimiter: str, width: int, spaced: bool
) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 24)
    text = (line + "\n" for line in lines[body:])
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    while True:
        start = body + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _csv_error(path, str(error), start, body + reader.line_num) from None
        if not row or (len(row) == 1 and width > 1 and not row[0].strip()):
            continue
        if body + reader.line_num > start:
            _check_swallowed(path, start, row, delimiter)
        yield start, row


def _csv_error(path: Path, what: str, start: int, now: int) -> VtrError:
    if "unexpected end" in what or "field larger" in what:
        return refuse(path, f"line {start}", "a quote that is opened here is never closed", 'a closing " (RFC 4180)')
    if "expected after" in what:
        began = "" if now == start else f" (its row begins in line {start})"
        return refuse(
            path, f"line {now}", f"text after a closing quote{began}", 'quotes inside a quoted cell doubled: ""'
        )
    if "new-line character" in what:
        return refuse(
            path, f"line {now}", "a carriage return inside a cell that is not quoted", "lines that end in \\n"
        )
    return VtrError(f"{path}: line {now}: {what}")


def _shape(cell: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", cell.strip()))


def _check_swallowed(path: Path, start: int, row: list[str], delimiter: str) -> None:
    """Refuse a quoted cell in which further rows seem to stand: lines with a file, or with a cell formed as this row's."""
    shapes = [_shape(cell.partition("\n")[0]) for cell in row]
    for cell in row:
        for number, line in enumerate(cell.split("\n")[1:], 1):
            pieces = [piece.strip(' "\r') for piece in line.split(delimiter)]
            alike = (_shape(p) == s and any(c in s for c in "0./_") for p, s in zip(pieces, shapes))
            if len(pieces) >= len(row) > 1 and (any(alike) or any(ending(p) and " " not in p for p in pieces)):
                raise refuse(
                    path,
                    f"line {start}",
                    f"a quoted cell holds {line.strip()[:60]!r} (line {start + number}), which looks like a row",
                    "a closing quote before it, or captions without line breaks",
                )


def _quoted(cell: str) -> bool:
    """Whether a cell is one that a writer put in quotes: those inside are doubled."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"')


def _tab_rows(path: Path, lines: list[str], body: int, *, quoted_header: bool) -> list[tuple[int, list[str]]]:
    rows = [(i + 1, _ended(lines[i]).split("\t")) for i in range(body, len(lines)) if lines[i].strip(" \r")]
    marked = [c for _, row in rows for c in row if '"' in c]
    # The file's writer quotes (csv.writer where it must, Excel where a comma is) if every quote in it is such a one,
    # and one of them could not be a caption's own.
    evident = quoted_header or any('""' in c[1:-1] or "," in c or "\r" in c or c == '""' for c in marked)
    if marked and all(map(_quoted, marked)) and evident:
        return [(line, [_unquoted(c) if _quoted(c) else c for c in row]) for line, row in rows]
    opened = 0
    for line, row in rows:
        for cell in row:
            if cell.count('"') % 2 and opened and cell.endswith('"') and not cell.startswith('"'):
                raise refuse(
                    path, f"line {opened}", f"a quote that line {line} closes", "no line break inside a cell of a TSV"
                )
            if cell.count('"') % 2 and cell.startswith('"') and cell != '"':
                opened = opened or line
    return rows
