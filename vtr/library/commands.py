"""The verbs of the library: `vtr index …`, `vtr embed`, `vtr search` and `vtr serve`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vtr.errors import UsageError, VtrError
from vtr.files import install_command
from vtr.library.files import find_media, read_metadata
from vtr.library.library import AddReport, Library
from vtr.library.search import Searcher, hit_dict, hit_lines


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Make a library of folders and files, or of embeddings; calling it again continues or brings it up to date."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders and files."""
    model: str | None = None
    """A run, a model folder, a hub id, an official checkpoint (`vtr models`) or open_clip:MODEL/PRETRAINED."""
    out: Path
    """The library's folder."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Embeddings made by vtr embed, instead of paths and model."""
    window: float = 8.0
    """Seconds of a segment."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""
    metadata: Path | None = None
    """CSV, TSV or JSONL with a column path; the others can be used in --where."""
    max_memory: str | None = None
    """Most memory the index may take, as in 4G (default: half of the machine's)."""
    token_cache: str | None = None
    """Disk for visual tokens of re-ranked moments, as in 2G (default: none, they are encoded again)."""


@dataclass(frozen=True, kw_only=True)
class AddSettings:
    """Add folders and files to a library; unchanged ones are skipped."""

    library: tyro.conf.Positional[Path]
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders and files."""
    model: str | None = None
    """The library's model, where it has moved since."""
    metadata: Path | None = None
    """CSV, TSV or JSONL with a column path; the others can be used in --where."""
    max_memory: str | None = None
    """Most memory the index may take from now on."""
    token_cache: str | None = None
    """Disk for visual tokens of re-ranked moments from now on."""


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Bring a library up to date with folders: new files added, changed ones done again, vanished ones forgotten."""

    library: tyro.conf.Positional[Path]
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders; videos of the library that lie elsewhere are left alone."""
    model: str | None = None
    """The library's model, where it has moved since."""
    metadata: Path | None = None
    """CSV, TSV or JSONL with a column path; the others can be used in --where."""
    quick: bool = False
    """Trust size and time of a file instead of reading it to compare its content."""
    may_be_empty: bool = False
    """A folder without any media file is meant: forget all that was in it."""


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
class VerifySettings:
    """Check that database, vectors and index agree; exit code 1 when something is wrong."""

    library: tyro.conf.Positional[Path]
    files: bool = False
    """Also read every indexed file and compare its content."""
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CompactSettings:
    """Free the room of forgotten videos and bring the index up to date; searching goes on meanwhile."""

    library: tyro.conf.Positional[Path]
    max_memory: str | None = None
    """Most memory the index may take from now on."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write all segments, their vectors and metadata to a Parquet file."""

    library: tyro.conf.Positional[Path]
    out: Path


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """Bring a collection on Milvus up to date with a library; only what differs is sent."""

    library: tyro.conf.Positional[Path]
    to: str
    """milvus://HOST:PORT/NAME, or milvus:///ABSOLUTE/FILE.db/NAME for Milvus Lite; MILVUS_TOKEN holds the password."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Embed the samples of shards, one file a shard; shards that are done are skipped. Runs under accelerate launch."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .tar files, URLs, brace and :: lists."""
    model: str
    """A run, a model folder or a hub id."""
    out: Path
    """Folder of the embeddings."""
    window: float = 8.0
    """Seconds of a segment."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Find moments in words, by example, or both."""

    library: tyro.conf.Positional[Path]
    """A library's folder, or milvus://HOST:PORT/NAME."""
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """What is looked for; several texts count the same."""
    minus: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text that is not wanted (may be given several times)."""
    like: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A video or an image that hits resemble (may be given several times)."""
    more: int | None = None
    """More like this hit: the number behind # (`segment` with --json)."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of hits."""
    rerank: int = 0
    """Segments that the cross-modal decoder looks at again."""
    where: str | None = None
    """Filter, as in 'duration < 60 and path ~ "dog"': path, duration, start, end, date and metadata columns."""
    all_moments: bool = False
    """Several moments of one video, each with a rank of its own."""
    moments: int = 1
    """Up to so many moments of a video, together; the best video first."""
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
    memory, cache = _size(settings.max_memory), _size(settings.token_cache)
    if settings.source is not None:
        from vtr.library.embed import build_from

        if settings.paths or settings.model or settings.metadata:
            raise UsageError("--from has its own videos, model and metadata: leave paths, --model and --metadata out")
        library = build_from(settings.source, settings.out, max_memory=memory, token_cache=cache)
        print(f"{library.path}: {library.store.segments()} segments", file=sys.stderr)
        return 0
    _need(settings.paths)
    if settings.model is None:
        raise UsageError("--model is missing: name a run, a model folder or a hub id")
    find_media(settings.paths)  # a wrong path is said before the model is loaded
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.create(
        settings.out,
        settings.model,
        window=settings.window,
        stride=settings.stride,
        max_memory=memory,
        token_cache=cache,
    )
    return _report(library.add(settings.paths, metadata=metadata), library)


def add(settings: AddSettings) -> int:
    """`vtr index add`."""
    _need(settings.paths)
    memory, cache = _size(settings.max_memory), _size(settings.token_cache)
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.open(settings.library, settings.model)
    library.set_limits(max_memory=memory, token_cache=cache)
    return _report(library.add(settings.paths, metadata=metadata), library)


def sync(settings: SyncSettings) -> int:
    """`vtr index sync`."""
    _need(settings.paths)
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.open(settings.library, settings.model)
    report = library.sync(settings.paths, quick=settings.quick, may_be_empty=settings.may_be_empty, metadata=metadata)
    return _report(report, library)


def verify(settings: VerifySettings) -> int:
    """`vtr index verify`; exit code 1 when something is wrong."""
    from vtr.library.verify import advice
    from vtr.library.verify import verify as check

    library = Library.open(settings.library)
    problems = check(library, files=settings.files)
    for line in [] if problems else advice(library):
        print(f"advice: {line}", file=sys.stderr)
    if settings.json:
        print(json.dumps({"path": str(library.path), "segments": library.store.segments(), "problems": problems}))
    else:
        for line in problems:
            print(line)
        if not problems:
            print(f"{library.path}: {library.store.segments()} segments, all is well")
    return 1 if problems else 0


def compact(settings: CompactSettings) -> int:
    """`vtr index compact`."""
    memory = _size(settings.max_memory)
    library = Library.open(settings.library)
    library.set_limits(max_memory=memory)
    done = library.compact()
    print(
        f"{library.path}: {done['segments']} segments, {done['saved'] / (1 << 20):.1f} MiB freed, "
        f"index {done['index']['type']}, recall@10 {done['index']['recall_at_10']:g}",
        file=sys.stderr,
    )
    return 0


def export(settings: ExportSettings) -> int:
    """`vtr index export`."""
    from vtr.library.export import export as write

    count = write(Library.open(settings.library), settings.out)
    print(f"{settings.out}: {count} segments", file=sys.stderr)
    return 0


def push(settings: PushSettings) -> int:
    """`vtr index push`."""
    from vtr.library.milvus import push as send

    done = send(Library.open(settings.library), settings.to)
    print(
        f"{settings.to}: {done['written']} segments written, {done['unchanged']} unchanged, {done['removed']} removed",
        file=sys.stderr,
    )
    return 0


def embed(settings: EmbedSettings) -> int:
    """`vtr embed`."""
    import vtr.models.load
    from vtr.data.shards import expand_shards
    from vtr.library.embed import embed as run

    if not settings.shards:
        raise UsageError("no shards: name at least one folder or .tar file")
    if not (0 < settings.window < float("inf") and 0 < settings.stride < float("inf")):
        raise UsageError(f"--window {settings.window:g} --stride {settings.stride:g}: expected positive seconds")
    shards = [s for spec in settings.shards for s in expand_shards(spec)]
    where = os.path.abspath(settings.model) if Path(settings.model).exists() else settings.model
    local = os.environ.get("LOCAL_RANK")
    import torch

    device = f"cuda:{local}" if local is not None and torch.cuda.is_available() else None
    report = run(
        shards,
        settings.out,
        vtr.models.load.load(settings.model, device),
        model_path=where,
        window=settings.window,
        stride=settings.stride,
    )
    for line in report.failed:
        print(f"unreadable: {line}", file=sys.stderr)
    print(
        f"{settings.out}: {report.shards} shards embedded ({report.segments} segments), {report.skipped} were there, "
        f"{len(report.failed)} samples unreadable",
        file=sys.stderr,
    )
    if report.damaged:
        raise VtrError(
            f"{len(report.damaged)} shards are damaged and left out ({report.damaged[0]}); mend them and call again"
        )
    return 0


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
    if not (settings.text or settings.like or settings.more is not None):
        raise UsageError("an empty query: ask with a text, --like FILE or --more SEGMENT")
    if settings.html is not None and not settings.html.absolute().parent.is_dir():
        raise VtrError(f"--html {settings.html}: the folder {settings.html.parent} does not exist")
    for file in settings.like:
        if not file.is_file():
            raise VtrError(f"--like {file}: no such file")
    library = open_any(settings.library, settings.model)
    hits = library.search(
        settings.text,
        settings.k,
        rerank=settings.rerank,
        where=settings.where,
        all_moments=settings.all_moments,
        minus=settings.minus,
        like=settings.like,
        more=settings.more,
        moments=settings.moments,
    )
    if settings.html is not None:
        from vtr.library.html import write_contact_sheet

        write_contact_sheet(settings.html, [(_title(settings), hits)], library)
        print(f"page: {settings.html}", file=sys.stderr)
    if settings.json:
        for hit in hits:
            print(json.dumps(hit_dict(hit)))
        return 0
    for line in hit_lines(hits):
        print(line)
    if not hits:
        print("nothing found", file=sys.stderr)
    return 0


def serve(settings: ServeSettings) -> int:
    """`vtr serve`."""
    try:
        from vtr.library.serve import server
    except ModuleNotFoundError as error:
        raise VtrError(f"vtr serve needs {error.name}: {install_command('serve')}") from error
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


def open_any(place: Path | str, model: str | None = None) -> Searcher:
    """A library's folder, or an address on Milvus."""
    if str(place).startswith("milvus"):
        from vtr.library.milvus import MilvusLibrary, is_address

        if is_address(place):
            return MilvusLibrary(place, model)
    return Library.open(place, model)


def _title(settings: SearchSettings) -> str:
    words = [*settings.text, *(f"like {p.name}" for p in settings.like)]
    words += [f"like #{settings.more}"] if settings.more is not None else []
    return " + ".join(words) + "".join(f" − {t}" for t in settings.minus)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from vtr.library.index import parse_size

    return parse_size(text)


def _need(paths: tuple[Path, ...]) -> None:
    if not paths:
        raise UsageError("no paths: name at least one folder or file")


def _report(report: AddReport, library: Library) -> int:
    for line in report.failed:
        print(f"unreadable: {line}", file=sys.stderr)
    for line in report.notes:
        print(f"note: {line}", file=sys.stderr)
    more = {"moved": report.moved, "removed": report.removed, "of known content": report.known}
    print(
        f"{library.path}: {report.added} added ({report.segments} segments), {report.unchanged} unchanged, "
        + "".join(f"{count} {what}, " for what, count in more.items() if count)
        + f"{len(report.failed)} unreadable",
        file=sys.stderr,
    )
    done = report.added or report.unchanged or report.moved or report.removed
    return 1 if report.failed and not done else 0


COMMANDS: dict[str, tuple[Any, Any]] = {
    "index build": (BuildSettings, build),
    "index add": (AddSettings, add),
    "index sync": (SyncSettings, sync),
    "index remove": (RemoveSettings, remove),
    "index info": (InfoSettings, info),
    "index verify": (VerifySettings, verify),
    "index compact": (CompactSettings, compact),
    "index export": (ExportSettings, export),
    "index push": (PushSettings, push),
    "embed": (EmbedSettings, embed),
    "search": (SearchSettings, search),
    "serve": (ServeSettings, serve),
}
