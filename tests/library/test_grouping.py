"""Shards written anew with look-alikes side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, video_bytes
from vtr.cli import main
from vtr.data.shards import ShardWriter, iterate_samples
from vtr.library.embed import embed
from vtr.library.grouping import look_alikes


@pytest.mark.parametrize(("count", "size"), [(64, 4), (61, 4), (7, 8), (40, 2)])
def test_each_group_is_of_one_kind_and_every_sample_is_there_once(count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(count) // size  # groups of equal size, told apart by far
    centres = rng.normal(size=(kinds.max() + 1, 16)) * 10
    mixed = rng.permutation(count)
    vectors = (centres[kinds] + rng.normal(size=(count, 16)) * 0.01)[mixed]
    order = look_alikes(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), size)
    assert sorted(order.tolist()) == list(range(count))
    alike = [len(set(kinds[mixed[order[i : i + size]]])) for i in range(0, count // size * size, size)] or [1]
    assert np.mean(np.array(alike) == 1) > 0.6  # a cut may go through a kind; most groups are whole
    assert (order == look_alikes(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), size)).all()


def test_grouped_shards_hold_the_same_samples_with_equal_clips_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [video_bytes(seed) for seed in range(3)]
    for shard in range(2):
        with ShardWriter(tmp_path / str(shard)) as writer:
            for i in range(6):
                writer.write(f"{i:03d}", "mp4", clips[i % 3], f"clip {shard} {i}")
    shards = [str(tmp_path / str(shard)) for shard in range(2)]
    embed(shards, tmp_path / "embedded", small_model(), model_path=None, window=2.0, stride=2.0)
    words = ["shards", "group", *shards, "--embeddings", str(tmp_path / "embedded"), "--out", str(tmp_path / "new")]
    assert main([*words, "--group", "4", "--shard-size", "9"]) == 0
    new = [s for path in sorted((tmp_path / "new").glob("*.tar")) for s in iterate_samples(str(path))]
    assert sorted(s.captions[0] for s in new) == [f"clip {shard} {i}" for shard in range(2) for i in range(6)]
    assert [len({s.media for s in new[i : i + 4]}) for i in (0, 4, 8)] == [1, 1, 1]
    assert len({s.key for s in new}) == 12
    assert main(words) == 2
    assert "holds shards already" in capsys.readouterr().err
