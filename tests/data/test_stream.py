"""The elastic stream: the same global batches whatever reads them, exact resume, bad samples dropped."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from tests.helpers import video_bytes, write_videos
from vtr.data.manifests import Corpus, CorpusMember, load_corpus
from vtr.data.shards import ShardWriter, expand_shards, shard_sizes
from vtr.data.stream import Batch, Stream, StreamSettings, media_at, sample_id
from vtr.errors import VtrError

SETTINGS = StreamSettings(
    frames=4, size=32, batch_size=8, streams=4, workers=0, block=2, shuffle_window=8, crop_scale=None,
    media_weights={"video": 1.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("shards")
    clips = [video_bytes(i) for i in range(4)]
    with ShardWriter(folder, 14) as writer:
        for i in range(42):
            writer.write(f"{i:03d}", "mp4", clips[i % 4], f"caption {i}", {"n": i})
    shards = expand_shards(str(folder))
    member = CorpusMember(name="toy", media="video", shards=tuple(shards), sizes=tuple(shard_sizes(shards)))
    return Corpus(name="toy", members=(member,))


def take(corpus: Corpus, count: int, settings: StreamSettings = SETTINGS, **more: object) -> list[Batch]:
    stream = Stream(corpus, settings, **more)  # type: ignore[arg-type]
    try:
        return list(islice(stream, count))
    finally:
        stream.close()


def test_two_ranks_see_the_global_batches_of_one(corpus: Corpus) -> None:
    one = take(corpus, 7)
    ranks = [take(corpus, 7, rank=r, world=2) for r in (0, 1)]
    for whole, a, b in zip(one, *ranks):
        assert set(a.keys).isdisjoint(b.keys)
        assert sorted(whole.keys) == sorted(a.keys + b.keys)
        pixels = dict(zip(whole.keys, whole.frames))
        assert all((pixels[k] == f).all() for k, f in zip(a.keys, a.frames))


def test_workers_do_not_change_a_batch(corpus: Corpus) -> None:
    from dataclasses import replace

    for plain, worked in zip(take(corpus, 3), take(corpus, 3, replace(SETTINGS, workers=2))):
        assert plain.keys == worked.keys
        assert (plain.frames == worked.frames).all()
        assert plain.positions == worked.positions


def test_resuming_continues_exactly(corpus: Corpus) -> None:
    whole = take(corpus, 9)
    rest = take(corpus, 5, start=whole[3].positions, first_step=4)
    for a, b in zip(whole[4:], rest):
        assert (a.keys, a.step, a.captions) == (b.keys, b.step, b.captions)
        assert (a.frames == b.frames).all()


def test_an_epoch_shows_every_sample_at_most_once_and_the_next_is_shuffled_anew(corpus: Corpus) -> None:
    batches = take(corpus, 10)
    first = [k for b in batches[:5] for k in b.keys]
    second = [k for b in batches[5:] for k in b.keys]
    assert len(set(first)) == len(first) == 40
    assert first != second


def test_neighbours_stay_together(corpus: Corpus) -> None:
    for batch in take(corpus, 5):
        numbers = [m["n"] for m in batch.meta]
        assert all(n ^ 1 in numbers for n in numbers)


def test_ids_differ_between_corpora_and_fit_63_bits() -> None:
    a, b = sample_id("cc3m", "1"), sample_id("webvid", "1")
    assert a != b
    assert 0 <= a < 2**63


def test_the_media_schedule_has_the_asked_shares() -> None:
    kinds = [media_at(step, {"video": 0.8, "image": 0.2}, 0) for step in range(100)]
    assert kinds.count("video") == 80
    assert kinds != [media_at(step, {"video": 0.8, "image": 0.2}, 1) for step in range(100)]


def broken_corpus(folder: Path, bad: int, total: int = 64) -> Corpus:
    with ShardWriter(folder, 100) as writer:
        for i in range(total):
            writer.write(f"{i:03d}", "mp4", b"<html>" if i < bad else video_bytes(), f"caption {i}")
    return load_corpus(folder)


def test_a_bad_sample_is_dropped_and_named_not_replaced(tmp_path: Path) -> None:
    from dataclasses import replace

    batches = take(broken_corpus(tmp_path, 2), 4, replace(SETTINGS, block=1, max_bad_fraction=0.5))
    for batch in batches:
        assert all(f"caption {int(k.split('#')[1])}" == c for k, c in zip(batch.keys, batch.captions))
    dropped = [line for b in batches for line in b.bad]
    assert all("#000:" in d or "#001:" in d for d in dropped)
    assert all(len(b.captions) == 8 for b in batches)


def test_too_many_bad_samples_stop_the_stream_with_a_list(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(VtrError, match="can't be used"):
        take(broken_corpus(tmp_path, 30), 20, replace(SETTINGS, block=1))


def test_settings_that_do_not_divide_are_refused(corpus: Corpus) -> None:
    from dataclasses import replace

    with pytest.raises(VtrError, match="multiple"):
        Stream(corpus, replace(SETTINGS, batch_size=10))
    with pytest.raises(VtrError, match="ranks"):
        Stream(corpus, SETTINGS, rank=0, world=3)


def test_an_unknown_corpus_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="'demo'"):
        load_corpus("dem", tmp_path)


def test_a_corpus_without_its_shards_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="no shards found"):
        load_corpus("demo", tmp_path)


@pytest.mark.parametrize("listed", [False, True])
def test_videos_without_captions_stream_from_a_folder_or_a_list_as_action_recognition_has_them(
    listed: bool, tmp_path: Path
) -> None:
    from dataclasses import replace

    paths = write_videos(tmp_path / "k400", 8)
    source = tmp_path / "k400"
    if listed:
        source = tmp_path / "train.csv"
        source.write_text("".join(f"{p},{i}\n" for i, p in enumerate(paths)))
    settings = replace(SETTINGS, captions=False, block=1)
    batches = take(load_corpus(source), 2, settings)
    assert batches[0].frames.shape == (8, 4, 3, 32, 32)
    assert len(set(batches[0].ids.tolist())) == 8


def test_a_worker_ends_when_the_process_that_reads_from_it_is_killed(tmp_path: Path) -> None:
    import subprocess
    import sys
    import time

    import psutil

    write_videos(tmp_path / "videos", 8)
    code = (
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from tests.data.test_stream import SETTINGS\n"
        "from vtr.data.manifests import load_corpus\n"
        "from vtr.data.stream import Stream\n"
        "if __name__ == '__main__':\n"
        "    s = Stream(load_corpus(sys.argv[1]), replace(SETTINGS, captions=False, block=1, workers=2))\n"
        "    next(iter(s)); print('ready', flush=True); time.sleep(600)\n"
    )
    script = tmp_path / "reader.py"
    script.write_text(code)
    root = Path(__file__).resolve().parent.parent.parent
    reader = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "videos")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    others = psutil.Process(reader.pid).children(recursive=True)
    assert len(others) >= 3  # two workers and the server that forked them
    reader.kill()
    reader.wait()
    end = time.monotonic() + 30

    def left() -> list[psutil.Process]:
        return [p for p in others if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    while left() and time.monotonic() < end:
        time.sleep(0.1)
    assert left() == []


def test_real_image_shards_stream(shared: Path) -> None:
    shard = str(shared / "data" / "shards" / "cc12m-train-0000.tar")
    member = CorpusMember(name="cc12m", media="image", shards=(shard,), sizes=tuple(shard_sizes([shard])))
    corpus = Corpus(name="real", members=(member,))
    from dataclasses import replace

    batch = take(corpus, 1, replace(SETTINGS, block=1, media_weights={"image": 1.0}))[0]
    assert batch.frames.shape == (8, 1, 3, 32, 32)
    assert all(batch.captions)


def test_a_worker_that_is_killed_is_one_clear_error(corpus: Corpus) -> None:
    from dataclasses import replace

    import psutil

    stream = Stream(corpus, replace(SETTINGS, workers=1))
    batches = iter(stream)
    next(batches)
    for helper in psutil.Process().children():
        for worker in helper.children():
            worker.kill()
    with pytest.raises(VtrError, match="a data worker has gone"):
        list(islice(batches, 20))
    stream.close()
