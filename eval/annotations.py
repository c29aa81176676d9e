"""Annotation files of the field, in every format they are published in, to items of (videos, captions)."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtr.errors import VtrError

_MAX_ZIP_BYTES = 1 << 30  # of a member once unpacked


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of an annotation file: usually one video with its captions."""

    videos: tuple[str, ...]  # names as the file has them; several where one text describes several videos
    captions: tuple[str, ...]  # in a multiple-choice file: the options
    answer: int | None = None  # the right option, or the class


def read_annotations(
    path: Path, *, split: str = "test", ids: Path | None = None, choices: bool = False
) -> tuple[str, list[Item]]:
    """Read an annotation file; its format is recognised by its content.

    Args:
        path: A .json, .jsonl, .csv, tab-separated or zipped file.
        split: Which part, where one file holds several.
        ids: A file with one video id a line: only these, in its order.
        choices: It is a multiple-choice file: a list of captions is a list of options.

    Returns:
        The format in words, and the items; captions of one video that stand apart are brought together.

    Raises:
        VtrError: The file is missing, damaged or of no known format, or lacks a video that `ids` names.
    """
    text = _text(path)
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith(("{", "[")):
        name, items = _from_json(path, stripped, split, choices)
    elif path.suffix == ".csv" and "\t" not in stripped.partition("\n")[0]:  # LSMDC's .csv files have tabs
        name, items = _from_csv(path, text)
    else:
        name, items = _from_tabs(path, text)
    if not items:
        raise VtrError(f"{path}: no annotations")
    if ids is not None:
        items = _only(items, ids, path)
    return name, items


def read_lines(path: Path) -> list[str]:
    """The lines of a list of ids or classes, without empty ones."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def without_extension(name: str) -> str:
    """The id of a video name: its last part up to the last dot (some published names end with a bare dot)."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = last.rpartition(".")
    # LSMDC's clip names hold times with dots; an extension has a letter in it, or nothing.
    return stem if dot and (not extension or (len(extension) <= 5 and not extension.isdigit())) else last


def _text(path: Path) -> str:
    if not path.is_file():
        raise VtrError(f"{path}: the annotation file is missing; give its folder with --data-root")
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [i for i in archive.infolist() if i.filename.endswith(".json")]
                if not members:
                    raise VtrError(f"{path}: holds no .json file")
                largest = max(members, key=lambda i: i.file_size)
                if largest.file_size > _MAX_ZIP_BYTES:
                    raise VtrError(
                        f"{path}: {largest.filename} unpacks to {largest.file_size} bytes; that is no annotation file"
                    )
                return archive.read(largest).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VtrError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise VtrError(f"{path}: cannot be read ({error})") from error


def _from_json(path: Path, text: str, split: str, choices: bool) -> tuple[str, list[Item]]:
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        try:  # JSON lines
            loaded = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise VtrError(f"{path}: not JSON (line {error.lineno})") from error
    try:
        return _recognised(path, loaded, split, choices)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VtrError(f"{path}: an entry is not as the others ({type(error).__name__}: {error})") from error


def _recognised(path: Path, loaded: Any, split: str, choices: bool) -> tuple[str, list[Item]]:
    if isinstance(loaded, dict) and loaded.keys() & {"train", "val", "test"} and split in loaded:
        name, items = _recognised(path, loaded[split], split, choices)
        return f"{name}, split {split}", items
    if isinstance(loaded, dict) and loaded and loaded.keys() <= {"train", "val", "test"}:
        raise VtrError(f"{path}: has no split {split!r}, only {', '.join(sorted(loaded))}")
    if isinstance(loaded, dict) and {"videos", "sentences"} <= loaded.keys():
        rows: dict[str, list[str]] = {v["video_id"]: [] for v in loaded["videos"]}
        for sentence in loaded["sentences"]:
            if sentence["video_id"] in rows:
                rows[sentence["video_id"]].append(sentence["caption"])
        return "MSR-VTT release", _items({k: v for k, v in rows.items() if v})
    if isinstance(loaded, dict) and loaded:
        first = next(iter(loaded.values()))
        if isinstance(first, dict) and "sentences" in first:
            return "ActivityNet Captions release", _items({k: v["sentences"] for k, v in loaded.items()})
        if isinstance(first, list):
            return "captions by video", _items(loaded)
    if isinstance(loaded, list) and loaded and all(isinstance(row, str) for row in loaded):
        return "list of videos", [Item(videos=(row,), captions=()) for row in dict.fromkeys(loaded)]
    if isinstance(loaded, list) and loaded and all(isinstance(row, dict) for row in loaded):
        return _from_rows(path, loaded, choices)
    raise VtrError(
        f'{path}: expected a list of {{"video": …, "caption": …}} or a published release '
        "(MSR-VTT, DiDeMo, ActivityNet Captions, Something-Something, MSVD captions by video)"
    )


def _from_rows(path: Path, rows: list[dict[str, Any]], choices: bool) -> tuple[str, list[Item]]:
    keys = set(rows[0])
    if choices:
        video, options = ("video", "caption") if "caption" in keys else ("clip_name", "options")
        if not {video, options, "answer"} <= keys:
            raise VtrError(
                f"{path}: a multiple-choice file has video, caption (the options) and answer; this one {sorted(keys)}"
            )
        items = [
            Item(videos=(str(r[video]),), captions=tuple(map(str, r[options])), answer=int(r["answer"])) for r in rows
        ]
        for item in items:
            if item.answer is None or not 0 <= item.answer < len(item.captions):
                raise VtrError(f"{path}: {item.videos[0]}: answer {item.answer} of {len(item.captions)} options")
        return "multiple choice", items
    if {"video", "description"} <= keys:
        return "DiDeMo release", _grouped((r["video"], [r["description"]]) for r in rows)
    if {"id", "template"} <= keys:
        return "Something-Something release", [
            Item(videos=(str(r["id"]),), captions=(r.get("label", r["template"]), r["template"])) for r in rows
        ]
    if {"video", "caption"} <= keys:
        if any(isinstance(r["video"], list) for r in rows):
            return "texts with several videos", [
                Item(videos=tuple(map(str, r["video"])) if isinstance(r["video"], list) else (str(r["video"]),),
                     captions=(str(r["caption"]),))
                for r in rows
            ]  # fmt: skip
        return "official JSON", _grouped(
            (str(r["video"]), list(r["caption"]) if isinstance(r["caption"], list) else [r["caption"]]) for r in rows
        )
    raise VtrError(
        f'{path}: expected a list of {{"video": …, "caption": …}}; its entries have {", ".join(sorted(keys))}'
    )


def _from_csv(path: Path, text: str) -> tuple[str, list[Item]]:
    reader = csv.DictReader(io.StringIO(text))
    columns = set(reader.fieldnames or ())
    rows = list(reader)
    known: list[tuple[set[str], str, Callable[[], list[Item]]]] = [
        (
            {"video_id", "a1", "a2", "a3", "a4", "a5", "answer"},
            "multiple-choice CSV",
            lambda: [
                Item(videos=(r["video_id"],), captions=tuple(r[f"a{i}"] for i in range(1, 6)), answer=int(r["answer"]))
                for r in rows
            ],
        ),
        ({"video_id", "sentence"}, "JSFusion CSV", lambda: _grouped((r["video_id"], [r["sentence"]]) for r in rows)),
        (
            {"video_path", "text"},
            "CSV of paragraphs",
            lambda: _grouped((_last(r["video_path"]), [r["text"]]) for r in rows),
        ),
        ({"videoid", "name"}, "WebVid CSV", lambda: _grouped((r["videoid"], [r["name"]]) for r in rows)),
        ({"video_id"}, "list of videos", lambda: [Item(videos=(r["video_id"],), captions=()) for r in rows]),
    ]
    for needed, name, build in known:
        if needed <= columns:
            try:
                return name, build()
            except (TypeError, ValueError, AttributeError) as error:
                raise VtrError(f"{path}: a line is cut or has another number of columns ({error})") from error
    return _from_labels(path, text)


def _from_labels(path: Path, text: str) -> tuple[str, list[Item]]:
    """`video,class`, `video class` or `video class-in-words` lines without a header, as action recognition has them."""
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, comma, label = line.rpartition(",") if "," in line else line.rpartition(" ")
        if not comma or not label.strip().isdigit():
            raise VtrError(
                f"{path}: line {number}: expected columns video_id and sentence, or lines `video,class` (got {line[:60]!r})"
            )
        items.append(Item(videos=(name.strip(),), captions=(), answer=int(label)))
    return "videos with class numbers", items


def _from_tabs(path: Path, text: str) -> tuple[str, list[Item]]:
    rows = []
    if path.suffix == ".txt" and not any(c in line.strip() for line in text.splitlines() for c in "\t "):
        names = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
        return "list of videos", [Item(videos=(name,), captions=()) for name in names]
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 6:
            raise VtrError(f"{path}: line {number} has {len(parts)} tab-separated columns; LSMDC's files have 6")
        rows.append((parts[0], [parts[5]]))
    return "LSMDC tab-separated", _grouped(rows)


def _last(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _grouped(rows: Any) -> list[Item]:
    by_video: dict[str, list[str]] = {}
    for video, captions in rows:
        by_video.setdefault(video, []).extend(captions)
    return _items(by_video)


def _items(by_video: dict[str, list[str]]) -> list[Item]:
    for video, captions in by_video.items():
        if not all(isinstance(c, str) for c in captions):
            raise ValueError(f"a caption of {video!r} is not text")
    return [Item(videos=(video,), captions=tuple(captions)) for video, captions in by_video.items()]


def _only(items: list[Item], ids: Path, path: Path) -> list[Item]:
    wanted = [without_extension(line.split(",")[0]) for line in read_lines(ids)]
    by_id = {without_extension(item.videos[0]): item for item in items}
    absent = [i for i in wanted if i not in by_id]
    if absent:
        raise VtrError(f"{path}: lacks {len(absent)} of the {len(wanted)} videos of {ids} ({', '.join(absent[:3])}, …)")
    return [by_id[i] for i in dict.fromkeys(wanted)]
