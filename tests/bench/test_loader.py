"""`bench.loader`: three rates from the same shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.loader import BenchResult, bench, generate_shards, main
from vtr.data.shards import expand_shards, iterate_samples
from vtr.errors import VtrError


def test_generated_clips_are_h264_of_the_asked_size(tmp_path: Path) -> None:
    from vtr.data.decode import probe

    generate_shards(tmp_path / "s", 2, short_side=96, seconds=0.4, fps=10)
    samples = [s for shard in expand_shards(str(tmp_path / "s")) for s in iterate_samples(shard)]
    info = probe(samples[1].media)
    assert (len(samples), info.codec, info.height, info.frames) == (2, "h264", 96, 4)


def test_the_share_is_that_of_the_median_round() -> None:
    result = BenchResult(
        loader=3, decode_only=4, plain=None, workers=1, rounds=((9, 10, 3.0), (1, 2, None), (8, 10, 4.0))
    )
    assert result.share == pytest.approx(0.8)
    assert result.against_plain == pytest.approx(2.5)


@pytest.mark.slow
def test_all_three_loaders_read_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_shards(tmp_path / "s", 8, short_side=64, seconds=0.5, fps=10)
    flags = ["--workers", "1", "--batch-size", "4", "--size", "32", "--seconds", "0.2", "--rounds", "1", "--json"]
    assert main([str(tmp_path / "s"), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loader"] > 0
    assert found["decode_only"] > 0


def test_shards_with_fewer_samples_than_batches_are_refused(tmp_path: Path) -> None:
    generate_shards(tmp_path / "s", 2, short_side=64, seconds=0.3, fps=10)
    with pytest.raises(VtrError, match="too few"):
        bench(expand_shards(str(tmp_path / "s")), workers=1, frames=4, size=32, batch_size=8, seconds=1, rounds=1)


def test_without_shards_the_command_asks_for_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "which shards?" in capsys.readouterr().err
