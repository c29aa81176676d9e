"""The elastic stream: the same global batches whatever reads them, exact resume, bad samples dropped."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.helpers import video_bytes, write_tar, write_videos
from vtr.data.manifests import Corpus, CorpusMember, load_corpus
from vtr.data.samples import sample_id
from vtr.data.shards import ShardWriter, expand_shards, shard_sizes
from vtr.data.stream import Batch, Stream, StreamSettings
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


def broken_corpus(folder: Path, bad: int, total: int = 64) -> Corpus:
    with ShardWriter(folder, 100) as writer:
        for i in range(total):
            writer.write(f"{i:03d}", "mp4", b"<html>" if i < bad else video_bytes(), f"caption {i}")
    return load_corpus(folder)


def test_a_bad_sample_is_dropped_and_named_not_replaced(tmp_path: Path) -> None:
    batches = take(broken_corpus(tmp_path, 2), 4, replace(SETTINGS, block=1, max_bad_fraction=0.5))
    for batch in batches:
        assert all(f"caption {int(k.split('#')[1])}" == c for k, c in zip(batch.keys, batch.captions))
    dropped = [line for b in batches for line in b.bad]
    assert all("#000:" in d or "#001:" in d for d in dropped)
    assert all(len(b.captions) == 8 for b in batches)


def test_too_many_bad_samples_stop_the_stream_with_a_list(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="can't be used"):
        take(broken_corpus(tmp_path, 30), 20, replace(SETTINGS, block=1))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_corpus_without_captions_is_refused_after_fifty_samples(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtr.data.shard_reader import ShardCache

    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{i:05d}.mp4", b"0") for i in range(1000)])
    reads: list[int] = []
    read = ShardCache.read

    def counting(self: ShardCache, shard: str, index: int, *, media: bool = True) -> object:
        reads.append(index)
        return read(self, shard, index, media=media)

    monkeypatch.setattr(ShardCache, "read", counting)
    settings = replace(SETTINGS, block=1, batch_size=400, streams=400, decode_threads=threads)
    with pytest.raises(VtrError, match=r"50 of 50 samples can't be used.*no caption: its members are mp4.*\.txt"):
        take(load_corpus(tmp_path), 1, settings, judge=False)
    assert len(reads) < 400


def test_samples_of_equal_keys_have_ids_of_their_own_and_all_others_keep_theirs(tmp_path: Path) -> None:
    clips = [video_bytes(i) for i in range(8)]

    def members(*keys: int) -> list[tuple[str, bytes]]:
        return [m for i, k in enumerate(keys) for m in ((f"{k:04d}.mp4", clips[i]), (f"{k:04d}.txt", b"a clip %d" % i))]

    write_tar(tmp_path / "a.tar", members(0, 1, 2, 3, 0))  # twice in a shard
    write_tar(tmp_path / "b.tar", members(3, 4, 5, 5))  # in two shards; side by side
    settings = replace(SETTINGS, block=1, batch_size=9, streams=9)
    batch = take(load_corpus(tmp_path), 1, settings)[0]
    assert len(batch.keys) == 9
    assert len(set(batch.ids.tolist())) == 9
    plain = {sample_id(tmp_path.name, f"{k:04d}") for k in (0, 1, 2, 4, 5)}
    assert plain <= set(batch.ids.tolist())


def test_where_keys_are_too_many_to_compare_every_id_holds_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtr.data.manifests._COMPARED", 5)
    for name, keys in (("a", (0, 1, 2)), ("b", (3, 1, 4))):  # the first keys of the shards differ
        write_tar(
            tmp_path / f"{name}.tar", [m for k in keys for m in ((f"{k}.mp4", video_bytes(k)), (f"{k}.txt", b"a clip"))]
        )
    settings = replace(SETTINGS, block=1, batch_size=6, streams=6)
    batch = take(load_corpus(tmp_path), 1, settings)[0]
    assert len(set(batch.ids.tolist())) == 6
    assert batch.ids.tolist() == take(load_corpus(tmp_path), 1, settings)[0].ids.tolist()


def test_one_of_several_captions_is_drawn_an_epoch(tmp_path: Path) -> None:
    clip = video_bytes()
    texts = [f"text {i}" for i in range(5)]
    write_tar(
        tmp_path / "lines.tar",
        [m for i in range(4) for m in ((f"{i}.mp4", clip), (f"{i}.txt", "\n".join(texts).encode()))],
    )
    settings = replace(SETTINGS, block=1, batch_size=4)
    drawn = [b.captions for b in take(load_corpus(tmp_path), 12, settings)]
    assert {c for captions in drawn for c in captions} == set(texts)
    assert drawn == [b.captions for b in take(load_corpus(tmp_path), 12, settings)]


@pytest.mark.parametrize("caption", [7, {"en": "a dog"}, ["a dog", 3], [], True])
def test_a_caption_that_is_no_text_is_a_bad_sample_not_a_crash(caption: object, tmp_path: Path) -> None:
    clip = video_bytes()
    meta = [json.dumps({"caption": caption if i == 5 else f"clip {i}"}).encode() for i in range(12)]
    write_tar(tmp_path / "a.tar", [m for i in range(12) for m in ((f"{i:02d}.mp4", clip), (f"{i:02d}.json", meta[i]))])
    batches = take(load_corpus(tmp_path), 3, replace(SETTINGS, block=1, batch_size=4, max_bad_fraction=0.5))
    bad = [line for b in batches for line in b.bad]
    assert all("#05: " in line for line in bad)
    assert bad


def test_a_cut_off_video_is_dropped_in_every_container(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 100) as writer:
        for i in range(12):
            data = video_bytes(i)
            writer.write(f"{i:02d}", "mp4", data[: len(data) // 2] if i == 3 else data, f"clip {i}")
    batches = take(load_corpus(tmp_path), 3, replace(SETTINGS, block=1, batch_size=4, max_bad_fraction=0.5))
    assert {line.partition(": ")[2][:8] for b in batches for line in b.bad} == {"cut off:"}


@pytest.mark.parametrize("form", ["folder", "tar", "braces", "colons", "list"])
def test_a_corpus_is_whatever_holds_samples(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with ShardWriter(folder, 4) as writer:
        for i in range(8):
            writer.write(f"{i}", "mp4", video_bytes(i), f"clip {i}")
    paths = write_videos(tmp_path / "v", 8)
    (tmp_path / "list.json").write_text(json.dumps({str(p): "a clip" for p in paths}))
    spec = {
        "folder": folder, "tar": folder / "000000.tar", "braces": f"{folder}/{{000000..000001}}.tar",
        "colons": f"{folder}/000000.tar::{folder}/000001.tar", "list": tmp_path / "list.json",
    }[form]  # fmt: skip
    corpus = load_corpus(str(spec))
    assert corpus.samples == (4 if form == "tar" else 8)
    if form != "list":
        assert corpus.members[0].name == "shards"  # the same member, and so the same ids
    assert len(take(corpus, 1, replace(SETTINGS, block=1, batch_size=4))[0].captions) == 4


def test_a_folder_of_folders_of_shards_says_where_they_are(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a" / "b", 4) as writer:
        writer.write("0", "mp4", b"x", "y")
    with pytest.raises(VtrError, match=r"shards lie in .*a/b: give those, joined by ::"):
        load_corpus(tmp_path / "a")


def test_settings_that_do_not_divide_are_refused(corpus: Corpus) -> None:
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
    end = time.monotonic() + 120

    def left() -> list[psutil.Process]:
        return [p for p in others if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    while left() and time.monotonic() < end:
        time.sleep(0.1)
    assert left() == []


def test_real_image_shards_stream(shared: Path) -> None:
    shard = str(shared / "data" / "shards" / "cc12m-train-0000.tar")
    member = CorpusMember(name="cc12m", media="image", shards=(shard,), sizes=tuple(shard_sizes([shard])))
    corpus = Corpus(name="real", members=(member,))
    batch = take(corpus, 1, replace(SETTINGS, block=1, media_weights={"image": 1.0}))[0]
    assert batch.frames.shape == (8, 1, 3, 32, 32)
    assert all(batch.captions)


def test_a_worker_that_is_killed_is_one_clear_error(corpus: Corpus) -> None:
    import psutil

    stream = Stream(corpus, replace(SETTINGS, workers=1))
    batches = iter(stream)
    next(batches)
    for helper in psutil.Process().children():
        for worker in helper.children():
            worker.kill()
    with pytest.raises(VtrError, match="a data worker has gone"):
        list(itertools.islice(batches, 20))
    stream.close()
