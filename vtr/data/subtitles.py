"""What is said in a video: cues, and the subtitle files (.srt, .vtt) that hold them beside it.

Times are seconds on the file's own timeline, as a player counts them.
"""

from __future__ import annotations

import codecs
import html
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vtr.data.media import MEDIA, is_image

ENDINGS = (".srt", ".vtt")
UNREAD = (".ass", ".ssa", ".sub", ".sup", ".smi", ".sami", ".sbv", ".lrc", ".ttml", ".dfxp", ".stl", ".scc")
_MOST = 32 << 20  # bytes of a subtitle file
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
_CUE = re.compile(rf"\s*{_TIME}\s*-+>\s*{_TIME}(?:\s.*)?")
_BROKEN = re.compile(r"\s*-?\d+:\d\d(:\d\d)?[.,]\d+")  # a line that begins as a cue's times do
_MAP = re.compile(r"X-TIMESTAMP-MAP=(?=.*MPEGTS:(\d+))(?=.*LOCAL:([\d:.]+)).*")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>|</?\d[\d:.]*>|\{[\\/][^{}]{0,300}\}")
# What subtitles are written in beside Unicode: among all there are, a guess from few words goes wrong more often.
_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp932", "euc_jp", "gb18030", "big5",
    "cp949",
)  # fmt: skip
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Cue(NamedTuple):
    """What is said from `start` to `end` (seconds)."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Track:
    """Cues of one file or track, by time.

    Attributes:
        name: Of the subtitle file; of a track inside the video, its number and language.
        cues: May overlap.
        problem: What could not be taken as it stands, in one line with its place; "" for nothing.
    """

    name: str
    cues: Sequence[Cue]
    problem: str = ""


def beside(names: Iterable[str], endings: Sequence[str] = ENDINGS) -> dict[str, list[str]]:
    """The subtitle files of each media file, given all names of a folder.

    `film.srt`, `film.en.srt` and `film.mp4.srt` are of `film.mp4`; where there is also a `film.en.mp4`, the second is of
    that one: a file goes to the longest name that it begins with. Case counts only where names differ by nothing else.
    """
    stems: dict[str, dict[str, list[str]]] = {}
    files = []
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in endings:
            files.append(name)
        elif ending[1:].lower() in MEDIA:
            for key in {unicodedata.normalize("NFC", n) for n in (stem, name)}:
                stems.setdefault(key.casefold(), {}).setdefault(key, []).append(name)
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        parts = unicodedata.normalize("NFC", os.path.splitext(name)[0]).split(".")
        for count in range(len(parts), 0, -1):
            key = ".".join(parts[:count])
            alike = stems.get(key.casefold(), {})
            owners = alike.get(key, [])
            # A poster may be spelt as the film is not.
            if all(map(is_image, owners)) and len(alike) - bool(owners) == 1:
                owners = [owner for spelt in alike.values() for owner in spelt]
            if owners:
                for owner in owners:
                    found.setdefault(owner, []).append(name)
                break
    return found


def read_file(path: Path) -> tuple[Track, bytes]:
    """Cues of a subtitle file, and its bytes.

    Raises:
        OSError: It cannot be read, or is no regular file of at most 32 MB.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(0, "not a regular file")
        if facts.st_size > _MOST:
            raise OSError(0, f"{facts.st_size} bytes are too many for subtitles")
        data = file.read(_MOST + 1)
    text, odd = decoded(data)
    cues, problem = parsed(text)
    return Track(name=path.name, cues=cues, problem="; ".join(filter(None, (odd, problem)))), data


def decoded(data: bytes) -> tuple[str, str]:
    """The text of a subtitle file in whatever encoding, and what was done otherwise than reading UTF-8; "" for nothing."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return data.decode(name, "replace"), ""
    even, odd = data[0:4096:2].count(0), data[1:4096:2].count(0)
    if even + odd > len(data[:4096]) // 8 and max(even, odd) > 3 * min(even, odd):  # letters beside zeros
        return data.decode("utf-16-le" if odd > even else "utf-16-be", "replace"), ""
    try:
        return data.decode(), ""
    except UnicodeDecodeError as error:
        text = data.decode(errors="replace")
        wrong, other = text.count("\ufffd"), sum(c > "\x7f" for c in text)
        line = data.count(b"\n", 0, error.start) + 1
        if wrong * 10 <= other:
            return text, f"line {line}: bytes that are no UTF-8, shown as \ufffd"
    from charset_normalizer import from_bytes

    best = from_bytes(data, cp_isolation=list(_ENCODINGS)).best()
    encoding = best.encoding if best is not None else "cp1252"
    return data.decode(encoding, "replace"), f"line {line}: not UTF-8, read as {encoding}"


def parsed(text: str) -> tuple[list[Cue], str]:
    """Cues of SubRip or WebVTT text by time, and its problem in one line; "" for none."""
    lines = re.split(r"\r\n|\r|\n", text.lstrip("\ufeff"))
    vtt = lines[0].startswith("WEBVTT")
    cues: list[Cue] = []
    wrong: list[str] = []
    for number, line, body in _blocks(lines, vtt):
        found = _CUE.fullmatch(line)
        start, end = (_seconds(found.groups()[:4]), _seconds(found.groups()[4:])) if found else (None, None)
        if start is None or end is None:
            wrong.append(f"line {number}: expected HH:MM:SS,mmm --> HH:MM:SS,mmm, found {_short(line)}; left out")
            continue
        if end < start:
            wrong.append(f"line {number}: ends before it begins ({_short(line)}); taken as a moment")
        if said := plain(body):
            cues.append(Cue(start, max(start, end), said))
    if vtt and (moved := next(filter(None, map(_moved, lines)), "")):
        wrong.insert(0, moved)
    if not cues and not wrong:
        first = next((line for line in lines if line.strip()), "")
        found_there = f"found {_short(first)}" if first else "the file is empty"
        return [], f"no cue: expected lines as 00:01:02,500 --> 00:01:05,000, {found_there}"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return sorted(cues), wrong[0] + more if wrong else ""


def _moved(line: str) -> str:
    """What a line of an HLS stream's WebVTT moves its times by, in words; "" for nothing."""
    found = _MAP.fullmatch(line.strip())
    own = re.fullmatch(_TIME, found[2]) if found else None
    offset = int(found[1]) / 90_000 - (_seconds(own.groups()) or 0.0) if found and own else 0.0
    return (
        f"{line.strip()[:60]} moves it by {offset:+g} s on its stream's clock; its times are taken as they stand"
        if offset
        else ""
    )


def _blocks(lines: Sequence[str], vtt: bool) -> Iterator[tuple[int, str, str]]:
    """(number of its line, line of times, lines of text) of each cue, whether its times make sense or not."""
    starts = [n for n, line in enumerate(lines) if "-->" in line or _CUE.fullmatch(line) or _is_broken(lines, n)]
    for start, following in zip(starts, [*starts[1:], len(lines)]):
        body = list(lines[start + 1 : following])
        if vtt:  # what comes after an empty line is a name, a note or a style
            body = body[: next((n for n, line in enumerate(body) if not line.strip()), len(body))]
        if not vtt and following < len(lines) and body and body[-1].strip().isdecimal():
            body.pop()  # the number of the next cue
        yield start + 1, lines[start], "\n".join(body)


def _is_broken(lines: Sequence[str], number: int) -> bool:
    """Whether a line is that of a cue's times without its arrow."""
    before = lines[number - 1].strip() if number else ""
    return bool(_BROKEN.match(lines[number])) and (not before or before.isdecimal())


def _seconds(parts: Sequence[str | None]) -> float | None:
    hours, minutes, seconds, fraction = (p or "0" for p in parts)
    if int(seconds) > 59 or (parts[0] is not None and int(minutes) > 59) or len(hours) > 6:
        return None
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _short(line: str) -> str:
    return repr(line.strip()[:60])


_DRAWN = re.compile(r"\{[^}]*\\p[1-9][^}]*\}.*?(?=\{[^}]*\\p0|$)", re.DOTALL)  # ASS: shapes in numbers, no words


def plain(text: str) -> str:
    """Text without mark-up: tags, override codes, entities."""
    text = re.sub(r"\\[Nnh]", " ", _TAG.sub("", _DRAWN.sub("", text)))
    return " ".join(html.unescape(text).replace("\0", " ").split())
