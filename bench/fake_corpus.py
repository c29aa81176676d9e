"""A small copy of a corpus, laid out as its manifest says, to rehearse a run: the same shards, thousandths of the samples.

python -m bench.fake_corpus 5M --scale 10000 --out /tmp/fake   # then: pretrain/run.py --corpus 5M --data-root /tmp/fake
python -m bench.fake_corpus my_corpus.toml --scale 100 --out /tmp/mine
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import tyro

from bench.command import parsed
from vtr.data.shards import RawSample, ShardFile, iterate_samples
from vtr.errors import UsageError, reports_errors

_SOURCES = 64  # different clips and images at most; larger copies repeat them under other keys


@dataclass(frozen=True, kw_only=True)
class FakeSettings:
    """Write a small copy of a corpus: clips and images of the demo in the shards that its manifest names."""

    corpus: tyro.conf.Positional[str]
    """5M, 17M, 25M, a member, or the path of a corpus TOML."""
    out: Path
    """Data root of the copy."""
    scale: int = 10_000
    """One sample for so many published ones."""


def fake_corpus(name: str, out: Path, scale: int = 10_000) -> dict[str, int]:
    """Write the copy, as img2dataset does (`NNNNN.tar`, `NNNNN_stats.json`); samples of each member.

    Raises:
        UsageError: The corpus has no published counts, or its shards are no brace pattern of local paths.
    """
    from braceexpand import braceexpand

    from vtr.data.demo import ensure_demo_corpus
    from vtr.data.manifests import corpus_entries

    entries = corpus_entries(name)
    totals = {e["name"]: round((e.get("texts") or e.get("items") or 0) / scale) for e in entries}
    for entry in entries:
        if not totals[entry["name"]] or not entry["shards"].endswith(".tar") or "://" in entry["shards"]:
            raise UsageError(f"{entry['name']}: a copy needs published counts and a pattern of local .tar files")
    with tempfile.TemporaryDirectory(prefix="vtr-fake-") as folder:
        demo = Path(folder) / "demo"
        ensure_demo_corpus(demo, clips=_SOURCES, images=_SOURCES, progress=False)
        for entry in entries:
            total = totals[entry["name"]]
            source = _endless(demo / "train" / entry["media"])
            shards = list(braceexpand(entry["shards"]))
            for number, shard in enumerate(shards):
                first, last = (i * total // len(shards) for i in (number, number + 1))
                path = out / shard
                path.parent.mkdir(parents=True, exist_ok=True)
                with ShardFile(path) as written:
                    for i in range(last - first):
                        sample = next(source)
                        written.write(f"{path.stem}{i:04d}", sample.extension, sample.media, sample.captions)
                stats = {"count": last - first, "successes": last - first}
                path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(stats))
    return totals


def _endless(folder: Path) -> Iterator[RawSample]:
    return cycle([s for shard in sorted(folder.glob("*.tar")) for s in iterate_samples(str(shard))])


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.fake_corpus`."""
    settings = parsed(FakeSettings, __doc__, argv)
    for name, count in fake_corpus(settings.corpus, settings.out, settings.scale).items():
        print(f"{name}: {count} samples", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
