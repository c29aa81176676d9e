"""Corpora as data: a TOML file names the members, their media type, shards, published size, licence and origin."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from vtr.data.shard_reader import FILES, captionless, has_captions, list_files
from vtr.data.shards import expand_shards, resolve_shards, sample_keys, shard_sizes
from vtr.data.tables import TEXT_SUFFIXES
from vtr.errors import UsageError, VtrError, unknown_name
from vtr.files import manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = manifest("corpora")

_KEYS = ("name", "media", "shards", "items", "texts", "licence", "source", "make")
_MEDIA = ("video", "image", "auto")
_LOOKED_AT = 50  # samples of a member, for captions
_COMPARED = 200_000  # samples of a member whose keys are all compared


class MemberTable(TypedDict, total=False):
    """A `[[member]]` of a corpus file."""

    name: str  # as it is printed and kept in run.json
    media: str  # video | image | auto: each sample says
    shards: str  # below the data root: a folder, a .tar, x-{000..009}.tar, A::B
    items: int  # files as published; 0 or absent: unknown
    texts: int  # captions as published, where a file has several; what is found is compared with them
    licence: str  # of the data, in words
    source: str  # where the data come from
    make: str  # the command that makes the shards


@dataclass(frozen=True, kw_only=True)
class CorpusMember:
    """One data set of a corpus, as far as it is found on this machine."""

    name: str
    media: str  # video | image | auto
    shards: tuple[str, ...]
    sizes: tuple[int, ...]  # samples of each shard
    published: int = 0  # samples (pairs) as published, 0 = unknown
    missing: tuple[str, ...] = ()  # shards of the pattern that are not there, or why nothing is
    licence: str = ""
    source: str = ""
    make: str = ""  # the command that makes the shards
    captioned: bool = True  # False: plain files that nothing says a word about
    # Keys that samples of several shards have: their ids hold the shard too. None: not compared, so all ids do.
    doubled: frozenset[str] | None = frozenset()

    @property
    def samples(self) -> int:
        """Samples found."""
        return sum(self.sizes)

    @property
    def fraction(self) -> float | None:
        """Share of the published samples that was found; None where the published number is unknown."""
        return self.samples / self.published if self.published else None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A named set of members."""

    name: str
    members: tuple[CorpusMember, ...]
    absent: tuple[CorpusMember, ...] = ()  # members of which nothing was found

    @property
    def samples(self) -> int:
        """Samples found."""
        return sum(m.samples for m in self.members)

    @property
    def missing(self) -> tuple[str, ...]:
        """Every shard that is missing, and why whole members are."""
        return tuple(f"{m.name}: {line}" for m in (*self.members, *self.absent) for line in m.missing)

    def fingerprint(self) -> str:
        """A digest of the members' shard names and sizes, wherever they lie: what the order of samples depends on."""
        digest = hashlib.blake2b(digest_size=16)
        for m in self.members:
            digest.update(f"{m.name}\0{m.media}\0".encode())
            for shard, size in zip(m.shards, m.sizes):
                digest.update(f"{shard.rsplit('/', 1)[-1]}\0{size}\0".encode())
        return digest.hexdigest()

    def table(self) -> str:
        """Members as lines: media, shards and samples found of those published."""
        wide = max(14, *(len(m.name) + 2 for m in (*self.members, *self.absent)))
        lines = [f"{'member':<{wide}}{'media':<7}{'shards':>16}{'samples':>12}{'published':>12}{'found':>8}"]
        for m in (*self.members, *self.absent):
            held = len(m.shards)
            total = held + (len(m.missing) if m.shards else 0)
            shards = f"{held} of {total}" if m.shards else "none"
            share = "" if m.fraction is None else f"{m.fraction:.1%}"
            lines.append(f"{m.name:<{wide}}{m.media:<7}{shards:>16}{m.samples:>12,}{m.published or '':>12}{share:>8}")
        return "\n".join(lines)


def corpus_names() -> list[str]:
    """The corpora that come with vtr."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def load_corpus(name: str | Path, data_root: Path | None = None) -> Corpus:
    """Resolve a corpus: a name, the path of a TOML file, or data as they are.

    Data are what `vtr shards verify` takes (a folder of shards, a .tar, brace and `::` lists, URLs), a folder of videos or
    images, or a list of files in any format of `vtr.data.lists`.

    A TOML file lists `[[member]]` tables and, in `include`, other corpora by name or path. Shards are paths relative to
    the data root, URLs, brace patterns, `::` lists, folders, or `files:LIST` for plain media files. What is missing is
    recorded and said; nothing found at all is an error.

    Raises:
        UsageError: There is no such corpus, or the file makes no sense.
        VtrError: No shard was found.
    """
    root = Path(data_root or "data")
    plain = own_data(name)
    if plain is not None:
        title, shards = plain
        member = _member({"name": title, "media": _medium(shards)}, shards, [])
        _say_doubled(member)
        return Corpus(name=title, members=(member,))
    members, absent = [], []
    for entry in _entries(str(name), ()):
        try:
            shards, missing = _resolved(entry["shards"], root)
            if not shards:
                absent.append(_member(entry, [], missing))
                continue
            found = _member(entry, shards, missing)
            if found.samples == 0:
                raise VtrError("its shards hold no samples")
            members.append(found)
        except VtrError as error:
            if isinstance(error, UsageError):
                raise
            absent.append(_member(entry, [], [str(error)]))
    corpus = Corpus(name=str(name), members=tuple(members), absent=tuple(absent))
    if not members:
        detail = "; ".join(f"{m.name}: {_absence(m)}" for m in absent) or "the file lists no member"
        raise VtrError(f"corpus {name}: no shards found under {root} ({detail}); make them or give --data-root")
    for m in absent:
        print(f"corpus {name}: without {m.name}: {_absence(m)}", file=sys.stderr)
    for m in members:
        _say_doubled(m)
        if m.missing:
            print(
                f"corpus {name}: {m.name} lacks {len(m.missing)} of {len(m.missing) + len(m.shards)} shards, first "
                f"{m.missing[0]}",
                file=sys.stderr,
            )
    return corpus


def own_data(name: str | Path) -> tuple[str, list[str]] | None:
    """The title and shards of data that no TOML file describes; None for a corpus's name."""
    path, spec = Path(name), str(name)
    if path.is_dir():
        if any(path.glob("*.tar")):
            return path.name, expand_shards(spec)
        if not any(True for _ in path.rglob("*.tar")):
            return path.name, [FILES + spec]
        return path.name, expand_shards(spec)  # the error that says where they are
    if path.suffix.lower() in TEXT_SUFFIXES:
        return path.stem, [FILES + spec]
    if "::" in spec or ".tar" in spec or "://" in spec:
        shards = expand_shards(spec)
        where = shards[0].split("/")[:-1] if "://" in shards[0] else Path(shards[0]).absolute().parent.parts
        return where[-1], shards
    return None


def _say_doubled(member: CorpusMember) -> None:
    if member.doubled:
        print(
            f"{member.name}: {len(member.doubled)} keys are in several shards, as {min(member.doubled)!r}: their samples' ids "
            "hold the shard's place too (vtr shards verify names them)",
            file=sys.stderr,
        )


def _medium(shards: list[str]) -> str:
    """A list is of videos; what a folder or shards hold is seen when they are read."""
    return "video" if shards[0].startswith(FILES) and not Path(shards[0].removeprefix(FILES)).is_dir() else "auto"


def _absence(member: CorpusMember) -> str:
    if len(member.missing) == 1:
        return member.missing[0]
    return f"none of its {len(member.missing)} shards, first {member.missing[0]}"


def corpus_entries(name: str) -> list[MemberTable]:
    """The member tables of a corpus, by name or TOML path, includes resolved; nothing is looked for on disk.

    Raises:
        UsageError: There is no such corpus, or the file makes no sense.
    """
    return _entries(name, ())


def _entries(name: str, seen: tuple[str, ...]) -> list[MemberTable]:
    """The member tables of a corpus and of those it includes."""
    path = Path(name)
    if path.suffix != ".toml":
        path = _FOLDER / f"{name}.toml"
        if not path.is_file():
            raise unknown_name("corpus", name, corpus_names())
    if str(path) in seen:
        raise UsageError(f"corpus {path} includes itself")
    if not path.is_file():
        raise UsageError(f"corpus {path}: no such file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"corpus {path}: not TOML ({error})") from error
    for key in table:
        if key not in ("member", "include"):
            raise unknown_name(f"key in corpus {path}:", key, ("member", "include"))
    entries: list[MemberTable] = []
    for other in table.get("include", []):
        inner = str(path.parent / other) if other.endswith(".toml") else other
        entries += _entries(inner, (*seen, str(path)))
    for entry in table.get("member", []):
        for key in ("name", "media", "shards"):
            if key not in entry:
                raise UsageError(f"corpus {path}: a member has no {key!r}")
        for key in entry:
            if key not in _KEYS:
                raise unknown_name(f"key in corpus {path}:", key, _KEYS)
        if entry["media"] not in _MEDIA:
            raise unknown_name(f"media in corpus {path}:", entry["media"], _MEDIA)
        entries.append(entry)
    names = [e["name"] for e in entries]
    for one in names:
        if names.count(one) > 1:
            raise UsageError(f"corpus {path}: two members are called {one!r}; sample ids need different names")
    return entries


def _resolved(spec: str, root: Path) -> tuple[list[str], list[str]]:
    parts = []
    for part in spec.split("::"):
        kind = FILES if part.startswith(FILES) else ""
        rest = part.removeprefix(FILES)
        if "://" not in rest and not Path(rest).is_absolute():
            rest = str(root / rest)
        parts.append(kind + rest)
    found: list[str] = []
    missing: list[str] = []
    for part in parts:
        if part.startswith(FILES):
            found.append(part)
            continue
        there, absent = resolve_shards(part)
        found += there
        missing += absent
    return found, missing


def _member(entry: MemberTable, shards: list[str], missing: list[str]) -> CorpusMember:
    sizes: list[int] = []
    kept: list[str] = []
    if not any(s.startswith(FILES) for s in shards):
        try:
            kept, sizes = shards, shard_sizes(shards)
        except VtrError:
            kept, sizes = [], []  # one of them can't be counted: find out which below
    if not kept:
        for shard in shards:
            try:
                size = len(list_files(Path(shard.removeprefix(FILES)))) if shard.startswith(FILES) else -1
                sizes.append(shard_sizes([shard])[0] if size < 0 else size)
                kept.append(shard)
            except VtrError as error:
                missing = [*missing, str(error)]
        if shards and not kept:
            raise VtrError("; ".join(missing[:3]))
    return CorpusMember(
        name=entry["name"],
        media=entry["media"],
        shards=tuple(kept),
        sizes=tuple(sizes),
        published=entry.get("texts") or entry.get("items") or 0,
        missing=tuple(missing),
        licence=entry.get("licence", ""),
        source=entry.get("source", ""),
        make=entry.get("make", ""),
        captioned=not kept or any(not s.startswith(FILES) or has_captions(Path(s.removeprefix(FILES))) for s in kept),
        doubled=doubled_keys(kept, sizes),
    )


def why_captionless(member: str, shards: Sequence[str]) -> str:
    """Why a member's shards are of no use where texts are read, "" where a caption is among the samples that are looked at."""
    example, why = captionless(shards, _LOOKED_AT)
    return why and (
        f"none of the {_LOOKED_AT} samples looked at has a caption, as {member}/{example}: {why}; vtr shards verify looks at all"
    )


def doubled_keys(shards: Sequence[str], sizes: Sequence[int]) -> frozenset[str] | None:
    """Keys that samples of several shards have, as after two builds were put together: no two may share an id.

    None where they are not compared: at URLs, and of more samples than can be compared before every run.
    """
    tars = [s for s in shards if not s.startswith(FILES)]
    if len(tars) < 2:
        return frozenset()
    if sum(sizes) > _COMPARED or any("://" in s for s in tars):
        return None
    seen: set[str] = set()
    doubled: set[str] = set()
    for shard in tars:
        own = set(sample_keys(shard))
        doubled |= own & seen
        seen |= own
    return frozenset(doubled)
