"""The order of samples: exact shares of the media, every sample of an epoch at most once."""

from __future__ import annotations

import pytest

from vtr.data.manifests import CorpusMember
from vtr.data.order import MediaOrder, StreamSettings, media_at
from vtr.errors import VtrError


def test_the_media_schedule_has_the_asked_shares() -> None:
    kinds = [media_at(step, {"video": 0.8, "image": 0.2}, 0) for step in range(100)]
    assert kinds.count("video") == 80
    assert kinds != [media_at(step, {"video": 0.8, "image": 0.2}, 1) for step in range(100)]


def order(samples: int, **more: int) -> MediaOrder:
    member = CorpusMember(name="toy", media="video", shards=("a", "b"), sizes=(samples // 2, samples - samples // 2))
    return MediaOrder([member], StreamSettings(shuffle_window=8, **more), "video")  # type: ignore[arg-type]


def test_the_streams_of_an_epoch_have_no_sample_in_common() -> None:
    found = order(101, streams=4, block=3)
    seen = [(shard, index) for stream in range(4) for _, shard, index in found.samples(0, stream)]
    assert len(seen) == len(set(seen)) > 90


def test_samples_that_do_not_fill_the_streams_say_how_many_streams_they_would() -> None:
    with pytest.raises(VtrError, match=r"70 video samples do not fill 1024 streams.*lower `streams` to 64 or less"):
        order(70, streams=1024)
