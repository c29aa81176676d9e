"""WebDataset shards as img2dataset and video2dataset write them: list, read, write, count."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtr.errors import UsageError, VtrError

VIDEO = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "flv", "gif", "mpg", "3gp", "ogv", "wmv")
IMAGE = ("jpg", "jpeg", "png", "webp", "bmp")


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample, not yet decoded."""

    key: str
    media: bytes
    extension: str
    caption: str | None
    meta: dict[str, Any] = field(default_factory=dict)


def expand_shards(spec: str, *, allow_pipe: bool = False) -> list[str]:
    """Turn `{000..331}` braces, `::` lists and folders into shard paths or URLs, in order.

    Raises:
        VtrError: Nothing is there, or a local file of the list is missing (all are named).
    """
    found, missing = resolve_shards(spec, allow_pipe=allow_pipe)
    if missing:
        raise VtrError(
            f"{len(missing)} of {len(found) + len(missing)} shards are missing: {', '.join(missing[:20])}"
            + (" …" if len(missing) > 20 else "")
        )
    return found


def resolve_shards(spec: str, *, allow_pipe: bool = False) -> tuple[list[str], list[str]]:
    """As `expand_shards`, with the missing ones as a second list instead of an error."""
    from braceexpand import braceexpand

    found: list[str] = []
    missing: list[str] = []
    for part in spec.split("::"):
        if part.startswith("pipe:") and not allow_pipe:
            raise UsageError(f"{part!r} would run a shell command; pass --allow-pipe if you wrote this list yourself")
        if "://" not in part and not part.startswith("pipe:") and Path(part).is_dir():
            inside = sorted(str(p) for p in Path(part).glob("*.tar"))
            if not inside:
                raise VtrError(f"{part}: a folder without .tar shards")
            found += inside
            continue
        try:
            names = list(braceexpand(part))
        except ValueError as error:
            raise UsageError(f"shards {part!r}: {error}") from None
        if "://" in part or part.startswith("pipe:"):
            found += names
            continue
        for name in names:
            (found if os.path.isfile(name) else missing).append(name)
    return found, missing


def _open(shard: str) -> tarfile.TarFile:
    try:
        if shard.startswith("pipe:"):
            import webdataset

            return tarfile.open(fileobj=webdataset.gopen(shard, mode="rb"), mode="r|*")
        if "://" in shard:
            from vtr.data.shard_reader import open_remote

            return tarfile.open(fileobj=open_remote(shard), mode="r|*")
        return tarfile.open(shard, mode="r:")
    except (tarfile.TarError, OSError) as error:
        raise VtrError(f"{shard}: not a readable tar ({error})") from error


def iterate_samples(shard: str, start: int = 0, stop: int | None = None) -> Iterator[RawSample]:
    """Samples `start … stop - 1` of a shard in the order of their keys' first members.

    Members of one key stand next to each other, in any order. Skipped samples are not read.

    Raises:
        VtrError: The tar is damaged; samples before the damage have been yielded.
    """
    index = -1
    group: dict[str, bytes] = {}
    key: str | None = None
    with _open(shard) as tar:
        try:
            for member in tar:
                own = group_key(member)
                if own is None:
                    continue
                extension = member.name.rpartition("/")[2].partition(".")[2]
                if own != key:
                    if key is not None and index >= start:
                        yield sample_of(key, group)
                    key, group, index = own, {}, index + 1
                    if stop is not None and index >= stop:
                        return
                if index >= start:
                    file = tar.extractfile(member)
                    group[extension.lower()] = file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise VtrError(f"{shard}: damaged after {index + 1} samples ({error})") from error
    if key is not None and index >= start:
        yield sample_of(key, group)


def group_key(member: tarfile.TarInfo) -> str | None:
    """The key that a tar member belongs to (its path up to the first dot of the name), None for what is no member."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    if not member.isfile() or not stem or not extension:
        return None
    return f"{folder}/{stem}" if folder else stem


def sample_of(key: str, group: dict[str, bytes]) -> RawSample:
    """The sample that the members of one key make: caption from .txt or the .json, media by its extension."""
    meta: dict[str, Any] = {}
    if "json" in group:
        try:
            loaded = json.loads(group["json"])
            meta = loaded if isinstance(loaded, dict) else {}
        except (json.JSONDecodeError, UnicodeDecodeError):
            meta = {}
    caption = group["txt"].decode("utf-8", errors="replace").strip() if "txt" in group else meta.get("caption")
    for extension in (*VIDEO, *IMAGE):
        if extension in group:
            return RawSample(key=key, media=group[extension], extension=extension, caption=caption, meta=meta)
    return RawSample(key=key, media=b"", extension="", caption=caption, meta=meta)


def count_samples(shard: str) -> int:
    """Number of samples of a shard, from its headers."""
    count, key = 0, None
    with _open(shard) as tar:
        try:
            for member in tar:
                own = group_key(member)
                if own is not None and own != key:
                    count, key = count + 1, own
        except (tarfile.TarError, OSError, EOFError) as error:
            raise VtrError(
                f"{shard}: damaged after {count} samples ({error}); run: vtr shards verify {shard}"
            ) from error
    return count


def shard_sizes(shards: Sequence[str]) -> list[int]:
    """Samples of each shard: from `sizes.json` beside it, else img2dataset's `NNNNN_stats.json`, else counted.

    Raises:
        VtrError: A size is unknown: a damaged file, or a remote shard without `sizes.json` (counting would read it all).
    """
    tables: dict[str, dict[str, int]] = {}
    sizes = []
    for shard in shards:
        folder, _, name = shard.rpartition("/")
        if folder not in tables:
            tables[folder] = _sizes_table(folder or ".", remote="://" in shard)
        known = tables[folder].get(name)
        if known is None and "://" in shard:
            raise VtrError(
                f"{folder}/sizes.json does not name {name}; make it with: vtr shards verify, and copy it there"
            )
        if known is None:
            known = _downloaded(shard)
        sizes.append(int(known) if known is not None else count_samples(shard))
    return sizes


def _sizes_table(folder: str, remote: bool) -> dict[str, int]:
    path = f"{folder}/sizes.json"
    try:
        if remote:
            from vtr.data.shard_reader import open_remote

            with open_remote(path) as file:
                table = json.loads(file.read())
        else:
            table = json.loads(Path(path).read_text()) if Path(path).is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VtrError(f"{path}: not JSON ({error}); run: vtr shards verify {folder}") from error
    if not isinstance(table, dict) or not all(isinstance(n, int) and n >= 0 for n in table.values()):
        raise VtrError(f"{path}: expected an object of shard names and numbers; run: vtr shards verify {folder}")
    return table


def _downloaded(shard: str) -> int | None:
    """What img2dataset or video2dataset says it wrote into a shard, None where it left no statistics."""
    try:
        stats = json.loads(Path(shard).with_name(Path(shard).stem + "_stats.json").read_text())
        return int(stats["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class ShardWriter:
    """Write samples to `000000.tar …` and `sizes.json`; the same samples give the same bytes.

    Args:
        folder: Output folder, created.
        samples_per_shard: A new shard is started after this many.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, first: int = 0) -> None:
        self.folder, self.per_shard = Path(folder), samples_per_shard
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VtrError(f"{folder}: cannot be created ({error.strerror})") from error
        self.number = first
        self.sizes: dict[str, int] = {}
        self._tar: tarfile.TarFile | None = None
        self._count = 0

    def write(self, key: str, extension: str, media: bytes, caption: str, meta: dict[str, Any] | None = None) -> None:
        """Append one sample; keys must not hold a dot."""
        if self._tar is None:
            path = self._path.with_suffix(".tar.tmp")
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - open until the shard is full
        members = [(extension, media), ("txt", caption.encode())]
        if meta is not None:
            members.append(("json", json.dumps(meta, ensure_ascii=False).encode()))
        for ext, data in members:
            info = tarfile.TarInfo(f"{key}.{ext}")
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self._count += 1
        if self._count == self.per_shard:
            self._finish()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.number:06d}.tar"

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        os.replace(self._path.with_suffix(".tar.tmp"), self._path)
        self.sizes[self._path.name] = self._count
        self._tar, self._count, self.number = None, 0, self.number + 1

    def close(self) -> None:
        """Finish the last shard and write sizes.json."""
        self._finish()
        write_sizes(self.folder, self.sizes)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._tar is not None:
            self._tar.close()
            self._path.with_suffix(".tar.tmp").unlink(missing_ok=True)


def write_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Write `sizes.json` atomically."""
    partial = folder / "sizes.json.tmp"
    partial.write_text(json.dumps(dict(sorted(sizes.items())), indent=1) + "\n")
    os.replace(partial, folder / "sizes.json")
