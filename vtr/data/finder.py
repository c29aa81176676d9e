"""Finds the file that a list's name means: its own, or none.

A name with folders is found by them; a name without is found wherever it lies, if it lies at one place. The ending may be
another medium's (`.webm` for `.mp4`), but nothing that is no video stands in for one: no thumbnail, no part of a download.
"""

from __future__ import annotations

import filecmp
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vtr.data.litter import folder_left_out
from vtr.data.media import ending, is_image
from vtr.errors import UsageError, VtrError


class RootIndex:
    """The files under a data root, walked once, when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> list[Path]:
        """Every file, folders in order; links are followed, a loop of links once. What a NAS has thrown away is none."""
        if not self.folder.is_dir():
            raise UsageError(f"--data-root: {self.folder} is not a folder")
        seen: set[tuple[int, int]] = set()
        out: list[Path] = []
        for folder, inner, names in os.walk(self.folder, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                inner.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            inner[:] = sorted(name for name in inner if not folder_left_out(name, Path(folder).suffix, True))
            out += [Path(folder, name) for name in sorted(names)]
        return out

    def find_file(self, name: str) -> Path | None:
        """A file by its relative path, else by its name in any folder.

        Raises:
            VtrError: Files that differ have this name in several folders.
        """
        direct = self.folder / name
        if direct.is_file():
            return direct
        if Path(name).is_absolute():
            return None
        there = [p for p in self.files if p.name == Path(name).name]
        other = next((p for p in there[1:] if not _same_file(there[0], p)), None)
        if other is not None:
            raise VtrError(
                f"{name} is in several folders and not the same ({there[0]}, {other}): keep one, or give it by its path"
            )
        return there[0] if there else None


class _Outside(Exception):
    """A name that leads out of the root, or none at all."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a name finds.

    Attributes:
        path: Its file, None where there is none or it cannot be told which.
        rank: How surely: 0 its full path, 1 its name, 2 its name with another ending, 3 with or without `v_`.
        note: Why there is none, where something is like it.
    """

    path: Path | None = None
    rank: int = 9
    note: str = ""


class VideoFinder:
    """Finds videos (pictures where a name is one of a picture) under a root.

    Args:
        root: Where they are.
        folders: Folders below it that are looked through alone, as far as they are there.
    """

    def __init__(self, root: RootIndex, folders: Sequence[str] = ()) -> None:
        self.root = root
        self._folders = [root.folder / f for f in folders if (root.folder / f).is_dir()] or [root.folder]
        self._folder_stems: dict[Path, dict[str, list[Path]]] = {}

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        """Media files, and files without an ending (some data sets' names have none), by name without the ending."""
        out: dict[str, list[Path]] = {}
        # Below the current folder, Path("."), paths begin with nothing; below "/" with one slash.
        inside = tuple("" if folder == Path() else os.path.join(folder, "") for folder in self._folders)
        for path in self.root.files:
            if (ending(path.name) or _bare(path.name)) and str(path).startswith(inside):
                out.setdefault(_stem(path.name), []).append(path)
        return out

    def find(self, name: str) -> Path | None:
        """The file of a name, or None."""
        return self.look(name).path

    def place(self, name: str) -> Found:
        """What lies where a name says, with its ending or another; no other folder is looked into, none is walked."""
        try:
            parts = self._parts(name)
        except _Outside as e:
            return Found(note=str(e))
        for folder in self._folders:
            direct = folder.joinpath(*parts)
            if direct.is_file() and (ending(direct.name) or _bare(direct.name)):
                return Found(path=direct, rank=0)
        for folder in self._folders:
            there = self._in_folder(folder.joinpath(*parts[:-1])).get(_stem(parts[-1]), [])
            there = [p for p in there if _same_kind(_composed(parts[-1]), p.name)]
            if there:
                return self._one(there, 2)
        return Found()

    def look(self, name: str) -> Found:
        """The file of a name, how surely it is its own, or why there is none."""
        placed = self.place(name)  # before the same name deeper down
        if placed.path is not None or placed.note:
            return placed
        parts = self._parts(name)
        last, above = _composed(parts[-1]), tuple(parts[:-1])
        stem = _stem(last)
        other = stem.removeprefix("v_") if stem.startswith("v_") else f"v_{stem}"
        elsewhere: list[Path] = []
        for key, rank in ((stem, 1), (other, 3)):
            there = [p for p in self._by_stem.get(key, ()) if _same_kind(last, p.name)]
            fitting = [p for p in there if not above or p.parent.parts[-len(above) :] == above]
            elsewhere += [p for p in there if p not in fitting]
            exact = [p for p in fitting if _composed(p.name) == last]
            if exact or fitting:
                return self._one(exact or fitting, rank if exact or rank == 3 else 2)
        if elsewhere:
            return Found(note=f"{self._shown(elsewhere)} has its name, in another folder")
        return Found()

    def _parts(self, name: str) -> list[str]:
        if Path(name).is_absolute() and Path(name).is_relative_to(self.root.folder.absolute()):
            name = str(Path(name).relative_to(self.root.folder.absolute()))
        parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".")]
        if Path(name).is_absolute() or ".." in parts or not parts:
            raise _Outside(f"it leads out of {self.root.folder}" if parts else "an empty name")
        return parts

    def _in_folder(self, folder: Path) -> dict[str, list[Path]]:
        """A folder's own media files by name without the ending."""
        if folder not in self._folder_stems:
            stems = self._folder_stems[folder] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if (ending(path.name) or _bare(path.name)) and path.is_file():
                    stems.setdefault(_stem(path.name), []).append(path)
        return self._folder_stems[folder]

    def _one(self, paths: list[Path], rank: int) -> Found:
        first = paths[0]
        if all(_same_file(first, p) for p in paths[1:]):
            return Found(path=first, rank=rank)
        return Found(note=f"{len(paths)} files have this name ({self._shown(paths)}): which is it?")

    def _shown(self, paths: Sequence[Path]) -> str:
        names = [str(p.relative_to(self.root.folder)) for p in paths]
        return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")

    def find_all(self, names: Iterable[str]) -> tuple[dict[str, Path | None], dict[str, str]]:
        """The files of many names, none of them for two; and for names without one why: see `settle`."""
        return settle({name: self.look(name) for name in dict.fromkeys(names)}, self.root.folder)


def closer(root: VideoFinder, own: VideoFinder, name: str) -> Found:
    """What a name of a list means whose own folder is `own`: the file at its place there, or whatever `root` finds.

    A file beside the list is meant before one of its name deeper under the root; two that differ, each at the name's
    place, are told.
    """
    beside = own.place(name)
    exact = own.root.folder / name
    if exact.is_file():  # a whole path, or one that leads out of the list's folder
        beside = Found(path=exact, rank=0)
    if beside.path is None:
        return root.look(name)
    there = root.place(name)
    if there.path is None:
        return beside
    if _same_file(there.path, beside.path):
        return there
    return Found(
        note=f"{there.path} and {beside.path} differ and both have its name: which is it? write the whole path"
    )


def settle(looks: Mapping[str, Found], root: Path) -> tuple[dict[str, Path | None], dict[str, str]]:
    """The files of many names, none of them for two; and for names without one why, where there is more to say.

    Where two names lead to one file, the one that is the file's own has it; where neither is more so, none has.
    """
    paths = {name: found.path for name, found in looks.items()}
    notes = {name: found.note for name, found in looks.items() if found.note}
    owners: dict[Path, list[str]] = {}
    for name, found in looks.items():
        if found.path is not None:
            owners.setdefault(found.path.resolve(), []).append(name)
    for file, claims in owners.items():
        best = min(looks[c].rank for c in claims)
        first = [c for c in claims if looks[c].rank == best]
        shown = os.path.relpath(file, root.resolve())
        for name in claims if len(first) > 1 else [c for c in claims if c not in first]:
            others = ", ".join(repr(c) for c in claims if c != name)
            paths[name] = None
            notes[name] = f"{shown} is the file of {others}" + (" as well: whose is it?" if name in first else "")
    return paths, notes


def _bare(name: str) -> bool:
    """Whether a file's name has no ending at all."""
    return "." not in name.rstrip(".")


def _stem(name: str) -> str:
    """A name without a medium's ending or a bare dot at its end; other dots belong to it ("a.b" is no "a")."""
    name = _composed(name)
    return name[: -len(ending(name)) - 1] if ending(name) else name.rstrip(".")


def _composed(name: str) -> str:
    """A name whose accents are of one kind: some file systems take them apart."""
    return unicodedata.normalize("NFC", name)


def _same_kind(wanted: str, there: str) -> bool:
    """Whether a file may be what a name asks for: pictures by their full name alone, videos by any ending."""
    if is_image(there):
        return _composed(there) == wanted
    return not is_image(wanted)


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b) or (a.stat().st_size == b.stat().st_size and filecmp.cmp(a, b, shallow=False))
    except OSError:
        return False
