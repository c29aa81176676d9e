"""Build shards from a list of files and captions, and verify shards: parallel over shards, resumable, every bad file listed."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtr.data.shards import ShardWriter, count_samples, iterate_samples, write_sizes
from vtr.errors import UsageError, VtrError

_PATHS = ("video", "image", "path", "file", "video_path", "image_path")
_CAPTIONS = ("caption", "text", "sentence", "name")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the list."""

    number: int
    path: str
    caption: str
    key: str


def read_list(path: Path) -> list[Row]:
    """Read a CSV, TSV or JSONL of (path, caption), with an optional `key` or `id` column.

    Raises:
        VtrError: The file is missing, empty, not UTF-8, lacks a column, or two rows have the same key.
    """
    if not path.is_file():
        raise VtrError(
            f"{path}: no such caption file; expected a CSV, TSV or JSONL with columns video (or image) and caption"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise VtrError(f"{path}: line {line} is not UTF-8; convert the file, e.g. with iconv") from error
    if path.suffix.lower() in (".jsonl", ".json"):
        rows = list(_json_rows(path, text))
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = [(i, dict(r)) for i, r in enumerate(csv.DictReader(text.splitlines(), delimiter=delimiter), 2)]
    if not rows:
        raise VtrError(f"{path}: no rows")
    columns = [str(c) for c in rows[0][1]]
    path_column = next((c for c in _PATHS if c in columns), None)
    caption_column = next((c for c in _CAPTIONS if c in columns), None)
    if path_column is None or caption_column is None:
        raise VtrError(
            f"{path}: columns {', '.join(columns)}; expected one of {', '.join(_PATHS)} and one of {', '.join(_CAPTIONS)}"
        )
    key_column = next((c for c in ("key", "id") if c in columns), None)
    out, seen = [], {}
    for place, (number, row) in enumerate(rows):
        key = str(row.get(key_column) or "") if key_column else f"{place:09d}"
        key = key.replace(".", "_").replace("/", "_")
        if key in seen:
            raise VtrError(
                f"{path}: lines {seen[key]} and {number} have the same {key_column} {key!r}; ids must differ"
            )
        seen[key] = number
        out.append(
            Row(
                number=number, path=str(row.get(path_column) or ""), caption=str(row.get(caption_column) or ""), key=key
            )
        )
    return out


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() == ".json":
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError as error:
            raise VtrError(f"{path}: not JSON (line {error.lineno})") from error
        yield from enumerate(loaded, 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise VtrError(f"{path}: line {number} is not JSON") from error


@dataclass(kw_only=True)
class BuildReport:
    """What a build did."""

    written: int = 0
    shards: int = 0
    skipped_shards: int = 0
    bad: list[str] = field(default_factory=list)


def build_shards(
    listing: Path,
    out: Path,
    *,
    root: Path | None = None,
    shard_size: int = 1000,
    workers: int = 2,
    short_side: int = 0,
    gop: int = 0,
) -> BuildReport:
    """Write shards of the listed files; finished shards of an earlier call are kept.

    Args:
        listing: CSV, TSV or JSONL.
        out: Folder of the shards.
        root: Folder that relative paths start from (default: the listing's).
        shard_size: Rows of a shard.
        workers: Processes.
        short_side: Re-encode videos to this many pixels on the short side (0 = copy the bytes).
        gop: Frames between key frames when re-encoding (0 = 8).
    """
    from tqdm import tqdm

    if shard_size < 1 or workers < 1:
        raise UsageError(f"--shard-size {shard_size} --workers {workers}: expected positive numbers")
    rows = read_list(listing)
    base = root or listing.parent
    try:
        (out / ".journal").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(f"--out {out}: cannot be created ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise VtrError(f"--out {out}: not writable")
    settings = {
        "listing": str(listing.resolve()),
        "rows": len(rows),
        "shard_size": shard_size,
        "short_side": short_side,
        "gop": gop,
    }
    record = out / ".journal" / "settings.json"
    if record.is_file() and json.loads(record.read_text()) != settings:
        raise VtrError(
            f"{out} holds shards made with other settings ({record.read_text().strip()}); choose another folder"
        )
    record.write_text(json.dumps(settings))
    report = BuildReport()
    parts = [rows[i : i + shard_size] for i in range(0, len(rows), shard_size)]
    todo = []
    for number, part in enumerate(parts):
        if (out / ".journal" / f"{number:06d}.json").is_file():
            report.skipped_shards += 1
        else:
            todo.append((number, part))
    bar = tqdm(total=len(parts), initial=report.skipped_shards, desc="shards", file=sys.stderr, unit="shard")
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(_build_one, number, part, base, out, short_side, gop or 8) for number, part in todo]
        for job in as_completed(jobs):
            job.result()
            bar.update()
    bar.close()
    sizes = {}
    for number in range(len(parts)):
        entry = json.loads((out / ".journal" / f"{number:06d}.json").read_text())
        if entry["samples"]:
            sizes[f"{number:06d}.tar"] = entry["samples"]
        report.bad += entry["bad"]
        report.written += entry["samples"]
    write_sizes(out, sizes)
    report.shards = len(sizes)
    return report


def _build_one(number: int, rows: list[Row], base: Path, out: Path, short_side: int, gop: int) -> None:
    from vtr.data.decode import DecodeError, probe

    bad = []
    writer = ShardWriter(out, samples_per_shard=len(rows) + 1, first=number)
    for row in rows:
        path = Path(row.path) if Path(row.path).is_absolute() else base / row.path
        try:
            if not row.caption.strip():
                raise VtrError(f"{path.name}: line {row.number} has no caption")
            info = probe(path)
            if short_side and info.kind == "video":
                media, extension = reencode(path, short_side, gop), "mp4"
            else:
                media, extension = (
                    path.read_bytes(),
                    path.suffix.lstrip(".").lower() or ("mp4" if info.kind == "video" else "jpg"),
                )
        except (VtrError, DecodeError, OSError) as error:
            bad.append(str(error))
            continue
        writer.write(
            row.key, extension, media, row.caption, {"key": row.key, "caption": row.caption, "source": row.path}
        )
    samples = writer._count
    writer._finish()
    partial = out / ".journal" / f"{number:06d}.tmp"
    partial.write_text(json.dumps({"samples": samples, "bad": bad}))
    os.replace(partial, partial.with_suffix(".json"))


def reencode(path: Path, short_side: int, gop: int) -> bytes:
    """Re-encode a video to H.264 with a short side and a key frame every `gop` frames; rotation is applied."""
    import io
    from fractions import Fraction

    import av

    from vtr.data.decode import probe, read_frames

    info = probe(path)
    clip = read_frames(path, range)
    height, width = clip.frames.shape[1:3]
    scale = min(1.0, short_side / min(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=Fraction(info.fps or 25).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"crf": "20", "preset": "veryfast"}
        for frame in clip.frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(*size, interpolation="BICUBIC")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return buffer.getvalue()


@dataclass(kw_only=True)
class VerifyReport:
    """What a check found."""

    shards: int = 0
    samples: int = 0
    videos: int = 0
    images: int = 0
    bad: list[str] = field(default_factory=list)  # samples that can't be used
    broken: list[str] = field(default_factory=list)  # shards that can't be read, sizes.json that disagrees


def verify_shards(shards: list[str], *, decode: bool = True) -> VerifyReport:
    """Read every sample of every shard; with `decode` look into the media too."""
    from tqdm import tqdm

    from vtr.data.decode import DecodeError, probe

    report = VerifyReport(shards=len(shards))
    for shard in tqdm(shards, desc="verify", file=sys.stderr, unit="shard"):
        name, count = shard.rsplit("/", 1)[-1], 0
        try:
            for sample in iterate_samples(shard):
                count += 1
                where = f"{name}#{sample.key}"
                if not sample.media:
                    report.bad.append(f"{where}: no image or video")
                    continue
                if not sample.caption:
                    report.bad.append(f"{where}: no caption")
                try:
                    kind = probe(sample.media).kind if decode else "video"
                except DecodeError as error:
                    report.bad.append(f"{where}: {error}")
                    continue
                if kind == "image" and sample.extension in ("mp4", "webm", "mkv", "mov", "avi"):
                    report.bad.append(f"{where}: named {sample.extension}, but it is an image")
                report.videos += kind == "video"
                report.images += kind == "image"
        except VtrError as error:
            report.broken.append(str(error))
        report.samples += count
        sizes = Path(shard).parent / "sizes.json"
        if "://" not in shard and sizes.is_file():
            listed = json.loads(sizes.read_text()).get(name)
            if listed != count:
                report.broken.append(f"{sizes} says {listed} samples for {name}, found {count}")
    return report


__all__ = ["BuildReport", "Row", "VerifyReport", "build_shards", "count_samples", "read_list", "verify_shards"]
