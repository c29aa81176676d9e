"""WebDataset shards as img2dataset and video2dataset write them: list, read, write, count."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from braceexpand import braceexpand

from vtr.data.cells import texts_of
from vtr.data.media import IMAGE, VIDEO, ending
from vtr.data.remote import open_remote
from vtr.data.tables import split_lines
from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically

# The rule of a sample, for messages about members that make none.
RULE = (
    "the members whose names are equal up to their first dot are a sample; the rest of the name says what each is: "
    f'its media one of {", ".join(VIDEO[:5])}, {", ".join(IMAGE[:3])} …, its caption txt, or json with a "caption"'
)


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample, not yet decoded.

    Attributes:
        captions: Its texts; several where the .json lists them or the .txt has one a line.
        fault: Why it has no captions, "" where it has.
        members: What it is made of: the extensions of its members.
        nth: How many samples of its shard before it have the same key.
    """

    key: str
    media: bytes
    extension: str
    captions: tuple[str, ...] = ()
    fault: str = ""
    meta: dict[str, object] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    nth: int = 0

    @property
    def made_of(self) -> str:
        """Its members in words."""
        return made_of(self.members)

    @property
    def caption(self) -> str | None:
        """Its caption, the first where there are several."""
        return self.captions[0] if self.captions else None


def made_of(members: Sequence[str]) -> str:
    """A sample's members in words."""
    more = len(members) - 6
    return ", ".join(members[:6]) + (f" and {more} more" if more > 0 else "")


def expand_shards(spec: str) -> list[str]:
    """Turn `{000..331}` braces, `::` lists and folders into shard paths or URLs, in order.

    Raises:
        VtrError: Nothing is there, or a local file of the list is missing (all are named).
    """
    found, missing = resolve_shards(spec)
    if missing:
        raise VtrError(
            f"{len(missing)} of {len(found) + len(missing)} shards are missing: {', '.join(missing[:20])}"
            + (" …" if len(missing) > 20 else "")
        )
    return found


def resolve_shards(spec: str) -> tuple[list[str], list[str]]:
    """As `expand_shards`, with the missing ones as a second list instead of an error."""
    found: list[str] = []
    missing: list[str] = []
    for part in _parts(spec):
        if part.startswith("pipe:"):
            raise UsageError(f"{part!r} would run a shell command: expected paths or URLs of .tar files")
        if "://" not in part and Path(part).is_dir():
            there = sorted(p for p in Path(part).iterdir() if not p.name.startswith("."))  # `._000.tar` is no shard
            inside = [str(p) for p in there if p.suffix == ".tar"]
            packed = [p.name for p in there if _PACKED.search(p.name)]
            if packed:
                raise VtrError(
                    f"{part}: {', '.join(packed[:3])}{' …' if len(packed) > 3 else ''}: shards end in .tar and are not "
                    "compressed: unpack or rename them, or give those that are meant"
                )
            if not inside:
                deeper = sorted({str(p.parent) for p in Path(part).rglob("*.tar")})
                hint = f"; shards lie in {', '.join(deeper[:3])}: give those, joined by ::" if deeper else ""
                raise VtrError(f"{part}: a folder without .tar shards{hint}")
            found += inside
            continue
        try:
            names = list(braceexpand(part))
        except ValueError as error:
            raise UsageError(f"shards {part!r}: {error}") from None
        if "://" in part:
            found += names
            continue
        for name in names:
            (found if os.path.isfile(name) else missing).append(name)
    return found, missing


def _parts(spec: str) -> list[str]:
    """The pieces of a `::` list; the colons of a URL's scheme are none of it."""
    return [part for part in spec.split("::") if part]


_PACKED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst|lz4)|(?!tar$)[tT][aA][rR])$")
_NO_TAR = (
    (b"\x1f\x8b", "gzip-compressed, so no sample can be reached by itself: unpack it (gunzip)"),
    (b"PK\x03\x04", "a zip archive: unpack it, and pack the files with tar or `vtr shards build`"),
    (b"BZh", "bzip2-compressed: unpack it (bunzip2)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it (unzstd)"),
    (b"\xfd7zXZ", "xz-compressed: unpack it (unxz)"),
    (b"<", "a web page, not a shard: a download that failed?"),
    (b"version https://git-lfs", "a git-LFS pointer, not the shard itself: git lfs pull"),
)


def why_no_tar(shard: str, error: Exception) -> str:
    """What a file that cannot be read as a tar is, else what the reader said."""
    try:
        with open(shard, "rb") as file:
            head = file.read(64)
    except OSError:
        return str(error)
    return next((f"it is {what}" for magic, what in _NO_TAR if head.startswith(magic)), str(error))


def _joined_behind(data: bytes | mmap.mmap, place: int) -> None:
    """Refuse what stands behind the end of an archive, as `cat a.tar b.tar` leaves it: no reader goes on there.

    Raises:
        tarfile.TarError: Another archive begins there.
    """
    if data.find(b"ustar", place) >= 0:
        raise tarfile.ReadError(
            f"another archive is behind its end (byte {place}), which nobody reads: join archives with `tar --concatenate`, "
            "or keep them apart"
        )


def _check_end(path: str, place: int) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _joined_behind(data, place)


def _open(shard: str, opened: BinaryIO | None = None) -> tarfile.TarFile:
    try:
        if opened is not None or "://" in shard:
            return tarfile.open(fileobj=opened or open_remote(shard), mode="r|*")
        return tarfile.open(shard, mode="r:")
    except (tarfile.TarError, OSError) as error:
        raise VtrError(f"{shard}: not a readable tar ({why_no_tar(shard, error)})") from error


class Grouping:
    """Tells where the samples of a tar begin: with another key, or with a member that the sample has already."""

    def __init__(self) -> None:
        self.key: str | None = None
        self._members: set[str] = set()

    def begins(self, key: str, extension: str) -> bool:
        """Whether this member is the first of a sample."""
        new = key != self.key or extension in self._members
        if new:
            self.key, self._members = key, set()
        self._members.add(extension)
        return new


def iterate_samples(
    shard: str, start: int = 0, stop: int | None = None, *, opened: BinaryIO | None = None
) -> Iterator[RawSample]:
    """Samples `start … stop - 1` of a shard in the order of their keys' first members.

    Members of one key stand next to each other, in any order. Skipped samples are not read. `opened` is read instead of
    what the shard's name names.

    Raises:
        VtrError: The tar is damaged; samples before the damage have been yielded.
    """
    index = -1
    group: dict[str, bytes] = {}
    groups = Grouping()
    before = ""
    with _open(shard, opened) as tar:
        try:
            for member in tar:
                named = split_member(member.name) if member.isfile() else None
                if named is None:
                    continue
                if groups.begins(*named):
                    if index >= max(0, start):
                        yield sample_of(before, group)
                    before, group, index = named[0], {}, index + 1
                    if stop is not None and index >= stop:
                        return
                if index >= start:
                    file = tar.extractfile(member)
                    group[named[1]] = file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise VtrError(f"{shard}: damaged after {index + 1} samples ({error})") from error
    if index >= max(0, start):
        yield sample_of(before, group)
    if opened is None and "://" not in shard:
        try:
            _check_end(shard, tar.offset)
        except tarfile.TarError as error:
            raise VtrError(f"{shard}: damaged after {index + 1} samples ({error})") from error


def split_member(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) of a member's name, cut at the first dot behind its folders; None where it has none."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if not stem or not extension:
        return None
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def sample_of(key: str, group: Mapping[str, bytes], nth: int = 0) -> RawSample:
    """The sample that the members of one key make: captions from .txt or the .json, media by its extension."""
    loaded, broken = _json_member(group)
    meta = loaded if isinstance(loaded, dict) else {}
    captions, fault = _text_captions(group.get("txt", b""), meta.get("caption"))
    if not captions and not fault:  # an empty .txt says nothing: the .json may
        captions, fault = _json_captions(meta.get("caption"), broken)
    if not captions and not fault:
        members = made_of(tuple(group)) + (f" (which has {made_of(sorted(map(str, meta)))})" if meta else "")
        fault = f'no caption: its members are {members}, and captions are read from .txt, or "caption" in .json'
    rare = (
        e for e in group if "." not in e and ending(f"x.{e}")
    )  # what `vtr shards build` takes as it is: heic, ts, tif …
    extension = next((e for e in (*VIDEO, *IMAGE) if e in group), next(rare, ""))
    return RawSample(
        key=key,
        media=group.get(extension, b""),
        extension=extension,
        captions=captions,
        fault=fault,
        meta=meta,
        members=tuple(group),
        nth=nth,
    )


def _json_member(group: Mapping[str, bytes]) -> tuple[object, str]:
    try:
        return json.loads(group.get("json", b"null").decode("utf-8-sig")), ""
    except (ValueError, RecursionError):
        return None, "its .json is not JSON"


def _text_captions(data: bytes, also: object) -> tuple[tuple[str, ...], str]:
    """The captions of a .txt: one a line, unless the .json has the same text as one caption."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return (), f"its .txt is not UTF-8 (byte {error.start})"
    if not text:
        return (), ""
    lines = [line.strip() for line in split_lines(text) if line.strip()]
    one = len(lines) < 2 or (isinstance(also, str) and also.split() == text.split())
    captions, why = texts_of(text if one else lines)
    return captions, why and f"{why} (its .txt)"


def _json_captions(value: object, broken: str) -> tuple[tuple[str, ...], str]:
    if value is None or value == "":
        return (), broken
    captions, why = texts_of(value)
    return captions, why and f"{why} (its .json)"


def members_of(path: str) -> Iterator[tuple[int, int, int, str]]:
    """(first byte with headers, first and end of the content, name) of the plain files of a local tar, in order.

    Raises:
        tarfile.TarError, OSError, EOFError: It cannot be read; members before the damage have been yielded.
    """
    place = 0
    with open(path, "rb") as file, contextlib.suppress(ValueError):  # an empty file cannot be mapped
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            size = len(data)
            # Plain ustar headers are read here, ten times as fast as tarfile does, which takes over at any other.
            while place + 512 <= size:
                head = data[place : place + 512]
                kind = head[156]
                if head[0] == 0:
                    _joined_behind(data, place)
                    return
                if head[257:262] != b"ustar" or kind not in (48, 0, 53):
                    break
                try:
                    length = int(head[124:136].rstrip(b"\0 ") or b"0", 8)
                    name = head[:100].split(b"\0", 1)[0].decode("utf-8")
                    if head[345] and head[262] == 0:  # GNU tar keeps other things there
                        name = head[345:500].split(b"\0", 1)[0].decode("utf-8") + "/" + name
                except (ValueError, UnicodeDecodeError):
                    break
                end = place + 512 + length
                if kind != 53:
                    yield place, place + 512, end, name
                place = end + -end % 512
            else:
                if place:
                    return
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            if member.isfile() and member.offset >= place:
                # Of a sparse file less is there than its size: up to the next header, which tarfile has looked for.
                end = tar.offset if member.issparse() else member.offset_data + member.size
                yield member.offset, member.offset_data, end, member.name
        _check_end(path, tar.offset)


def count_samples(shard: str) -> int:
    """Number of samples of a shard, from its headers."""
    count, groups = 0, Grouping()
    try:
        for name in _names_in(shard):
            named = split_member(name)
            count += named is not None and groups.begins(*named)
    except (tarfile.TarError, OSError, EOFError) as error:
        why = why_no_tar(shard, error)
        raise VtrError(f"{shard}: damaged after {count} samples ({why}); run: vtr shards verify {shard}") from error
    return count


def _names_in(shard: str) -> Iterator[str]:
    """The names of a shard's files, as far as they are whole."""
    if "://" in shard:
        with _open(shard) as tar:
            yield from (m.name for m in tar if m.isfile())
        return
    size = os.path.getsize(shard)
    for _, _, end, name in members_of(shard):
        if end > size:
            raise EOFError(f"{name} is cut off")
        yield name


def sample_keys(shard: str) -> list[str]:
    """The keys of a local shard's samples, from its headers; those before a damage."""
    keys: list[str] = []
    groups = Grouping()
    with contextlib.suppress(tarfile.TarError, OSError, EOFError):
        for *_, name in members_of(shard):
            named = split_member(name)
            if named is not None and groups.begins(*named):
                keys.append(named[0])
    return keys


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


class ShardFile:
    """One shard that is being written through webdataset's writer; the same samples give the same bytes.

    Args:
        path: Its final name, which it gets when it is finished; what is under way ends in `.tar.tmp`.
    """

    def __init__(self, path: Path) -> None:
        import webdataset  # it imports torch

        self.path, self.count = path, 0
        self._partial = path.with_suffix(".tar.tmp")
        # A file, not a name: webdataset would open names that begin with "pipe:" as commands.
        self._file = open(self._partial, "wb")  # noqa: SIM115 - until the shard is full
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="", mode=0o644)

    def write(
        self,
        key: str,
        extension: str,
        media: bytes,
        caption: str | Sequence[str],
        meta: Mapping[str, object] | None = None,
    ) -> None:
        """Append one sample; keys must not hold a dot. Several captions stand one a line in its .txt."""
        texts = [caption] if isinstance(caption, str) else [" ".join(c.split()) for c in caption]
        sample: dict[str, object] = {"__key__": key, extension: media, "txt": "\n".join(texts).encode()}
        if meta is not None:
            sample["json"] = json.dumps(meta, ensure_ascii=False).encode()
        self._tar.write(sample)
        self.count += 1

    def finish(self) -> None:
        """End it and give it its name."""
        self._tar.close()
        self._file.close()
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()


class ShardWriter:
    """Write samples to `000000.tar …` and `sizes.json`.

    Args:
        folder: Output folder, created.
        samples_per_shard: A new shard is started after this many.
        first: Number of the first shard.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, first: int = 0) -> None:
        self.folder, self.per_shard = Path(folder), samples_per_shard
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VtrError(f"{folder}: cannot be created ({error.strerror})") from error
        self.number = first
        self.sizes: dict[str, int] = {}
        self._shard: ShardFile | None = None

    @property
    def count(self) -> int:
        """Samples of the shard that is being written."""
        return self._shard.count if self._shard is not None else 0

    def write(
        self,
        key: str,
        extension: str,
        media: bytes,
        caption: str | Sequence[str],
        meta: Mapping[str, object] | None = None,
    ) -> None:
        """Append one sample, as `ShardFile.write`."""
        if self._shard is None:
            self._shard = ShardFile(self.folder / f"{self.number:06d}.tar")
        self._shard.write(key, extension, media, caption, meta)
        if self.count == self.per_shard:
            self.finish()

    def finish(self) -> None:
        """End the shard that is being written and give it its name."""
        if self._shard is None:
            return
        self._shard.finish()
        self.sizes[self._shard.path.name] = self.count
        self._shard, self.number = None, self.number + 1

    def close(self) -> None:
        """Finish the last shard and write sizes.json."""
        self.finish()
        write_sizes(self.folder, self.sizes)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.discard()


def write_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Write `sizes.json` atomically."""
    with write_atomically(folder / "sizes.json") as partial:
        partial.write_text(json.dumps(dict(sorted(sizes.items())), indent=1) + "\n")
