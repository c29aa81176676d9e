"""Small copies of corpora: laid out as the manifest says, and what the loader makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fake_corpus import fake_corpus
from vtr.data.manifests import load_corpus
from vtr.errors import UsageError


def test_a_copy_has_every_shard_of_the_manifest_and_a_share_of_its_samples(tmp_path: Path) -> None:
    corpus = tmp_path / "two.toml"
    corpus.write_text(
        '[[member]]\nname = "V"\nmedia = "video"\nshards = "v/{00000..00011}.tar"\nitems = 80_000\n'
        '[[member]]\nname = "I"\nmedia = "image"\nshards = "i/{00000..00002}.tar"\nitems = 40_000\ntexts = 100_000\n'
    )
    assert fake_corpus(str(corpus), tmp_path / "root", 10_000) == {"V": 8, "I": 10}
    found = load_corpus(corpus, tmp_path / "root")
    assert found.missing == ()
    assert [(m.name, len(m.shards), m.samples) for m in found.members] == [("V", 12, 8), ("I", 3, 10)]
    assert sorted(found.members[0].sizes) == [0] * 4 + [1] * 8  # shards without a sample are there too
    assert found.members[1].fraction == pytest.approx(1e-4)


def test_a_corpus_without_published_counts_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="published counts"):
        fake_corpus("demo", tmp_path)
