"""Random access to the samples of a shard: its headers are read once, then each sample is one read.

A shard is a tar (local, or a URL that is copied to a cache folder first), or a list of media files: a folder of videos,
or a CSV of paths as action recognition has them (`files:` in front; see `vtr.data.manifests`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from vtr.data.shards import IMAGE, VIDEO, RawSample, group_key, sample_of
from vtr.errors import VtrError

FILES = "files:"


class TarIndex:
    """Where each sample of a local tar begins and ends.

    Attributes:
        bounds: int64 (n, 2), first and last + 1 byte of each sample's members, headers included.
        damage: Why the tar could not be read to its end, or "".
    """

    def __init__(self, path: str) -> None:
        self.path, self.damage = path, ""
        bounds: list[tuple[int, int]] = []
        key: str | None = None
        try:
            size = os.path.getsize(path)
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    own = group_key(member)
                    if own is None:
                        continue
                    end = member.offset_data + member.size
                    if end > size:
                        # The last member is cut off: its sample is not whole.
                        self.damage = f"cut off after {len(bounds)} samples"
                        if own == key:
                            bounds.pop()
                        break
                    if own != key:
                        key = own
                        bounds.append((member.offset, end))
                    else:
                        bounds[-1] = (bounds[-1][0], end)
        except (tarfile.TarError, OSError, EOFError) as error:
            self.damage = f"not a readable tar after {len(bounds)} samples ({error})"
        self.bounds = np.asarray(bounds, dtype=np.int64).reshape(-1, 2)

    def read(self, index: int) -> RawSample | str:
        """Sample `index`, or why it can't be had."""
        if index >= len(self.bounds):
            return f"{self.path}: {self.damage or f'holds {len(self.bounds)} samples, sizes.json promises more'}"
        first, last = (int(b) for b in self.bounds[index])
        try:
            with open(self.path, "rb") as file:
                file.seek(first)
                data = file.read(last - first)
            data += bytes(1024 + -len(data) % 512)  # tarfile wants whole records and an end
            group: dict[str, bytes] = {}
            key = ""
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for member in tar:
                    own = group_key(member)
                    if own is None:
                        continue
                    key = own
                    found = tar.extractfile(member)
                    extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                    group[extension] = found.read() if found else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            return f"{self.path}: sample {index} can't be read ({error})"
        return sample_of(key, group)


class FileList:
    """Media files as a shard: a folder, or a CSV/text file with a path in its first column."""

    def __init__(self, spec: str) -> None:
        self.path, self.damage = spec, ""
        source = Path(spec.removeprefix(FILES))
        self.captions: list[str] | None = None
        if source.suffix == ".jsonl":
            self.paths, self.captions = captioned_files(source)
        else:
            self.paths = list_files(source)

    def read(self, index: int) -> RawSample | str:
        """File `index`, or why it can't be read. It has a caption where the list is a .jsonl of them."""
        path = self.paths[index]
        try:
            data = path.read_bytes()
        except OSError as error:
            return f"{path}: {error.strerror}"
        return RawSample(
            key=str(path),
            media=data,
            extension=path.suffix[1:].lower(),
            caption=self.captions[index] if self.captions else None,
        )


def captioned_files(source: Path) -> tuple[list[Path], list[str]]:
    """Files and captions of a .jsonl of {"video": path, "caption": text}; captions of one video share its sample id.

    Raises:
        VtrError: It cannot be read, or holds nothing.
    """
    paths, captions = [], []
    try:
        for line in source.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                row = json.loads(line)
                paths.append(source.parent / row["video"])
                captions.append(str(row["caption"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VtrError(f"{source}: not a list of {{video, caption}} lines ({type(error).__name__}: {error})") from None
    if not paths:
        raise VtrError(f"{source}: no lines")
    return paths, captions


def list_files(source: Path) -> list[Path]:
    """The media files of a folder (all levels, sorted), or of a list: one a line, path in the first column.

    Raises:
        VtrError: There is nothing.
    """
    if source.suffix == ".jsonl":
        return captioned_files(source)[0]
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if p.suffix[1:].lower() in (*VIDEO, *IMAGE) and p.is_file())
    else:
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VtrError(f"{source}: cannot be read as a list of files ({error})") from None
        names = [_first_column(line) for line in lines if line.strip()]
        if names and Path(names[0]).suffix[1:].lower() not in (*VIDEO, *IMAGE):
            names = names[1:]  # a header
        found = [Path(n) if Path(n).is_absolute() else source.parent / n for n in names]
    if not found:
        raise VtrError(f"{source}: no video or image files")
    return found


def _first_column(line: str) -> str:
    # K400's lists are `path,label` or `path label`; a path may hold spaces where a comma separates.
    for separator in (",", "\t"):
        if separator in line:
            return line.split(separator)[0].strip().strip('"')
    head, _, label = line.rpartition(" ")
    return (head if label.strip().isdigit() else line).strip()


def open_remote(url: str, timeout: float = 60.0) -> Any:
    """A readable binary file of a URL: http(s) and file by the standard library, s3:// and the like by fsspec.

    Raises:
        VtrError: It can't be opened; no shell is involved.
    """
    import urllib.error
    import urllib.request

    try:
        if url.startswith(("http://", "https://", "file://")):
            return urllib.request.urlopen(url, timeout=timeout)
        import fsspec

        return fsspec.open(url, "rb").open()
    except (OSError, ImportError, ValueError, urllib.error.URLError) as error:
        raise VtrError(f"{url}: cannot be opened ({error})") from error


def remote_is_there(url: str, timeout: float = 30.0) -> bool:
    """Whether a URL names a file, asked for without reading it."""
    import urllib.error
    import urllib.request

    try:
        if url.startswith(("http://", "https://", "file://")):
            method = None if url.startswith("file://") else "HEAD"
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout).close()
            return True
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        return bool(filesystem.exists(path))
    except (OSError, ImportError, ValueError, urllib.error.URLError):
        return False


class ShardCache:
    """Open shards of one worker: indices of the shards in use, and local copies of remote ones.

    Args:
        folder: Where copies of remote shards lie (default: a folder of this user in the system's temporary folder).
        most: Indices kept in memory.
        most_bytes: Copies are removed, oldest use first, beyond this.
    """

    def __init__(self, folder: str | None = None, most: int = 256, most_bytes: int = 50 << 30) -> None:
        user = os.getuid() if hasattr(os, "getuid") else os.getlogin()
        self.folder = Path(folder or Path(tempfile.gettempdir()) / f"vtr-shards-{user}")
        self.most, self.most_bytes = most, most_bytes
        self._open: OrderedDict[str, TarIndex | FileList] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, index: int) -> RawSample | str:
        """Sample `index` of a shard, or why it can't be had."""
        with self._lock:
            found = self._open.get(shard)
            if found is None or (isinstance(found, TarIndex) and not os.path.exists(found.path)):
                try:
                    found = self._opened(shard)
                except VtrError as error:
                    return str(error)
                self._open[shard] = found
                while len(self._open) > self.most:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
        return found.read(index)

    def _opened(self, shard: str) -> TarIndex | FileList:
        if shard.startswith(FILES):
            return FileList(shard)
        return TarIndex(self._local(shard) if "://" in shard else shard)

    def _local(self, url: str) -> str:
        path = self.folder / (hashlib.blake2b(url.encode(), digest_size=16).hexdigest() + ".tar")
        if path.is_file():
            with contextlib.suppress(OSError):
                os.utime(path)
            return str(path)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room()
            partial = path.with_suffix(f".{os.getpid()}.tmp")
            with open_remote(url) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.replace(partial, path)
        except OSError as error:
            raise VtrError(f"{url}: cannot be copied to {self.folder} ({error})") from error
        return str(path)

    def _make_room(self) -> None:
        files = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.most_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
