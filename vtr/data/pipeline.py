"""Shards as a plain `webdataset.WebDataset`, for people who have a pipeline of their own.

    from vtr.data.pipeline import web_dataset
    for sample in web_dataset("data/shards").decode("pil").to_tuple("jpg", "txt"): ...

Training does not read through it. `vtr.data.stream` keeps promises that a pipeline of iterators cannot: a global batch
does not depend on how many ranks and workers read it, a run resumes at a position (on another number of ranks too)
without reading what it has seen, and a sample that cannot be used is dropped, counted and named, not passed over. All of
that needs samples by number, which `vtr.data.shard_reader` has and a tar that is read from its beginning has not.
"""

from __future__ import annotations

from pathlib import Path

import webdataset

from vtr.data.shards import expand_shards


def web_dataset(shards: str | Path, *, shuffle: int = 0, seed: int = 0) -> webdataset.WebDataset:
    """A `WebDataset` of shards: samples are dicts of `__key__` and undecoded members (`mp4`, `jpg`, `txt`, `json`).

    Args:
        shards: What `vtr shards verify` takes: a folder, a .tar, brace and `::` lists, URLs.
        shuffle: Samples that are shuffled among each other, the shards as well; 0: in order.
        seed: Of the shuffling.

    Ranks and workers share the shards out among themselves, as `webdataset.split_by_node` and `split_by_worker` do.
    """
    dataset = webdataset.WebDataset(
        expand_shards(str(shards)),
        shardshuffle=1000 if shuffle else False,
        seed=seed,
        nodesplitter=webdataset.split_by_node,
        workersplitter=webdataset.split_by_worker,
        empty_check=False,
    )
    return dataset.shuffle(shuffle) if shuffle else dataset
