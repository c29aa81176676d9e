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
    from braceexpand import braceexpand

    found: list[str] = []
    for part in spec.split("::"):
        if part.startswith("pipe:") and not allow_pipe:
            raise UsageError(f"{part!r} would run a shell command; pass --allow-pipe if you wrote this list yourself")
        if "://" in part or part.startswith("pipe:"):
            found += list(braceexpand(part))
        elif Path(part).is_dir():
            inside = sorted(str(p) for p in Path(part).glob("*.tar"))
            if not inside:
                raise VtrError(f"{part}: a folder without .tar shards")
            found += inside
        else:
            found += list(braceexpand(part))
    missing = [p for p in found if "://" not in p and not p.startswith("pipe:") and not Path(p).is_file()]
    if missing:
        raise VtrError(f"{len(missing)} of {len(found)} shards are missing: {', '.join(missing[:20])}")
    return found


def _open(shard: str) -> tarfile.TarFile:
    try:
        if "://" in shard or shard.startswith("pipe:"):
            import webdataset

            return tarfile.open(fileobj=webdataset.gopen(shard, mode="rb"), mode="r|*")
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
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not stem or not extension:
                    continue
                own = f"{folder}/{stem}" if folder else stem
                if own != key:
                    if key is not None and index >= start:
                        yield _sample(key, group)
                    key, group, index = own, {}, index + 1
                    if stop is not None and index >= stop:
                        return
                if index >= start:
                    file = tar.extractfile(member)
                    group[extension.lower()] = file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise VtrError(f"{shard}: damaged after {index + 1} samples ({error})") from error
    if key is not None and index >= start:
        yield _sample(key, group)


def _sample(key: str, group: dict[str, bytes]) -> RawSample:
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
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                own = f"{folder}/{name.partition('.')[0]}"
                if "." in name and own != key:
                    count, key = count + 1, own
        except (tarfile.TarError, OSError, EOFError) as error:
            raise VtrError(
                f"{shard}: damaged after {count} samples ({error}); run: vtr shards verify {shard}"
            ) from error
    return count


def shard_sizes(shards: Sequence[str]) -> list[int]:
    """Samples of each shard, from `sizes.json` beside it where there is one, else counted."""
    tables: dict[Path, dict[str, int]] = {}
    sizes = []
    for shard in shards:
        if "://" in shard:
            sizes.append(count_samples(shard))
            continue
        folder = Path(shard).parent
        if folder not in tables:
            path = folder / "sizes.json"
            try:
                tables[folder] = json.loads(path.read_text()) if path.is_file() else {}
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise VtrError(f"{path}: not JSON ({error}); run: vtr shards verify {folder}") from error
        known = tables[folder].get(Path(shard).name)
        sizes.append(int(known) if known is not None else count_samples(shard))
    return sizes


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
