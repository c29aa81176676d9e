"""Recognition data sets in their own layouts: which files there are, and of which class each is."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vtr.data.cells import NOTHING, name_of
from vtr.data.finder import RootIndex, VideoFinder
from vtr.data.lists import LABEL, VIDEO, of_split, split_of, tell_others
from vtr.data.litter import folder_left_out
from vtr.data.tables import Record, Table, normal, read_table, read_text, refuse, split_lines, what_is
from vtr.errors import VtrError, unknown_name

IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_VIDEOS = (".mp4", ".avi", ".webm", ".mkv", ".mov")
SPLITS = ("train", "val", "test")
_LENGTH = ("duration", "seconds", "frames", "numframes", "totalframes")
_KNOWN = frozenset((*VIDEO, *LABEL, *_LENGTH, "timestart", "timeend", "split"))


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled image, video, folder of frames, or window of a video.

    Attributes:
        path: A file, or a folder of numbered frames.
        label: Class number, or the target of a regression.
        name: Unique in its split, folders included: results of views are merged by it.
        start, end: Seconds; None = from the beginning, to the end.
        duration: Seconds of the whole video, where the annotation says.
    """

    path: Path
    label: float
    name: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """The items of a split, where they were read from, and what is not on disk.

    Attributes:
        classes: Their number as named by the annotation, 0 where it names none.
        names: The classes' names, where the list has words for labels: their numbers are places in it.
    """

    items: tuple[Item, ...]
    source: str
    classes: int
    missing: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A row of a list: a file, its class as written, the number between or behind them, and its split where it says one."""

    place: str
    path: str
    label: str
    number: float | None = None
    split: str = ""


# ---- lists --------------------------------------------------------------------------------------------------------


def read_list(path: Path, *, window: bool = False) -> list[tuple[str, float, float | None]]:
    """(path, label, duration or number of frames) of a list; see `labelled_rows`.

    Raises:
        VtrError: A row is something else, or its label is no number; the message has its line.
    """
    rows = []
    for row in labelled_rows(path, window=window):
        if not _number(row.label):
            raise refuse(path, row.place, f"the label {row.label!r}", "a class number (words name classes of own data)")
        rows.append((row.path, float(row.label), row.number))
    return rows


def labelled_rows(path: Path, *, window: bool = False, words: bool = False) -> list[Labelled]:
    """The rows of a list `path label`, comma-, semicolon-, tab- or space-separated, with a header or without.

    A header's names decide what a column is. Without one, three columns are `path frames label` (raw frames), or with
    `window` `path label duration` (LVU).

    Args:
        words: Labels may be words.

    Raises:
        VtrError: A row is something else; the message has its line.
    """
    try:
        table = read_table(path, _KNOWN)
    except VtrError as error:
        raise VtrError(f"annotation {error}") from None
    if isinstance(table, dict):
        raise VtrError(f"annotation {path}: expected rows of a path and a label, found an object")
    if table.columns and table.columns != ("",):
        names = {normal(c): c for c in reversed(table.columns)}
        for what, known in (("the file", VIDEO[:-2]), ("the class", LABEL)):
            tell_others(table, what, [names[n] for n in known if n in names][:1], known)
        return [_named(table, record) for record in table.records if any(str(v).strip() for v in record.cells.values())]
    rows = _headless(path, table.text, window, words)
    if not rows:
        raise VtrError(f"annotation {path}: no rows")
    return rows


def _named(table: Table, record: Record) -> Labelled:
    names = {normal(c): c for c in reversed(table.columns)}
    video = next((names[n] for n in VIDEO if n in names), None)
    label = next((names[n] for n in LABEL if n in names), None)
    if video is None or label is None:
        what = "file (video, path …)" if video is None else "class (label, class, category …)"
        raise VtrError(f"annotation {table.path}: columns {', '.join(table.columns)}; expected one for the {what}")
    found = {}
    for what, column in (("path", video), ("label", label)):
        value = record.cells.get(column)
        text, why = (repr(value), "") if isinstance(value, float) and np.isfinite(value) else name_of(value)
        if not why and text in NOTHING:
            why = f"is {text!r}, which stands for a value that is missing"
        if why:
            raise refuse(table.path, record.place, f"{column} {why}", "a file and its class in every row")
        found[what] = text
    length = next((record.cells.get(names[n]) for n in _LENGTH if n in names), None)
    number = float(str(length)) if length is not None and _number(str(length)) else None
    return Labelled(place=record.place, number=number, split=split_of(record.cells), **found)


def _headless(path: Path, text: str, window: bool, words: bool) -> list[Labelled]:
    """Rows without a header, split by the one mark under which all of them are a path and its numbers."""
    lines = [(n, line.strip()) for n, line in enumerate(split_lines(text), 1) if line.strip()]
    names = [normal(word) for word in lines[0][1].split()] if lines else []
    if len(names) > 1 and all(name in _KNOWN for name in names):
        return [_spaced(path, number, line, names) for number, line in lines[1:]]
    worst: tuple[int, str] | None = None
    for mark in (",", "\t", ";", " "):
        rows = []
        for number, line in lines:
            row = _cells(line, mark, window, words)
            if row is None:
                if worst is None and (mark in line or mark == " "):
                    worst = (number, line)
                break
            rows.append(replace(row, place=f"line {number}"))
        else:
            return rows
    kind = "path, label, duration" if window else "path and label, or path, number of frames and label"
    number, line = worst or lines[0]
    raise VtrError(
        f"annotation {path}: line {number} is {line[:80]!r}; expected {kind}, or a header that names columns"
    )


def _spaced(path: Path, number: int, line: str, names: Sequence[str]) -> Labelled:
    """A row under a header with blanks between its names; only the file's name may hold blanks."""
    video = next((i for i, name in enumerate(names) if name in VIDEO), None)
    label = next((i for i, name in enumerate(names) if name in LABEL), None)
    if video != 0 or label is None:
        raise VtrError(f"annotation {path}: columns {', '.join(names)}; expected the file first, and its label")
    cells = line.rsplit(maxsplit=len(names) - 1)
    if len(cells) != len(names):
        raise refuse(path, f"line {number}", f"{len(cells)} cells under {len(names)} columns", "as many")
    length = next((cells[i] for i, name in enumerate(names) if name in _LENGTH), "")
    return Labelled(
        place=f"line {number}", path=cells[0], label=cells[label], number=float(length) if _number(length) else None
    )


def _cells(line: str, mark: str, window: bool, words: bool) -> Labelled | None:
    if mark == " ":
        cells = line.rsplit(maxsplit=2)
        if len(cells) == 3 and not _number(cells[1]):
            cells = line.rsplit(maxsplit=1)  # a space in the path
    elif mark == "\t":
        cells = line.split(mark)
    else:
        try:
            cells = next(csv.reader([line], delimiter=mark, strict=True, skipinitialspace=True))
        except csv.Error:
            return None
    cells = [c.strip() for c in cells]
    while len(cells) > 2 and not cells[-1]:
        cells.pop()
    if len(cells) not in (2, 3) or not cells[0] or not all(cells):
        return None
    label, other = (cells[1], None) if len(cells) == 2 else (cells[1], cells[2]) if window else (cells[2], cells[1])
    if not (words or _number(label)) or not (other is None or _number(other)):
        return None
    return Labelled(place="", path=cells[0], label=label, number=None if other is None else float(other))


def _number(text: str) -> bool:
    try:
        return "_" not in text and bool(np.isfinite(float(text)))  # Python takes 1_0 for 10
    except ValueError:
        return False


def _from_list(path: Path, root: Path, split: str, layout: str, names: Sequence[str]) -> Split:
    lvu, own = layout == "lvu", layout == "own"
    bases = [root, root / split, root / "videos", root / "images", path.parent]
    rows = labelled_rows(path, window=lvu, words=own)
    rows = [rows[i] for i in of_split(path, [(row.place, row.split) for row in rows], split)]
    if own and (names or not all(_number(row.label) for row in rows)):
        names = tuple(names) or tuple(sorted({row.label for row in rows}))
    else:
        names = ()
    _check_spelling(path, names)
    finder = VideoFinder(RootIndex(root)) if own else None
    items = []
    for row in rows:
        if names and row.label not in names:
            raise refuse(
                path, row.place, f"the class {row.label!r}", f"one of the training list: {', '.join(names[:10])}"
            )
        if not names and not _number(row.label):
            raise refuse(path, row.place, f"the label {row.label!r}", "a class number (words name classes of own data)")
        label = float(names.index(row.label)) if names else float(row.label)
        file = _found(row.path, bases)
        if finder is not None and not file.exists():  # a name without its folder, or its ending
            file = finder.find(row.path) or file
        items.append(Item(path=file, label=label, name=row.path, duration=row.number if lvu else None))
    return Split(items=tuple(items), source=str(path), classes=len(names), names=tuple(names))


def _check_spelling(path: Path, names: Sequence[str]) -> None:
    """Refuse classes that differ in capitals and blanks alone: nobody means two."""
    spelt: dict[str, str] = {}
    for name in names:
        other = spelt.setdefault(" ".join(name.lower().split()), name)
        if other != name:
            raise VtrError(
                f"annotation {path}: the classes {other!r} and {name!r} are spelt differently; expected one spelling"
            )


def _found(name: str, bases: Sequence[Path]) -> Path:
    """Where a listed file lies; its first place when it is nowhere."""
    if Path(name).is_absolute():
        return Path(name)
    return next((base / name for base in bases if (base / name).exists()), bases[0] / name)


# ---- layouts ------------------------------------------------------------------------------------------------------


def _imagenet(root: Path, split: str) -> Split | None:
    """ImageNet: SPLIT/wnid/*.JPEG, classes in the order of their names."""
    folder = next((root / n for n in (split, {"test": "val"}.get(split, split)) if (root / n).is_dir()), None)
    if folder is None:
        return None
    # `.ipynb_checkpoints` and `@eaDir` are no classes.
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not folder_left_out(p.name, "", False))
    items = [
        Item(path=path, label=number, name=str(path.relative_to(folder)))
        for number, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    ]
    return Split(items=tuple(items), source=f"{folder}/CLASS/*", classes=len(names)) if items else None


def _k400(root: Path, split: str) -> Split | None:
    """Kinetics: SPLIT.csv with label, youtube_id, time_start, time_end; SPLIT/label/ID_start_end.mp4 or SPLIT/ID_….mp4."""
    path = _first(root, (f"{split}.csv", f"annotations/{split}.csv", f"kinetics400/{split}.csv"))
    rows = _dicts(path, ("label", "youtube_id")) if path else None
    if path is None or rows is None:
        return None
    train = _first(path.parent, ("train.csv",)) or path
    names = sorted({row["label"] for _, row in _dicts(train, ("label",)) or rows})
    items = []
    for place, row in rows:
        if row["label"] not in names:
            raise VtrError(f"annotation {path}: {place}: class {row['label']!r} is not in {train}")
        stem = row["youtube_id"]
        if row.get("time_start"):
            stem += f"_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        places = [
            root / middle / f"{name}{end}"
            for middle in (f"{split}/{row['label']}", f"{split}/{row['label'].replace(' ', '_')}", split, "videos", ".")
            for name in (stem, row["youtube_id"])
            for end in _VIDEOS
        ]
        found = next((p for p in places if p.exists()), places[0])
        items.append(Item(path=found, label=names.index(row["label"]), name=f"{row['label']}/{stem}"))
    return Split(items=tuple(items), source=str(path), classes=len(names))


def _ssv2(root: Path, split: str) -> Split | None:
    """Something-Something: labels.json {template: number}, {train,validation}.json [{id, template}], videos ID.webm."""
    word = {"train": "train", "val": "validation", "test": "validation"}[split]
    folders = ("", "labels/", "annotations/")
    names = [f"{f}{p}{word}.json" for f in folders for p in ("something-something-v2-", "")]
    path = _first(root, tuple(names))
    labels = _first(root, tuple(f"{f}{p}labels.json" for f in folders for p in ("something-something-v2-", "")))
    if path is None or labels is None:
        return None
    numbers = _json_object(labels)
    items = []
    table = read_table(path, ("id", "template"))
    for record in table.records if isinstance(table, Table) else ():
        template = str(record.cells.get("template")).replace("[", "").replace("]", "")
        name, why = name_of(record.cells.get("id"))
        if why or template not in numbers:
            raise VtrError(f"annotation {path}: {record.place}: a row has no known template or id ({template!r})")
        places = [
            root / middle / f"{name}{end}"
            for middle in ("20bn-something-something-v2", "videos", ".")
            for end in (".webm", ".mp4")
        ]
        label = _class_number(numbers[template], labels)
        items.append(Item(path=next((p for p in places if p.exists()), places[0]), label=label, name=name))
    return Split(items=tuple(items), source=str(path), classes=len(numbers))


def _coin(root: Path, split: str) -> Split | None:
    """COIN: COIN.json {database: {id: {recipe_type, subset}}}; videos ID.mp4 somewhere below the root."""
    path = _first(root, ("COIN.json", "annotations/COIN.json"))
    if path is None:
        return None
    wanted = "training" if split == "train" else "testing"
    finder = VideoFinder(RootIndex(root))
    items = []
    classes = set()
    database = _json_object(path).get("database")
    for name, row in sorted(database.items()) if isinstance(database, dict) else ():
        if not isinstance(row, dict):
            raise VtrError(f"annotation {path}: entry {name!r} is {what_is(row)}; expected recipe_type and subset")
        label = _class_number(row.get("recipe_type"), path)
        classes.add(label)
        if row.get("subset") == wanted:
            items.append(Item(path=finder.find(name) or root / f"{name}.mp4", label=label, name=name))
    return Split(items=tuple(items), source=str(path), classes=len(classes))


# The ten meals in alphabetical order, and the persons of the data set's split s1, which is tested on.
_MEALS = ("cereals", "coffee", "friedegg", "juice", "milk", "pancake", "salat", "sandwich", "scrambledegg", "tea")
_TESTED = range(3, 16)


def _breakfast(root: Path, split: str) -> Split | None:
    """Breakfast: the meal and the person are in the file's name, as in P03/cam01/P03_cereals.avi."""
    items = []
    for path in sorted(p for p in RootIndex(root).files if p.suffix.lower() in _VIDEOS and not p.name.startswith(".")):
        found = re.search(r"P(\d\d)", path.stem)
        meal = path.stem.rsplit("_", 1)[-1].lower()
        if found is None or meal not in _MEALS:
            continue
        if (int(found.group(1)) in _TESTED) == (split != "train"):
            name = str(path.relative_to(root))
            items.append(Item(path=path, label=_MEALS.index(meal), name=name))
    return Split(items=tuple(items), source=f"{root}/**/P??_MEAL.*, split s1", classes=len(_MEALS)) if items else None


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / n for n in names if (root / n).is_file()), None)


def _json_object(path: Path) -> dict[str, object]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise VtrError(f"annotation {path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise VtrError(f"annotation {path}: expected an object, found {what_is(found)}")
    return found


def _class_number(value: object, path: Path) -> int:
    if isinstance(value, (int, str)) and not isinstance(value, bool) and str(value).strip().isdigit():
        return int(value)
    raise VtrError(f"annotation {path}: a class is {what_is(value)}; expected a number")


def _dicts(path: Path, needed: Sequence[str]) -> list[tuple[str, dict[str, str]]] | None:
    """(place, row) of a CSV with these columns; None where it has others."""
    table = read_table(path, _KNOWN)
    if not isinstance(table, Table) or not set(needed) <= set(table.columns):
        return None
    return [(r.place, {k: str(v) for k, v in r.cells.items()}) for r in table.records]


LAYOUTS: dict[str, Callable[[Path, str], Split | None] | None] = {
    "imagenet": _imagenet,
    "k400": _k400,
    "ssv2": _ssv2,
    "coin": _coin,
    "breakfast": _breakfast,
    "lvu": None,
    "own": None,
}


def load_split(
    layout: str, root: Path, split: str, *, file: Path | None = None, part: str = "", names: Sequence[str] = ()
) -> Split:
    """The items of a split.

    Args:
        layout: A data set's own layout (`LAYOUTS`); lists `path label` are understood everywhere: ROOT/SPLIT.csv or
            .txt, ROOT/meta/SPLIT.txt, LVU also ROOT/PART/SPLIT.csv. "own" is own data: a list whose labels may be words.
        file: This list instead.
        part: Of LVU.
        names: Of own data: the classes (`Split.names` of the training split), so that all splits number them alike.

    Raises:
        VtrError: Nothing fits; the message says what was looked for.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if file is None:
        own = LAYOUTS[layout]
        # Many sets have one labelled split beside the training: it is both val and test.
        words = (split, "test") if split == "val" else (split, "val") if split == "test" else (split,)
        for word in words if own is not None and root.is_dir() else ():
            found = own(root, word) if own is not None else None
            if found is not None:
                return _with_missing(found)
        bases = [root / part, root, root / "meta", root / "annotations"]
        places = [b / f"{w}.{e}" for w in words for b in bases for e in ("csv", "txt", "tsv", "jsonl", "json")]
        file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise VtrError(
            f"{root}: no {split} split of {layout} found; expected its own layout (see the README), or a list "
            f"`path label` at {root / (split + '.csv')}, or --{split} LIST"
        )
    return _with_missing(_from_list(file, root, split, layout, names))


def _with_missing(split: Split) -> Split:
    seen: dict[str, int] = {}
    for item in split.items:
        seen[item.name] = seen.get(item.name, 0) + 1
    doubled = [n for n, count in seen.items() if count > 1]
    if doubled:
        raise VtrError(f"annotation {split.source}: {doubled[0]!r} is listed {seen[doubled[0]]} times")
    missing = tuple(str(i.path) for i in split.items if not i.path.exists())
    return replace(split, missing=missing, items=tuple(i for i in split.items if i.path.exists()))


def windows(item: Item, length: float, stride: float) -> list[Item]:
    """A long video in windows (docs/notes/videomamba.md): the last ones are kept if at least half a window remains."""
    duration = item.duration
    if length <= 0 or duration is None or duration < length:
        return [item]
    starts = np.arange(0.0, duration - length / 2 + 1e-6, stride)
    return [replace(item, start=float(s), end=float(min(duration, s + length))) for s in starts]
