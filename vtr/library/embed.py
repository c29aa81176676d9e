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
from typing import Any

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.library.files import clean_metadata, shown
from vtr.library.library import Library
from vtr.library.search import BATCH
from vtr.library.store import checksum

_KEPT = ("model", "fingerprint", "width", "window", "stride", "frames")


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
    shards: Sequence[str], out: Path, model: Any, *, model_path: str | None, window: float, stride: float
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
    from tqdm import tqdm

    rank, world = place()
    settings = {
        "model": model_path,
        "fingerprint": model.fingerprint(),
        "width": int(model.config.embed_dim),
        "window": window,
        "stride": stride,
        "frames": int(model.config.video.num_frames),
    }
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


def _begin(out: Path, settings: dict[str, Any]) -> None:
    path = out / "embeddings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            if any(p.suffix == ".npz" for p in out.iterdir()):
                raise VtrError(f"{out}: embeddings without embeddings.json; choose another folder")
            partial = out / f"embeddings.json.{os.getpid()}.tmp"
            partial.write_text(json.dumps(settings, indent=1) + "\n")
            os.replace(partial, path)
    except OSError as error:
        raise VtrError(f"--out {out}: cannot be written ({error.strerror})") from error
    there = read_settings(out)
    for key in _KEPT[1:]:
        if there[key] != settings[key]:
            raise VtrError(f"{out} has {key} {there[key]}, asked for {settings[key]}: choose another folder")


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of embeddings.json."""
    try:
        values = json.loads((folder / "embeddings.json").read_text())
        if not isinstance(values, dict) or not all(k in values for k in _KEPT):
            raise ValueError(f"expected {', '.join(_KEPT)}")
    except FileNotFoundError as error:
        raise VtrError(f"{folder}: no embeddings (no embeddings.json); make them with: vtr embed") from error
    except (OSError, ValueError) as error:
        raise VtrError(f"{folder}/embeddings.json cannot be read ({error})") from error
    return values


def _name(shard: str) -> str:
    full = shard if "://" in shard else os.path.abspath(shard)
    stem = Path(full.split("?")[0]).stem[:80]
    return f"{stem}-{hashlib.blake2b(full.encode(), digest_size=6).hexdigest()}.npz"


def _facts(shard: str) -> dict[str, Any]:
    """What tells whether a shard has changed."""
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


def _embed_shard(shard: str, path: Path, model: Any, settings: Mapping[str, Any], failed: list[str]) -> int:
    import torch

    from vtr.data.decode import read_windows

    facts = _facts(shard)
    root = shard if "://" in shard else os.path.abspath(shard)
    videos: list[dict[str, Any]] = []
    spans: list[tuple[int, float, float]] = []
    vectors: list[np.ndarray] = []
    batch: list[Any] = []
    broken: set[int] = set()

    def flush() -> None:
        if batch:
            with torch.inference_mode():
                vectors.append(model.eval().encode_video(torch.stack(batch)).embedding.float().cpu().numpy())
            batch.clear()

    for sample in _samples(shard):
        own = f"{root}/{sample.key}.{sample.extension or 'none'}"
        video: dict[str, Any] = {"path": own, "duration": 0.0, "reason": None, "meta": _meta(sample)}
        try:
            if not sample.media:
                raise VtrError(f"{own}: no video or image in the sample")
            video.update(bytes=len(sample.media), sha256=hashlib.sha256(sample.media).hexdigest())
            for window in read_windows(
                sample.media,
                window=settings["window"],
                stride=settings["stride"],
                frames=settings["frames"],
                size=model.config.video.image_size,
                antialias=model.config.antialias,
            ):
                spans.append((len(videos), window.start, window.end))
                batch.append(window.frames)
                video["duration"] = max(video["duration"], window.end)
                if len(batch) == BATCH:
                    flush()
        except VtrError as error:
            # What came before the damage is left out too: half a video would look like a whole one.
            broken.add(len(videos))
            video.update(reason=str(error).replace("\n", " "), duration=0.0)
            failed.append(shown(f"{own}: {error}"))
        videos.append(video)
    flush()
    stacked = np.concatenate(vectors) if vectors else np.zeros((0, settings["width"]), np.float32)
    whole = [i for i, span in enumerate(spans) if span[0] not in broken]
    stacked, spans = stacked[whole], [spans[i] for i in whole]
    if not np.isfinite(stacked).all():
        raise VtrError(f"{shard}: the model gives embeddings that are not finite: is it a trained one?")
    lines = "\n".join(json.dumps(v, ensure_ascii=False) for v in videos)
    write_part(
        path,
        vectors=stacked.astype(np.float32),
        start=np.array([s[1] for s in spans], np.float64),
        end=np.array([s[2] for s in spans], np.float64),
        video=np.array([s[0] for s in spans], np.int64),
        videos=lines,
        source=facts,
    )
    return len(spans)


def _samples(shard: str) -> Iterator[Any]:
    from vtr.data.shards import iterate_samples

    try:
        yield from iterate_samples(shard)
    except VtrError as error:
        raise _Damaged(str(error)) from error


def _meta(sample: Any) -> dict[str, Any]:
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
    source: Mapping[str, Any],
) -> None:
    """Write the embeddings of one shard atomically; `videos` are JSON lines, the rest as the module says."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
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
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise VtrError(f"{path}: cannot be written ({error.strerror}); shards that are done stay done") from error


def build_from(folder: Path, out: Path, *, max_memory: int | None = None, token_cache: int | None = None) -> Library:
    """Make a library of embeddings, or bring one up to date with them; no model is needed.

    Each file is one transaction: a killed call goes on with the next one.
    """
    from tqdm import tqdm

    settings = read_settings(folder)
    parts = sorted(folder.glob("*.npz"))
    if not parts:
        raise VtrError(f"{folder}: no embeddings yet; run vtr embed until it is done")
    library = Library.create_from(out, {k: settings[k] for k in _KEPT}, max_memory=max_memory, token_cache=token_cache)
    often = 0.1 if sys.stderr.isatty() else 30.0
    with library.store.writing():
        db = library.store.db
        for part in tqdm(parts, desc="index", unit="shard", file=sys.stderr, mininterval=often):
            facts = part.stat()
            own = (facts.st_size, facts.st_mtime)
            if db.execute("SELECT bytes, modified FROM imports WHERE name = ?", (part.name,)).fetchone() == own:
                continue
            values = _read_part(part, settings["width"])
            with library.store.change():
                db.execute("DELETE FROM videos WHERE origin = ?", (part.name,))
                _import(library, part, values)
                db.execute("INSERT OR REPLACE INTO imports VALUES (?, ?, ?)", (part.name, *own))
        library._update_index()
    return library


def _read_part(path: Path, width: int) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            values: dict[str, Any] = {k: file[k] for k in ("vectors", "start", "end", "video")}
            values["videos"] = [
                json.loads(line) for line in file["videos"].tobytes().decode(errors="replace").splitlines()
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise VtrError(f"{path} is damaged ({error}); delete it and run vtr embed again") from error
    count = len(values["vectors"])
    if values["vectors"].shape != (count, width) or any(values[k].shape != (count,) for k in ("start", "end", "video")):
        raise VtrError(f"{path}: arrays whose sizes do not fit; delete it and run vtr embed again")
    if count and (np.diff(values["video"]).min(initial=0) < 0 or values["video"][-1] >= len(values["videos"])):
        raise VtrError(f"{path}: segments without their videos; delete it and run vtr embed again")
    return values


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(video, first, last + 1) of the segments of each video."""
    edges = np.searchsorted(values["video"], np.arange(len(values["videos"]) + 1))
    for number, video in enumerate(values["videos"]):
        yield video, int(edges[number]), int(edges[number + 1])


def _import(library: Library, part: Path, values: Mapping[str, Any]) -> None:
    db = library.store.db
    vectors = np.ascontiguousarray(values["vectors"], np.float32)
    first = library.store.append(vectors) if len(vectors) else 0
    next_id = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM videos").fetchone()[0]
    videos, segments, names = [], [], set()
    start, end = values["start"].tolist(), values["end"].tolist()
    for number, (video, low, high) in enumerate(_rows(values), next_id):
        meta = video.get("meta") or None
        names.update(meta or ())
        reason = video["reason"] or (None if high > low else f"{video['path']}: no segment")
        text = json.dumps(meta, ensure_ascii=False, sort_keys=True) if meta else None
        crc = checksum(vectors[low:high])
        content = video.get("bytes"), video.get("sha256")
        videos.append((number, video["path"], *content, video["duration"], reason, crc, text, part.name))
        segments += [(number, start[i], end[i], first + i) for i in range(low, high)]
    taken = {v[1] for v in videos}
    if len(taken) < len(videos):
        raise VtrError(f"{part}: two samples of the same key; mend the shard")
    try:
        db.executemany(
            "INSERT INTO videos (id, path, bytes, sha256, duration, reason, crc, meta, origin) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            videos,
        )
    except sqlite3.IntegrityError as error:
        raise VtrError(f"{part}: a sample is in the library from another file ({error})") from error
    db.executemany("INSERT INTO segments (video, start, end, row) VALUES (?, ?, ?, ?)", segments)
    db.executemany("INSERT OR IGNORE INTO columns VALUES (?)", [(n,) for n in names])
