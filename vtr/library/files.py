"""Files of a library: their content hash, what to decode, their metadata, and how a name is shown."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtr.errors import UsageError, VtrError


def leads_out(file: Path) -> bool:
    """Whether a file is a symbolic link to something outside its folder."""
    return file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(file.parent))


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
        VtrError: The shard has no such sample, or cannot be read.
    """
    shard, sign, member = path.partition(".tar/")
    if not sign or not os.path.isfile(f"{shard}.tar"):
        return Path(path)
    try:
        with tarfile.open(f"{shard}.tar", "r:") as tar:
            for info in tar:
                if info.name == member and info.isfile():
                    file = tar.extractfile(info)
                    return file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise VtrError(f"{shard}.tar cannot be read ({error})") from error
    raise VtrError(f"{path}: the shard has no such sample")


def read_metadata(listing: Path) -> dict[str, dict[str, Any]]:
    """Metadata of files: {full path: {column: number or text}} of a CSV, TSV or JSONL with a column `path` (or video).

    Relative paths start from the listing's folder. Numbers of a CSV become numbers; empty cells are left out.

    Raises:
        VtrError: The listing cannot be read.
        UsageError: It has no column of paths, or a column's name cannot be used in a filter.
    """
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VtrError(f"--metadata {listing}: cannot be read ({error})") from error
    rows: list[dict[str, Any]]
    if listing.suffix.lower() in (".jsonl", ".json"):
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise VtrError(f"--metadata {listing}: expected one JSON object a line ({error})") from error
        if not all(isinstance(row, dict) for row in rows):
            raise VtrError(f"--metadata {listing}: expected one JSON object a line")
    else:
        delimiter = "\t" if listing.suffix.lower() == ".tsv" else ","
        rows = [dict(row) for row in csv.DictReader(io.StringIO(text), delimiter=delimiter)]
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        column = next((c for c in ("path", "video", "file", "image") if c in row), None)
        if column is None:
            raise UsageError(f"--metadata {listing}: expected a column path, found {', '.join(map(str, row))}")
        values = {str(n): _plain(v) for n, v in row.items() if n not in (None, column)}
        out[os.path.abspath(listing.parent / str(row[column]))] = clean_metadata(values, f"--metadata {listing}")
    return out


def clean_metadata(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Metadata as it is stored: finite numbers and texts; nothing for what is empty.

    Raises:
        UsageError: A column's name cannot be used in a filter.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if not name or any(c in '"`\\' or not c.isprintable() for c in name):
            raise UsageError(f"{origin}: column {name!r}: expected a name without quotes and control characters")
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False)
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if isinstance(value, int) and abs(value) >= 1 << 63:
            value = str(value)
        out[name] = value
    return out


def _plain(value: Any) -> Any:
    """A CSV cell as a number where it is one."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", value):
        return int(value)
    if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", value):
        return float(value)
    return value
