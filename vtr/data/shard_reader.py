"""Random access to the samples of a shard: its headers are read once, then each sample is one read.

A shard is a tar (local, or a URL that is copied to a cache folder first), or a list of media files: a folder of videos,
or a list of any format that `vtr.data.lists` reads (`files:` in front; see `vtr.data.manifests`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import tarfile
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vtr.data.finder import RootIndex, VideoFinder
from vtr.data.lists import Entry, read_list
from vtr.data.litter import file_left_out, folder_left_out
from vtr.data.media import MORE_VIDEO, VIDEO, ending
from vtr.data.remote import open_remote
from vtr.data.shards import Grouping, RawSample, iterate_samples, members_of, sample_of, split_member, why_no_tar
from vtr.data.tables import TEXT_SUFFIXES
from vtr.errors import VtrError

FILES = "files:"
LIST_NAMES = ("metadata", "captions", "annotations")


class TarIndex:
    """Where each sample of a local tar begins and ends.

    Attributes:
        bounds: int64 (n, 2), first and last + 1 byte of each sample's members, headers included.
        damage: Why the tar could not be read to its end, or "".
        repeats: Of samples whose key an earlier one has: how many have.
    """

    def __init__(self, path: str) -> None:
        self.path, self.damage = path, ""
        bounds: list[tuple[int, int]] = []
        keys: list[str] = []
        groups = Grouping()
        try:
            size = os.path.getsize(path)
            for first, _, end, name in members_of(path):
                named = split_member(name)
                if named is None:
                    continue
                begins = groups.begins(*named)
                if end > size:
                    # The last member is cut off: its sample is not whole.
                    self.damage = f"cut off after {len(bounds)} samples"
                    if not begins:
                        bounds.pop()
                        keys.pop()
                    break
                if begins:
                    bounds.append((first, end))
                    keys.append(named[0])
                else:
                    bounds[-1] = (bounds[-1][0], end)
        except (tarfile.TarError, OSError, EOFError) as error:
            self.damage = f"not a readable tar after {len(bounds)} samples ({why_no_tar(path, error)})"
        self.bounds = np.asarray(bounds, dtype=np.int64).reshape(-1, 2)
        self.repeats: dict[int, int] = {}
        if len(set(keys)) < len(keys):
            seen: Counter[str] = Counter()
            for index, key in enumerate(keys):
                if seen[key]:
                    self.repeats[index] = seen[key]
                seen[key] += 1

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
                    named = split_member(member.name) if member.isfile() else None
                    if named is None:
                        continue
                    key = named[0]
                    found = tar.extractfile(member)
                    group[named[1]] = found.read() if found else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            return f"{self.path}: sample {index} can't be read ({error})"
        return sample_of(key, group, self.repeats.get(index, 0))


class FileList:
    """Media files as a shard: a folder, or a list of files with captions or without."""

    def __init__(self, spec: str) -> None:
        self.path, self.damage = spec, ""
        self.items = listed_files(Path(spec.removeprefix(FILES)))

    def captions(self) -> Iterator[str]:
        """Every caption, without reading media."""
        for path, entry in self.items:
            if entry is None:
                yield from text_beside(path).captions
            elif not entry.bad:
                yield from entry.captions

    def read(self, index: int, *, media: bool = True) -> RawSample | str:
        """File `index`, or why it can't be read. Captions of one video share its key, and so its sample id.

        Args:
            media: Read the file itself, not its captions alone.
        """
        path, entry = self.items[index]
        if entry is not None and entry.bad:
            return f"{entry.place}: {entry.bad}"
        try:
            with path.open("rb") as file:
                data = file.read() if media else b""
        except OSError as error:
            return f"{path}: {error.strerror}" + (f" ({entry.place})" if entry is not None else "")
        extension = path.suffix[1:].lower()
        if entry is None:
            return replace(text_beside(path), media=data, extension=extension)
        return RawSample(
            key=str(path),
            media=data,
            extension=extension,
            captions=entry.captions,
            fault="" if entry.captions else "no caption: its list has none",
            members=(extension,),
        )


def text_beside(path: Path) -> RawSample:
    """A file of a folder as a sample without its media: its captions are in a .txt or .json of the same name."""
    group: dict[str, bytes] = {path.suffix[1:].lower(): b""}
    for extension in ("txt", "json"):
        for spelled in (extension.upper(), extension):
            with contextlib.suppress(OSError):
                group[extension] = path.with_suffix(f".{spelled}").read_bytes()
    sample = sample_of(str(path), group)
    return sample if len(group) > 1 else replace(sample, fault="no caption: no .txt or .json beside it")


def has_captions(source: Path) -> bool:
    """Whether a folder or a list of media files has captions at all."""
    return next(FileList(FILES + str(source)).captions(), None) is not None


def folder_list(folder: Path) -> Path | None:
    """The list in a folder that says what its files are: metadata.csv, captions.jsonl and the like.

    Raises:
        VtrError: There are several.
    """
    there = [p for p in sorted(folder.iterdir()) if p.stem in LIST_NAMES and p.suffix in TEXT_SUFFIXES and p.is_file()]
    if len(there) > 1:
        raise VtrError(
            f"{folder}: holds several lists ({', '.join(p.name for p in there)}); give the one that is meant"
        )
    return there[0] if there else None


def listed_files(source: Path) -> list[tuple[Path, Entry | None]]:
    """The media files of a folder (all levels, sorted), or of a list, with what the list says about each.

    A list in the folder (`folder_list`) stands for it.

    Raises:
        VtrError: There is nothing, or the list cannot be meant.
    """
    inner = folder_list(source) if source.is_dir() else None
    source = inner or source
    if source.is_dir():
        found = [(p, None) for p in sorted(_media_below(source)) if p.is_file()]
        if not found:
            raise VtrError(f"{source}: no video or image files")
        return list(found)
    listing = read_list(source)
    if listing.kind == "JSON lines":  # what has a file a line without captions is a plain list or a CSV
        listing.need_captions()
    finder = VideoFinder(RootIndex(source.parent))
    return [(place_of(entry, source.parent, finder), entry) for entry in listing.entries]


def _media_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not folder_left_out(f, Path(place).suffix, False)]
        beside = set(names)
        yield from (Path(place, n) for n in names if ending(n) and not file_left_out(n, beside, False))


def place_of(entry: Entry, base: Path, finder: VideoFinder) -> Path:
    """The file of a list's entry: as it is written, with an ending where it has none, else the one under `base` it means."""
    name = entry.videos[0]
    written = Path(name) if Path(name).is_absolute() else base / name
    if entry.bad or "://" in name or written.is_file():
        return written
    if len(Path(name).parts) == 1:
        return finder.find(name) or written
    there = [p for p in (written.with_name(f"{written.name}.{e}") for e in (*VIDEO, *MORE_VIDEO)) if p.is_file()]
    return there[0] if len(there) == 1 else written


def list_files(source: Path) -> list[Path]:
    """The media files of a folder (all levels, sorted), or of a list.

    Raises:
        VtrError: There is nothing, or the list cannot be meant.
    """
    return [path for path, _ in listed_files(source)]


def captions_in(shard: str) -> Iterator[str]:
    """The captions of a shard or a list, in order; the media of local shards are passed over.

    Raises:
        VtrError: It is damaged; captions before the damage have been yielded.
    """
    if shard.startswith(FILES):
        yield from FileList(shard).captions()
    elif "://" in shard:
        for sample in iterate_samples(shard):
            yield from sample.captions
    else:
        for sample in texts_in(shard):
            yield from sample.captions


def texts_in(shard: str) -> Iterator[RawSample]:
    """The samples of a local shard without their media, which are passed over.

    Raises:
        VtrError: It is damaged; samples before the damage have been yielded.
    """
    groups = Grouping()
    key, texts = "", dict[str, bytes]()
    try:
        with open(shard, "rb") as file:
            for _, first, end, name in members_of(shard):
                named = split_member(name)
                if named is None:
                    continue
                if groups.begins(*named):
                    if texts:
                        yield sample_of(key, texts)
                    key, texts = named[0], {}
                texts[named[1]] = b""
                if named[1] in ("txt", "json"):
                    file.seek(first)
                    texts[named[1]] = file.read(end - first)
            if texts:
                yield sample_of(key, texts)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise VtrError(f"{shard}: not a readable tar ({error})") from error


def captionless(shards: Sequence[str], most: int) -> tuple[str, str]:
    """A sample of local shards and why it has no caption, if none of the `most` that are looked at has one; else "", "".

    They are the first of as many shards, or more of each where there are fewer.
    """
    local = [s for s in shards if "://" not in s and not s.startswith(FILES)]
    chosen = local[:: max(1, len(local) // most)]
    found = ("", "")
    for shard in chosen:
        with contextlib.suppress(VtrError):  # a damaged one: the stream counts what it lacks
            for sample in itertools.islice(texts_in(shard), -(-most // len(chosen))):
                if sample.captions:
                    return "", ""
                found = f"{shard.rsplit('/', 1)[-1]}#{sample.key}", sample.fault
    return found


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

    def read(self, shard: str, index: int, *, media: bool = True) -> RawSample | str:
        """Sample `index` of a shard, or why it can't be had; without its media where they are a file of their own."""
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
        return found.read(index) if isinstance(found, TarIndex) else found.read(index, media=media)

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
