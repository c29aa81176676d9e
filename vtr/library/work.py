"""What `vtr embed` has to do: what was named, as items; slices of them, as units of work, each of which becomes a part.

The slices are cut by one process and written down (plan.json), so that all that work on them mean the same. A plan is
joined while somebody works on it, else it is made anew of what is not in the parts yet: a killed call goes on, changed
files are done again in the part they are in, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vtr.data.finder import RootIndex, VideoFinder
from vtr.data.lists import read_list
from vtr.data.shard_reader import place_of
from vtr.data.shards import expand_shards
from vtr.data.tables import TEXT_SUFFIXES
from vtr.data.uri import is_uri, shown_uri
from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically
from vtr.library.claims import Claims
from vtr.library.files import clean_metadata, numbers_of, shown
from vtr.library.parts import ENDING, Damaged, Source, read_heading
from vtr.library.rows import Metadata, as_json
from vtr.library.scan import find_media

_MOST = 1024  # items of a slice
_SLICES = 256  # that a list makes at least, where it has so many items: for as many processes, with none idle for long
_LEAST = 4 << 20  # bytes of a slice that is worth a file
_GUESS = 64 << 20  # bytes of what lies at an address, before it was asked for
PART_BYTES = 4 << 30  # of media in a slice


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to embed: a file, a shard (one is a unit by itself), or what lies at an address."""

    name: str
    kind: str  # "file", "shard", "uri"
    metadata: Metadata = field(default_factory=dict)

    def source(self) -> Source:
        """What it is now; sizes and times of what lies at an address are not asked for."""
        meta = (
            hashlib.blake2b((as_json(self.metadata) or "").encode(), digest_size=6).hexdigest() if self.metadata else ""
        )
        if is_uri(self.name):
            return Source(name=self.name, meta=meta)
        try:
            facts = os.stat(self.name)
        except OSError:
            return Source(name=self.name, meta=meta)
        return Source(name=self.name, bytes=facts.st_size, modified=facts.st_mtime, meta=meta)


@dataclass(kw_only=True)
class Wanted:
    """What was named, each item once, and what of it cannot be taken, a line each."""

    items: list[Item] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    skipped: str = ""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A slice of the list: what becomes the part `name`.

    Attributes:
        id: Of its sources: a part that says it is of this unit is done.
        kept: Sources of the part as it is that were not named this time: they stay in it.
        before: Id of what the part was before, "" for a new one: the same sources may be tried again.
    """

    name: str
    sources: list[Source]
    kept: list[Source] = field(default_factory=list)
    kind: str = "file"
    before: str = ""

    @property
    def id(self) -> str:
        text = json.dumps([self.before, *(asdict(s) for s in (*self.sources, *self.kept))])
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()

    def done(self, folder: Path) -> bool:
        """Whether its part is there."""
        try:
            return read_heading(folder / self.name).unit == self.id
        except (VtrError, OSError):
            return False


# -- what was named ---------------------------------------------------------------------------------------------------


def wanted(named: Sequence[str], *, uris: Sequence[Path] = (), exclude: Sequence[str] = ()) -> Wanted:
    """Folders, files, lists, shards (paths, braces, `::`) and addresses, in the order given.

    Args:
        named: As on the command line. Addresses are fetched only where they stand here, or in a list of `uris`.
        uris: Lists whose rows may be addresses.
        exclude: As in `find_media`.

    Raises:
        VtrError: Something is not there, or a folder holds nothing to embed.
    """
    out = Wanted()
    found: list[Item] = []
    for name in named:
        found += _named(name, out, exclude)
    for listing in uris:
        found += _listed(listing, out, fetch=True)
    once: dict[str, Item] = {}
    other = dict[str, None]()
    for item in found:
        kept = once.setdefault(item.name, item)
        if not kept.metadata:
            once[item.name] = item
        elif item.metadata and item.metadata != kept.metadata:
            other[item.name] = None
    if other:
        told = f"{len(other)} with several rows of metadata that differ, all but the first left out (first: {shown(min(other))})"
        out.skipped = "; ".join(filter(None, (out.skipped, told)))
    out.items = list(once.values())
    return out


def _named(name: str, out: Wanted, exclude: Sequence[str]) -> Iterator[Item]:
    path = Path(name)
    if is_uri(name) and "::" not in name:
        for uri in expand_shards(name) if "{" in name else [name]:
            yield Item(name=uri, kind="shard" if _is_tar(uri) else "uri")
    elif path.is_dir():
        shards = sorted(str(p) for p in path.glob("*.tar"))
        yield from (Item(name=os.path.abspath(s), kind="shard") for s in shards)
        scan = find_media([path], may_be_empty=True, exclude=exclude)
        out.skipped = "; ".join(filter(None, (out.skipped, "" if shards else scan.skipped())))
        out.refused += [f"{shown(folder)}: the folder cannot be read" for folder in scan.unlisted]
        if not shards and not scan.files:
            expand_shards(name)  # says where shards lie, if there are some deeper down
        yield from (Item(name=os.path.abspath(p), kind="file") for p in scan.files)
    elif path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
        yield from _listed(path, out, fetch=False)
    elif os.path.lexists(path) and not _is_tar(name):
        yield Item(name=os.path.abspath(path), kind="file")
    elif _is_tar(name) or "{" in name or "::" in name:
        yield from (Item(name=s if is_uri(s) else os.path.abspath(s), kind="shard") for s in expand_shards(name))
    else:
        raise VtrError(f"{name}: no such file, folder, list or shard")


def _is_tar(name: str) -> bool:
    return name.split("?")[0].rstrip("}").endswith(".tar")


def _listed(listing: Path, out: Wanted, *, fetch: bool) -> Iterator[Item]:
    """Files of a list, with its other columns as their metadata."""
    finder = VideoFinder(RootIndex(listing.parent))
    for entry in read_list(listing, captions=False).entries:
        if entry.bad:
            raise VtrError(f"{listing}, {entry.place}: {entry.bad}")
        metadata = clean_metadata(numbers_of(entry.more), str(listing))
        for name in entry.videos:
            if not is_uri(name):
                file = place_of(replace(entry, videos=(name,)), listing.parent, finder)
                yield Item(name=os.path.abspath(file), kind="file", metadata=metadata)
            elif fetch:
                yield Item(name=name, kind="shard" if _is_tar(name) else "uri", metadata=metadata)
            else:
                out.refused.append(
                    f"{listing}, {entry.place}: {shown_uri(name)} is an address, and a list does not make vtr fetch one "
                    f"unless it is given as --uris {listing}"
                )


# -- the plan ---------------------------------------------------------------------------------------------------------


def plan(folder: Path, items: Sequence[Item], claims: Claims, *, part_bytes: int = PART_BYTES) -> list[Unit]:
    """The units of a list, as all processes see them that work on it now; largest first.

    Args:
        folder: Of the parts.
        items: What was named.
        claims: In `work_folder` of the same items.
        part_bytes: Most bytes of media in a slice (one item may be larger).
    """
    path = claims.folder / "plan.json"
    while True:
        if path.is_file():
            return _read_plan(path)
        if claims.take("plan") == "mine":
            units = _units(folder, items, part_bytes)
            with write_atomically(path) as partial:
                partial.write_text(json.dumps([asdict(u) for u in units]), errors="surrogateescape")
            return units
        time.sleep(0.05)


def work_folder(folder: Path, items: Sequence[Item]) -> Path:
    """Where those that work on a list say so; what nobody works on any more is cleared away."""
    names = "\n".join(f"{i.kind} {i.name}" for i in items)
    place = folder / "work" / hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    if place.is_dir() and not Claims(place).others():
        shutil.rmtree(place, ignore_errors=True)
    return place


def _read_plan(path: Path) -> list[Unit]:
    return [
        Unit(
            name=u["name"],
            sources=[Source(**s) for s in u["sources"]],
            kept=[Source(**s) for s in u["kept"]],
            kind=u["kind"],
            before=u["before"],
        )
        for u in json.loads(path.read_text(errors="surrogateescape"))
    ]


def _units(folder: Path, items: Sequence[Item], part_bytes: int) -> list[Unit]:
    now = {item.name: item.source() for item in items}
    there: set[str] = set()
    units: list[Unit] = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        try:
            heading = read_heading(path)
        except Damaged:
            path.unlink(missing_ok=True)
            continue
        there.update(s.name for s in heading.sources)
        stale = any(s.again or now[s.name] != replace(s, again=False) for s in heading.sources if s.name in now)
        if stale:
            shard = any(_is_tar(s.name) for s in heading.sources)
            units.append(
                Unit(
                    name=path.name,
                    sources=[now[s.name] for s in heading.sources if s.name in now],
                    kept=[s for s in heading.sources if s.name not in now],
                    kind="shard" if shard else "file",
                    before=heading.unit,
                )
            )
    left = [item for item in items if item.name not in there]
    units += [_unit([now[i.name]], "shard") for i in left if i.kind == "shard"]
    files = [now[i.name] for i in left if i.kind != "shard"]
    units += [_unit(part, "file") for part in _slices(files, part_bytes)]
    return sorted(units, key=lambda u: (-_weight(u.sources), u.name))


def _slices(sources: Sequence[Source], part_bytes: int) -> Iterator[list[Source]]:
    most = min(part_bytes, max(_LEAST, _weight(sources) // _SLICES))
    part: list[Source] = []
    for source in sources:
        if part and (_weight([*part, source]) > most or len(part) >= _MOST):
            yield part
            part = []
        part.append(source)
    if part:
        yield part


def _weight(sources: Iterable[Source]) -> int:
    return sum(_GUESS if s.bytes is None else s.bytes for s in sources)


def _unit(sources: list[Source], kind: str) -> Unit:
    first = sources[0].name.split("?")[0]
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(first).stem)[:60] or "part"
    names = "\n".join(s.name for s in sources).encode(errors="surrogateescape")
    return Unit(name=f"{stem}-{hashlib.blake2b(names, digest_size=6).hexdigest()}{ENDING}", sources=sources, kind=kind)


def of_unit(unit: Unit, items: Mapping[str, Item]) -> list[tuple[Item, Source]]:
    """The items of a unit, each with what it was when the plan was made."""
    if missing := [s.name for s in unit.sources if s.name not in items]:
        raise UsageError(f"{missing[0]}: the plan names it, and this call does not: name the same things in each")
    return [(items[s.name], s) for s in unit.sources]
