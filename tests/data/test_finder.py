"""Names to files: a name finds its own file, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr.data.finder import RootIndex, VideoFinder
from vtr.errors import VtrError


def root(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    return folder


def found(folder: Path, *names: str) -> dict[str, str | None]:
    paths, _ = VideoFinder(RootIndex(folder)).find_all(names)
    return {name: None if path is None else str(path.relative_to(folder)) for name, path in paths.items()}


def test_a_video_that_is_missing_is_not_another_folders_video_of_that_name(tmp_path: Path) -> None:
    root(tmp_path, "dogs/0001.mp4", "dogs/0002.mp4", "cats/0001.mp4")
    names = ("dogs/0001.mp4", "dogs/0002.mp4", "cats/0001.mp4", "cats/0002.mp4", "birds/0001.mp4")
    assert found(tmp_path, *names) == {
        **{n: n for n in names[:3]}, "cats/0002.mp4": None, "birds/0001.mp4": None,
    }  # fmt: skip
    _, notes = VideoFinder(RootIndex(tmp_path)).find_all(names)
    assert "dogs/0002.mp4 has its name, in another folder" in notes["cats/0002.mp4"]


@pytest.mark.parametrize("other", ["b.jpg", "b.mp4.part", "b.m4a", "b.mp4.ytdl", "b.f137.mp4", "b.description", "b.wav",
                                   "b.mp4.tmp", "b.webp", "b.json", "b.vtt", "b.crdownload", "b"])  # fmt: skip
def test_nothing_that_is_no_video_stands_in_for_one(other: str, tmp_path: Path) -> None:
    root(tmp_path, f"videos/{other}")
    expected = "videos/b" if other == "b" else None  # some data sets' videos have no ending
    assert found(tmp_path, "b.mp4") == {"b.mp4": expected}


def test_a_part_of_a_download_that_a_list_names_is_no_video(tmp_path: Path) -> None:
    assert found(root(tmp_path, "c.mp4.part"), "c.mp4.part") == {"c.mp4.part": None}


def test_a_name_without_folders_that_several_files_have_finds_none_and_says_which(tmp_path: Path) -> None:
    root(tmp_path, "a/0001.mp4", "b/0001.mp4")
    paths, notes = VideoFinder(RootIndex(tmp_path)).find_all(["0001.mp4"])
    assert paths == {"0001.mp4": None}
    assert notes["0001.mp4"] == "2 files have this name (a/0001.mp4, b/0001.mp4): which is it?"


def test_a_name_is_found_below_the_current_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"a")
    monkeypatch.chdir(tmp_path)
    assert VideoFinder(RootIndex(Path())).find("a.mp4") == Path("clips/a.mp4")


def test_copies_of_one_file_are_one(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(b"same")
    assert found(tmp_path, "x.mp4") == {"x.mp4": "a/x.mp4"}


def test_two_names_never_have_one_file(tmp_path: Path) -> None:
    root(tmp_path, "a.mkv", "b.mp4")
    assert found(tmp_path, "a.mp4", "a.webm") == {"a.mp4": None, "a.webm": None}
    assert found(tmp_path, "v_b.mp4", "b.mp4") == {"v_b.mp4": None, "b.mp4": "b.mp4"}
    _, notes = VideoFinder(RootIndex(tmp_path)).find_all(["v_b.mp4", "b.mp4"])
    assert notes == {"v_b.mp4": "b.mp4 is the file of 'b.mp4'"}


def test_dots_belong_to_an_id_and_case_to_a_name(tmp_path: Path) -> None:
    root(tmp_path, "a.mp4", "x.y.mp4", "Clip.mp4", "q.MP4", "007.mp4")
    assert found(tmp_path, "a.b", "x.y", "x.z", "clip.mp4", "q.mp4", "7") == {
        "a.b": None, "x.y": "x.y.mp4", "x.z": None, "clip.mp4": None, "q.mp4": "q.MP4", "7": None,
    }  # fmt: skip


def test_folders_of_a_name_are_found_below_other_folders(tmp_path: Path) -> None:
    root(tmp_path, "data/set/dogs/1.webm", "data/other/1.mp4")
    assert found(tmp_path, "dogs/1.mp4", "./dogs/1.mp4", "ogs/1.mp4") == {
        "dogs/1.mp4": None,
        "./dogs/1.mp4": None,
        "ogs/1.mp4": None,
    }  # fmt: skip - the first two are one file's: none has it
    assert found(tmp_path, "dogs/1.mp4") == {"dogs/1.mp4": "data/set/dogs/1.webm"}


def test_a_picture_is_found_by_its_full_name_alone(tmp_path: Path) -> None:
    root(tmp_path, "p/1.jpg", "p/1.mp4", "p/2.png")
    assert found(tmp_path, "1.jpg", "2.jpg", "1.mp4") == {"1.jpg": "p/1.jpg", "2.jpg": None, "1.mp4": "p/1.mp4"}


def test_an_annotation_of_one_name_in_two_folders_is_asked_about(tmp_path: Path) -> None:
    root(tmp_path, "a/test.json", "b/test.json")
    with pytest.raises(VtrError, match="in several folders and not the same"):
        RootIndex(tmp_path).find_file("test.json")
    assert RootIndex(tmp_path).find_file("b/test.json") == tmp_path / "b" / "test.json"


def test_a_video_at_its_path_wins_over_the_same_name_deeper_down(tmp_path: Path) -> None:
    root(tmp_path, "set/videos/7.webm", "set/previews/7.mp4", "set/videos/deep/8.mp4", "set/8.mkv")
    finder = VideoFinder(RootIndex(tmp_path), ("set/videos", "set"))
    assert finder.find("7") == finder.find("7.avi") == tmp_path / "set/videos/7.webm"
    assert finder.find("8.mp4") == tmp_path / "set/8.mkv"


def test_an_absolute_path_is_followed_inside_the_root_alone(tmp_path: Path) -> None:
    root(tmp_path, "in/a.mp4", "a.mp4")
    finder = VideoFinder(RootIndex(tmp_path / "in"))
    assert finder.find(str(tmp_path / "in" / "a.mp4")) == tmp_path / "in" / "a.mp4"
    assert finder.find(str(tmp_path / "a.mp4")) is None
    assert "leads out of" in finder.look("../a.mp4").note


def test_accents_are_the_same_in_one_piece_or_two(tmp_path: Path) -> None:
    root(tmp_path, "cafe\u0301.mp4")
    assert found(tmp_path, "caf\u00e9.mp4")["caf\u00e9.mp4"] == "cafe\u0301.mp4"
