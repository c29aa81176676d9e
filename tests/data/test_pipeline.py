"""Shards as a webdataset pipeline: the samples that our own reader gives."""

from __future__ import annotations

from pathlib import Path

from vtr.data.pipeline import web_dataset
from vtr.data.shards import ShardWriter, expand_shards, iterate_samples


def shards(folder: Path) -> Path:
    with ShardWriter(folder, 4) as writer:
        for i in range(10):
            writer.write(f"{i:04d}", "mp4", b"video%d" % i, f"caption {i}", {"n": i})
    return folder


def test_a_web_dataset_has_the_samples_that_our_reader_gives(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    ours = [s for shard in expand_shards(str(folder)) for s in iterate_samples(shard)]
    theirs = list(web_dataset(folder))
    assert [(s["__key__"], s["mp4"], s["txt"].decode()) for s in theirs] == [(s.key, s.media, s.caption) for s in ours]


def test_a_web_dataset_decodes_and_shuffles_as_any(tmp_path: Path) -> None:
    found = list(web_dataset(shards(tmp_path), shuffle=100, seed=1).decode().to_tuple("json", "txt"))
    assert sorted(meta["n"] for meta, _ in found) == list(range(10))
    assert [meta["n"] for meta, _ in found] != list(range(10))
