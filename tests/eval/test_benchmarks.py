"""Benchmarks: every annotation format, counts and hashes, and videos found whatever their extension or folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.helpers import write_videos
from vtr.cli import main
from vtr.errors import UsageError, VtrError
from vtr.eval.annotations import read_annotations, without_extension
from vtr.eval.benchmarks import RootIndex, VideoFinder, benchmark_names, load_benchmark, load_protocol


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{}", "expected a list"),
        ("a.json", "[", "not JSON"),
        ("a.json", '[{"video": "a"}]', "entries have video"),
        ("a.json", '[{"video": "a", "caption": "b"}, {"video": "c"}]', "not as the others"),
        ("a.json", '[{"video": "a", "caption": 7}]', "not text"),
        ("a.csv", "x,y\n1,b\n", "expected columns"),
        ("a.txt", "one\ttwo\n", "6"),
        ("a.zip", "no", "cannot be read"),
        ("a.json", '{"train": {"a": ["b"]}}', "no split 'test', only train"),
        ("a.json", "", "not JSON"),
    ],
)
def test_an_annotation_file_of_another_format_is_refused(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content or "x")
    with pytest.raises(VtrError, match=says):
        read_annotations(tmp_path / name)


@pytest.mark.parametrize("file", ["l.txt", "LSMDC16_challenge_1000_publictect.csv"])
def test_lsmdc_lines_are_read_from_their_stated_format(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("1014_a_00.00.07-00.00.08.638\t0\t1\t0\t1\tSomeone walks.\n")
    name, items = read_annotations(tmp_path / file)
    assert name == "LSMDC tab-separated"
    assert (items[0].videos, items[0].captions) == (("1014_a_00.00.07-00.00.08.638",), ("Someone walks.",))


@pytest.mark.parametrize(
    ("file", "format_name", "videos", "captions"),
    [
        ("msrvtt/msrvtt_ret_test1k.json", "official JSON", 1000, 1000),
        ("msrvtt/MSRVTT_JSFUSION_test.csv", "JSFusion CSV", 1000, 1000),
        ("msrvtt/MSRVTT_train.9k.csv", "list of videos", 9000, 0),
        ("msrvtt/original/test_videodatainfo.json.zip", "MSR-VTT release", 2990, 59800),
        ("msrvtt/original/train_val_annotation.zip", "MSR-VTT release", 7010, 140200),
        ("msrvtt/MSRVTT_train.7k.csv", "list of videos", 7010, 0),
        ("msrvtt/lists/test_list_miech.txt", "list of videos", 1000, 0),
        ("msvd/test_list.txt", "list of videos", 670, 0),
        ("didemo/lists/test_list.txt", "list of videos", 1004, 0),
        ("activitynet/lists/val_1_list.txt", "list of videos", 4917, 0),
        ("activitynet/val_ids.json", "list of videos", 4926, 0),
        ("didemo/test_data.json", "DiDeMo release", 1037, 4021),
        ("didemo/val_data.json", "DiDeMo release", 1094, 4180),
        ("didemo/didemo_test_label.csv", "CSV of paragraphs", 1004, 1004),
        ("derived/didemo_ret_test_1004.json", "official JSON", 1004, 3932),
        ("activitynet/val_1.json", "ActivityNet Captions release", 4917, 17505),
        ("activitynet/anet_ret_val_1.json", "official JSON", 4917, 17505),
        ("msvd/captions_msvd.json", "captions by video", 1970, 80827),
        ("derived/msvd_ret_test_670.json", "official JSON", 670, 27763),
        ("pretrain_samples/violet_txt_msrvtt-retrieval.json", "official JSON, split test", 50, 50),
    ],
)
def test_real_annotation_files_are_recognised_and_counted(
    file: str, format_name: str, videos: int, captions: int, shared: Path
) -> None:
    name, items = read_annotations(shared / "data" / "annotations" / file)
    assert (name, len(items), sum(len(i.captions) for i in items)) == (format_name, videos, captions)


def test_a_list_of_videos_is_no_annotation_of_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("clip0\nclip1\n")
    with pytest.raises(VtrError, match="without captions"):
        load_benchmark(str(tmp_path / "a.txt"), tmp_path)


def test_the_protocol_hash_does_not_depend_on_the_format_of_the_same_annotation(shared: Path) -> None:
    root = shared / "data" / "annotations"
    pairs = {
        "msrvtt": ("msrvtt/msrvtt_ret_test1k.json", "msrvtt/MSRVTT_JSFUSION_test.csv"),
        "anet": ("activitynet/val_1.json", "activitynet/anet_ret_val_1.json"),
        "msvd": ("msvd/captions_msvd.json", "derived/msvd_ret_test_670.json"),
    }
    for name, (one, other) in pairs.items():
        hashes = {load_benchmark(f"{name}={root / file}", root).protocol_hash for file in (one, other)}
        assert len(hashes) == 1, name


def test_another_caption_or_rule_is_another_hash(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    hashes = set()
    for caption in (["a dog", "a cat"], ["a dog", "a cow"]):
        (tmp_path / "a.json").write_text(json.dumps([{"video": "clip0.mp4", "caption": caption}]))
        for paragraph in (False, True):
            hashes.add(load_benchmark(str(tmp_path / "a.json"), tmp_path, paragraph=paragraph).protocol_hash)
    assert len(hashes) == 4


def test_every_benchmark_file_is_a_whole_protocol() -> None:
    assert set(benchmark_names()) >= {"anet", "demo", "didemo", "lsmdc", "msrvtt", "msvd", "msrvtt_mc", "ssv2_template"}
    for name in benchmark_names():
        protocol = load_protocol(name)
        assert protocol.annotation
        assert protocol.obtain
        for row in protocol.published:
            assert len(row.t2v) == 3 or (len(row.t2v) == 1 and "R@1 alone" in row.note)
            assert list(row.t2v) == sorted(row.t2v)
    with pytest.raises(UsageError, match="msrvtt"):
        load_benchmark("msrvt", Path())


def test_paragraphs_and_single_captions_follow_the_protocol(shared: Path) -> None:
    root = shared / "data" / "annotations"
    for name, queries in (("didemo", 1037), ("anet", 4917), ("msvd", 27763), ("msrvtt", 1000), ("msrvtt_full", 59800)):
        protocol = load_protocol(name)
        found = load_benchmark(name, root)
        assert found.total == len(found.missing) == found.expected.videos  # type: ignore[union-attr]
        assert found.expected.queries == queries  # type: ignore[union-attr]
        assert protocol.paper_videos in (None, found.total, 1036)


def test_an_annotation_that_is_nowhere_says_which_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match=r"msrvtt_ret_test1k\.json.*MSR-VTT"):
        load_benchmark("msrvtt", tmp_path)


def test_a_split_needs_its_list_of_ids(tmp_path: Path) -> None:
    (tmp_path / "captions_msvd.json").write_text(json.dumps({"a": ["x"], "b": ["y"]}))
    with pytest.raises(VtrError, match=r"test_list\.txt"):
        load_benchmark("msvd", tmp_path)
    (tmp_path / "test_list.txt").write_text("b\n")
    assert load_benchmark("msvd", tmp_path).missing == ("b",)
    (tmp_path / "test_list.txt").write_text("b\nz\n")
    with pytest.raises(VtrError, match="lacks 1 of the 2"):
        load_benchmark("msvd", tmp_path)


def test_a_zip_without_json_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(VtrError, match=r"no \.json"):
        read_annotations(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("video7.mp4", "x/video7.webm"),
        ("video7", "video7.mp4"),
        ("10052357@N03_7585070382_5762149bfc.", "d/10052357@N03_7585070382_5762149bfc.3gp"),
        ("10052357@N03_7585070382_5762149bfc.", "10052357@N03_7585070382_5762149bfc"),
        ("v_uqiMw7tQ1Cc.mp4", "uqiMw7tQ1Cc.mkv"),
        ("1014_00.00.07.086-00.00.08.638", "1014/1014_00.00.07.086-00.00.08.638.avi"),
        ("test/video7.mp4", "test/video7.mp4"),
    ],
)
def test_a_video_is_found_whatever_its_extension_or_folder(wanted: str, there: str, tmp_path: Path) -> None:
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (tmp_path / "video7.json").write_text("{}")
    assert VideoFinder(RootIndex(tmp_path)).find(wanted) == path
    assert VideoFinder(RootIndex(tmp_path)).find("video70.mp4") is None


def test_links_are_followed_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "videos").symlink_to(tmp_path / "real")
    assert [p.name for p in RootIndex(tmp_path / "root").files] == ["a.mp4"]


def test_a_name_that_leads_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    finder = VideoFinder(RootIndex(tmp_path / "root"))
    assert finder.find("../secret.mp4") is None
    assert finder.find(str(tmp_path / "secret.mp4")) is None


def test_ids_end_at_the_last_dot_that_begins_an_extension() -> None:
    names = {"a/b.mp4": "b", "b.": "b", "b": "b", "1_00.00.07.086": "1_00.00.07.086", "x_1.MOV": "x_1"}
    assert {without_extension(n) for n in names} == set(names.values())


def test_a_missing_video_is_never_evaluated_from_another_file(tmp_path: Path) -> None:
    for name in ("dogs/0001.mp4", "cats/0001.mp4"):
        write_videos(tmp_path / Path(name).parent, 1)[0].rename(tmp_path / name)
    rows = [{"video": v, "caption": v} for v in ("dogs/0001.mp4", "cats/0001.mp4", "cats/0002.mp4", "birds/0001.mp4")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = load_benchmark(str(tmp_path / "a.json"), tmp_path)
    assert found.missing == ("cats/0002.mp4", "birds/0001.mp4")
    assert "birds/0001.mp4 (cats/0001.mp4, dogs/0001.mp4 has its name, in another folder)" in found.lacking


def test_videos_beside_an_annotation_that_was_given_are_found(tmp_path: Path) -> None:
    write_videos(tmp_path / "own", 2)
    (tmp_path / "own" / "a.csv").write_text("video,caption\nclip0,x\nclip1.mp4,y\n")
    (tmp_path / "data").mkdir()
    for root in (tmp_path / "data", tmp_path / "nowhere"):
        found = load_benchmark(str(tmp_path / "own" / "a.csv"), root)
        assert found.missing == ()
        assert [p.name for p in found.videos] == ["clip0.mp4", "clip1.mp4"]
    assert load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data").searched == (
        tmp_path / "data",
        tmp_path / "own",
    )


def test_a_video_beside_its_list_is_meant_and_none_of_its_name_elsewhere(tmp_path: Path) -> None:
    write_videos(tmp_path / "own", 1)
    for place in ("data/x", "data/y"):
        write_videos(tmp_path / place, 2)
    (tmp_path / "own" / "a.csv").write_text("video,caption\nclip0.mp4,x\n")
    found = load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data")
    assert found.videos == (tmp_path / "own" / "clip0.mp4",)
    for clip in (tmp_path / "data" / "y").iterdir():
        clip.unlink()  # the other name is at one place now
    assert load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data").videos == found.videos
    from_root = load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data" / "x")
    assert from_root.videos == (tmp_path / "data" / "x" / "clip0.mp4",)


@pytest.mark.parametrize("name", ["clip0", "clip0.avi", "./clip0.mp4", "sub/../clip0.mp4"])
def test_a_video_beside_its_list_is_meant_whatever_ending_the_list_writes(tmp_path: Path, name: str) -> None:
    for place in ("own", "own/sub", "data/x"):
        write_videos(tmp_path / place, 1)
    (tmp_path / "own" / "a.csv").write_text(f"video,caption\n{name},x\n")
    found = load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data")
    assert [path.resolve() for path in found.videos] == [tmp_path / "own" / "clip0.mp4"]


@pytest.mark.parametrize("name", ["clip0.mp4", "clip0", "clip0.mov"])
def test_files_that_differ_beside_the_list_and_in_the_root_are_told(tmp_path: Path, name: str) -> None:
    write_videos(tmp_path / "data", 2)
    (tmp_path / "own").mkdir()
    (tmp_path / "data" / "clip1.mp4").rename(tmp_path / "own" / "clip0.mp4")
    (tmp_path / "own" / "a.csv").write_text(f"video,caption\n{name},x\n")
    found = load_benchmark(str(tmp_path / "own" / "a.csv"), tmp_path / "data")
    assert found.videos == ()
    assert "which is it? write the whole path" in found.lacking[0]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.json", [{"video": "a", "caption": "x"}, {"video": "b", "caption": ""}], "entry 2: no caption: it is empty"),
        ("a.json", [{"video": "a", "caption": "x"}, {"video": "b", "caption": "..."}], "entry 2: no caption: '...'"),
        ("a.json", [{"video": "a", "caption": "x"}, {"video": "b", "caption": []}], "entry 2: no caption: an empty list"),
        ("a.json", [{"video": "a", "caption": "x"}, {"video": None, "caption": "y"}], "entry 2: video is null"),
        ("a.csv", "video_id,sentence\na,A man, his dog\n", "line 2: 3 cells"),
        ("a.csv", 'video_id,sentence\na,"A man\nb,A car\n', "line 2: a quote that is opened here is never closed"),
        ("a.csv", "video_id,a1,a2,a3,a4,a5,answer\nv,1,2,3,4,5,9\n", "line 2: v: answer 9 of 5"),
        ("a.csv", "video_id,a1,a2,a3,a4,a5,answer\nv,1,2,3,4,5,x\n", "line 2: answer is the text 'x'"),
        ("a.csv", "a.mp4,3\nb.mp4,x\n", "line 2: found b.mp4, x"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_query_is_refused_with_its_line(file: str, content: object, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(VtrError, match=says.replace("(", r"\(")):
        read_annotations(tmp_path / file, choices=False)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "\ufeffvideo_id,sentence\r\nv,A dog\r\n"),
        ("a.csv", "video,caption\nv,A dog\n"),
        ("a.csv", "video_id;sentence\nv;A dog\n"),
        ("a.tsv", "video\tcaption\nv\tA dog\n"),
        ("a.json", '[{"file": "v", "text": "A dog"}]'),
        ("a.json", '{"v": "A dog"}'),
        ("a.jsonl", '\ufeff{"video": "v", "caption": "A dog"}\n'),
        ("a.json", '{"annotations": [{"video": "v", "caption": ["A dog"]}]}'),
    ],
)
def test_an_own_annotation_is_read_in_any_format_and_under_any_name(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    items = read_annotations(tmp_path / file)[1]
    assert [(i.videos, i.captions) for i in items] == [(("v",), ("A dog",))]


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    for content in (
        {"videos": [{"video_id": 0}, {"video_id": 1}], "sentences": [{"video_id": i, "caption": "x"} for i in (0, 1)]},
        [{"video": i, "description": "x"} for i in (0, 1)],
    ):
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert [i.videos for i in read_annotations(tmp_path / "a.json")[1]] == [("0",), ("1",)]


def test_ids_with_dots_are_not_each_others(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"x.a": ["one"], "x.b": ["two"]}))
    (tmp_path / "ids.txt").write_text("x.b\n")
    assert [i.captions for i in read_annotations(tmp_path / "a.json", ids=tmp_path / "ids.txt")[1]] == [("two",)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('frmes = 4\n[[annotation]]\nfile = "a.json"', "'frmes': did you mean 'frames'"),
        ('[[annotation]]\nfiles = "a.json"', "'files': did you mean 'file'"),
        ("frames = 4", r"no \[\[annotation\]\]"),
        ("frames = ", "mine.toml: cannot be meant"),
        ("[[annotation]]\nvideos = 4", "mine.toml: cannot be meant.*'file'"),
        ("annotation = 4", "mine.toml: cannot be meant"),
    ],
)
def test_what_is_wrong_in_a_benchmarks_file_is_named_and_hides_no_other_benchmark(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "other.toml").write_text('[[annotation]]\nfile = "a.json"')
    monkeypatch.setattr("vtr.eval.benchmarks._FOLDER", tmp_path)
    with pytest.raises(VtrError, match=says):
        load_protocol("mine")
    assert main(["benchmarks", "--data-root", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "\nother " in told.out
    assert told.err.startswith("vtr: ")
    assert told.err.count("\n") == 1
