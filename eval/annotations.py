"""Annotation files of the field, in every format they are published in, to items of (videos, captions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtr.data.cells import name_of, texts_of
from vtr.data.lists import KNOWN, Entry, Listing, listing_of
from vtr.data.media import ending
from vtr.data.tables import Record, Table, normal, read_names, read_table, refuse, what_is
from vtr.errors import VtrError

_CHOICES = tuple(f"a{i}" for i in range(1, 6))  # MSR-VTT's multiple-choice CSV
_CLASS_COLUMNS = ("label", "class", "classid", "answer")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of an annotation file: usually one video with its captions."""

    videos: tuple[str, ...]  # names as the file has them; several where one text describes several videos
    captions: tuple[str, ...]  # in a multiple-choice file: the options
    answer: int | None = None  # the right option, or the class
    wrong: tuple[str, ...] = ()  # in pairs of a right and a wrong text: the wrong one of each caption
    kind: str = ""  # what such a pair differs in


def read_annotations(
    path: Path, *, split: str = "test", ids: Path | None = None, choices: bool = False
) -> tuple[str, list[Item]]:
    """Read an annotation file; its format is recognised by its content.

    Args:
        path: A list in any format that `vtr.data.lists` reads, or a zip of one.
        split: Which part, where one file holds several.
        ids: A file with one video id a line: only these, in its order.
        choices: It is a multiple-choice file: a list of captions is a list of options.

    Returns:
        The format in words, and the items; captions of one video that stand apart are brought together.

    Raises:
        VtrError: The file is missing, damaged or of no known format, a row of it is no query (with its line), or it
            lacks a video that `ids` names.
    """
    if not path.is_file():
        raise VtrError(f"{path}: the annotation file is missing; give its folder with --data-root")
    table = read_table(path, KNOWN | {"template", "options", "answer", *_CHOICES})
    if isinstance(table, dict):
        listed = table.get(split)
        inner = _rows_of(path, listed) if isinstance(listed, list) else None
        special = _special(inner, choices) if inner is not None else None
        if special is not None:
            special = (f"{special[0]}, split {split}", special[1])
    else:
        special = _special(table, choices)
    name, items = special or _plain(path, table, split, every=ids is not None)
    if not items:
        raise VtrError(f"{path}: no annotations")
    if ids is not None:
        items = _only(items, ids, path)
    return name, items


def read_lines(path: Path) -> list[str]:
    """The lines of a list of ids or classes, without empty ones."""
    return read_names(path)


def without_extension(name: str) -> str:
    """The id of a video name: its last part up to the last dot (some published names end with a bare dot)."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = last.rpartition(".")
    # LSMDC's clip names hold times with dots; an extension has a letter in it, or nothing.
    return stem if dot and (not extension or (len(extension) <= 5 and not extension.isdigit())) else last


def video_id(name: str) -> str:
    """The id of a video name as `without_extension`, but only a medium's ending is one: "a.b" is not "a"."""
    last = name.strip().replace("\\", "/").rsplit("/", 1)[-1]
    return last[: -len(ending(last)) - 1] if ending(last) else last.rstrip(".")


def _rows_of(path: Path, rows: Sequence[object]) -> Table | None:
    """A list inside a JSON object as a table; None where its entries are no objects."""
    records = [Record(line=0, place=f"entry {i}", cells=r) for i, r in enumerate(rows, 1) if isinstance(r, dict)]
    if not records or len(records) < len(rows):
        return None
    columns = tuple(dict.fromkeys(k for r in records for k in r.cells))
    return Table(path=path, kind="JSON", columns=columns, records=tuple(records), text="")


# ---- formats that are more than files and captions --------------------------------------------------------------


def _special(table: Table, choices: bool) -> tuple[str, list[Item]] | None:
    names = {normal(c): c for c in table.columns}
    if choices or {"videoid", "answer", *_CHOICES} <= names.keys():
        return _multiple_choice(table, names)
    if {"id", "template"} <= names.keys() and table.kind.startswith("JSON"):
        return "Something-Something release", [
            Item(videos=(_name(table, r, "id"),), captions=(_text(table, r, "label", "template"), _text(table, r, "template")))
            for r in table.records
        ]  # fmt: skip
    return None


def _multiple_choice(table: Table, names: dict[str, str]) -> tuple[str, list[Item]]:
    columns = [names[c] for c in _CHOICES if c in names]
    video = next((names[n] for n in ("video", "videoid", "clipname") if n in names), None)
    options = next((names[n] for n in ("caption", "options") if n in names), None)
    if video is None or "answer" not in names or (options is None and len(columns) < 2):
        raise VtrError(
            f"{table.path}: a multiple-choice file has video, caption (the options) and answer; this one "
            f"{sorted(table.columns)}"
        )
    items = []
    for record in table.records:
        values = [record.cells.get(c) for c in columns] if columns else record.cells.get(options or "")
        texts, why = texts_of(values if isinstance(values, list) else [values])
        if why:
            raise refuse(table.path, record.place, why, "the options as texts")
        answer = _whole(table, record, names["answer"])
        if not 0 <= answer < len(texts):
            raise VtrError(f"{table.path}: {record.place}: {_name(table, record, video)}: answer {answer} of {len(texts)} options")  # fmt: skip
        items.append(Item(videos=(_name(table, record, video),), captions=texts, answer=answer))
    return "multiple-choice CSV" if columns else "multiple choice", items


def _name(table: Table, record: Record, column: str) -> str:
    name, why = name_of(record.cells.get(column))
    if why:
        raise refuse(table.path, record.place, f"{column} {why}", "a video's name or id")
    return name


def _text(table: Table, record: Record, *columns: str) -> str:
    value = next((record.cells[c] for c in columns if c in record.cells), None)
    if not isinstance(value, str):
        raise refuse(
            table.path, record.place, f"{columns[0]} is {what_is(value)}", "text (an entry is not as the others)"
        )
    return value


def _whole(table: Table, record: Record, column: str) -> int:
    value = record.cells.get(column)
    try:
        number = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None:
        raise refuse(table.path, record.place, f"{column} is {what_is(value)}", "a whole number")
    return number


# ---- files and captions -----------------------------------------------------------------------------------------


def _plain(path: Path, table: Table | dict[str, object], split: str, *, every: bool) -> tuple[str, list[Item]]:
    found = listing_of(path, table, split, every=every)
    for entry in found.entries:
        if entry.bad and not (entry.videos and not found.captioned):
            raise refuse(
                path, entry.place, entry.bad, "a video and a caption in every row (a query less is another benchmark)"
            )
    columns = {normal(c) for c in table.columns} if isinstance(table, Table) else set()
    if not found.captioned:
        return _without_captions(path, found)
    if any(len(e.videos) > 1 for e in found.entries):
        return "texts with several videos", [Item(videos=e.videos, captions=e.captions) for e in found.entries]
    name = _format_name(found, columns)
    whole_path = name != "CSV of paragraphs"  # its paths are of the machine that it was made on
    return name, _grouped(((e.videos[0] if whole_path else _last(e.videos[0])), e.captions) for e in found.entries)


def _format_name(found: Listing, columns: set[str]) -> str:
    chosen = {normal(c) for c in found.columns}
    if found.kind == "CSV":
        for needed, name in (
            ({"videoid", "sentence"}, "JSFusion CSV"),
            ({"videopath", "text"}, "CSV of paragraphs"),
            ({"videoid", "name"}, "WebVid CSV"),
        ):
            if needed <= columns and needed <= chosen:
                return name
        return f"CSV of {', '.join(found.columns)}"
    kind, comma, rest = found.kind.partition(", split")
    if kind.startswith("JSON"):
        kind = "DiDeMo release" if chosen >= {"video", "description"} else "official JSON"
    return f"{kind}{comma}{rest}"


def _without_captions(path: Path, found: Listing) -> tuple[str, list[Item]]:
    """A list of videos, or of videos with class numbers as action recognition has them."""
    labels = [_label(entry) for entry in found.entries]
    if any(label is not None for label in labels):
        for entry, label in zip(found.entries, labels):
            if label is None:
                raise refuse(path, entry.place, "no class number", "lines `video,class`")
        return "videos with class numbers", [
            Item(videos=e.videos, captions=(), answer=label) for e, label in zip(found.entries, labels)
        ]
    if found.kind.startswith("JSON"):
        raise VtrError(f"{path}: its entries have {', '.join(found.columns)}; expected a caption in each too")
    names = dict.fromkeys(e.videos[0] for e in found.entries if e.videos[0])
    return "list of videos", [Item(videos=(name,), captions=()) for name in names]


def _label(entry: Entry) -> int | None:
    value = next((v for k, v in entry.more.items() if normal(k) in _CLASS_COLUMNS), None)
    try:
        return int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        return None


def _last(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _grouped(rows: Iterable[tuple[str, Sequence[str]]]) -> list[Item]:
    by_video: dict[str, list[str]] = {}
    for video, captions in rows:
        by_video.setdefault(video, []).extend(captions)
    return [Item(videos=(video,), captions=tuple(captions)) for video, captions in by_video.items()]


def _only(items: list[Item], ids: Path, path: Path) -> list[Item]:
    listed, items_of = listing_of(ids, read_table(ids, KNOWN)), dict[str, Item]()
    wanted = [video_id(entry.videos[0]) for entry in listed.entries]
    for item in items:
        own = video_id(item.videos[0])
        if own in items_of:
            raise VtrError(
                f"{path}: {items_of[own].videos[0]!r} and {item.videos[0]!r} are one id of {ids}; expected one item"
            )
        items_of[own] = item
    absent = [i for i in wanted if i not in items_of]
    if absent:
        raise VtrError(f"{path}: lacks {len(absent)} of the {len(wanted)} videos of {ids} ({', '.join(absent[:3])}, …)")
    return [items_of[i] for i in dict.fromkeys(wanted)]
