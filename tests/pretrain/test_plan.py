"""The plan of a run before it starts: who reads what, what is left out, what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vtr.data.manifests import Corpus, CorpusMember, corpus_entries, load_corpus
from vtr.data.shards import ShardWriter
from vtr.data.stream import StreamSettings
from vtr.errors import VtrError
from vtr.pretrain.plan import check_complete, check_stages, plan, plan_media, published_corpus
from vtr.pretrain.recipes import recipe


def test_512_ranks_with_12_workers_share_25m_evenly() -> None:
    corpus = published_corpus("25M")
    assert corpus.samples == 26_805_000
    chosen = replace(recipe("clean", "25M"), streams=6144)
    batches = {s: replace(getattr(chosen, s), batch_size=6144) for s in ("masked", "multimodal", "unmasked")}
    text = plan(corpus, replace(chosen, **batches), ("multimodal",), 512, 12)
    assert "512 ranks × 12, 6144 streams = 512 × 12, 12 workers a rank × 1 streams" in text
    assert re.findall(r"each at most (\d+) time", text) == ["1", "1"]
    left_out = [float(x) for x in re.findall(r"([\d.]+)% left out", text)]
    assert len(left_out) == 2
    assert max(left_out) < 0.5


@pytest.mark.parametrize("block", [1, 2])
def test_every_epoch_reads_each_sample_at_most_once_and_leaves_out_less_than_a_batch_of_blocks(block: int) -> None:
    sizes = (7, 0, 120, 33, 1, 64)
    member = CorpusMember(name="m", media="video", shards=tuple(f"{i}.tar" for i in range(6)), sizes=sizes)
    corpus = Corpus(name="c", members=(member,))
    for epoch in range(3):
        found = plan_media(corpus, StreamSettings(streams=8, batch_size=16, block=block), "video", epoch)
        assert found.largest == 1
        assert found.samples - found.used < 8 * block
        assert found.longest - found.shortest <= 6 * (block - 1)


def test_ranks_that_do_not_divide_the_streams_are_told_what_to_set() -> None:
    with pytest.raises(VtrError, match=r"--set streams"):
        plan(published_corpus("5M"), recipe("clean", "5M"), ("multimodal",), 3, 1)


def test_a_partial_corpus_is_refused_with_every_missing_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "cc3m", 2) as writer:
        for i in range(4):
            writer.write(f"{i}", "jpg", b"x", "a caption")
    for old, new in (("000000", "00000"), ("000001", "00331")):
        (tmp_path / "cc3m" / f"{old}.tar").rename(tmp_path / "cc3m" / f"{new}.tar")
    (tmp_path / "cc3m" / "sizes.json").unlink()
    corpus = load_corpus("5M", tmp_path)
    assert "2 of 332" in corpus.table()
    with pytest.raises(VtrError, match="missing"):
        check_complete(corpus, allow_missing=False)
    said = capsys.readouterr().err
    assert said.count("CC3M: ") >= 330
    assert "00007.tar" in said
    assert "video2dataset --url_list" in said  # how the absent member is made
    check_complete(corpus, allow_missing=True)


def test_remote_shards_that_do_not_answer_are_missing(tmp_path: Path) -> None:
    there = tmp_path / "0.tar"
    there.write_bytes(b"")
    shards = (there.as_uri(), (tmp_path / "1.tar").as_uri())
    member = CorpusMember(name="far", media="video", shards=shards, sizes=(1, 1))
    with pytest.raises(VtrError, match="1 shards or members are missing"):
        check_complete(Corpus(name="c", members=(member,)), allow_missing=False)


@pytest.mark.parametrize(("name", "items", "texts"), [("5M", 5.37, 5.37), ("17M", 17.44, 18.57), ("25M", 25.68, 26.81)])
def test_the_manifests_add_up_to_the_published_counts(name: str, items: float, texts: float) -> None:
    entries = corpus_entries(name)
    assert sum(e["items"] for e in entries) / 1e6 == pytest.approx(items, abs=0.01)
    assert sum(e["texts"] for e in entries) / 1e6 == pytest.approx(texts, abs=0.01)
    assert all(e["licence"] and e["source"] and "2dataset" in e["make"] for e in entries)


def test_a_stage_that_could_not_be_read_is_refused_before_the_first_step() -> None:
    few = CorpusMember(name="few", media="image", shards=("0.tar",), sizes=(48,))
    videos = CorpusMember(name="videos", media="video", shards=("1.tar",), sizes=(5000,))
    chosen = recipe("clean", "demo")
    chosen = replace(chosen, streams=64, unmasked=replace(chosen.unmasked, batch_size=64))
    corpus = Corpus(name="c", members=(few, videos))
    check_stages(corpus, chosen, ("masked",), 2)
    with pytest.raises(VtrError, match=r"stage unmasked: 48 image samples do not fill 64 streams"):
        check_stages(corpus, chosen, ("masked", "unmasked"), 2)
    grouped = replace(chosen, streams=8, unmasked=replace(chosen.unmasked, match_group=24))
    with pytest.raises(VtrError, match="match_group"):
        check_stages(Corpus(name="c", members=(videos, few)), grouped, ("unmasked",), 2)
