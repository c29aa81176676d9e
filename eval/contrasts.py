"""Pairs of a right and a wrong text of one video, as benchmarks of time publish them.

- VITATECS (2311.17404): a JSON object a line: `src_dataset`, `video_name`, `caption`, `counterfactual`, `aspect`; a file
  an aspect.
- RTime (2412.19178): an object by video: `forward_captions` and `reverse_captions`, and their rewrites; the texts of the
  second kind are right for the clip played backwards.
- CiA-Retrieval (2512.13511): a CSV of `id`, `value`, `nuance`, `source`, `modality`, and beside it a JSON object of the ids
  that belong to each id; the texts X_0.0 and X_1.0 are opposite actions.
- Direction pairs of the demo: two clips, each other's reversal, with their captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from vtr.data.cells import name_of, texts_of
from vtr.data.tables import Record, Table, read_table, refuse, what_is
from vtr.errors import VtrError
from vtr.eval.annotations import Item

RULES = ("counterfactual", "reversed")
"""The protocol kinds: of a video its right and its wrong text; of a clip and its reversal a text each."""
_WANTED = {
    "counterfactual": "a right and a wrong text of each video (VITATECS, CiA-Retrieval)",
    "reversed": "texts of each clip and of its reversal (RTime, direction pairs)",
}
_VITATECS = ("src_dataset", "video_name", "caption", "counterfactual")
_RTIME = ("forward_captions", "reverse_captions")
_CIA = ("id", "value", "source", "modality")
_PAIRS = ("video_a", "caption_a", "video_b", "caption_b")


def read_contrasts(paths: Sequence[Path], source: str | None = None, rule: str | None = None) -> tuple[str, list[Item]]:
    """Read one annotation of pairs of texts; its format is recognised by its content.

    Args:
        paths: Its files: those of VITATECS's aspects; CiA's labels are found beside its inputs.
        source: Only what comes from this set of videos, where the file is of several.
        rule: The protocol's, one of `RULES`: a file of the other kind is refused, whatever its name.

    Returns:
        The format in words, and items with `captions` and as many `wrong` ones.

    Raises:
        VtrError: A file is missing or of another format, or an entry of it is no pair (with its place).
    """
    found: list[Item] = []
    kinds: dict[str, None] = {}
    for path in paths:
        if path.name.startswith("nuanced_retrieval_labels"):
            continue  # read with its inputs
        table = read_table(path, (*_VITATECS, *_RTIME, *_CIA, *_PAIRS))
        names = set(table.columns) if isinstance(table, Table) else set()
        if isinstance(table, dict):
            kind, of, items = "RTime", "reversed", _rtime(path, table)
        elif names >= set(_VITATECS):
            kind, of, items = "VITATECS", "counterfactual", _vitatecs(table, source)
        elif names >= set(_PAIRS):
            kind, of, items = "direction pairs", "reversed", _direction_pairs(table)
        elif names >= set(_CIA):
            kind, of, items = "CiA-Retrieval", "counterfactual", _cia(table, source)
        else:
            raise VtrError(
                f"{path}: columns {', '.join(sorted(names)) or 'of other names'}; expected those of VITATECS "
                f"({', '.join(_VITATECS)}), RTime (an "
                f"object by video with {', '.join(_RTIME)}), CiA-Retrieval ({', '.join(_CIA)}) or direction pairs "
                f"({', '.join(_PAIRS)})"
            )
        if rule not in (None, of):
            raise VtrError(f"{path}: {kind}, texts of another kind ({of}); expected {_WANTED[str(rule)]}")
        kinds[kind] = None
        found += items
    if not found:
        raise VtrError(f"{paths[0]}: no pairs of texts" + (f" of {source} videos" if source else ""))
    return " and ".join(kinds), found


def _said(path: Path, place: str, cells: dict[str, object], column: str) -> str:
    value = cells.get(column)
    if not isinstance(value, str) or not value.strip():
        raise refuse(path, place, f"{column} is {what_is(value)}", "a text")
    return value.strip()


def _named(path: Path, place: str, value: object, column: str) -> str:
    name, why = name_of(value)
    if why:
        raise refuse(path, place, f"{column} {why}", "a video's name or id")
    return name


def _vitatecs(table: Table, source: str | None) -> Iterator[Item]:
    for record in table.records:
        cells, place = record.cells, record.place
        texts = [_said(table.path, place, cells, c) for c in ("caption", "counterfactual")]
        if texts[0] == texts[1]:
            raise refuse(table.path, place, "caption and counterfactual are the same", "two texts that differ")
        of = _said(table.path, place, cells, "src_dataset")
        if source in (None, of):
            video = _named(table.path, place, cells.get("video_name"), "video_name")
            yield Item(videos=(video,), captions=(texts[0],), wrong=(texts[1],), kind=str(cells.get("aspect") or ""))


def _rtime(path: Path, entries: dict[str, object]) -> Iterator[Item]:
    for video, entry in entries.items():
        place = f"entry {video!r}"
        if not isinstance(entry, dict) or not all(c in entry for c in _RTIME):
            held = f"has {', '.join(map(str, entry))}" if isinstance(entry, dict) else f"is {what_is(entry)}"
            raise refuse(path, place, held, f"RTime's object with {' and '.join(_RTIME)}")
        texts = []
        for way in ("forward", "reverse"):
            said, why = texts_of([*_list(entry, f"{way}_captions"), *_list(entry, f"{way}_rewrites")])
            if why:
                raise refuse(path, place, f"its {way} captions: {why}", "a list of texts")
            texts.append(said)
        count = max(map(len, texts))  # the shorter list is gone through again, so that no text is left out
        right, wrong = (tuple(said[i % len(said)] for i in range(count)) for said in texts)
        yield Item(videos=(_named(path, place, video, "its name"),), captions=right, wrong=wrong)


def _list(entry: dict[str, object], column: str) -> list[object]:
    value = entry.get(column, [])
    return value if isinstance(value, list) else [value]


def _direction_pairs(table: Table) -> Iterator[Item]:
    for record in table.records:
        texts = {side: _said(table.path, record.place, record.cells, f"caption_{side}") for side in "ab"}
        for own, other in ("ab", "ba"):
            video = _named(table.path, record.place, record.cells.get(f"video_{own}"), f"video_{own}")
            kind = str(record.cells.get("kind") or "")
            yield Item(videos=(video,), captions=(texts[own],), wrong=(texts[other],), kind=kind)


def _cia(table: Table, source: str | None) -> Iterator[Item]:
    labels = table.path.with_name(table.path.stem.replace("inputs", "labels") + ".json")
    if not labels.is_file():
        raise VtrError(f"{table.path}: {labels.name}, which tells what text belongs to which video: put it beside")
    try:
        right = json.loads(labels.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VtrError(f"{labels}: not JSON ({error})") from error
    if not isinstance(right, dict):
        raise VtrError(f"{labels}: {what_is(right)}; expected an object: the ids that belong to each id")
    texts: dict[str, str] = {}
    videos: list[tuple[Record, str]] = []
    for record in table.records:
        cells = {c: str(record.cells.get(c) or "") for c in _CIA}
        if not cells["source"].startswith("cia-") or (source and cells["source"] != source):
            continue  # other nuances of the same file, and other sets of videos
        if cells["modality"] == "text":
            texts[cells["id"]] = (
                _said(table.path, record.place, record.cells, "value").replace("[", "").replace("]", "")
            )
        elif cells["modality"] == "video":
            videos.append((record, cells["id"]))
    for record, own in videos:
        named = right.get(own)
        text = str(named[0]) if isinstance(named, list) and len(named) == 1 else ""
        stem, _, way = text.rpartition("_")
        opposite = f"{stem}_{'1.0' if way == '0.0' else '0.0'}"
        if text not in texts or opposite not in texts:
            raise refuse(table.path, record.place, f"{labels.name} gives video {own} {named!r}", "an id X_0.0 or X_1.0, with texts for both")  # fmt: skip
        video = _named(table.path, record.place, record.cells.get("value"), "value")
        yield Item(videos=(video,), captions=(texts[text],), wrong=(texts[opposite],), kind=str(record.cells["source"]))
