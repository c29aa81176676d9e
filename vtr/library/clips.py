"""Hits as clips of their own: `vtr search … --clips FOLDER`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtr.data.decode.cut import Cut, cut
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.library.files import media_source, shown
from vtr.library.found import Hit

_NAME = 120  # bytes of a file's name that a clip keeps


@dataclass(kw_only=True)
class ClipReport:
    """What became of hits: clips by hit, those that were there already, and a line for each that could not be cut."""

    made: list[Cut] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_clips(hits: Sequence[Hit], folder: str | Path, *, exact: bool = False) -> ClipReport:
    """Cut hits out of their videos, each into a file of its own; an image is copied.

    A clip's name holds rank, file, times and a hash of the path and of the file's size and date, so that no two are mixed
    up: one of that name is the same clip and is left as it is.

    Args:
        hits: Of a search.
        folder: Is made where it does not exist.
        exact: Encode again from the very frame; otherwise copies begin at the key frame before it.

    Raises:
        VtrError: The folder cannot be written.
    """
    folder, report = Path(folder), ClipReport()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(f"{folder}: the folder of clips cannot be made ({error.strerror})") from error
    for number, hit in enumerate(hits, 1):
        out = folder / clip_name(hit, exact=exact)
        there = sorted(p for p in folder.iterdir() if p.name.startswith(f"{out.name}.") and p.suffix != ".tmp")
        if there:
            report.there.append(there[0])
            continue
        try:
            made = _cut(hit, out, exact)
        except (VtrError, ValueError, MemoryError) as error:
            report.failed.append(shown(f"{hit.path}: {error}" if hit.path not in str(error) else str(error)))
            continue
        except OSError as error:
            raise VtrError(f"{out.name} cannot be written to {folder} ({error.strerror or error})") from error
        report.made.append(made)
        report.notes += [shown(f"{made.path.name}: {made.note}")] if made.note else []
        print(f"clip {number} of {len(hits)}: {shown(str(made.path))}", file=sys.stderr)
    return report


def clip_name(hit: Hit, *, exact: bool) -> str:
    """A clip's name without its ending."""
    stem = re.sub(r"[^\w\- ]+", "_", unicodedata.normalize("NFC", Path(hit.path).stem))
    stem = stem.encode()[:_NAME].decode(errors="ignore") or "clip"
    place = hashlib.sha256(os.fsencode(hit.path) + _state(hit.path)).hexdigest()[:6]
    times = f"{hit.start:.2f}-{hit.end:.2f}" if hit.end > hit.start else "image"
    return f"{hit.rank:02d}_{stem}_{times}_{place}{'_exact' if exact else ''}"


def _state(path: str) -> bytes:
    """What tells a file from another that takes its place; nothing of one that is not there."""
    shard, sign, _ = path.partition(".tar/")
    try:
        facts = os.stat(f"{shard}.tar" if sign and not os.path.exists(path) else path)
    except OSError:
        return b""
    return f" {facts.st_size} {facts.st_mtime_ns}".encode()


def _cut(hit: Hit, out: Path, exact: bool) -> Cut:
    source = media_source(hit.path)
    if hit.end > hit.start:
        return cut(source, hit.start, hit.end, out, exact=exact, lasts=hit.duration)
    path = out.with_name(out.name + Path(hit.path).suffix.lower())
    with write_atomically(path) as partial:
        if isinstance(source, bytes):
            partial.write_bytes(source)
        else:
            shutil.copyfile(source, partial)
    return Cut(path=path, start=0.0, end=0.0, encoded=False)
