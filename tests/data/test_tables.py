"""Tables: cells are read as they were written, or the file is refused with a line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vtr.data.lists import KNOWN
from vtr.data.tables import Table, read_table, split_lines, table_of
from vtr.errors import VtrError

Rows = Sequence[Sequence[str]]
HEADER = ("video", "caption", "note")


def written(rows: Rows, **how: object) -> str:
    out = io.StringIO()
    csv.writer(out, **how).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


def excel_tabs(rows: Rows) -> str:
    """Excel's `Unicode text`: tabs, quotes around what holds a comma, a quote or a line break."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n\r\t]', text) else text

    return "".join("\t".join(map(cell, row)) + "\r\n" for row in rows)


def objects(rows: Rows) -> list[dict[str, str]]:
    return [dict(zip(rows[0], row)) for row in rows[1:]]


WRITERS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "csv": ("a.csv", written),
    "csv, \\n": ("a.csv", lambda rows: written(rows, lineterminator="\n")),
    "csv, all quoted": ("a.csv", lambda rows: written(rows, quoting=csv.QUOTE_ALL)),
    "csv with a mark": ("a.csv", lambda rows: "\ufeff" + written(rows)),
    "semicolons": ("a.csv", lambda rows: written(rows, delimiter=";")),
    "semicolons with sep=": ("a.csv", lambda rows: "sep=;\r\n" + written(rows, delimiter=";")),
    "bars": ("a.txt", lambda rows: written(rows, delimiter="|")),
    "tabs": ("a.tsv", lambda rows: written(rows, delimiter="\t")),
    "tabs, all quoted": ("a.tsv", lambda rows: written(rows, delimiter="\t", quoting=csv.QUOTE_ALL)),
    "Excel's tabs": ("a.txt", excel_tabs),
    "json": ("a.json", lambda rows: json.dumps(objects(rows))),
    "json, indented": ("a.json", lambda rows: json.dumps(objects(rows), indent=1, ensure_ascii=False)),
    "json lines": ("a.jsonl", lambda rows: "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects(rows))),
}
SPECIAL = st.sampled_from(list(",;|\t\"'\n\r\u2028\u2029\x85\x0b\x0c\x1c #=[]{}\\/._-a0"))
CELL = st.text(st.one_of(SPECIAL, SPECIAL, st.characters(exclude_categories=["Cs"])), max_size=8)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4)


@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, writer=st.sampled_from(sorted(WRITERS)))
def test_what_a_writer_wrote_is_read_back_equal_or_refused_with_its_line(
    rows: list[tuple[str, str, str]], writer: str
) -> None:
    name, write = WRITERS[writer]
    # A line that ends in "\r\n" ends there, whatever its writer meant by the "\r".
    assume(writer != "csv, \\n" or not any(row[-1].endswith("\r") for row in rows))
    text = write([HEADER, *rows])
    refused = ""
    try:
        table = table_of(Path(name), text, KNOWN)
    except VtrError as error:
        refused = str(error)
    if refused:
        assert re.match(rf"{name}: line \d+", refused), refused
        assert not name.endswith(("json", "jsonl")), "JSON is never ambiguous"
        assert any(re.search(r'["\n\r\t\0]', cell) for row in rows for cell in row), "nothing here needs to be refused"
        return
    assert isinstance(table, Table)
    assert [tuple(r.cells.values()) for r in table.records] == list(rows)


def read(folder: Path, name: str, content: str | bytes) -> Table:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(path, KNOWN)
    assert isinstance(table, Table)
    return table


def cells(table: Table) -> list[tuple[object, ...]]:
    return [tuple(r.cells.values()) for r in table.records]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_a_line_feed_ends_a_line(separator: str, tmp_path: Path) -> None:
    caption = f"A man walks{separator}his dog"
    rows = [("a.mp4", caption), ("b.mp4", "A red car")]
    assert cells(read(tmp_path, "a.csv", f"video,caption\na.mp4,{caption}\nb.mp4,A red car\n")) == rows
    lines = "".join(f'{{"video": "{v}", "caption": "{c}"}}\n' for v, c in rows)
    assert cells(read(tmp_path, "a.jsonl", lines)) == rows
    assert split_lines(f"{caption}\r\nb") == [caption, "b"]


@pytest.mark.parametrize(
    "content",
    [
        b"video,caption\na.mp4,A dog\n",
        b"\xef\xbb\xbfvideo,caption\r\na.mp4,A dog\r\n",
        "video;caption\r\na.mp4;A dog\r\n".encode("utf-16"),
        b"sep=;\r\nvideo;caption\r\na.mp4;A dog\r\n",
        b"video\tcaption\na.mp4\tA dog\n",
        b"video|caption\na.mp4|A dog\n",
        b"video, caption\na.mp4, A dog\n",
        b"# made by hand\n\nvideo,caption\na.mp4,A dog\n\n\n",
        b"#video,caption\na.mp4,A dog\n",
        b"video,caption,,\na.mp4,A dog,,\n",
    ],
)
def test_the_header_tells_the_delimiter_whatever_stands_around_it(content: bytes, tmp_path: Path) -> None:
    assert cells(read(tmp_path, "a.csv", content)) == [("a.mp4", "A dog")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "video,caption\na.mp4,A dog, a cat\n", "line 2: 3 cells"),
        ("a.csv", "video,caption\na.mp4,A dog\nb.mp4\n", "line 3: 1 cells"),
        ("a.csv", "video,caption\na.mp4,A dog,\n", "line 2: 3 cells"),
        ("a.csv", "video,caption,\na.mp4,A dog, a cat\n", "line 2: 3 cells"),
        ("a.tsv", "video\tcaption\na.mp4\tA dog\ta cat\n", "line 2: 3 cells"),
        ("a.csv", 'video,caption\na.mp4,"Hello\nb.mp4,A car\n', "line 2: a quote that is opened here is never closed"),
        ("a.csv", 'video,caption\na.mp4,"Hello\nb.mp4,"A car, red"\n', r"line 3: text after a closing quote.*line 2"),
        ("a.csv", 'video,caption\nx/a1.mp4,"Hello\nx/b22.mp4,A car"\n', r"line 2.*looks like a row"),
        ("a.csv", 'caption,video\n"A sign,a.mp4\nA car,b.mp4\nA tree",c.mp4\n', "line 2.*looks like a row"),
        ("a.csv", 'caption,video_id\n"A sign,video1\nA car,video22\nA tree",video3\n', "line 2.*looks like a row"),
        ("a.csv", "video,caption\ra.mp4,x\rb.mp4,y\r", "line 1: its lines end in carriage returns alone"),
        ("a.csv", "<!DOCTYPE html>\n<html></html>\n", "a web page"),
        ("a.jsonl", '{"video": "a"},\n{"video": "b"}\n', "line 1 is not JSON.*a comma too many"),
        ("a.csv", 'video,caption\na.mp4,"A "red" car"\n', "line 2: text after a closing quote"),
        ("a.csv", "video,caption,Caption\na.mp4,x,y\n", r"line 1: the header has the column 'caption' and 'Caption' twice"),
        ("a.csv", "\n\n", "no rows"),
        ("a.csv", "", "no rows"),
        ("a.csv", b"video,caption\na.mp4,caf\xe9\n", "line 2 is not UTF-8"),
        ("a.csv", b"v\0i\0d\0e\0o\0,\0c\0\n\0", "line 1 holds a zero byte"),
        ("a.xlsx", b"PK\x03\x04...", "an Excel workbook.*CSV UTF-8"),
        ("a.xls", b"\xd0\xcf\x11\xe0...", "an old Excel workbook.*CSV UTF-8"),
        ("a.csv", b"PAR1...", "a Parquet file; write it as JSON lines"),
        ("a.csv", b"BZh9...", "bzip2-compressed"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd...", "zstd-compressed"),
        ("a.csv", b"SQLite format 3\x00", "an SQLite database"),
        ("a.json", b"\x93NUMPY...", "a NumPy array"),
        ("a.pkl", b"\x80\x04...", "a Python pickle, which is not opened"),
        ("a.jsonl", '{"video": "a"}\n{"video": \n', "line 2 is not JSON"),
        ("a.jsonl", '{"video": "a"}\n[1]\n', "line 2: found a list; expected an object"),
        ("a.json", '[{"video": "a"},\n 7]', r"entry 2 \(line 2\): found the number 7; expected an object"),
        ("a.json", '[{"video": "a"},\n]', r"not JSON \(line 2.*a comma too many"),
        ("a.json", '[{"video": "a", "video": "b"}]', "entry 1: the name 'video' stands twice"),
        ("a.json", '{"a.mp4": "x", "a.mp4": "y"}', "line 1: the name 'a.mp4' stands twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_line(
    name: str, content: str | bytes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(VtrError, match=says) as error:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_tabs_do_not_quote_unless_the_file_shows_that_its_writer_did(tmp_path: Path) -> None:
    literal = 'video\tcaption\na.mp4\t"Hello world is on a sign\nb.mp4\t"Stop" says the sign\nc.mp4\t"Stop"\n'
    assert [c for _, c in cells(read(tmp_path, "a.tsv", literal))] == [
        '"Hello world is on a sign', '"Stop" says the sign', '"Stop"',
    ]  # fmt: skip
    quoted = 'video\tcaption\na.mp4\t"He said ""stop"""\nb.mp4\tA car\n'
    assert [c for _, c in cells(read(tmp_path, "a.tsv", quoted))] == ['He said "stop"', "A car"]
    excel = 'video\tcaption\na.mp4\t"A dog, a cat"\nb.mp4\tA car\n'
    assert [c for _, c in cells(read(tmp_path, "a.tsv", excel))] == ["A dog, a cat", "A car"]


def test_a_row_of_a_file_is_no_header_whatever_its_other_cells_say(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "a.mp4,action\nb.mp4,text\n").columns == ()


def test_rows_are_named_by_the_line_they_begin_on(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", '\nvideo,caption\na.mp4,"one\ntwo"\n\nb.mp4,three\n')
    assert [r.place for r in table.records] == ["line 3", "line 6"]
    table = read(tmp_path, "a.json", '[\n{"video": "a"},\n\n{"video": "b"}]')
    assert [r.place for r in table.records] == ["entry 1 (line 2)", "entry 2 (line 4)"]


def test_a_line_break_in_a_quoted_caption_is_no_row(tmp_path: Path) -> None:
    captions = ["A man\nwalks, slowly, on", "two birds.\n two birds, again"]
    table = read(tmp_path, "a.csv", written([("video", "caption"), *((f"{i}.mp4", c) for i, c in enumerate(captions))]))
    assert [c for _, c in cells(table)] == captions


def test_objects_of_several_lines_behind_each_other_are_rows(tmp_path: Path) -> None:
    text = "\n".join(json.dumps({"video": v, "caption": "x"}, indent=1) for v in "ab")
    table = read(tmp_path, "a.jsonl", text)
    assert [r.cells["video"] for r in table.records] == ["a", "b"]
    assert [r.line for r in table.records] == [1, 5]
