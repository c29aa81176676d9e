"""The verbs of the library: `vtr index build|add|remove|info`, `vtr search` and `vtr serve`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vtr.errors import UsageError, VtrError
from vtr.library.files import find_media, shown
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
    """Folders and files."""
    model: str | None = None
    """The library's model, where it has moved since."""


@dataclass(frozen=True, kw_only=True)
class RemoveSettings:
    """Forget videos; the files themselves stay."""

    library: tyro.conf.Positional[Path]
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files, or folders for all that is in them."""


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
    model: str | None = None
    """The library's model, where it has moved since."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Search a library in a browser: one page and a REST API, until Ctrl-C."""

    library: tyro.conf.Positional[Path]
    host: str = "127.0.0.1"
    """Address to listen on; elsewhere than on this machine a token is asked for."""
    port: int = 8000
    """0: any free one."""
    token: str | None = None
    """What clients must know; "" for nothing. Default: the variable VTR_TOKEN; a random one where --host is public."""
    allow_host: tuple[str, ...] = ()
    """Further host names that the server answers under."""
    follow_links: bool = False
    """Also serve symbolic links that lead out of their folder."""
    max_upload: str = "64M"
    """Largest clip to search by."""
    model: str | None = None
    """The library's model, where it has moved since."""


def build(settings: BuildSettings) -> int:
    """`vtr index build`."""
    _need(settings.paths)
    find_media(settings.paths)  # a wrong path is said before the model is loaded
    library = Library.create(settings.out, settings.model, window=settings.window, stride=settings.stride)
    return _report(library.add(settings.paths), library)


def add(settings: AddSettings) -> int:
    """`vtr index add`."""
    _need(settings.paths)
    library = Library.open(settings.library, settings.model)
    return _report(library.add(settings.paths), library)


def remove(settings: RemoveSettings) -> int:
    """`vtr index remove`."""
    _need(settings.paths)
    count = Library.open(settings.library).remove(settings.paths)
    print(f"{settings.library}: {count} removed", file=sys.stderr)
    return 0


def info(settings: InfoSettings) -> int:
    """`vtr index info`."""
    values = Library.open(settings.library).info()
    if settings.json:
        print(json.dumps(values))
        return 0
    index = values["index"]
    rows = {
        "library": values["path"],
        "model": f"{values['model'] or 'not stored'} ({values['fingerprint'][:12]})",
        "videos": f"{values['videos']}, {values['seconds'] / 60:.1f} minutes",
        "segments": f"{values['segments']}, {values['window']:g} s every {values['stride']:g} s, "
        f"{values['frames']} frames each",
        "index": f"{index['type']}, recall@10 {index['recall_at_10']:g}" if index else "not made yet",
        "unreadable": len(values["unreadable"]),
    }
    for key, value in rows.items():
        print(f"{key:<12}{value}")
    for line in values["unreadable"]:
        print(f"  {line}")
    return 0


def search(settings: SearchSettings) -> int:
    """`vtr search`."""
    if settings.html is not None and not settings.html.absolute().parent.is_dir():
        raise VtrError(f"--html {settings.html}: the folder {settings.html.parent} does not exist")
    library = Library.open(settings.library, settings.model)
    hits = library.search(
        settings.text, settings.k, rerank=settings.rerank, where=settings.where, all_moments=settings.all_moments
    )
    if settings.html is not None:
        from vtr.library.html import write_contact_sheet

        write_contact_sheet(settings.html, [(settings.text, hits)], library)
        print(f"page: {settings.html}", file=sys.stderr)
    if settings.json:
        for hit in hits:
            print(json.dumps(hit_dict(hit)))
        return 0
    times = [f"{hit.start:.1f}-{hit.end:.1f}s" if hit.end > hit.start else "image" for hit in hits]
    width = max(map(len, times), default=0)
    for hit, time in zip(hits, times):
        print(f"{hit.score:7.3f}  {time:>{width}}  {shown(hit.path)}")
    if not hits:
        print("nothing found", file=sys.stderr)
    return 0


def serve(settings: ServeSettings) -> int:
    """`vtr serve`."""
    try:
        from vtr.library import serve as server
    except ModuleNotFoundError as error:
        raise VtrError(f"vtr serve needs {error.name}: pip install 'vtr[serve]'") from error
    token = os.environ.get("VTR_TOKEN") if settings.token is None else settings.token
    return server.serve(
        settings.library,
        host=settings.host,
        port=settings.port,
        token=token,
        model=settings.model,
        follow_links=settings.follow_links,
        allow_hosts=settings.allow_host,
        max_upload=settings.max_upload,
    )


def _need(paths: tuple[Path, ...]) -> None:
    if not paths:
        raise UsageError("no paths: name at least one folder or file")


def _report(report: AddReport, library: Library) -> int:
    for line in report.failed:
        print(f"unreadable: {line}", file=sys.stderr)
    print(
        f"{library.path}: {report.added} added ({report.segments} segments), {report.unchanged} unchanged, "
        f"{len(report.failed)} unreadable",
        file=sys.stderr,
    )
    nothing = report.failed and not report.added and not report.unchanged
    return 1 if nothing else 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "index build": (BuildSettings, build),
    "index add": (AddSettings, add),
    "index remove": (RemoveSettings, remove),
    "index info": (InfoSettings, info),
    "search": (SearchSettings, search),
    "serve": (ServeSettings, serve),
}
