"""Embeddings of shards as files, one a shard, and libraries made from them.

A folder of embeddings: embeddings.json (model, windows), and one NAME.npz a shard: `vectors` (n, w) float32, `start`,
`end` (n,) seconds, `video` (n,) index into `videos`, and `videos`, JSON lines of path, size, content hash, duration,
reason and metadata.
w width of the embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from tqdm import tqdm

from vtr.data.decode import Window
from vtr.data.shards import iterate_samples
from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically
from vtr.library.encode import encode_windows, settings_of, windows_of
from vtr.library.files import clean_metadata, shown
from vtr.library.library import Library
from vtr.library.rows import Facts, Failure, Metadata, Span
from vtr.library.settings import FORMAT, ORIGIN, LibrarySettings
from vtr.library.store import Store, checksum

if TYPE_CHECKING:
    from vtr.data.shards import RawSample
    from vtr.models.base import VideoTextEncoder


class _Source(TypedDict, total=False):
    """What tells whether a shard has changed."""

    shard: str
    bytes: int
    modified: float


class _Video(TypedDict, total=False):
    """A sample, as a line of JSON in a file of embeddings."""

    path: str
    duration: float
    reason: str | None
    meta: Metadata
    bytes: int
    sha256: str


@dataclass(kw_only=True)
class EmbedReport:
    """What an `embed` did; `failed` holds one line for each sample that could not be read, `damaged` for each shard."""

    shards: int = 0
    skipped: int = 0
    segments: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class _Damaged(VtrError):
    """A shard that cannot be read to its end."""


def place() -> tuple[int, int]:
    """This process's number and how many there are, as accelerate and torchrun say in RANK and WORLD_SIZE."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def embed(
    shards: Sequence[str], out: Path, model: VideoTextEncoder, *, model_path: str | None, window: float, stride: float
) -> EmbedReport:
    """Embed every sample of the shards; shards that are done are skipped, damaged ones left for the next call.

    Each process of a launch takes every n-th of the shards that are left. No process waits for another, and a killed
    one loses the shard it was at.

    Args:
        shards: Paths or URLs.
        out: Folder of the embeddings.
        model: A `vtr.VideoTextModel`.
        model_path: Written down for the library.
        window, stride: Seconds of a segment and between the starts of two.
    """
    rank, world = place()
    settings = settings_of(model, model_path, window, stride)
    _begin(out, settings)
    report = EmbedReport()
    names = {shard: _name(shard) for shard in shards}
    left = [shard for shard in shards if not _done(out / names[shard], shard)]
    report.skipped = len(shards) - len(left)
    # By the whole list, not by what is left: another rank may have finished some since it looked.
    own = [shard for number, shard in enumerate(shards) if number % world == rank and shard in set(left)]
    often = 0.1 if sys.stderr.isatty() else 30.0
    for shard in tqdm(own, desc="embed", unit="shard", file=sys.stderr, mininterval=often, disable=rank != 0):
        try:
            report.segments += _embed_shard(shard, out / names[shard], model, settings, report.failed)
            report.shards += 1
        except (_Damaged, FileNotFoundError) as error:
            report.damaged.append(shown(str(error)))
    return report


def _begin(out: Path, settings: LibrarySettings) -> None:
    path = out / "embeddings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            if any(p.suffix == ".npz" for p in out.iterdir()):
                raise VtrError(f"{out}: embeddings without embeddings.json; choose another folder")
            with write_atomically(path) as partial:
                partial.write_text(json.dumps(settings.origin, indent=1) + "\n")
    except OSError as error:
        raise VtrError(
            lambda say, why=error.strerror: f"{say.given('out', out)}: cannot be written ({why})"  # type: ignore[misc]
        ) from error
    there = read_settings(out).origin
    for key in ORIGIN[1:]:
        if there[key] != settings.origin[key]:
            raise VtrError(f"{out} has {key} {there[key]}, asked for {settings.origin[key]}: choose another folder")


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


def _name(shard: str) -> str:
    full = shard if "://" in shard else os.path.abspath(shard)
    stem = Path(full.split("?")[0]).stem[:80]
    return f"{stem}-{hashlib.blake2b(full.encode(), digest_size=6).hexdigest()}.npz"


def _facts(shard: str) -> _Source:
    if "://" in shard:
        return {"shard": shard}
    facts = os.stat(shard)
    return {"shard": os.path.abspath(shard), "bytes": facts.st_size, "modified": facts.st_mtime}


def _done(path: Path, shard: str) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(file["source"].tobytes()) == _facts(shard)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _embed_shard(shard: str, path: Path, model: VideoTextEncoder, settings: LibrarySettings, failed: list[str]) -> int:
    facts = _facts(shard)
    root = shard if "://" in shard else os.path.abspath(shard)
    videos: list[_Video] = []
    broken: set[int] = set()

    def windows() -> Iterator[tuple[int, Window]]:
        for sample in _samples(shard):
            own = f"{root}/{sample.key}.{sample.extension or 'none'}"
            video: _Video = {"path": own, "duration": 0.0, "reason": None, "meta": _meta(sample)}
            videos.append(video)
            try:
                if not sample.media:
                    raise VtrError(f"{own}: no video or image in the sample")
                video.update(bytes=len(sample.media), sha256=hashlib.sha256(sample.media).hexdigest())
                cut = windows_of(sample.media, settings, model)
                for window in cut:
                    yield len(videos) - 1, window
                video["duration"] = cut.duration
            except VtrError as error:
                # What came before the damage is left out too: half a video would look like a whole one.
                broken.add(len(videos) - 1)
                video.update(reason=str(error).replace("\n", " "), duration=0.0)
                failed.append(shown(f"{own}: {error}"))

    parts = list(encode_windows(model, windows()))
    parts = [part for part in parts if part[0] not in broken]  # known only now
    write_part(
        path,
        vectors=np.stack([p[2] for p in parts]) if parts else np.zeros((0, settings.width), np.float32),
        start=np.array([p[1].start for p in parts], np.float64),
        end=np.array([p[1].end for p in parts], np.float64),
        video=np.array([p[0] for p in parts], np.int64),
        videos="\n".join(json.dumps(v, ensure_ascii=False) for v in videos),
        source=facts,
    )
    return len(parts)


def _samples(shard: str) -> Iterator[RawSample]:
    try:
        yield from iterate_samples(shard)
    except VtrError as error:
        raise _Damaged(str(error)) from error


def _meta(sample: RawSample) -> Metadata:
    values = {k: v for k, v in sample.meta.items() if isinstance(v, str | int | float)}
    if sample.caption:
        values["caption"] = sample.caption
    try:
        return clean_metadata(values, sample.key)
    except UsageError:
        return {}


def write_part(
    path: Path,
    *,
    vectors: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    video: np.ndarray,
    videos: str,
    source: Mapping[str, object],
) -> None:
    """Write the embeddings of one shard atomically; `videos` are JSON lines, the rest as the module says."""
    buffer = io.BytesIO()
    texts = {"videos": videos, "source": json.dumps(dict(source))}
    np.savez(
        buffer,
        vectors=vectors,
        start=start,
        end=end,
        video=video,
        **{k: np.frombuffer(v.encode(errors="surrogateescape"), np.uint8) for k, v in texts.items()},  # type: ignore[arg-type]
    )
    try:
        with write_atomically(path) as partial:
            partial.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise VtrError(f"{path}: cannot be written ({error.strerror}); shards that are done stay done") from error


def build_from(folder: Path, out: Path, *, max_memory: int | None = None, token_cache: int | None = None) -> Library:
    """Make a library of embeddings, or bring one up to date with them; no model is needed.

    Each file is one transaction: a killed call goes on with the next one.
    """
    settings = read_settings(folder)
    parts = sorted(folder.glob("*.npz"))
    if not parts:
        raise VtrError(f"{folder}: no embeddings yet; run vtr embed until it is done")
    library = Library.create_from(out, settings, max_memory=max_memory, token_cache=token_cache)
    often = 0.1 if sys.stderr.isatty() else 30.0
    store = library.store
    with store.writing():
        for part in tqdm(parts, desc="index", unit="shard", file=sys.stderr, mininterval=often):
            facts = part.stat()
            own = (facts.st_size, facts.st_mtime)
            if store.imported(part.name) == own:
                continue
            values = _read_part(part, settings.width)
            with store.change():
                store.begin_import(part.name, *own)
                _import(store, part, values)
        library.update_index()
    return library


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The content of one file of embeddings, as the module says."""

    vectors: np.ndarray
    start: np.ndarray
    end: np.ndarray
    video: np.ndarray
    videos: list[_Video]


def _read_part(path: Path, width: int) -> _Part:
    try:
        with np.load(path, allow_pickle=False) as file:
            lines = file["videos"].tobytes().decode(errors="replace").splitlines()
            part = _Part(
                vectors=np.ascontiguousarray(file["vectors"], np.float32),
                start=file["start"],
                end=file["end"],
                video=file["video"],
                videos=[json.loads(line) for line in lines],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise VtrError(f"{path} is damaged ({error}); delete it and run vtr embed again") from error
    count = len(part.vectors)
    if part.vectors.shape != (count, width) or any(v.shape != (count,) for v in (part.start, part.end, part.video)):
        raise VtrError(f"{path}: arrays whose sizes do not fit; delete it and run vtr embed again")
    if count and (np.diff(part.video).min(initial=0) < 0 or part.video[-1] >= len(part.videos)):
        raise VtrError(f"{path}: segments without their videos; delete it and run vtr embed again")
    if len({v["path"] for v in part.videos}) < len(part.videos):
        raise VtrError(f"{path}: two samples of the same key; mend the shard")
    return part


def _import(store: Store, path: Path, part: _Part) -> None:
    first = store.append(part.vectors) if len(part.vectors) else 0
    edges = np.searchsorted(part.video, np.arange(len(part.videos) + 1)).tolist()
    start, end = part.start.tolist(), part.end.tolist()
    for video, low, high in zip(part.videos, edges, edges[1:]):
        reason = video["reason"] or (None if high > low else f"{video['path']}: no segment")
        try:
            store.insert_video(
                video["path"],
                Facts(video.get("bytes"), None, video.get("sha256")),
                [Span(start[i], end[i]) for i in range(low, high)],
                first + low,
                crc=checksum(part.vectors[low:high]),
                duration=video["duration"],
                failure=None if reason is None else Failure(reason=reason),
                metadata=video.get("meta"),
                origin=path.name,
            )
        except sqlite3.IntegrityError as error:
            raise VtrError(f"{path}: a sample is in the library from another file ({error})") from error
