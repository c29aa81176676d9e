"""Parts: embeddings as Parquet files, one row a segment, as `vtr embed` writes and anything that reads Parquet reads them.

Columns: id (int64, the same for the same moment of the same path), path, start, end, duration (seconds), bytes,
modified (seconds since 1970, null where it is not known), sha256, lacking (what a cut-off file promises and does not
hold), metadata (JSON), embedding (fixed-size list of w float32). The rows of a video stand together, in the order of
time. The file's own metadata hold, under the key `vtr`, what the part was made of and the videos that could not be read.
w width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.library.rows import Facts, Failure, Metadata, Span, as_json
from vtr.library.settings import FORMAT, ORIGIN, LibrarySettings

ENDING = ".parquet"
UNKNOWN = Facts(None, None, None)
_KEY = b"vtr"
_GROUP = 10_000  # rows of a row group
_VIDEO_COLUMNS = ["path", "duration", "bytes", "modified", "sha256", "lacking", "metadata"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file, shard or address a part was made of, as it was then; None where that is not known.

    Attributes:
        name: Full path, or address.
        meta: Hash of the metadata that were given with it, "" for none.
        again: It could not be reached or was too slow: another call may do better.
    """

    name: str
    bytes: int | None = None
    modified: float | None = None
    meta: str = ""
    again: bool = False


@dataclass(kw_only=True)
class PartVideo:
    """A video of a part: its segments, and why it has none where it could not be read."""

    path: str
    facts: Facts = UNKNOWN
    duration: float = 0.0
    failure: Failure | None = None
    metadata: Metadata = field(default_factory=dict)
    lacking: str = ""
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The content of a part: videos, and the vectors (n, w) of their segments, one video's after the other's."""

    videos: list[PartVideo]
    vectors: np.ndarray


class _Note(TypedDict):
    """What stands in the file's own metadata, beside the settings of model and windows."""

    unit: str
    sources: list[dict[str, object]]
    unread: list[dict[str, object]]


class Damaged(VtrError):
    """A part that cannot be read."""


def segment_id(path: str, span: Span) -> int:
    """63 bits of a moment's path and times: the same wherever and whenever it is embedded."""
    text = f"{path}\n{span.start!r}\n{span.end!r}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _schema(width: int, note: bytes) -> pa.Schema:
    numbers, text = pa.float64(), pa.string()
    columns = [("id", pa.int64()), ("path", text), ("start", numbers), ("end", numbers), ("duration", numbers)]
    columns += [("bytes", pa.int64()), ("modified", numbers), ("sha256", text), ("lacking", text), ("metadata", text)]
    return pa.schema([*columns, ("embedding", pa.list_(pa.float32(), width))], metadata={_KEY: note})


def write_part(
    path: Path, part: Part, *, origin: Mapping[str, object], unit: str = "", sources: Iterable[Source] = ()
) -> None:
    """Write a part atomically.

    Args:
        path: Ends in .parquet.
        part: Its videos and vectors.
        origin: Model and windows, as `LibrarySettings.origin` gives them.
        unit: What tells the work it was from other work.
        sources: What it was made of.
    """
    note = {
        **origin,
        "unit": unit,
        "sources": [asdict(s) for s in sources],
        "unread": [_unread(v) for v in part.videos if not v.spans],
    }
    width = int(cast(int, origin["width"]))
    schema = _schema(width, json.dumps(note).encode())
    rows = [
        (
            segment_id(v.path, s), v.path, s.start, s.end, v.duration, v.facts.bytes, v.facts.modified, v.facts.sha256,
            v.lacking, as_json(v.metadata) or "{}",
        )
        for v in part.videos
        for s in v.spans
    ]  # fmt: skip
    columns: Sequence[Sequence[object]] = list(zip(*rows)) or [()] * (len(schema) - 1)
    flat = pa.array(np.ascontiguousarray(part.vectors, np.float32).reshape(-1), pa.float32())
    try:
        arrays = [pa.array(values, f.type) for values, f in zip(columns, schema)]
        table = pa.Table.from_arrays([*arrays, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema)
        with write_atomically(path) as partial:
            pq.write_table(table, partial, row_group_size=_GROUP, write_page_checksum=True)
    except OSError as error:
        raise VtrError(
            f"{path}: cannot be written ({error.strerror or error}); parts that are done stay done"
        ) from error


def _unread(video: PartVideo) -> dict[str, object]:
    failure = video.failure or Failure(reason=f"{video.path}: no segment")
    return {
        "path": video.path, "facts": video.facts, "metadata": video.metadata,
        "reason": failure.reason, "kind": failure.kind,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What a part says of itself, without its rows."""

    origin: dict[str, object]
    unit: str
    sources: list[Source]
    rows: int


def read_heading(path: Path) -> Heading:
    """What a part was made of; cheap.

    Raises:
        Damaged: It cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            return _heading(path, file.schema_arrow.metadata, file.metadata.num_rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _heading(path: Path, metadata: Mapping[bytes, bytes] | None, rows: int) -> Heading:
    note = _note(path, metadata)
    origin = {k: v for k, v in note.items() if k not in ("unit", "sources", "unread")}
    sources = [Source(**s) for s in note["sources"]]  # type: ignore[arg-type]
    return Heading(origin=origin, unit=note["unit"], sources=sources, rows=rows)


def _note(path: Path, metadata: Mapping[bytes, bytes] | None) -> _Note:
    if not metadata or _KEY not in metadata:
        raise VtrError(f"{path}: a Parquet file that vtr embed did not write; keep embeddings in a folder of their own")
    return cast(_Note, json.loads(metadata[_KEY]))


def _damaged(path: Path, error: Exception | str) -> Damaged:
    why = " ".join(str(error).split())[:200]
    return Damaged(f"{path} is damaged ({why}); run vtr embed again, which makes it anew")


def read_part(path: Path, width: int) -> Part:
    """The content of a part, checked.

    Raises:
        Damaged: It cannot be read, or its rows do not fit together.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        note = _note(path, table.schema.metadata)
        vectors = table.column("embedding").combine_chunks()
        if vectors.type != pa.list_(pa.float32(), width):
            raise _damaged(path, f"embedding is {vectors.type}, expected {width} numbers a segment")
        matrix = np.ascontiguousarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
        videos = _videos(table)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    for lost in note["unread"]:
        facts, failure = (
            Facts(*cast("list[None]", lost["facts"])),
            Failure(reason=str(lost["reason"]), kind=cast(str, lost["kind"])),
        )
        videos.append(
            PartVideo(path=str(lost["path"]), facts=facts, failure=failure, metadata=cast(Metadata, lost["metadata"]))
        )
    if len({v.path for v in videos}) < len(videos):
        raise VtrError(f"{path}: two samples of the same key; mend the shard")
    if len(matrix) != sum(len(v.spans) for v in videos):
        raise _damaged(path, "segments without vectors")
    return Part(videos=videos, vectors=matrix)


def _videos(table: pa.Table) -> list[PartVideo]:
    start, end = (table.column(name).to_numpy() for name in ("start", "end"))
    names = table.column("path").to_pylist()
    edges = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    firsts = table.select(_VIDEO_COLUMNS).take(pa.array(edges, pa.int64())).to_pylist()
    return [
        PartVideo(
            path=row["path"],
            facts=Facts(row["bytes"], row["modified"], row["sha256"]),
            duration=row["duration"],
            metadata=json.loads(row["metadata"]),
            lacking=row["lacking"],
            spans=[Span(*pair) for pair in zip(start[low:high].tolist(), end[low:high].tolist())],
        )
        for row, low, high in zip(firsts, edges, [*edges[1:], len(names)])
    ]


# -- a folder of them ---------------------------------------------------------------------------------------------------


def begin(out: Path, settings: LibrarySettings) -> None:
    """Make the folder, or check that what is in it is of the same model and windows."""
    path = out / "embeddings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            if old := next((p for p in out.iterdir() if p.suffix in (ENDING, ".npz")), None):
                raise VtrError(f"{out}: {old.name} without embeddings.json; choose another folder")
            with write_atomically(path) as partial:
                partial.write_text(json.dumps(settings.origin, indent=1) + "\n")
        elif old := next(out.glob("*.npz"), None):
            raise VtrError(f"{out}: {old.name} is of an older vtr, which wrote no Parquet; choose another folder")
    except OSError as error:
        raise VtrError(
            lambda say, why=error.strerror: f"{say.given('out', out)}: cannot be written ({why})"  # type: ignore[misc]
        ) from error
    there = read_settings(out)
    for key in (*ORIGIN[1:], "cutting"):
        old, new = getattr(there, key), getattr(settings, key)
        if old != new:
            raise VtrError(f"{out} has {key} {old}, asked for {new}: choose another folder")


def read_settings(folder: Path) -> LibrarySettings:
    """The content of embeddings.json."""
    try:
        values = json.loads((folder / "embeddings.json").read_text())
        if not isinstance(values, dict) or not all(k in values for k in ORIGIN):
            raise ValueError(f"expected {', '.join(ORIGIN)}")
        return LibrarySettings.from_json({**values, "format": FORMAT})
    except FileNotFoundError as error:
        raise VtrError(f"{folder}: no embeddings (no embeddings.json); make them with: vtr embed") from error
    except (OSError, ValueError) as error:
        raise VtrError(f"{folder}/embeddings.json cannot be read ({error})") from error
