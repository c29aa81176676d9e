"""Files of folders: which are media, and what is left out, with the reason counted."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtr.data import subtitles
from vtr.data.litter import file_left_out, folder_left_out
from vtr.errors import VtrError
from vtr.library.files import shown


@dataclass(kw_only=True)
class Scan:
    """What was found under some paths.

    Attributes:
        files: Media files, each once.
        unlisted: Folders that cannot be listed.
        links: Links to folders, which are not followed.
        left_out, folders_left_out: How many files and folders were left out, by the reason as it is shown.
    """

    files: list[Path] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders_left_out: Counter[str] = field(default_factory=Counter)

    def skipped(self) -> str:
        """What was left out, as in `37 files skipped: 30 ._*, 4 .part, 3 .xyz`; "" for nothing."""
        parts = []
        for what, counts in (("file", self.left_out), ("folder", self.folders_left_out)):
            if total := counts.total():
                most = ", ".join(f"{n} {shown(why)}" for why, n in counts.most_common(_SHOWN))
                rest = f", {len(counts) - _SHOWN} more kinds" if len(counts) > _SHOWN else ""
                parts.append(f"{total} {what}{'s' * (total > 1)} skipped: {most}{rest}")
        return "; ".join(parts)


_SHOWN = 12  # reasons that are named one by one


def find_media(
    paths: Iterable[str | Path],
    *,
    may_be_empty: bool = False,
    exclude: Sequence[str] = (),
    include_hidden: bool = False,
) -> Scan:
    """Media files under folders (by ending), and files named outright whatever their name.

    Left out of folders: what is hidden (a name with a dot before it), what NAS boxes, desktops and cameras keep for
    themselves, what is still being downloaded, and what is no media file.

    Args:
        paths: Folders and files. Symbolic links to folders inside folders are not followed.
        may_be_empty: A folder without media files is no error.
        exclude: Patterns (`*`, `?`, `[…]`) of names, or of paths below a folder where they have a slash; a folder that
            one fits is left out with all that is in it.
        include_hidden: Also files and folders whose names begin with a dot.

    Raises:
        VtrError: A path does not exist, or a folder holds no media file.
    """
    scan = Scan()
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            before = scan.skipped()
            inside = sorted(_inside(path, scan, exclude, include_hidden))
            if not inside and not may_be_empty:
                left = f" ({scan.skipped()})" if scan.skipped() != before else ""
                raise VtrError(f"{path}: no video or image files in this folder{left}")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise VtrError(f"{path}: no such file or folder")
    scan.files = list({os.path.abspath(p): p for p in found}.values())
    return scan


def _inside(folder: Path, scan: Scan, exclude: Sequence[str], include_hidden: bool) -> Iterator[Path]:
    def unlisted(error: OSError) -> None:
        scan.unlisted.append(str(error.filename))

    for place, folders, names in os.walk(folder, onerror=unlisted):
        below = os.path.relpath(place, folder)
        kept = []
        for name in folders:
            why = _excluded(name, below, exclude) or folder_left_out(name, Path(place).suffix, include_hidden)
            if why:
                scan.folders_left_out[why] += 1
            elif os.path.islink(os.path.join(place, name)):
                scan.links.append(os.path.join(place, name))
            else:
                kept.append(name)
        folders[:] = sorted(kept)
        beside = set(names)
        said = {name for files in subtitles.beside(names).values() for name in files}
        for name in names:
            if name in said:
                continue
            why = _excluded(name, below, exclude) or file_left_out(name, beside, include_hidden)
            if why:
                scan.left_out[why] += 1
            else:
                yield Path(place, name)


def _excluded(name: str, below: str, exclude: Sequence[str]) -> str | None:
    path = name if below == "." else f"{below}/{name}"
    for pattern in exclude:
        tidy = pattern.strip("/").removeprefix("./")
        if tidy and fnmatch.fnmatchcase(path if "/" in tidy else name, tidy):
            return f"{pattern} (excluded)"
    return None


def below(path: str, folder: str | Path) -> bool:
    """Whether a path is a folder or lies in it, by their names."""
    whole = os.path.abspath(folder)
    return path == whole or path.startswith(whole.rstrip(os.sep) + os.sep)


def no_folder(folder: Path) -> VtrError:
    """What is said of a folder that is to be looked at again and is not there."""
    return VtrError(lambda say: f"{folder}: no such folder; to forget what was in it: {say.call('index remove')}")


def unmounted(folder: Path, count: int, library: Path) -> VtrError:
    """What is said of a folder whose `count` files of the library are all gone."""
    return VtrError(
        lambda say: (
            f"{folder}: no media files, but {count} of them are in {library}; is a disk not mounted? "
            f"{say.name('may_be_empty')} forgets them"
        )
    )
