"""Files of a library's folders: which are media, their content hash, and how a name is shown."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from vtr.errors import VtrError

_VIDEOS = ".mp4 .m4v .mov .mkv .webm .avi .gif .flv .mpg .mpeg .m2ts .3gp .ogv .wmv .ts .mts .mxf .vob"
_IMAGES = ".jpg .jpeg .png .webp .bmp .tif .tiff .avif .heic"
MEDIA = frozenset(f"{_VIDEOS} {_IMAGES}".split())


def find_media(paths: Iterable[str | Path]) -> list[Path]:
    """Media files under folders (by extension), and files named outright whatever their extension.

    Raises:
        VtrError: A path does not exist, or a folder holds no media file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA and not p.is_dir())
            if not inside:
                raise VtrError(f"{path}: no video or image files in this folder")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise VtrError(f"{path}: no such file or folder")
    return list({os.path.abspath(p): p for p in found}.values())


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
