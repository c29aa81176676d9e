"""Build shards from a list of files and captions: parallel over samples, called again it builds what changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream
from tqdm import tqdm

from vtr.data.decode import DecodeError, probe, read_frames
from vtr.data.finder import RootIndex, VideoFinder
from vtr.data.lists import Entry, Listing, read_list
from vtr.data.media import ending
from vtr.data.shard_reader import folder_list, listed_files, place_of, text_beside
from vtr.data.shards import ShardWriter, write_sizes
from vtr.data.whole import cut_off
from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically

_MOST_DECODED = 4 << 30  # bytes of a video's frames: a longer one is kept as it is rather than re-encoded


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample to be: where it stands in the list, its file, captions and key; `bad` says why it can't be."""

    place: str
    source: str  # as the list has it
    path: Path
    captions: tuple[str, ...]
    key: str
    bad: str = ""

    def digest(self) -> str:
        """Changes with anything that its sample is made of."""
        try:
            status = self.path.stat()
            file = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            file = (-1, -1)
        words = [self.source, str(self.path), list(self.captions), self.key, self.bad, file]
        return hashlib.blake2b(json.dumps(words).encode(), digest_size=16).hexdigest()


def read_rows(listing: Path, root: Path | None = None, split: str | None = None) -> list[Row]:
    """The samples that a list asks for.

    Args:
        listing: A list of files and captions in any format that `vtr.data.lists` reads, or a folder of files with a list
            in it or texts beside them.
        root: Folder that relative paths start from (default: the listing's).
        split: Which part, where the list has several.

    Raises:
        VtrError: The list cannot be meant, has no captions, or two rows have the same id.
    """
    if listing.is_dir():
        inner = folder_list(listing)
        if inner is None:
            return _folder_rows(listing)
        listing = inner
    found: Listing = read_list(listing, split=split).need_captions()
    base = root or listing.parent
    finder = VideoFinder(RootIndex(base))
    rows = []
    taken: dict[str, Entry] = {}
    for number, entry in enumerate(found.entries):
        key = _safe(entry.key) if entry.key is not None and not entry.bad else f"{number:09d}"
        other = taken.get(key)
        if other is not None and other.key == entry.key:
            raise VtrError(
                f"{listing}: {other.place} and {entry.place} have the same id {entry.key!r}; ids must differ "
                f"({'lines' if entry.line else 'entries'} {other.line} and {entry.line})"
            )
        if other is not None:  # "a.b" and "a_b": a key holds no dot
            key = f"{key}%{hashlib.blake2b((entry.key or '').encode(), digest_size=4).hexdigest()}"
        taken[key] = entry
        bad = entry.bad
        if len(entry.videos) > 1:
            bad = bad or f"{len(entry.videos)} files in one row; a sample has one"
        path = place_of(entry, base, finder)
        captions = tuple(" ".join(c.split()) for c in entry.captions)
        rows.append(Row(place=entry.place, source=entry.videos[0], path=path, captions=captions, key=key, bad=bad))
    return rows


def _folder_rows(folder: Path) -> list[Row]:
    """The files of a folder with the texts beside them."""
    rows = []
    for number, (path, _) in enumerate(listed_files(folder)):
        sample = text_beside(path)
        place = str(path.relative_to(folder))
        rows.append(
            Row(
                place=place,
                source=place,
                path=path,
                captions=sample.captions,
                key=f"{number:09d}",
                bad=sample.fault,
            )
        )
    if not any(row.captions for row in rows):
        raise VtrError(
            f"{folder}: no captions: expected a .txt beside each file, or a list of files and captions in it"
        )
    return rows


def together(rows: Sequence[Row]) -> list[Row]:
    """Rows of one file made one: a sample has all captions of its file, and no two samples are one clip."""
    first: dict[Path, Row] = {}
    for row in rows:
        other = first.get(row.path)
        if other is None or other.bad or row.bad:
            first.setdefault(row.path if other is None else Path(f"{row.path}\0{row.place}"), row)
        else:
            more = tuple(c for c in row.captions if c not in other.captions)
            first[row.path] = replace(other, captions=other.captions + more)
    return list(first.values())


def _safe(key: str) -> str:
    return key.replace(".", "_").replace("/", "_")


@dataclass(kw_only=True)
class BuildReport:
    """What a build did.

    Attributes:
        written: Samples in the shards.
        shards: Shards with samples.
        skipped_shards: Parts of the list that were built before and have not changed.
        rebuilt: Parts that were built before and have changed.
        removed: Shards of rows that the list no longer has.
        bad: Rows that were left out, with their reasons.
    """

    written: int = 0
    shards: int = 0
    skipped_shards: int = 0
    rebuilt: int = 0
    removed: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The rows of one shard."""

    number: int
    rows: list[Row]
    digest: str

    def record(self, out: Path) -> Path:
        return out / ".journal" / f"{self.number:06d}.json"


def build_shards(
    listing: Path,
    out: Path,
    *,
    root: Path | None = None,
    shard_size: int = 1000,
    workers: int = 2,
    short_side: int = 0,
    gop: int = 0,
    split: str | None = None,
    merge: bool = False,
) -> BuildReport:
    """Write shards of the listed files; those of an earlier call are kept where their rows and files are the same.

    Args:
        listing: A list of files and captions in any format.
        out: Folder of the shards.
        root: Folder that relative paths start from (default: the listing's).
        shard_size: Rows of a shard.
        workers: Processes.
        short_side: Re-encode videos to this many pixels on the short side (0 = copy the bytes).
        gop: Frames between key frames when re-encoding (0 = 8).
        split: Which part, where the list has several.
        merge: Rows of one file are one sample with all their captions.
    """
    if shard_size < 1 or workers < 1:
        raise UsageError(f"--shard-size {shard_size} --workers {workers}: expected positive numbers")
    rows = read_rows(listing, root, split)
    rows = together(rows) if merge else rows
    _prepare(out)
    settings = {"listing": str(listing.resolve()), "shard_size": shard_size, "short_side": short_side, "gop": gop}
    parts = []
    for number, start in enumerate(range(0, len(rows), shard_size)):
        own = rows[start : start + shard_size]
        digest = hashlib.blake2b("".join(r.digest() for r in own).encode(), digest_size=16).hexdigest()
        parts.append(_Part(number=number, rows=own, digest=digest))
    known = {p.number: _recorded(p.record(out)) for p in parts}
    _check_settings(out, settings, unchanged=any(known[p.number].get("digest") == p.digest for p in parts))
    todo = [p for p in parts if known[p.number].get("digest") != p.digest]
    report = BuildReport(skipped_shards=len(parts) - len(todo), rebuilt=sum(1 for p in todo if known[p.number]))
    if todo:
        # Until all are done, a table of the shards as they were would be wrong.
        (out / "sizes.json").unlink(missing_ok=True)
        _build(todo, out, workers, short_side, gop or 8)
    report.removed = _remove_beyond(out, len(parts))
    sizes = {}
    for part in parts:
        entry = _recorded(part.record(out))
        samples, bad = entry.get("samples"), entry.get("bad")
        if isinstance(samples, int) and samples:
            sizes[f"{part.number:06d}.tar"] = samples
            report.written += samples
        report.bad += [str(line) for line in bad] if isinstance(bad, list) else []
    write_sizes(out, sizes)
    report.shards = len(sizes)
    return report


def shards_of(source: Path, folder: Path, short_side: int) -> Path:
    """Where `ensure_shards` keeps the copies of a list or folder: another place for each."""
    mark = hashlib.blake2b(str(source.resolve()).encode(), digest_size=4).hexdigest()
    return folder / f"{source.resolve().stem}-{short_side}-{mark}"


def ensure_shards(source: Path, folder: Path, short_side: int, workers: int = 2) -> Path:
    """Small copies of the files of a list or a folder, made once: shards in `folder`; called again only what changed.

    Args:
        source: A list of files and captions, or a folder.
        short_side: Pixels of the videos' short side.

    Returns:
        The folder of the shards.

    Raises:
        VtrError: The list cannot be meant, or none of its files can be used.
    """
    out = shards_of(source, folder, short_side)
    print(f"{source.name}: copies of {short_side} pixels are kept in {out}", file=sys.stderr)
    report = build_shards(source, out, short_side=short_side, workers=workers, merge=True)
    for line in report.bad[:10]:
        print(f"left out: {line}", file=sys.stderr)
    print(
        f"{out}: {report.written} samples ({report.skipped_shards} of {report.shards} shards were there), "
        f"{len(report.bad)} left out",
        file=sys.stderr,
    )
    if not report.written:
        raise VtrError(f"{source}: none of its files can be used, first {report.bad[0] if report.bad else 'no rows'}")
    return out


def copy_of(path: Path, folder: Path, short_side: int) -> Path:
    """Where `ensure_copies` keeps a video's small copy: another place for another file, size or time of it."""
    status = path.stat()
    words = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return folder / str(short_side) / f"{hashlib.blake2b(words.encode(), digest_size=12).hexdigest()}.mp4"


def ensure_copies(files: Sequence[Path], folder: Path, short_side: int, workers: int = 2) -> None:
    """Small copies of videos, each made once; what cannot be copied is named, and read as it is.

    Args:
        files: Videos.
        folder: Where the copies are kept (`copy_of`).
        short_side: Pixels of their short side.
    """
    todo = {copy: path for path in files if not (copy := copy_of(path, folder, short_side)).is_file()}
    print(
        f"copies of {short_side} pixels are kept in {folder / str(short_side)}, {len(todo)} are made", file=sys.stderr
    )
    if not todo:
        return
    _prepare(folder / str(short_side))
    rows = [Row(place=str(p), source=p.name, path=p, captions=(), key=p.stem) for p in todo.values()]
    with (
        tqdm(total=len(rows), desc="copies", file=sys.stderr, unit="video") as bar,
        ProcessPoolExecutor(workers) as pool,
    ):
        for copy, row, (_, media, why) in zip(todo, rows, _in_order(pool, rows, workers * 4, short_side, 8)):
            if media:
                with write_atomically(copy) as partial:
                    partial.write_bytes(media)
            else:
                bar.write(f"read as it is: {why or f'{row.path}: too long to be copied'}", file=sys.stderr)
            bar.update()


def _prepare(out: Path) -> None:
    try:
        (out / ".journal").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VtrError(f"--out {out}: cannot be created ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise VtrError(f"--out {out}: not writable")
    for left in out.glob("[0-9]*.tar.tmp"):  # of a build that was killed
        left.unlink(missing_ok=True)


def _recorded(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_settings(out: Path, settings: dict[str, object], unchanged: bool) -> None:
    """Refuse to build into a folder of other shards; the same list from another place is no other."""
    record = out / ".journal" / "settings.json"
    before = _recorded(record)
    other = [k for k, v in settings.items() if before and before.get(k) != v]
    if other == ["listing"] and unchanged:
        other = []
    if other:
        told = ", ".join(f"{k} {before.get(k)!r}, now {settings[k]!r}" for k in other)
        raise VtrError(f"{out} holds shards made with other settings ({told}); choose another folder")
    with write_atomically(record) as partial:
        partial.write_text(json.dumps(settings))


def _remove_beyond(out: Path, parts: int) -> int:
    """Remove the shards of rows that the list no longer has."""
    removed = 0
    for record in sorted((out / ".journal").glob("[0-9]*.json")):
        if int(record.stem) >= parts:
            shard = out / f"{record.stem}.tar"
            removed += shard.is_file()
            shard.unlink(missing_ok=True)
            record.unlink()
    return removed


def _build(todo: list[_Part], out: Path, workers: int, short_side: int, gop: int) -> None:
    rows = [row for part in todo for row in part.rows]
    bar = tqdm(total=len(rows), desc="shards", file=sys.stderr, unit="sample")
    try:
        with bar, ProcessPoolExecutor(workers) as pool:
            made = _in_order(pool, rows, workers * 4, short_side, gop)
            for part in todo:
                record = part.record(out)
                # Gone before its shard is replaced: a record always tells of the shard beside it.
                record.unlink(missing_ok=True)
                (out / f"{part.number:06d}.tar").unlink(missing_ok=True)
                writer = ShardWriter(out, samples_per_shard=len(part.rows) + 1, first=part.number)
                bad = []
                for row in part.rows:
                    why = _write(writer, row, next(made))
                    if why:
                        bad.append(why)
                    bar.update()
                samples = writer.count
                writer.finish()
                with write_atomically(record) as partial:
                    partial.write_text(json.dumps({"digest": part.digest, "samples": samples, "bad": bad}))
    except OSError as error:
        raise VtrError(
            f"--out {out}: cannot be written ({error.strerror or error}); call this again: it goes on"
        ) from error
    except BrokenProcessPool as error:
        raise VtrError(
            f"{out}: a worker process was ended from outside (memory?); lower --workers and call this again: it goes on"
        ) from error


def _in_order(
    pool: ProcessPoolExecutor, rows: list[Row], ahead: int, short_side: int, gop: int
) -> Iterator[tuple[str, bytes, str]]:
    """What `_made` gives for each row, with a bounded number of rows under way."""
    jobs: deque[Future[tuple[str, bytes, str]]] = deque()
    rest = iter(rows)
    for row in rest:
        jobs.append(pool.submit(_made, row, short_side, gop))
        if len(jobs) >= ahead:
            break
    while jobs:
        yield jobs.popleft().result()
        following = next(rest, None)
        if following is not None:
            jobs.append(pool.submit(_made, following, short_side, gop))


def _made(row: Row, short_side: int, gop: int) -> tuple[str, bytes, str]:
    """(extension, new bytes or none where the file's own are taken, why it cannot be used) of a row; in a worker."""
    if row.bad:
        return "", b"", row.bad
    if "://" in row.source:
        return (
            "",
            b"",
            f"{row.source[:80]} is a URL: download it first (video2dataset, img2dataset), and list the files",
        )
    try:
        why = cut_off(row.path)
        if why:
            return "", b"", f"{row.path}: {why}"
        info = probe(row.path)
        decoded = info.frames * info.width * info.height * 3
        if short_side and info.kind == "video" and decoded <= _MOST_DECODED:
            return "mp4", reencode(row.path, short_side, gop), ""
    except (VtrError, OSError) as error:
        return "", b"", str(error)
    return ending(row.path) or ("mp4" if info.kind == "video" else "jpg"), b"", ""


def _write(writer: ShardWriter, row: Row, made: tuple[str, bytes, str]) -> str:
    """Write a row's sample; the reason where it is left out."""
    extension, media, why = made
    if not why and not media:
        try:
            media = row.path.read_bytes()
        except OSError as error:
            why = f"{row.path}: {error.strerror}"
    if why:
        return f"{row.place}: {why}"
    said: object = row.captions[0] if len(row.captions) == 1 else list(row.captions)
    writer.write(row.key, extension, media, row.captions, {"key": row.key, "caption": said, "source": row.source})
    return ""


def reencode(path: Path, short_side: int, gop: int) -> bytes:
    """Re-encode a video to H.264 with a short side and a key frame every `gop` frames; rotation is applied."""
    info = probe(path)
    clip = read_frames(path, range)
    height, width = clip.frames.shape[1:3]
    scale = min(1.0, short_side / min(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=Fraction(info.fps or 25).limit_denominator(1001))
        if not isinstance(stream, VideoStream):
            raise DecodeError(path.name, "this PyAV has no H.264 encoder")
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"crf": "20", "preset": "veryfast"}
        for frame in clip.frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(*size, interpolation="BICUBIC")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return buffer.getvalue()
