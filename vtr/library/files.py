"""Files of a library: their content hash, what to decode, their metadata, and how a name is shown."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from vtr.data.lists import read_list
from vtr.data.shards import split_member
from vtr.data.uri import is_uri, shown_uri
from vtr.errors import UsageError, VtrError
from vtr.library.rows import Metadata


def leads_out(file: Path) -> bool:
    """Whether a file is a symbolic link to something outside its folder."""
    return file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(file.parent))


def full_name(name: str | Path) -> str:
    """What a library calls a file, or an address."""
    return str(name) if is_uri(str(name)) else os.path.abspath(name)


def sha256(file: Path) -> str:
    """Content hash of a file, in hex."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def shown(text: str) -> str:
    """A file name fit for a terminal: control characters and bytes that are no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def media_source(path: str) -> Path | bytes:
    """What to decode for a path of a library: the file, or the bytes of a sample of a shard (`SHARD.tar/KEY.mp4`).

    Raises:
        VtrError: The shard has no such sample, or cannot be read; or it lies at an address, which is fetched only when it
            is indexed.
    """
    if is_uri(path):
        raise VtrError(
            f"{shown_uri(path)}: lies at an address, which is fetched when it is indexed and not for a search"
        )
    shard, sign, member = path.partition(".tar/")
    if not sign or not os.path.isfile(f"{shard}.tar"):
        return Path(path)
    try:
        wanted = split_member(member)  # the name of a sample, whose members may be written with capitals (a.MP4)
        with tarfile.open(f"{shard}.tar", "r:") as tar:
            for info in tar:
                if info.isfile() and split_member(info.name) == wanted:
                    file = tar.extractfile(info)
                    return file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise VtrError(f"{shard}.tar cannot be read ({error})") from error
    raise VtrError(f"{path}: the shard has no such sample")


def read_metadata(listing: Path) -> dict[str, Metadata]:
    """Metadata of files: {full path: {column: number or text}} of a list with a column of paths, in any format.

    Relative paths start from the listing's folder. Numbers of a table become numbers; empty cells are left out.

    Raises:
        VtrError: The listing cannot be read, or a row of it cannot be meant.
        UsageError: A column's name cannot be used in a filter.
    """
    try:
        entries = read_list(listing, captions=False).entries
    except VtrError as error:
        why = str(error)
        raise VtrError(lambda say: f"{say.name('metadata')} {why}") from error
    out: dict[str, Metadata] = {}
    places: dict[str, str] = {}
    for entry in entries:
        if entry.bad:
            raise _bad_row(f"{listing}, {entry.place}: {entry.bad}")
        values = clean_metadata(numbers_of(entry.more), f"--metadata {listing}")
        for video in entry.videos:
            path = os.path.abspath(listing.parent / video)
            if out.setdefault(path, values) != values:
                raise _bad_row(
                    f"{listing}, {entry.place}: {video} has other values in {places[path]}; expected one row a file"
                )
            places.setdefault(path, entry.place)
    return out


def texts_like_numbers(rows: Iterable[Metadata]) -> list[str]:
    """One line for each column with texts that a reader takes for numbers or dates, and a filter does not."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and _LIKE_NUMBER.fullmatch(value):
                found.setdefault(name, []).append(value)
    return [
        f"metadata: {name} is a text in {len(values)} of them ({values[0]!r}), which no number compares with; write numbers "
        "as 1234.5, dates as 2024-05-31"
        for name, values in found.items()
    ]


_LIKE_NUMBER = re.compile(r"\s*[-+]?(\d+[,. \u00a0']\d[\d,. \u00a0']*|\d+/\d+/\d+|[\d.,]+ ?[%€$]|[€$] ?[\d.,]+)\s*")


def _bad_row(what: str) -> VtrError:
    return VtrError(lambda say: f"{say.name('metadata')} {what}")


def clean_metadata(values: Mapping[str, object], origin: str) -> Metadata:
    """Metadata as it is stored: finite numbers and texts; nothing for what is empty.

    Raises:
        UsageError: A column's name cannot be used in a filter.
    """
    out: Metadata = {}
    for name, value in values.items():
        if not name or any(c in '"`\\' or not c.isprintable() for c in name):
            raise UsageError(f"{origin}: column {name!r}: expected a name without quotes and control characters")
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False)
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if isinstance(value, int) and abs(value) >= 1 << 63:
            value = str(value)
        out[name] = value if isinstance(value, str | int | float) else str(value)
    return out


def numbers_of(values: Mapping[str, object]) -> dict[str, object]:
    """The columns of a list, with the cells of a table as numbers where they are some."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    """A CSV cell as a number where it is one."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", value):
        return int(value)
    if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", value):
        return float(value)
    return value
