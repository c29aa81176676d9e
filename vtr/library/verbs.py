"""What the verbs of the library do: `vtr index …`, `vtr embed`, `vtr search` and `vtr serve`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from vtr.data.uri import Access, is_uri
from vtr.errors import UsageError, VtrError
from vtr.files import install_command
from vtr.library.clips import write_clips
from vtr.library.commands import (
    AddSettings,
    BackupSettings,
    BuildSettings,
    CompactSettings,
    EmbedSettings,
    ExportSettings,
    InfoSettings,
    McpSettings,
    PushSettings,
    RemoveSettings,
    SearchSettings,
    ServeSettings,
    SyncSettings,
    VerifySettings,
    WatchSettings,
    WorkSettings,
)
from vtr.library.files import read_metadata, shown
from vtr.library.found import Hits, hit_dict, hit_lines
from vtr.library.index import parse_size
from vtr.library.library import Library
from vtr.library.rows import Metadata
from vtr.library.scan import find_media
from vtr.library.search import Searcher
from vtr.library.settings import Work, check_windows
from vtr.library.timeline import check_ending, write_timeline

if TYPE_CHECKING:
    from vtr.library.ingest import AddReport
    from vtr.library.settings import Info


def build(settings: BuildSettings) -> int:
    """`vtr index build`."""
    memory, cache = _size(settings.max_memory), _size(settings.token_cache)
    if settings.source is not None:
        from vtr.library.imports import build_from

        if settings.paths or settings.model or settings.metadata:
            raise UsageError("--from has its own videos, model and metadata: leave paths, --model and --metadata out")
        library = build_from(settings.source, settings.out, max_memory=memory, token_cache=cache)
        print(f"{library.path}: {library.store.segments()} segments", file=sys.stderr)
        return 0
    _need(settings.paths)
    if settings.model is None:
        raise UsageError("--model is missing: name a run, a model folder or a hub id")
    paths = [p for p in settings.paths if not is_uri(p)]
    find_media(
        paths, exclude=settings.exclude, include_hidden=settings.include_hidden
    )  # a wrong path is said before the model is loaded
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.create(
        settings.out,
        settings.model,
        window=settings.window,
        stride=settings.stride,
        segments=settings.segments,
        frame_vectors=settings.frame_vectors or None,
        max_memory=memory,
        token_cache=cache,
    )
    return _report(_taken_in(library, settings, metadata), library)


def add(settings: AddSettings) -> int:
    """`vtr index add`."""
    _need(settings.paths)
    memory, cache = _size(settings.max_memory), _size(settings.token_cache)
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.open(settings.library, settings.model)
    library.set_limits(max_memory=memory, token_cache=cache)
    return _report(_taken_in(library, settings, metadata), library)


def _taken_in(
    library: Library, settings: BuildSettings | AddSettings, metadata: dict[str, Metadata] | None
) -> AddReport:
    return library.add(
        settings.paths,
        metadata=metadata,
        keyframes=None if settings.frames is None else settings.frames == "keyframes",
        work=_work(settings),
        access=Access(private=settings.allow_private),
        **_chosen(settings),
    )


def sync(settings: SyncSettings) -> int:
    """`vtr index sync`."""
    _need(settings.paths)
    metadata = read_metadata(settings.metadata) if settings.metadata else None
    library = Library.open(settings.library, settings.model)
    report = library.sync(
        settings.paths,
        quick=settings.quick,
        may_be_empty=settings.may_be_empty,
        metadata=metadata,
        work=_work(settings),
        **_chosen(settings),
    )
    return _report(report, library)


def watch(settings: WatchSettings) -> int:
    """`vtr index watch`."""
    from vtr.library.watch import watch as follow

    _need(settings.paths)
    if not 0 < settings.rest < 3600:
        raise UsageError(f"--rest {settings.rest:g}: expected seconds, more than 0")
    library, stop = Library.open(settings.library, settings.model), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    told = [""]

    def problem(line: str) -> None:
        if line != told[-1]:  # it is tried again and again
            print(f"waiting: {line}", file=sys.stderr)
            told[-1] = line

    poll, work = settings.poll or None, _work(settings)
    try:
        for report in follow(
            library, settings.paths, poll=poll, rest=settings.rest, stop=stop, problem=problem, work=work
        ):
            told[-1] = ""
            _report(report, library)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


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


def backup(settings: BackupSettings) -> int:
    """`vtr index backup`; exit code 1 when something is wrong with the copy."""
    from vtr.library.backup import backup as copy

    with Library.open(settings.library) as library:
        problems = copy(library, settings.out)
    for line in problems:
        print(line)
    if not problems:
        print(f"{settings.out}: a copy of {settings.library}, all is well")
    return 1 if problems else 0


def compact(settings: CompactSettings) -> int:
    """`vtr index compact`."""
    memory = _size(settings.max_memory)
    library = Library.open(settings.library)
    library.set_limits(max_memory=memory)
    done = library.compact()
    index = done["index"]
    print(
        f"{library.path}: {done['segments']} segments, {done['saved'] / (1 << 20):.1f} MiB freed, "
        + (f"index {index['type']}, recall@10 {index['recall_at_10']:g}" if index else "no index"),
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

    done = send(Library.open(settings.library), settings.to, staging=settings.staging, bulk_from=settings.bulk_from)
    print(
        f"{settings.to}: {done['written']} segments written, {done['unchanged']} unchanged, {done['removed']} removed",
        file=sys.stderr,
    )
    if settings.staging is None and done["written"] >= settings.bulk_from:
        print("note: so many segments are sent sooner as files that the server imports: --staging", file=sys.stderr)
    return 0


def embed(settings: EmbedSettings) -> int:
    """`vtr embed`."""
    import torch

    from vtr.library.encode import load_encoder

    if settings.engine == "ray":
        if _work(settings) != Work():
            raise UsageError(
                "--workers, --devices and --precision are of this machine: on a cluster Ray gives out the work"
            )
        try:
            from vtr.library.cluster import embed as run
        except ModuleNotFoundError as error:
            raise VtrError(f"--engine ray needs {error.name}: {install_command('ray')}") from error
    else:
        from vtr.library.embed import embed as embed_here

        run = partial(embed_here, work=_work(settings))
    if not (settings.what or settings.uris):
        raise UsageError("nothing to embed: name folders, files, lists, shards or addresses")
    check_windows(settings.window, settings.stride)
    where = os.path.abspath(settings.model) if Path(settings.model).exists() else settings.model
    local = os.environ.get("LOCAL_RANK")
    device = f"cuda:{local}" if local is not None and torch.cuda.is_available() else None
    report = run(
        settings.what,
        settings.out,
        load_encoder(settings.model, device),
        model_path=where,
        window=settings.window,
        stride=settings.stride,
        segments=settings.segments,
        uris=settings.uris,
        access=Access(private=settings.allow_private),
        exclude=settings.exclude,
        part_bytes=parse_size(settings.part),
    )
    for line in report.failed:
        print(f"unreadable: {line}", file=sys.stderr)
    if report.left_out:
        print(report.left_out, file=sys.stderr)
    if settings.json:
        print(json.dumps({"path": str(settings.out), **asdict(report)}))
    print(
        f"{settings.out}: {report.parts} parts written ({report.videos} videos, {report.segments} segments), "
        f"{report.skipped} were there, {len(report.failed)} unreadable",
        file=sys.stderr,
    )
    if report.damaged:
        raise VtrError(f"{len(report.damaged)} left out ({report.damaged[0]}); mend that and call again")
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
        f"{values['frames']} frames each"
        + {"shots": ", along shots", "auto": ", along shots in films over two minutes"}.get(
            values.get("cutting", ""), ""
        ),
        **({"frames": "key frames only: a quick look"} if values.get("keyframes") else {}),
        **({"precision": _precision(values)} if values.get("precision", "fp32") != "fp32" else {}),
        "index": f"{index['type']}, recall@10 {index['recall_at_10']:g}" if index else "not made yet",
        **({"left out": ", ".join(values["exclude"])} if "exclude" in values else {}),
        **({"subtitles": f"of {values['spoken']} videos"} if values["spoken"] else {}),
        "unreadable": len(values["unreadable"]),
    }
    for key, value in rows.items():
        print(f"{key:<12}{value}")
    for line in values["unreadable"]:
        print(f"  {line}")
    if values["cut_off"]:
        print(f"{'cut off':<12}{len(values['cut_off'])}, indexed as far as they go")
    for line in values["cut_off"]:
        print(f"  {line}")
    for line in values["subtitles"]:
        print(f"  {line}")
    return 0


def _precision(values: Info) -> str:
    parity = values.get("parity")
    return values["precision"] + (f", cosine to fp32 {parity:.4f} or more" if parity is not None else "")


def search(settings: SearchSettings) -> int:
    """`vtr search`."""
    if not (settings.text or settings.like or settings.more is not None):
        raise UsageError("an empty query: ask with a text, --like FILE or --more SEGMENT")
    for name, path in (("html", settings.html), ("export", settings.export)):
        if path is not None and not path.absolute().parent.is_dir():
            raise VtrError(f"--{name} {path}: the folder {path.parent} does not exist")
    if settings.export is not None:
        check_ending(settings.export.suffix.lower())
    if settings.exact and settings.clips is None:
        raise UsageError("--exact is about clips: say where with --clips FOLDER")
    for file in settings.like:
        if not file.is_file():
            raise VtrError(f"--like {file}: no such file")
    library = open_any(settings.library, settings.model)
    if settings.curve is not None or settings.curve_out is not None:
        return _curve(settings, library)
    hits = library.search(
        settings.text,
        settings.k,
        rerank=settings.rerank,
        where=settings.where,
        all_moments=settings.all_moments,
        all=settings.all,
        minus=settings.minus,
        like=settings.like,
        more=settings.more,
        moments=settings.moments,
        unmerged=settings.unmerged,
        unrefined=settings.unrefined,
        min_score=settings.min_score,
        then=settings.then,
        before=settings.before,
        within=None if settings.within is None else _seconds(settings.within),
        by=settings.by,
    )
    for note in hits.notes:
        print(f"note: {note}", file=sys.stderr)
    if settings.html is not None:
        from vtr.library.html import write_contact_sheet

        write_contact_sheet(settings.html, [(_title(settings), hits)], library)
        print(f"page: {settings.html}", file=sys.stderr)
    lost = _handed_out(settings, hits, library)
    if settings.json:
        for hit in hits:
            print(json.dumps(hit_dict(hit)))
        return lost
    for line in hit_lines(hits):
        print(line)
    if not hits:
        print("nothing found", file=sys.stderr)
    return lost


def _handed_out(settings: SearchSettings, hits: Hits, library: Searcher) -> int:
    """Hits for other programs; 1 where some could not be cut."""
    if (settings.export or settings.clips) and isinstance(library, Library):
        for path in library.changed(hit.path for hit in hits):
            print(
                f"note: {shown(path)} has changed since it was indexed: what was found may be elsewhere in it; "
                "vtr index sync looks again",
                file=sys.stderr,
            )
    if settings.export is not None:
        for note in write_timeline(settings.export, hits, _title(settings)):
            print(f"note: {note}", file=sys.stderr)
        print(f"list: {settings.export}", file=sys.stderr)
    if settings.clips is None:
        return 0
    report = write_clips(hits, settings.clips, exact=settings.exact)
    for line in report.failed:
        print(f"not cut: {line}", file=sys.stderr)
    for line in report.notes:
        print(f"note: {line}", file=sys.stderr)
    print(
        f"{settings.clips}: {len(report.made)} clips cut, {len(report.there)} were there, {len(report.failed)} not cut",
        file=sys.stderr,
    )
    return 1 if report.failed else 0


_OF_CURVE = ("library", "text", "minus", "like", "more", "curve", "curve_out", "json", "model")


def _curve(settings: SearchSettings, library: Searcher) -> int:
    """`vtr search … --curve VIDEO`."""
    from vtr.library.curve import write_curve

    if settings.curve is None:
        raise UsageError(f"--curve-out {settings.curve_out}: of which video? name it with --curve")
    if not isinstance(library, Library):
        raise UsageError("--curve needs a library's folder")
    other = [f.name for f in fields(settings) if f.name not in _OF_CURVE and getattr(settings, f.name) != f.default]
    if other:
        raise UsageError(
            f"--curve shows one video from moment to moment: leave out --{', --'.join(other).replace('_', '-')}"
        )
    curve = library.curve(settings.curve, settings.text, minus=settings.minus, like=settings.like, more=settings.more)
    for note in curve.notes:
        print(f"note: {note}", file=sys.stderr)
    if settings.curve_out is None:
        print(json.dumps({"query": _title(settings), **curve.as_dict()}))
    else:
        write_curve(curve, _title(settings), settings.curve_out)
        print(f"curve: {settings.curve_out}", file=sys.stderr)
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
        log=settings.log,
        cors=settings.cors,
        root_path=settings.root_path,
    )


def mcp(settings: McpSettings) -> int:
    """`vtr mcp`."""
    try:
        from vtr.library.agents import make_server
    except ModuleNotFoundError as error:
        raise VtrError(f"vtr mcp needs {error.name}: {install_command('mcp')}") from error
    make_server(settings.library, settings.model, clips=settings.clips, follow_links=settings.follow_links).run()
    return 0


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


def _seconds(text: str) -> float:
    """Of `30`, `30s`, `2m` or `1h`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise UsageError(f"--within {text}: expected a length of time, as in 60s or 5m") from None


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


def _need(paths: Sequence[str | Path]) -> None:
    if not paths:
        raise UsageError("no paths: name at least one folder or file")


def _work(settings: WorkSettings) -> Work:
    return Work(workers=settings.workers, devices=settings.devices, precision=settings.precision)


class _Chosen(TypedDict):
    exclude: tuple[str, ...] | None
    include_hidden: bool | None


def _chosen(settings: BuildSettings | AddSettings | SyncSettings) -> _Chosen:
    """Which files are left out; None for what was not said, so that it stays as the library remembers it."""
    return {"exclude": settings.exclude or None, "include_hidden": settings.include_hidden or None}


def _report(report: AddReport, library: Library) -> int:
    for line in report.failed:
        print(f"unreadable: {line}", file=sys.stderr)
    for line in report.cut_off:
        print(f"indexed as far as it goes: {line}", file=sys.stderr)
    for line in report.notes:
        print(f"note: {line}", file=sys.stderr)
    if report.skipped:
        print(report.skipped, file=sys.stderr)
    more = {
        "moved": report.moved,
        "removed": report.removed,
        "with new subtitles": report.spoken,
        "cut off": len(report.cut_off),
    }
    copies = f"; {report.known} are copies of other files" if report.known else ""
    print(
        f"{library.path}: {report.added} added ({report.segments} segments{copies}), {report.unchanged} unchanged, "
        + "".join(f"{count} {what}, " for what, count in more.items() if count)
        + f"{len(report.failed)} unreadable",
        file=sys.stderr,
    )
    done = report.added or report.unchanged or report.moved or report.removed
    return 1 if report.failed and not done else 0
