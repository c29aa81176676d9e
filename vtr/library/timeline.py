"""Hits as lists that other programs read: edit lists (.edl, .fcpxml), tables (.csv, .json), subtitles (.srt).

Edit lists are CMX 3600 and FCPXML 1.8: each hit a clip of one track, in the order of their ranks. Times are frames of
the sources; where a source carries a timecode, they are counted from it, as editing programs do.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from vtr.data.decode.container import open_container
from vtr.data.decode.types import Deadline
from vtr.data.uri import is_uri
from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically
from vtr.library.files import media_source, shown
from vtr.library.found import Hit, hit_dict, match_text

_RATES = [
    Fraction(n, d)
    for n, d in ((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001), (60, 1))
]
_ANY = Fraction(25)  # frames a second, of a file that says nothing
_NEAR = 0.002  # of a rate, within which it is a usual one
_PATIENCE = 30.0  # seconds
_HOUR = 3600  # seconds at which a sequence begins in an edit list
_COLUMNS = (
    "rank", "score", "measure", "match", "confidence", "path", "start", "end", "duration", "segment", "moment", "by", "said",
    "copies", "near_copies", "steps",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet computes


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What an edit list says of a file.

    Attributes:
        rate: Frames a second.
        first: Its first frame's number, by its timecode.
        drop: Whether that leaves out numbers (drop frame).
        size: Width and height, as stored.
        sound: Whether it has any.
        guessed: Why nothing is known of it; "" where it is.
    """

    rate: Fraction
    first: int = 0
    drop: bool = False
    size: tuple[int, int] = (0, 0)
    sound: bool = False
    guessed: str = ""

    def frame(self, at: float, rate: Fraction) -> int:
        """The number of the frame at some seconds of the file, counted at a rate."""
        return round((Fraction(self.first) / self.rate + Fraction(at)) * rate)


@dataclass(frozen=True, kw_only=True)
class _Event:
    """A hit in an edit list: frames of its source, and of the sequence (both at the sequence's rate)."""

    hit: Hit
    source: _Source
    begin: int
    length: int
    place: int


def timeline(ending: str, hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    """Hits as text in the format of an ending, and notes.

    Raises:
        UsageError: There is no such format.
    """
    check_ending(ending)
    return FORMATS[ending](hits, shown(title))


def check_ending(ending: str) -> None:
    """UsageError for what is no format."""
    if ending not in FORMATS:
        raise UsageError(
            lambda say: f"{say.given('export', ending or 'without an ending')}: expected {', '.join(FORMATS)}"
        )


def write_timeline(path: str | Path, hits: Sequence[Hit], title: str = "") -> list[str]:
    """Write hits to a file whose ending names the format: .edl, .fcpxml, .csv, .srt or .json; returns notes.

    Raises:
        UsageError: It is another ending.
        VtrError: The file cannot be written.
    """
    path = Path(path)
    text, notes = timeline(path.suffix.lower(), hits, title)
    try:
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        why = error.strerror
        raise VtrError(lambda say: f"{say.given('export', path)}: cannot be written ({why})") from error
    return notes


def _source(hit: Hit) -> _Source:
    """Facts of a hit's file, as far as it can be opened."""
    import av

    try:
        with open_container(media_source(hit.path), Deadline(hit.path, _PATIENCE)) as container:
            video = container.streams.video[0]
            rate = _usual(video.average_rate or video.guessed_rate)
            marks = [container.metadata, *(s.metadata for s in container.streams)]
            code = next((m["timecode"] for m in marks if "timecode" in m), "")
            return _Source(
                rate=rate,
                first=_frames_of(code, rate),
                drop=_drops(code, rate),
                size=(video.width, video.height),
                sound=bool(container.streams.audio),
            )
    except (av.error.FFmpegError, VtrError, OSError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return _Source(rate=_ANY, guessed=f"{Path(hit.path).name} cannot be opened ({why})")


def _usual(rate: Fraction | None) -> Fraction:
    """The usual rate that a file's mean rate is near; cameras are never quite at theirs."""
    if not rate or rate > 1000:
        return _ANY
    near = min(_RATES, key=lambda r: abs(r - rate))
    return near if abs(near - rate) < _NEAR * near else Fraction(rate).limit_denominator(1001)


def _frames_of(code: str, rate: Fraction) -> int:
    """The number of the frame that a timecode names; 0 for what is none."""
    parts = code.replace(";", ":").replace(".", ":").split(":")
    if len(parts) != 4 or not all(p.isdecimal() for p in parts):
        return 0
    hours, minutes, seconds, frames = map(int, parts)
    number = ((hours * 60 + minutes) * 60 + seconds) * round(rate) + frames
    if _drops(code, rate):
        number -= _dropped(rate) * (hours * 60 + minutes - (hours * 60 + minutes) // 10)
    return number


def _drops(code: str, rate: Fraction) -> bool:
    """Whether a timecode leaves out numbers, so that it keeps up with the clock at 29.97 and 59.94 frames a second."""
    return ";" in code and rate.denominator == 1001 and round(rate) % 30 == 0


def _dropped(rate: Fraction) -> int:
    """Numbers that are left out at each minute but the tenth."""
    return round(rate) // 15


def _events(hits: Sequence[Hit]) -> tuple[list[_Event], Fraction, list[str]]:
    """Hits one after the other, the rate of their sequence (that of the first), and notes."""
    moving = [hit for hit in hits if hit.end > hit.start]
    sources: dict[str, _Source] = {}
    for hit in moving:
        if hit.path not in sources:
            sources[hit.path] = _source(hit)
    rate = sources[moving[0].path].rate if moving else _ANY
    events, place = list[_Event](), 0
    for hit in moving:
        source = sources[hit.path]
        begin = source.frame(hit.start, rate)
        length = max(1, source.frame(hit.end, rate) - begin)
        events.append(_Event(hit=hit, source=source, begin=begin, length=length, place=place))
        place += length
    notes = [shown(f"{s.guessed}: counted at {_ANY} frames a second") for s in sources.values() if s.guessed]
    notes += _left_out(hits, moving)
    if inside := [path for path, source in sources.items() if not source.guessed and not os.path.exists(path)]:
        notes.append(
            f"{len(inside)} files lie in shards, which editing programs do not open: clips are files of their own"
        )
    if others := {s.rate for s in sources.values()} - {rate}:
        found = ", ".join(f"{float(r):.3f}" for r in sorted(others))
        notes.append(f"the list counts in {float(rate):.3f} frames a second, as the first hit; others have {found}")
    return events, rate, notes


def _left_out(hits: Sequence[Hit], moving: Sequence[Hit]) -> list[str]:
    count = len(hits) - len(moving)
    return [f"{count} images are no clips and left out"] if count else []


def _edl(hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    events, rate, notes = _events(hits)
    drop = _counts_dropping(events)
    lines = [f"TITLE: {title[:70]}", f"FCM: {'' if drop else 'NON-'}DROP FRAME", ""]
    hour = _frames_of("01:00:00;00" if drop else "01:00:00:00", rate)
    for number, event in enumerate(events, 1):
        place = hour + event.place
        codes = [_code(t, rate, event.source.drop) for t in (event.begin, event.begin + event.length)]
        codes += [_code(t, rate, drop) for t in (place, place + event.length)]
        lines += [
            f"{number:03d}  AX       V     C        " + " ".join(codes),
            f"* FROM CLIP NAME: {shown(Path(event.hit.path).name)}",
            f"* SOURCE FILE: {shown(event.hit.path)}",
            f"* COMMENT: {_label(event.hit)}",
            "",
        ]
    return "\r\n".join(lines), notes


def _counts_dropping(events: Sequence[_Event]) -> bool:
    """Whether the sequence counts as drop frame: as the first source does."""
    return bool(events) and events[0].source.drop


def _code(frame: int, rate: Fraction, drop: bool) -> str:
    """A frame's timecode; `drop` is of its source, and without meaning at the rate of a sequence that has none."""
    whole = round(rate)
    drop = drop and _drops(";", rate)
    if drop:
        lost = _dropped(rate)
        minute = 60 * whole - lost
        tens, rest = divmod(frame, 10 * minute + lost)
        frame += 9 * lost * tens + lost * max(0, (rest - lost) // minute)
    seconds, frames = divmod(frame, whole)
    sign = ";" if drop else ":"
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{sign}{frames:02d}"


def _label(hit: Hit) -> str:
    said = f" {shown(hit.said[0].text)}" if hit.said else ""
    return f"{hit.rank}. {hit.measure} {match_text(hit)}{said}"


def _fcpxml(hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    events, rate, notes = _events(hits)
    root = ElementTree.Element("fcpxml", version="1.8")
    resources = ElementTree.SubElement(root, "resources")
    formats: dict[tuple[Fraction, tuple[int, int]], str] = {}
    assets: dict[str, str] = {}
    for event in events:
        source = event.source
        key = (source.rate, source.size)
        if key not in formats:
            formats[key] = f"r{len(formats) + len(assets) + 1}"
            size = {"width": str(source.size[0]), "height": str(source.size[1])} if source.size[0] else {}
            ElementTree.SubElement(resources, "format", id=formats[key], frameDuration=_time(1, source.rate), **size)
        if event.hit.path not in assets:
            assets[event.hit.path] = f"r{len(formats) + len(assets) + 1}"
            ElementTree.SubElement(
                resources,
                "asset",
                id=assets[event.hit.path],
                name=shown(Path(event.hit.path).stem),
                src=event.hit.path if is_uri(event.hit.path) else Path(event.hit.path).absolute().as_uri(),
                start=_time(source.first, source.rate),
                duration=_time(round(Fraction(event.hit.duration) * source.rate), source.rate),
                hasVideo="1",
                **({"hasAudio": "1"} if source.sound else {}),
                format=formats[key],
            )
    library = ElementTree.SubElement(root, "library")
    project = ElementTree.SubElement(
        ElementTree.SubElement(library, "event", name="vtr"), "project", name=title or "vtr"
    )
    first = {"format": next(iter(formats.values()))} if formats else {}
    lasts = sum(event.length for event in events)
    sequence = ElementTree.SubElement(
        project,
        "sequence",
        duration=_time(lasts, rate),
        tcStart="0s",
        tcFormat=_format(_counts_dropping(events)),
        **first,
    )
    spine = ElementTree.SubElement(sequence, "spine")
    for event in events:
        start = _time(event.source.frame(event.hit.start, event.source.rate), event.source.rate)
        clip = ElementTree.SubElement(
            spine,
            "asset-clip",
            ref=assets[event.hit.path],
            name=shown(Path(event.hit.path).name),
            offset=_time(event.place, rate),
            start=start,
            duration=_time(event.length, rate),
            format=formats[event.source.rate, event.source.size],
            tcFormat=_format(event.source.drop),
        )
        ElementTree.SubElement(
            clip, "marker", start=start, duration=_time(1, event.source.rate), value=_label(event.hit)
        )
    ElementTree.indent(root)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n'
    return head + ElementTree.tostring(root, encoding="unicode") + "\n", notes


def _format(drop: bool) -> str:
    return "DF" if drop else "NDF"


def _time(frames: int, rate: Fraction) -> str:
    seconds = Fraction(frames) / rate
    return f"{seconds.numerator}s" if seconds.denominator == 1 else f"{frames * rate.denominator}/{rate.numerator}s"


def _csv(hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    file = io.StringIO()
    names = {name: f"meta.{name}" if name in _COLUMNS else name for hit in hits for name in hit.metadata}
    table = csv.writer(file)
    table.writerow([*_COLUMNS, *(names[name] for name in sorted(names))])
    for hit in hits:
        told = {
            "by": " ".join(hit.by),
            "said": " ".join(cue.text for cue in hit.said),
            "copies": "\n".join(map(shown, hit.copies)),
            "near_copies": "\n".join(map(shown, hit.near_copies)),
            "steps": "\n".join(f"{s.text} {s.start:g}-{s.end:g}s" for s in hit.steps),
            "path": shown(hit.path),
        }
        values = {**hit_dict(hit), **told}
        table.writerow([_cell(values[c]) for c in _COLUMNS] + [_cell(hit.metadata.get(n, "")) for n in sorted(names)])
    return file.getvalue(), []


def _cell(value: object) -> object:
    """A value of a table; a text of which a spreadsheet would make a formula, with a sign before it that says so."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json(hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    return json.dumps({"query": title, "hits": [hit_dict(hit) for hit in hits]}, indent=1) + "\n", []


def _srt(hits: Sequence[Hit], title: str) -> tuple[str, list[str]]:
    """Of one video: at its own times; of several: at those of an edit list's sequence."""
    if len({hit.path for hit in hits}) <= 1:
        moving = sorted((hit for hit in hits if hit.end > hit.start), key=lambda hit: (hit.start, hit.end))
        rows = [(hit.start, hit.end, hit) for hit in moving]
        notes = [*_left_out(hits, moving), *(["times are those of the video: play it beside it"] if moving else [])]
    else:
        events, rate, notes = _events(hits)
        rows = [(e.place / float(rate), (e.place + e.length) / float(rate), e.hit) for e in events]
        notes.append("the hits are of several videos: times are those of the hits one after the other, as in an .edl")
    blocks = [
        f"{number}\n{_stamp(start)} --> {_stamp(end)}\n"
        + f"{shown(Path(hit.path).name)}\n{_label(hit)}\n".replace("-->", "->")  # it would be a cue's times
        for number, (start, end, hit) in enumerate(rows, 1)
    ]
    return "\n".join(blocks), notes


def _stamp(seconds: float) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


FORMATS: dict[str, Callable[[Sequence[Hit], str], tuple[str, list[str]]]] = {
    ".edl": _edl, ".fcpxml": _fcpxml, ".csv": _csv, ".srt": _srt, ".json": _json,
}  # fmt: skip
