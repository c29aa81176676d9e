"""Corpora as data: a TOML file names the members, their media type, shards and published size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from vtr.data.shards import expand_shards, shard_sizes
from vtr.errors import UsageError, VtrError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).resolve().parent.parent.parent / "data_manifests" / "corpora"
if not _FOLDER.is_dir():  # installed: the folder lies inside the package
    _FOLDER = Path(__file__).resolve().parent.parent / "data_manifests" / "corpora"


@dataclass(frozen=True, kw_only=True)
class CorpusMember:
    """One data set of a corpus, found on this machine."""

    name: str
    media: str  # video | image
    shards: tuple[str, ...]
    sizes: tuple[int, ...]  # samples of each shard
    published: int = 0  # samples as published, 0 = unknown

    @property
    def samples(self) -> int:
        """Samples found."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A named set of members."""

    name: str
    members: tuple[CorpusMember, ...]


def corpus_names() -> list[str]:
    """The corpora that come with vtr."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def load_corpus(name: str | Path, data_root: Path | None = None) -> Corpus:
    """Resolve a corpus: a name, the path of a TOML file, or a folder of shards.

    Raises:
        UsageError: There is no such corpus.
        VtrError: Shards are missing; all of them are listed.
    """
    root = Path(data_root or "data")
    path = Path(name)
    if path.is_dir():
        shards = expand_shards(str(path))
        return Corpus(name=path.name, members=(_member(path.name, "auto", shards, 0),))
    if path.suffix != ".toml":
        path = _FOLDER / f"{name}.toml"
        if not path.is_file():
            raise unknown_name("corpus", str(name), corpus_names())
    if not path.is_file():
        raise UsageError(f"corpus {path}: no such file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"corpus {path}: not TOML ({error})") from error
    members, missing = [], []
    for entry in table.get("member", []):
        for key in ("name", "media", "shards"):
            if key not in entry:
                raise UsageError(f"corpus {path}: a member has no {key!r}")
        pattern = entry["shards"]
        if "://" not in pattern and not Path(pattern).is_absolute():
            pattern = "::".join(str(root / part) for part in pattern.split("::"))
        try:
            members.append(_member(entry["name"], entry["media"], expand_shards(pattern), entry.get("samples", 0)))
        except VtrError as error:
            missing.append(f"{entry['name']}: {error}")
    if not members:
        detail = "; ".join(missing) or "the file lists no member"
        raise VtrError(f"corpus {name}: no shards found under {root} ({detail}); make them or give --data-root")
    for line in missing:
        print(f"corpus {name}: skipped {line}", file=sys.stderr)
    return Corpus(name=str(name), members=tuple(members))


def _member(name: str, media: str, shards: list[str], published: int) -> CorpusMember:
    sizes = shard_sizes(shards)
    return CorpusMember(name=name, media=media, shards=tuple(shards), sizes=tuple(sizes), published=published)
