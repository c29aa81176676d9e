# Tests of the demo corpus: what is in it, what is held out, that it is repeatable, cached and safe to interrupt.
from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vtr.data.demo import DemoCorpus, demo_texts, ensure_demo_corpus, held_out_triples, warmup_triples
from vtr.data.demo import build as demo_build
from vtr.data.demo import corpus as demo
from vtr.data.demo.captions import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MOTIONS,
    OPPOSITE,
    SHAPES,
    Scene,
    SceneSampler,
    Thing,
    Wording,
    write,
)
from vtr.data.demo.render import encode_clip, render
from vtr.errors import UsageError, VtrError
from vtr.eval.benchmarks import load_benchmark

CLIPS, IMAGES = 48, 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    root = tmp_path_factory.mktemp("demo") / "corpus"
    return ensure_demo_corpus(root, clips=CLIPS, images=IMAGES, workers=2, progress=False)


def read_shards(folder: Path) -> list[tuple[dict, str, bytes]]:
    """(json, txt, media) of every sample, in the order of the shards."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return [(json.loads(s["json"]), s["txt"].decode(), s.get("mp4") or s["jpg"]) for s in samples.values()]


def decode(media: bytes | Path) -> np.ndarray:
    import av

    with av.open(str(media) if isinstance(media, Path) else io.BytesIO(media)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def digest(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_shards_hold_the_promised_samples(corpus: DemoCorpus) -> None:
    for folder, total in ((corpus.train_video, CLIPS), (corpus.train_image, IMAGES)):
        samples = read_shards(folder)
        assert len(samples) == total
        assert len({meta["key"] for meta, _, _ in samples}) == total
        assert all(meta["caption"] == text for meta, text, _ in samples)
        sizes = json.loads((folder / "sizes.json").read_text())
        assert sizes.keys() == {path.name for path in folder.glob("*.tar")}
        assert sum(sizes.values()) == total


def test_the_files_of_a_clip_decode_to_sixteen_frames_of_64_pixels(corpus: DemoCorpus) -> None:
    media = read_shards(corpus.train_video)[0][2]
    assert decode(media).shape == (16, 64, 64, 3)
    assert media.find(b"moov") < media.find(b"mdat")


def test_neighbours_are_siblings_that_play_each_other_backwards(corpus: DemoCorpus) -> None:
    samples = read_shards(corpus.train_video)
    for (a, _, clip_a), (b, _, clip_b) in zip(samples[::2], samples[1::2], strict=True):
        assert (a["sibling"], b["sibling"]) == (b["key"], a["key"])
        assert a["group"] == b["group"]
        for one, other in zip(a["attributes"]["objects"], b["attributes"]["objects"], strict=True):
            assert other == one | {"motion": OPPOSITE[one["motion"]]}
        difference = np.abs(decode(clip_a).astype(int) - decode(clip_b)[::-1])
        assert difference.mean() < 3.0  # the codec alone


def test_eight_neighbours_share_background_colour_and_number_of_objects(corpus: DemoCorpus) -> None:
    for folder in (corpus.train_video, corpus.train_image):
        groups = [meta["group"] for meta, _, _ in read_shards(folder)]
        assert all(len(set(groups[i : i + 8])) == 1 for i in range(0, len(groups), 8))
        assert len(set(groups)) > 1


def test_held_out_triples_are_a_fifth_and_closed_under_reversal() -> None:
    for seed in range(5):
        held = held_out_triples(seed)
        assert len(held) == len(COLOURS) * len(SHAPES) * len(MOTIONS) // 5
        assert all((colour, shape, OPPOSITE[motion]) in held for colour, shape, motion in held)


def test_training_never_shows_a_held_out_triple() -> None:
    sampler, rng = SceneSampler(3), np.random.default_rng(0)
    held = held_out_triples(3)
    seen = set()
    for count in (1, 2) * 400:
        for scene in sampler.group(rng, count=count, scenes=4):
            seen |= {thing.triple for s in (scene, scene.reversed()) for thing in s.things}
    assert not seen & held
    assert len({triple for triple in seen if triple[2] != "still"}) == 400 - len(held)


def test_benchmark_captions_single_out_their_clip(corpus: DemoCorpus) -> None:
    rows = json.loads(corpus.benchmark_json.read_text())
    scenes = demo_build.benchmark_scenes(corpus.seed)
    assert len(rows) == len(scenes) == len(set(scenes)) == 500
    held = held_out_triples(corpus.seed)
    assert all(scene.things[0].triple in held and len(scene.things) == 1 for scene in scenes)
    assert {row["video"] for row in rows} == {path.name for path in corpus.benchmark_videos.iterdir()}
    assert len({row["caption"] for row in rows}) == 500


def test_no_wording_of_a_benchmark_scene_fits_another() -> None:
    wordings = [Wording.draw(np.random.default_rng(i)) for i in range(20)]
    scenes = demo_build.benchmark_scenes(0)
    owner: dict[str, Scene] = {}
    for scene in scenes:
        for wording in wordings:
            assert owner.setdefault(write(scene, wording), scene) == scene


def test_msrvtt_table_says_what_the_json_says(corpus: DemoCorpus) -> None:
    with corpus.benchmark_csv.open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(table[0]) == ["key", "vid_key", "video_id", "sentence"]
    rows = [{"video": row["video_id"] + ".mp4", "caption": row["sentence"]} for row in table]
    assert rows == json.loads(corpus.benchmark_json.read_text())


def test_ceilings_are_counted_from_the_benchmark(corpus: DemoCorpus) -> None:
    stored = json.loads((corpus.root / "benchmark" / "benchmark.json").read_text())
    objects = [(row["background"], row["objects"][0]) for row in stored["attributes"].values()]
    blind = {(background, o["colour"], o["size"], o["shape"]) for background, o in objects}
    assert stored["ceilings"]["blind_to_motion"] == pytest.approx(100 * len(blind) / 500, abs=0.05)
    assert stored["ceilings"] == corpus.ceilings
    assert stored["ceilings"]["colour_size_background_only"] == 19.2
    assert stored["ceilings"]["everything"] == 100.0
    assert stored["chance_r1"] == pytest.approx(0.2)


def test_settings_are_chosen_by_clips_that_are_neither_trained_on_nor_of_the_benchmark(corpus: DemoCorpus) -> None:
    benchmark = load_benchmark(str(corpus.validation_json), corpus.root)
    assert (len(benchmark.videos), len(benchmark.missing)) == (200, 0)
    scenes = demo_build.validation_scenes(corpus.seed)
    assert len(set(scenes)) == 200
    assert not {scene.things[0].triple for scene in scenes} & held_out_triples(corpus.seed)


def test_pairs_differ_in_the_motion_phrase_only_and_are_held_out(corpus: DemoCorpus) -> None:
    pairs = json.loads(corpus.pairs_json.read_text())
    kinds = [pair["kind"] for pair in pairs]
    assert {kind: kinds.count(kind) for kind in kinds} == {"left_right": 50, "up_down": 50, "grow_shrink": 50}
    held = held_out_triples(corpus.seed)
    scenes = demo_build.pair_scenes(corpus.seed)
    assert len({frozenset((scene, scene.reversed())) for scene in scenes}) == 150
    for pair, scene in zip(pairs, scenes, strict=True):
        assert scene.things[0].triple in held
        assert scene.things[0].motion in KINDS[pair["kind"]]
        a, b = pair["caption_a"].split(), pair["caption_b"].split()
        assert 1 <= sum(x != y for x, y in zip(a, b, strict=True)) <= 2
    first = pairs[0]
    forward, backward = (decode(corpus.pairs_videos / first[name]).astype(int) for name in ("video_a", "video_b"))
    assert np.abs(forward - backward[::-1]).mean() < 3.0
    assert np.abs(forward - backward).mean() > 6.0


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_does_what_its_name_says(motion: str) -> None:
    thing = Thing(colour="yellow", shape="circle", size="small", motion=motion)
    frames = render(Scene(background="wall", things=(thing,)), np.random.default_rng(5)).astype(float)
    weight = np.clip(frames[..., 0] - frames[..., 2] - 30, 0, None)  # yellow; neither the gray wall nor white
    area = weight.sum((1, 2))
    ys, xs = np.mgrid[0:64, 0:64]

    def place(t: int, axis: np.ndarray) -> float:
        return float((weight[t] * axis).sum() / max(area[t], 1e-6))

    if motion in ("left", "right"):
        assert (place(-1, xs) - place(0, xs)) * (1 if motion == "right" else -1) > 30
    elif motion in ("up", "down"):
        assert (place(-1, ys) - place(0, ys)) * (1 if motion == "down" else -1) > 30
    elif motion in ("growing", "appearing"):
        assert area[-1] > 4 * area[0]
    elif motion in ("shrinking", "disappearing"):
        assert area[0] > 4 * area[-1]
    else:
        # The white spot swings through the top: from left to right when turning clockwise.
        spot = frames.min(-1) > 200
        inside = np.hypot(xs - place(8, xs), ys - place(8, ys)) < 7.5
        start, end = (float(xs[spot[t] & inside].mean()) for t in (0, -1))
        assert (end - start) * (1 if motion == "clockwise" else -1) > 3


def test_all_objects_stay_inside_the_frame() -> None:
    sampler, rng = SceneSampler(0), np.random.default_rng(1)
    for count in (1, 2) * 10:
        for scene in sampler.group(rng, count=count, scenes=4):
            plain = Scene(background="night", things=scene.things)
            frames = render(plain, rng)
            edge = np.concatenate([frames[:, [0, -1]].reshape(-1, 3), frames[:, :, [0, -1]].reshape(-1, 3)])
            # The night's stars are blue; an object's outline or body at the edge would be bright red or green.
            assert (edge[:, :2].max(-1) > 150).mean() < 0.02


def test_other_wordings_and_swapped_captions_are_there(corpus: DemoCorpus) -> None:
    samples = read_shards(corpus.train_video)
    assert any(meta["paraphrase"] != meta["caption"] for meta, _, _ in samples)
    for meta, _, _ in samples:
        moving = any(thing["motion"] != "still" for thing in meta["attributes"]["objects"])
        assert moving
        assert meta["sibling_caption"] != meta["caption"]
    texts = demo_texts(corpus.root)
    assert len(texts) == len(set(texts))
    assert {meta["sibling_caption"] for meta, _, _ in samples} <= set(texts)


def test_captions_of_images_say_nothing_about_motion(corpus: DemoCorpus) -> None:
    verbs = {"moving", "moves", "turning", "growing", "still", "appearing", "rises", "fades"}
    for meta, text, _ in read_shards(corpus.train_image):
        assert meta["sibling"] is None
        assert not verbs & set(text.split())


def test_warmup_triples_swap_the_motion_and_hold_nothing_back() -> None:
    triples = warmup_triples(300, 0)
    assert triples == warmup_triples(300, 0)
    assert triples != warmup_triples(300, 1)
    assert all(len({caption, swapped}) == 2 for caption, _, swapped in triples)
    assert sum(caption != paraphrase for caption, paraphrase, _ in triples) > 250
    assert {name for name in COLOURS if any(name in caption for caption, _, _ in triples)} == set(COLOURS)


def test_the_files_depend_on_the_seed_and_not_on_the_number_of_processes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        for folder in ("train/video", "train/image", "benchmark/videos"):
            (tmp_path / name / folder).mkdir(parents=True)
        for task in ("video 0 16", "image 0 8", "benchmark 0 2"):
            demo_build.run_task(tmp_path / name, seed, task)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert all(digest(tmp_path / "a")[name] != value for name, value in digest(tmp_path / "c").items())


def test_a_finished_corpus_is_found_again(corpus: DemoCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_make", lambda *_: pytest.fail("made again"))
    assert ensure_demo_corpus(corpus.root, clips=CLIPS, images=IMAGES, progress=False) == corpus


def test_half_made_and_damaged_corpora_are_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_build, "tasks", lambda *_: ["video 0 8", "image 0 8"])
    made = []
    run = demo._run
    monkeypatch.setattr(demo, "_run", lambda *args: (made.append(1), run(*args)))

    def ensure() -> DemoCorpus:
        return ensure_demo_corpus(tmp_path / "corpus", clips=8, images=8, workers=1, progress=False)

    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / ".corpus.abc.partial").mkdir()
    shard = ensure().train_video / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert len(read_shards(ensure().train_video)) == 8
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_build, "tasks", lambda *_: ["nonsense 0 8"])
    with pytest.raises(VtrError, match="unknown task 'nonsense 0 8'"):
        ensure_demo_corpus(tmp_path / "corpus", clips=8, images=8, workers=2, progress=False)
    assert not (tmp_path / "corpus").exists()
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(VtrError, match="holds something else"):
        ensure_demo_corpus(tmp_path, clips=8, images=8, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VtrError, match="can't be written"):
        ensure_demo_corpus(tmp_path / "file" / "corpus", clips=8, images=8, progress=False)


def test_numbers_that_break_the_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="clips is 12"):
        ensure_demo_corpus(tmp_path / "x", clips=12, images=8)


def test_opening_a_folder_without_a_corpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="no finished demo corpus"):
        demo.open_demo_corpus(tmp_path)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive_the_codec_on_every_background(colour: str) -> None:
    for background in BACKGROUNDS:
        thing = Thing(colour=colour, shape="square", size="small", motion="left")
        frames = render(Scene(background=background, things=(thing,)), np.random.default_rng(0)).astype(int)
        decoded = decode(encode_clip(frames.astype(np.uint8))).astype(int)
        nearest = [np.abs(decoded - np.array(value)).sum(-1).min() for value in COLOURS.values()]
        assert list(COLOURS)[int(np.argmin(nearest))] == colour
        assert np.abs(decoded.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < 3.0
