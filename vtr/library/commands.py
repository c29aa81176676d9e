"""Flags of the verbs of the library: `vtr index …`, `vtr embed`, `vtr search` and `vtr serve`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """What files are embedded with."""

    workers: int | None = None
    """Decoding processes (default: one a core, 16 at most; 0: none, decode in the process that encodes)."""
    devices: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A device that encodes, as in cuda:1 (may be given several times; default: all GPUs, else the CPU)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of encoding; auto: bf16 on a GPU, else fp32. Written down, with how near the vectors of bf16 came."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings(WorkSettings):
    """Make a library of folders and files, or of embeddings; calling it again continues or brings it up to date."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders, files, and addresses (https://, s3:// …) of single videos."""
    model: str | None = None
    """A run, a model folder, a hub id, an official checkpoint (`vtr models`), open_clip:MODEL/PRETRAINED or
    sentence-transformers:OWNER/NAME."""
    out: Path
    """The library's folder."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Embeddings made by vtr embed, instead of paths and model."""
    window: float = 8.0
    """Seconds of a segment."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""
    segments: Literal["auto", "windows", "shots"] | None = None
    """windows: one after the other; shots: none crosses a cut; auto: shots in films over two minutes (remembered; default:
    auto, or what the library has)."""
    frame_vectors: bool = False
    """Also keep the vectors of single frames, a byte a number: hits begin and end more exactly (remembered)."""
    metadata: Path | None = None
    """A list (CSV, TSV, JSONL …) with a column of paths, relative to the folder it is in; the other columns can be used in
    --where. path, duration, start, end and date are the file's own there; a column of that name is meta.NAME."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out files and folders of this name, or path below a folder, as in '*.gif' or 'raw/*' (may be given several
    times; remembered by the library)."""
    include_hidden: bool = False
    """Also files and folders whose names begin with a dot (remembered)."""
    allow_private: bool = False
    """Also fetch addresses of this machine and private networks, and file://."""
    frames: Literal["all", "keyframes"] | None = None
    """keyframes: a quick look at an archive: only key frames are decoded, and hits say so (remembered; default: all, or
    what the library has)."""
    max_memory: str | None = None
    """Most memory the index may take, as in 4G (default: half of the machine's)."""
    token_cache: str | None = None
    """Disk for visual tokens of re-ranked moments, as in 2G (default: none, they are encoded again)."""


@dataclass(frozen=True, kw_only=True)
class AddSettings(WorkSettings):
    """Add folders and files to a library; unchanged ones are skipped."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folders, files, and addresses (https://, s3:// …) of single videos."""
    model: str | None = None
    """The library's model, where it has moved since."""
    metadata: Path | None = None
    """A list (CSV, TSV, JSONL …) with a column of paths, relative to the folder it is in; the other columns can be used in
    --where. path, duration, start, end and date are the file's own there; a column of that name is meta.NAME."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out files and folders of this name, or path below a folder, as in '*.gif' or 'raw/*' (may be given several
    times; remembered by the library)."""
    include_hidden: bool = False
    """Also files and folders whose names begin with a dot (remembered)."""
    allow_private: bool = False
    """Also fetch addresses of this machine and private networks, and file://."""
    frames: Literal["all", "keyframes"] | None = None
    """keyframes: a quick look at an archive: only key frames are decoded, and hits say so (remembered; default: all, or
    what the library has)."""
    max_memory: str | None = None
    """Most memory the index may take from now on."""
    token_cache: str | None = None
    """Disk for visual tokens of re-ranked moments from now on."""


@dataclass(frozen=True, kw_only=True)
class SyncSettings(WorkSettings):
    """Bring a library up to date with folders: new files added, changed ones done again, vanished ones forgotten."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders; videos of the library that lie elsewhere are left alone."""
    model: str | None = None
    """The library's model, where it has moved since."""
    metadata: Path | None = None
    """A list (CSV, TSV, JSONL …) with a column of paths, relative to the folder it is in; the other columns can be used in
    --where. path, duration, start, end and date are the file's own there; a column of that name is meta.NAME."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out files and folders of this name, or path below a folder, as in '*.gif' or 'raw/*' (may be given several
    times; remembered by the library)."""
    include_hidden: bool = False
    """Also files and folders whose names begin with a dot (remembered)."""
    quick: bool = False
    """Trust size and time of a file instead of reading it to compare its content."""
    may_be_empty: bool = False
    """A folder without any media file is meant: forget all that was in it."""


@dataclass(frozen=True, kw_only=True)
class WatchSettings(WorkSettings):
    """Keep a library up to date with folders as they change, until Ctrl-C; it can be searched and served meanwhile."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders."""
    model: str | None = None
    """The library's model, where it has moved since."""
    poll: bool = False
    """Look again and again instead of being told by the system; done by itself where a file system tells nothing (NFS,
    SMB, FUSE)."""
    rest: float = 2.0
    """Seconds for which a file must not have changed before it is read."""


@dataclass(frozen=True, kw_only=True)
class RemoveSettings:
    """Forget videos; the files themselves stay."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    paths: tyro.conf.Positional[tuple[str, ...]]
    """Files, or folders for all that is in them."""


@dataclass(frozen=True, kw_only=True)
class InfoSettings:
    """Show what a library holds, and what could not be read."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check that database, vectors and index agree; exit code 1 when something is wrong."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    files: bool = False
    """Also read every indexed file and compare its content."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True, kw_only=True)
class CompactSettings:
    """Free the room of forgotten videos and bring the index up to date; searching goes on meanwhile."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    max_memory: str | None = None
    """Most memory the index may take from now on."""


@dataclass(frozen=True, kw_only=True)
class BackupSettings:
    """Copy a library while others search and write it, and check the copy; exit code 1 when something is wrong with it."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    out: tyro.conf.Positional[Path]
    """A new folder."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write all segments, their vectors and metadata to a Parquet file."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    out: Path
    """The file."""


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """Bring a collection on Milvus up to date with a library; only what differs is sent."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    to: str
    """milvus://HOST:PORT/NAME, or milvus:///ABSOLUTE/FILE.db/NAME for Milvus Lite; MILVUS_TOKEN holds the password."""
    staging: str | None = None
    """Where the server reads files for a bulk import: s3://BUCKET/FOLDER of its own bucket, or a folder of its machine."""
    bulk_from: int = 1_000_000
    """New segments from which on they are imported in bulk."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(WorkSettings):
    """Embed videos into Parquet parts; what is done is skipped. Any number of processes that share --out work together:
    start it as often as you like, on as many machines, or under torchrun or accelerate launch."""

    what: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders, files, lists (CSV, JSONL, text …), shards (.tar, braces, :: lists), addresses (https://, s3:// …)."""
    model: str
    """A run, a model folder or a hub id."""
    out: Path
    """Folder of the parts; vtr index build --from, pandas, DuckDB, Lance and Milvus read them."""
    window: float = 8.0
    """Seconds of a segment."""
    stride: float = 4.0
    """Seconds between the starts of two segments."""
    segments: Literal["auto", "windows", "shots"] = "auto"
    """windows: one after the other; shots: none crosses a cut; auto: shots in films over two minutes."""
    uris: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A list whose rows may be addresses, which are fetched; those in other lists are not."""
    allow_private: bool = False
    """Also fetch from this machine and private networks, and file://."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out files and folders of this name, or path below a folder (may be given several times)."""
    part: str = "4G"
    """Most media in a part."""
    engine: Literal["here", "ray"] = "here"
    """ray: on the Ray cluster that RAY_ADDRESS names, else on this machine's cores; its nodes share the files and --out."""
    json: bool = False
    """Print what was done as JSON."""


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
    """A video or an image that hits resemble, by cosine (may be given several times)."""
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
    unmerged: bool = False
    """Every window and every copy of a file on its own: no overlapping windows and no equal files made one."""
    all: bool = False
    """Near copies (another codec, size, compression, letterbox) as hits of their own; otherwise the best one names them."""
    then: str | None = None
    """What happens after it in the same video, as in "a man opens a door" --then "he sits down"."""
    before: str | None = None
    """What happened before it in the same video, as in "he sits down" --before "a man opens a door"."""
    within: str | None = None
    """How much later --then may begin, and how much earlier --before may end (60s)."""
    min_score: float | None = None
    """Leave out hits that are less sure, 0 to 1: the share of unrelated texts whose best hit here scores lower. Default: all
    are shown, those below 0.85 are marked as weak."""
    unrefined: bool = False
    """Hits begin and end where segments do, though the library keeps vectors of single frames."""
    curve: str | None = None
    """Instead of hits: how well this video of the library fits the query from moment to moment, as JSON."""
    curve_out: Path | None = None
    """Write the curve to this file, .png or .json."""
    by: Literal["picture", "words", "both"] | None = None
    """What answers: pictures, words that are said (subtitles), or both, their ranks fused (default: both where there are
    subtitles); hits say why."""
    html: Path | None = None
    """Write a page with thumbnails."""
    clips: Path | None = None
    """Cut the hits into this folder: copies from the key frame before each, made in no time."""
    exact: bool = False
    """Clips from the very frame: encoded again (H.264, AAC)."""
    export: Path | None = None
    """Write the hits for other programs: FILE.edl, .fcpxml, .csv, .srt or .json."""
    json: bool = False
    """One JSON object a line; `match` is the number between 0 and 1, `score` the raw one that `measure` names."""
    model: str | None = None
    """The library's model, where it has moved since."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Search a library in a browser: one page and a REST API, until Ctrl-C.

    examples:
    - vtr serve my.library
    - vtr serve my.library --host 0.0.0.0 --log json
    - vtr serve my.library --allow-host videos.example.org --root-path /videos --cors https://app.example.org
    """

    library: tyro.conf.Positional[Path]
    """The library's folder."""
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
    log: Literal["text", "json", "off"] = "text"
    """One line a request on stderr: time, client, method, path, status, bytes, milliseconds, id; no queries."""
    cors: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another web site whose pages may ask, as in https://example.org; * for all (may be given several times)."""
    root_path: str = ""
    """Prefix under which a proxy shows the server, as in /videos."""
    model: str | None = None
    """The library's model, where it has moved since."""


@dataclass(frozen=True, kw_only=True)
class McpSettings:
    """Give an agent a library as tools (Model Context Protocol, over stdin and stdout): search, look at frames, cut clips."""

    library: tyro.conf.Positional[Path]
    """The library's folder."""
    model: str | None = None
    """The library's model, where it has moved since."""
    clips: Path | None = None
    """Folder that clips are written to (default: they are handed over, up to 8 MB)."""
    follow_links: bool = False
    """Also show symbolic links that lead out of their folder."""


def _late(name: str) -> Callable[[object], int]:
    """The function of a verb, in vtr.library.verbs: what it needs is heavy, and `--help` needs none of it."""

    def call(settings: object) -> int:
        return getattr(importlib.import_module("vtr.library.verbs"), name)(settings)

    return call


COMMANDS = {
    "index build": (BuildSettings, _late("build")),
    "index add": (AddSettings, _late("add")),
    "index sync": (SyncSettings, _late("sync")),
    "index watch": (WatchSettings, _late("watch")),
    "index remove": (RemoveSettings, _late("remove")),
    "index info": (InfoSettings, _late("info")),
    "index verify": (VerifySettings, _late("verify")),
    "index compact": (CompactSettings, _late("compact")),
    "index backup": (BackupSettings, _late("backup")),
    "index export": (ExportSettings, _late("export")),
    "index push": (PushSettings, _late("push")),
    "embed": (EmbedSettings, _late("embed")),
    "search": (SearchSettings, _late("search")),
    "serve": (ServeSettings, _late("serve")),
    "mcp": (McpSettings, _late("mcp")),
}
