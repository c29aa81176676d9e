"""The verbs of the library: `vtr index build|add|remove|info` and `vtr search`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vtr.library.library import AddReport, Library, hit_dict


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Make a library of folders and files; calling it again continues or brings it up to date."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders and files."""
    model: str
    """A run, a model folder or a hub id."""
    out: Path
    """The library's folder."""
    window: float = 8.0
    """Seconds of a segment."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""


@dataclass(frozen=True, kw_only=True)
class AddSettings:
    """Add folders and files to a library; unchanged ones are skipped."""

    library: tyro.conf.Positional[Path]
    paths: tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True, kw_only=True)
class RemoveSettings:
    """Forget videos."""

    library: tyro.conf.Positional[Path]
    paths: tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True, kw_only=True)
class InfoSettings:
    """Show what a library holds, and what could not be read."""

    library: tyro.conf.Positional[Path]
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Find moments in words."""

    library: tyro.conf.Positional[Path]
    text: tyro.conf.Positional[str]
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of hits."""
    rerank: int = 0
    """Segments that the cross-modal decoder looks at again."""
    where: str | None = None
    """Filter, as in 'duration < 60 and path ~ "dog"'."""
    all_moments: bool = False
    """Several moments of one video."""
    html: Path | None = None
    """Write a page with thumbnails."""
    json: bool = False
    """One JSON object a line."""


def build(settings: BuildSettings) -> int:
    """`vtr index build`."""
    library = Library.create(settings.out, settings.model, window=settings.window, stride=settings.stride)
    return _report(library.add(settings.paths), library)


def add(settings: AddSettings) -> int:
    """`vtr index add`."""
    library = Library.open(settings.library)
    return _report(library.add(settings.paths), library)


def remove(settings: RemoveSettings) -> int:
    """`vtr index remove`."""
    count = Library.open(settings.library).remove(settings.paths)
    print(f"removed {count}", file=sys.stderr)
    return 0


def info(settings: InfoSettings) -> int:
    """`vtr index info`."""
    values = Library.open(settings.library).info()
    if settings.json:
        print(json.dumps(values))
        return 0
    for key, value in values.items():
        if key != "unreadable":
            print(f"{key:<12} {value}")
    for line in values["unreadable"]:
        print(f"unreadable   {line}")
    return 0


def search(settings: SearchSettings) -> int:
    """`vtr search`."""
    library = Library.open(settings.library)
    hits = library.search(
        settings.text, settings.k, rerank=settings.rerank, where=settings.where, all_moments=settings.all_moments
    )
    for hit in hits:
        print(
            json.dumps(hit_dict(hit))
            if settings.json
            else f"{hit.score:8.3f}  {hit.start:7.1f}-{hit.end:.1f}s  {hit.path}"
        )
    if not hits:
        print("nothing found", file=sys.stderr)
    if settings.html is not None:
        from vtr.library.html import write_contact_sheet

        write_contact_sheet(settings.html, [(settings.text, hits)], library)
        print(f"page: {settings.html}", file=sys.stderr)
    return 0


def _report(report: AddReport, library: Library) -> int:
    failed = report.failed or []
    for line in failed:
        print(f"unreadable: {line}", file=sys.stderr)
    print(
        f"{library.path}: {report.added} added ({report.segments} segments), {report.unchanged} unchanged, "
        f"{len(failed)} unreadable",
        file=sys.stderr,
    )
    return 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "index build": (BuildSettings, build),
    "index add": (AddSettings, add),
    "index remove": (RemoveSettings, remove),
    "index info": (InfoSettings, info),
    "search": (SearchSettings, search),
}
