"""Benchmarks: every annotation format, counts and hashes, and videos found whatever their extension or folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.helpers import write_videos
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
            assert len(row.t2v) == 3
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
