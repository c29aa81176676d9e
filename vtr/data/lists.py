"""What a list of files and captions means: one table of column names, and the layouts that the field's data sets have.

Shards, `--corpus FILE`, evaluation, validation, fine-tuning, `vtr embed` and `--metadata` read their lists here:

    for entry in read_list(Path("captions.csv")).entries:
        entry.place, entry.videos, entry.captions, entry.bad, entry.more

A library's metadata are `read_list(path, captions=False)`: `entry.videos[0]` is the path as written (relative to the
list's folder), `entry.more` all other columns, texts in a table, values in JSON; `entry.bad` is then about the path alone.
Nothing is replaced or skipped: a row that cannot be used says why in `bad`, a file that cannot be meant is an error.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vtr.data.cells import name_of, texts_of
from vtr.data.tables import Record, Table, bare, normal, read_table, refuse, what_is
from vtr.errors import VtrError

# Names of columns as `normal` makes them, the surest first. `name` is a caption in WebVid's lists and a file elsewhere,
# `id` a file only where nothing else is.
VIDEO = (
    "video", "videopath", "videofile", "videofilename", "path", "filepath", "file", "filename", "image", "imagepath",
    "imagefile", "imagefilename", "clip", "clippath", "clipname", "media", "mediapath", "img", "imgpath", "videoname",
    "imagename", "vid", "videoid", "clipid", "imageid", "youtubeid", "ytid", "vidid", "url", "videourl", "contenturl",
    "imageurl", "name", "id",
)  # fmt: skip
CAPTION = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "encap", "description", "descriptions", "title",
    "query", "rawcaption", "alttext", "prompt", "name",
)  # fmt: skip
LABEL = ("label", "labels", "class", "classid", "classname", "category", "categoryid", "action", "target")
KEY = ("key", "id", "sampleid", "uid")
KNOWN = frozenset((*VIDEO, *CAPTION, *LABEL, *KEY))
_NUMBERED = re.compile(r"(caption|text|sentence|description)\d+")
# Columns that say which part of its file a row is of, as `normal` makes them.
_SPAN = re.compile(
    r"(clip|segment|time|t|video)?(start|begin|end|stop)(time|times|timestamp|s|sec|secs|seconds|ms|frame|\W.*)?|timestamps?"
)
_SPANS = re.compile(r"\[\s*[\[(].*[\])]\s*,\s*[\[(].*", re.DOTALL)  # several of them in one cell
_SPLIT_NAMES = (("train", "training", "restval"), ("val", "validate", "validation", "dev"), ("test", "testing"))
_SPLITS = tuple(name for names in _SPLIT_NAMES for name in names)
_SPLIT = ("split", "subset", "partition")  # columns of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One item of a list.

    Attributes:
        line: Where it begins in the file (0: unknown), and `place` the same in words.
        videos: Names of its files as the list has them; several where one text describes several.
        captions: Its texts, blank ends cut.
        key: Its own id, where the list has a column of them.
        bad: Why it cannot be used, "" where it can.
        cells: The row's values by column, and `column` that of its files.
        split: Which part of the file it says it belongs to.
    """

    place: str
    line: int = 0
    videos: tuple[str, ...]
    captions: tuple[str, ...] = ()
    key: str | None = None
    bad: str = ""
    cells: Mapping[str, object] = field(default_factory=dict)
    column: str = ""
    split: str = ""

    @property
    def more(self) -> dict[str, object]:
        """Every column but that of its files."""
        return {k: v for k, v in self.cells.items() if k != self.column}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The items of a file.

    Attributes:
        kind: Its format in words.
        captioned: Whether it has captions at all.
        columns: The names that were read, and those that could have been meant as well.
    """

    path: Path
    kind: str
    entries: tuple[Entry, ...]
    captioned: bool = True
    columns: tuple[str, ...] = ()

    def need_captions(self) -> Listing:
        """This list, or the error that it has no captions."""
        if not self.captioned:
            raise VtrError(
                f"{self.path}: a list of files without captions ({_shown(self.columns)}); expected one of {', '.join(CAPTION[:6])} too"
            )
        return self


def read_list(path: Path, *, split: str | None = None, captions: bool = True) -> Listing:
    """Read a list of files, with captions where it has them, in any format.

    Args:
        split: Which part, where one file holds several, by names in it or by a column.
        captions: Look at captions and ids; otherwise these are columns as all others.

    Raises:
        VtrError: The file cannot be meant: file, line, what was found, what was expected.
    """
    return listing_of(path, read_table(path, KNOWN), split, captions)


def listing_of(
    path: Path,
    table: Table | dict[str, object],
    split: str | None = None,
    captions: bool = True,
    *,
    every: bool = False,
) -> Listing:
    """The items of a table that was read; with `every` those of all splits that a column tells apart."""
    if isinstance(table, Table):
        found = _of_table(table) if captions else _uncaptioned(table)
    else:
        found = _of_object(path, table, split)
    if not found.entries:
        raise VtrError(f"{path}: no rows")
    if captions and found.captioned:
        _check_whole(path, found.entries)
    if every or not captions:
        return found
    chosen = of_split(path, [(e.place, e.split) for e in found.entries], split)
    if len(chosen) == len(found.entries):
        return found
    return replace(found, kind=f"{found.kind}, split {split}", entries=tuple(found.entries[i] for i in chosen))


def _check_whole(path: Path, entries: Sequence[Entry]) -> None:
    """Refuse captions of several parts of one file: here they would be taken for captions of the whole."""
    first: dict[str, tuple[Entry, dict[str, str]]] = {}
    for entry in entries:
        span = {k: str(v).strip() for k, v in entry.cells.items() if k != entry.column and _SPAN.fullmatch(normal(k))}
        other, theirs = first.setdefault(entry.videos[0] if span and entry.videos else "", (entry, span))
        # A list of JSON's own is ActivityNet's: sentences of a paragraph, which tells of the whole.
        several = len(entry.captions) > 1 and any(
            _SPANS.match(v) for k, v in span.items() if isinstance(entry.cells[k], str)
        )
        if span and (several or theirs != span) and not entry.bad:
            told, before = (", ".join(f"{k} {v[:60]}" for k, v in s.items()) for s in (span, theirs))
            before = "the same row" if several else f"{other.place} ({before})"
            raise VtrError(
                f"{path}: {entry.place}: tells of a part of {entry.videos[0]} ({told}), and {before} of "
                "another; expected captions of whole files: cut the parts into files of their own, leave those columns "
                "out where the captions are of the whole, or measure moments with python -m vtr.moments"
            )


def of_split(path: Path, rows: Sequence[tuple[str, str]], split: str | None) -> list[int]:
    """Which rows, of (place, what the split's column says), belong to a split; all where the column tells none apart.

    Raises:
        VtrError: There are several and none is asked for, or not the one that is.
    """
    there = {value.strip().lower() for _, value in rows}
    if len(there) < 2 or not there - {""} <= set(_SPLITS):
        return list(range(len(rows)))
    empty = next((place for place, value in rows if not value.strip()), None)
    if empty is not None:
        raise refuse(path, empty, "its split is empty", "one in every row")
    wanted = next((names for names in _SPLIT_NAMES if split in names), (split,))
    chosen = [i for i, (_, value) in enumerate(rows) if value.strip().lower() in wanted]
    if not chosen:
        asked = "" if split is None else f" {split!r}"
        raise VtrError(
            f"{path}: its rows have no split{asked}, only {', '.join(sorted(there))}; say which (`vtr shards build --split`), or give a list of one"
        )
    return chosen


def _shown(columns: Iterable[str]) -> str:
    return ", ".join(sorted(c for c in columns if c)) or "no columns"


def _column(names: Mapping[str, str], wanted: Sequence[str], but: Iterable[str] = ()) -> str | None:
    return next((names[w] for w in wanted if w in names and names[w] not in but), None)


def tell_others(table: Table, what: str, chosen: Sequence[str], names: Collection[str]) -> None:
    """Say, once, which columns could have been meant as well as those that are read, where they say something else.

    Args:
        what: What the column is, in words.
        chosen: The columns that are read.
        names: Those that count as such, as `normal` makes them.
    """
    also = {c for c in table.columns if c not in chosen and normal(c) in names}
    if chosen and also:
        said = [{c: _core(r.cells.get(c), file="video" in names) for c in (*chosen, *also)} for r in table.records]
        other = [c for c in table.columns if c in also and any(r[c] not in ("", *map(r.get, chosen)) for r in said)]
        if other:
            taken, left = (", ".join(map(repr, columns)) for columns in (chosen, other))
            _tell(f"{table.path}: {what} is column {taken}, not {left}, which differs; to choose, rename or drop one")


def _core(value: object, *, file: bool) -> str:
    """What tells two cells apart: the words, of files without folder and ending."""
    text = " ".join(str("" if value is None else value).split())
    return re.sub(r".*[/\\]|\.\w{2,4}$", "", text) if file else text


@functools.cache
def _tell(line: str) -> None:
    # A corpus's list is read again by every rank and every worker of its loader.
    if multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _of_table(table: Table) -> Listing:
    if not table.columns:
        return _headless(table)
    if table.columns == ("",):
        return _plain(table)
    names: dict[str, str] = {}
    for column in table.columns:
        names.setdefault(normal(column), column)
    key = _column(names, KEY)
    caption = _column(names, CAPTION[:-1])
    video = _column(names, VIDEO[:-2]) or _column(names, ("name",) if caption else ())
    if video is None and key is not None and normal(key) in ("id", "key"):
        video, key = key, None
    caption = caption or _column(names, ("name",), but=[video or ""])
    if video is None:
        raise _no_columns(table)
    numbered = [c for n, c in names.items() if _NUMBERED.fullmatch(n)] if caption is None else []
    columns = [c for c in (video, caption or "", *numbered, key or "") if c]
    captions = ([caption] if caption else []) + numbered
    tell_others(table, "the file", [video], VIDEO[:-2])
    tell_others(table, "the caption", captions, {*CAPTION[:-1], *filter(_NUMBERED.fullmatch, names)})
    msvd = [names[n] for n in ("videoid", "start", "end") if n in names]
    records = _msvd(table.records, names, msvd) if len(msvd) == 3 and "description" in names else _filled(table.records)
    return Listing(
        path=table.path,
        kind=table.kind,
        entries=tuple(_entry(r, video, captions, key) for r in records),
        captioned=bool(captions),
        columns=tuple(columns) if captions else table.columns,
    )


def _uncaptioned(table: Table) -> Listing:
    """A table of files and whatever else is known about them."""
    names: dict[str, str] = {}
    for column in table.columns:
        names.setdefault(normal(column), column)
    video = _column(names, VIDEO)
    if not table.columns or table.columns == ("",) or video is None:
        raise VtrError(
            f"{table.path}: {'columns ' + ', '.join(table.columns) if any(table.columns) else 'no header'}; expected columns "
            f"named in the first line, one of them for the file: {', '.join(VIDEO[:8])} …"
        )
    tell_others(table, "the file", [video], VIDEO[: VIDEO.index("vid")])  # ids and addresses are metadata as others
    entries = tuple(_entry(record, video, (), None) for record in _filled(table.records))
    return Listing(path=table.path, kind=table.kind, entries=entries, captioned=False, columns=table.columns)


def _no_columns(table: Table) -> VtrError:
    words = ", ".join(table.columns)
    expected = f"expected columns for the file (one of {', '.join(VIDEO[:8])} …) and the caption (one of {', '.join(CAPTION[:6])} …)"
    if table.kind.startswith("JSON"):
        return VtrError(f"{table.path}: its entries have {_shown(table.columns)}; {expected}")
    return VtrError(f"{table.path}: columns {words}; {expected}")


def _filled(records: tuple[Record, ...]) -> tuple[Record, ...]:
    """Without the empty rows at the end that spreadsheets write."""
    end = len(records)
    while end and all(isinstance(v, str) and not v.strip() for v in records[end - 1].cells.values()):
        end -= 1
    return records[:end]


def _entry(record: Record, video: str, captions: Sequence[str], key: str | None) -> Entry:
    cells = record.cells
    again = all(isinstance(v, str) and bare(v) == bare(k) for k, v in cells.items())
    bad = "the header once more" if again else ""
    value = cells.get(video)
    videos: list[str] = []
    for one in value if isinstance(value, list) and value else [value]:
        name, why = name_of(one)
        if why:
            bad = f"{video} {why}" if video in cells else f"has no {video!r}: it is not as the others"
        videos.append(name)
    texts: tuple[str, ...] = ()
    if captions and not bad:
        there = [c for c in captions if c in cells and (len(captions) == 1 or str(cells[c] or "").strip())]
        if not there:
            bad = f"has no caption ({', '.join(captions)}): it is not as the others"
        for column in there:
            more, why = texts_of(cells[column])
            texts += more
            bad = bad or why
    own: str | None = None
    if key is not None:
        own, why = name_of(cells.get(key))
        if why:
            raise_at = "it" if key in cells else "there it"
            bad = bad or f"the {key} of this row {why}; {raise_at} must be a text or a whole number in every row"
    return Entry(
        place=record.place,
        line=record.line,
        videos=tuple(videos),
        captions=texts,
        key=own,
        bad=bad,
        cells=cells,
        column=video,
        split=split_of(cells),
    )


def split_of(cells: Mapping[str, object]) -> str:
    """What a row says in a column of splits, "" where it has none."""
    return next((str(v) for k, v in cells.items() if normal(k) in _SPLIT), "")


def _msvd(records: Iterable[Record], names: Mapping[str, str], parts: Sequence[str]) -> tuple[Record, ...]:
    """MSVD's release as a table: a clip is VideoID_Start_End; its descriptions are in many languages, English is read."""
    language = names.get("language")
    return tuple(
        Record(
            line=r.line, place=r.place, cells={**r.cells, parts[0]: "_".join(str(r.cells[p]).strip() for p in parts)}
        )
        for r in records
        if language is None or str(r.cells[language]).strip() == "English"
    )


def _plain(table: Table) -> Listing:
    """A list of names, one a line, with a class number behind them or not; MSVD's release has captions there."""
    entries = []
    texts = [str(r.cells[""]) for r in table.records]
    words = texts[0].split()
    if len(words) > 1 and all(normal(word) in KNOWN for word in words):
        raise refuse(table.path, table.records[0].place, f"columns {texts[0]!r} with blanks between", "commas or tabs")
    if all(re.fullmatch(r"[\w-]{11}_\d+_\d+ .*\S.*", t) for t in texts):
        if all(re.fullmatch(r"\S+ [A-Za-z]+\d+", t) for t in texts):
            raise VtrError(
                f"{table.path}: two names a line ({texts[0]!r}), as in MSVD's youtube_mapping.txt; expected captions"
            )
        for record, text in zip(table.records, texts):
            name, _, caption = text.partition(" ")
            entries.append(Entry(place=record.place, line=record.line, videos=(name,), captions=(caption.strip(),)))
        return Listing(path=table.path, kind="MSVD release", entries=tuple(entries))
    for record, text in zip(table.records, texts):
        head, _, label = text.rpartition(" ")
        more = {"label": label} if head and re.fullmatch(r"\d+", label) else {}
        name = head.strip() if more else text.strip()
        entries.append(
            Entry(place=record.place, line=record.line, videos=(name,), cells=more, bad="" if name else "an empty name")
        )
    return Listing(path=table.path, kind="list of files", entries=tuple(entries), captioned=False)


def _headless(table: Table) -> Listing:
    """Rows without a header: LSMDC's six columns, or action recognition's path and numbers."""
    widths = {len(r.cells) for r in table.records}
    if table.kind == "TSV" and widths == {6}:
        entries = []
        for r in table.records:
            captions, why = texts_of(r.cells["6"])
            name = str(r.cells["1"]).strip()
            entries.append(Entry(place=r.place, line=r.line, videos=(name,), captions=captions, bad=why))
        return Listing(path=table.path, kind="LSMDC tab-separated", entries=tuple(entries))
    entries = []
    for record in table.records:
        cells = [str(c).strip() for c in record.cells.values()]
        while len(cells) > 1 and not cells[-1]:
            cells.pop()
        if len(cells) > 1 and not all(re.fullmatch(r"[-+]?\d*\.?\d+", c) for c in cells[1:]):
            at_first = record is table.records[0]
            row = ", ".join(cells)
            raise VtrError(
                f"{table.path}: {record.place}: found {'columns ' if at_first else ''}{row[:80]}; expected columns named in "
                f"the first line, such as video and caption (one of {', '.join(CAPTION[:5])}; or LSMDC's 6 tab-separated "
                "columns), or rows `path,label`"
            )
        entries.append(
            Entry(
                place=record.place,
                line=record.line,
                videos=(cells[0],),
                cells={"label": cells[-1]} if len(cells) > 1 else {},
                bad="" if cells[0] else "the path is empty",
            )
        )
    return Listing(path=table.path, kind="list of files", entries=tuple(entries), captioned=False)


# ---- JSON objects ---------------------------------------------------------------------------------------------------


def _of_object(path: Path, value: dict[str, object], split: str | None) -> Listing:
    splits = [k for k in value if k.lower() in _SPLITS]
    if splits and all(isinstance(value[k], (list, dict)) for k in splits):
        if split is None or split not in value:
            if split is None and len(splits) == 1:
                return _inside(path, value[splits[0]], split)
            wanted = "" if split is None else f" {split!r}"
            raise VtrError(f"{path}: has no split{wanted}, only {', '.join(sorted(splits))}; say which (--split)")
        inner = _inside(path, value[split], split)
        return Listing(
            path=path,
            kind=f"{inner.kind}, split {split}",
            entries=inner.entries,
            captioned=inner.captioned,
            columns=inner.columns,
        )
    joined = _joined(path, value)
    if joined is not None:
        return joined
    rows = _columnar(path, value)
    if rows is not None:
        return _inside(path, rows, split)
    database = value.get("database")
    if isinstance(database, dict):
        return _by_video(path, database)
    lists = [k for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1:
        return _inside(path, value[lists[0]], split)
    return _by_video(path, value)


def _inside(path: Path, value: object, split: str | None) -> Listing:
    """A list or an object that stands inside the file's own."""
    if isinstance(value, dict):
        return _of_object(path, value, split)
    rows = value if isinstance(value, list) else []
    records, columns = [], dict[str, None]()
    for number, row in enumerate(rows, 1):
        cells = {"": row} if isinstance(row, str) else row
        if not isinstance(cells, dict):
            raise refuse(path, f"entry {number}", f"found {what_is(row)}", 'an object, as {"video": …, "caption": …}')
        records.append(Record(line=0, place=f"entry {number}", cells=cells))
        columns.update(dict.fromkeys(cells))
    if not records:
        raise VtrError(f"{path}: no rows")
    return _of_table(Table(path=path, kind="JSON", columns=tuple(columns), records=tuple(records), text=""))


def _columnar(path: Path, value: dict[str, object]) -> list[dict[str, object]] | None:
    """The rows of a table that pandas wrote column by column (`to_json`, also with orient list or split)."""
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        if any(len(row) != len(columns) for row in data):
            raise VtrError(f"{path}: a row of its data has not {len(columns)} cells, as its columns")
        return [dict(zip(map(str, columns), row)) for row in data]
    names = {normal(k) for k in value}
    if not (names & set(VIDEO) and names & set(CAPTION)):
        return None
    cells = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
    keys = [tuple(v) for v in value.values() if isinstance(v, dict)]
    if not all(isinstance(c, list) for c in cells) or len(set(keys)) > 1 or 0 < len(keys) < len(cells):
        return None
    if len({len(c) for c in cells if isinstance(c, list)}) > 1:
        raise VtrError(f"{path}: its columns {', '.join(value)} are not of one length")
    return [dict(zip(value, row)) for row in zip(*(c for c in cells if isinstance(c, list)))]


def _joined(path: Path, value: dict[str, object]) -> Listing | None:
    """Files in one list and their captions in another: MSR-VTT's release, COCO's captions."""
    for files, texts, own, other, names, kind in (
        ("videos", "sentences", "video_id", "video_id", ("video_id",), "MSR-VTT release"),
        ("videos", "annotations", "id", "video_id", ("file_name", "id"), "COCO captions"),
        ("images", "annotations", "id", "image_id", ("file_name", "id"), "COCO captions"),
    ):
        there, said = value.get(files), value.get(texts)
        if not isinstance(there, list) or not isinstance(said, list):
            continue
        rows: dict[str, Entry] = {}
        for number, row in enumerate(there, 1):
            place = f"{files} {number}"
            if not isinstance(row, dict):
                raise refuse(path, place, what_is(row), "an object")
            key, why = name_of(row.get(own))
            if why or key in rows:
                raise refuse(path, place, f"{own} {why or 'stands there twice'}", "ids that differ")
            name, why = name_of(next((row[n] for n in names if n in row), None))
            rows[key] = Entry(place=place, videos=(name,), bad=why and f"its name {why}", split=split_of(row))
        if files == "videos" and not any(r.split in _SPLIT_NAMES[2] for r in rows.values()):
            # MSR-VTT's 7,010 for training are its training and validation videos together.
            rows = {key: replace(entry, split="") for key, entry in rows.items()}
        captions: dict[str, list[object]] = {key: [] for key in rows}
        for number, row in enumerate(said, 1):
            if not isinstance(row, dict) or "caption" not in row:
                raise refuse(path, f"{texts} {number}", what_is(row), f'{{"{other}": …, "caption": …}}')
            key, _ = name_of(row.get(other))
            if key in captions:
                captions[key].append(row["caption"])
        found = []
        for key, entry in rows.items():
            if captions[key]:
                listed, why = texts_of(captions[key])
                found.append(replace(entry, captions=listed, bad=entry.bad or why))
        return Listing(path=path, kind=kind, entries=tuple(found))
    return None


def _by_video(path: Path, value: dict[str, object]) -> Listing:
    """An object by video: captions, or an object that holds them (ActivityNet, YouCook2)."""
    if not value:
        raise VtrError(f'{path}: expected a list of {{"video": …, "caption": …}}, found an empty object')
    entries, kinds = [], set()
    for name, one in value.items():
        captions: object = one
        if isinstance(one, dict):
            names = {normal(k): k for k in one}
            column = _column(names, ("sentences", *CAPTION[:-1]))
            if column is None and isinstance(one.get("annotations"), list):
                captions = one["annotations"]
            elif column is None:
                raise VtrError(
                    f"{path}: entry {name!r} has {_shown(map(str, one))}; expected a list of "
                    '{"video": …, "caption": …}, captions by video, or a published release '
                    "(MSR-VTT, DiDeMo, ActivityNet Captions, VATEX, MSVD, COCO)"
                )
            else:
                captions = one[column]
                row = Record(line=0, place=name, cells=one)
                table = Table(path=path, kind="JSON", columns=tuple(one), records=(row,), text="")
                tell_others(table, "the caption", [column], CAPTION[:-1])
            kinds.add("ActivityNet Captions release" if column == "sentences" else "captions by video")
        else:
            kinds.add("captions by video")
        texts, why = texts_of(captions)
        part = split_of(one) if isinstance(one, dict) else ""
        entries.append(Entry(place=f"entry {name!r}", videos=(name.strip(),), captions=texts, bad=why, split=part))
    if not any(e.captions for e in entries):
        raise VtrError(f'{path}: {entries[0].place}: {entries[0].bad}; expected a list of {{"video": …, "caption": …}}')
    return Listing(path=path, kind=kinds.pop() if len(kinds) == 1 else "captions by video", entries=tuple(entries))
