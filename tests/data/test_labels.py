"""Labelled data: annotation formats, lists under any header, own classes, windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import recognition_data, video_bytes
from vtr.data.labels import Item, load_split, read_list, windows
from vtr.errors import VtrError


def test_lists_are_read_with_every_separator_with_a_header_and_with_frame_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, rows in (
        ("a b.mp4 3\nc.mp4 4\n", [("a b.mp4", 3, None), ("c.mp4", 4, None)]),
        ("x/a.mp4,3\n", [("x/a.mp4", 3, None)]),
        ("path\tlabel\na.mp4\t3\n", [("a.mp4", 3, None)]),
        ("folder 37 5\n", [("folder", 5, 37)]),
    ):
        path.write_text(text)
        assert read_list(path) == rows
    path.write_text("a.mp4,0.25,61.5\n")
    assert read_list(path, window=True) == [("a.mp4", 0.25, 61.5)]
    path.write_text("a.mp4,3\nb.mp4,cat\n")
    with pytest.raises(VtrError, match="line 2"):
        read_list(path)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a.mp4 0\r\nb.mp4 1\r\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ("a.mp4 0 \nb.mp4 1\t\n\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ("a.mp4   0\nb.mp4 1\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ('"a.mp4","0"\n"b, c.mp4","1"\n', [("a.mp4", 0), ("b, c.mp4", 1)]),
        ("a, b.mp4 0\nc.mp4 1\n", [("a, b.mp4", 0), ("c.mp4", 1)]),
        ("my clip 1.mp4 0\nmy clip 2.mp4 1\n", [("my clip 1.mp4", 0), ("my clip 2.mp4", 1)]),
        ("a.mp4;0\nb.mp4;1\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ("path,label,duration\na.mp4,0,5\nb.mp4,1,5\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ("Duration, Label ,Video\n5,0,a.mp4\n6,1,b.mp4\n", [("a.mp4", 0), ("b.mp4", 1)]),
        ("\ufeffpath;class\r\na.mp4;0\r\n", [("a.mp4", 0)]),
        ('{"video": "a.mp4", "label": 0}\n{"video": "b\u2028.mp4", "label": 1}\n', [("a.mp4", 0), ("b\u2028.mp4", 1)]),
    ],
)
def test_a_header_decides_what_a_column_is_and_blanks_do_not_matter(
    text: str, rows: list[tuple[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode())
    assert [(name, label) for name, label, _ in read_list(path)] == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.mp4,cat\nb.mp4,dog\n", "line 1 is 'a.mp4,cat'; expected path and label"),
        ("a.mp4 0\nb.mp4\n", "line 2 is 'b.mp4'"),
        ("path,label\na.mp4,cat\n", "line 2: the label 'cat'; expected a class number"),
        ("path,label\na.mp4\n", "line 2: 1 cells"),
        ("path,length\na.mp4,3\n", "expected one for the class"),
        ('[{"video": "a.mp4", "label": null}]', "entry 1: label is null"),
        ("a.mp4 nan\n", "line 1"),
    ],
)
def test_a_row_that_is_no_file_and_class_is_refused_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv" if not text.startswith("[") else tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(VtrError, match=says):
        read_list(path)


def test_classes_of_own_data_may_be_words_and_all_splits_number_them_alike(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(video_bytes())
    (tmp_path / "train.csv").write_text("path,label\na.mp4,dog\nb.mp4,action\nc.mp4,zebra\n")
    (tmp_path / "val.csv").write_text("a.mp4,zebra\nb.mp4,action\n")
    train = load_split("own", tmp_path, "train")
    assert (train.names, train.classes, [i.label for i in train.items]) == (("action", "dog", "zebra"), 3, [1, 0, 2])
    val = load_split("own", tmp_path, "val", names=train.names)
    assert [(i.name, i.label) for i in val.items] == [("a.mp4", 2), ("b.mp4", 0)]
    (tmp_path / "val.csv").write_text("a.mp4,cow\n")
    with pytest.raises(VtrError, match=r"line 1: the class 'cow'; expected one of the training list: action, dog"):
        load_split("own", tmp_path, "val", names=train.names)


@pytest.mark.parametrize(
    ("layout", "task", "train", "test", "classes"),
    [("imagenet", "imagenet", 4, 4, 2), ("k400", "k400", 4, 4, 2), ("ssv2", "ssv2", 4, 4, 2),
     ("coin", "coin", 4, 4, 3), ("breakfast", "breakfast", 4, 4, 10), ("lvu", "lvu-year", 4, 4, 0)],
)  # fmt: skip
def test_data_sets_are_read_in_their_own_layout(
    tmp_path: Path, layout: str, task: str, train: int, test: int, classes: int
) -> None:
    root = recognition_data(task, tmp_path / "data")
    part = task.partition("-")[2]
    for split, count in (("train", train), ("test", test)):
        found = load_split(layout, root, split, part=part)
        assert len(found.items) == count
        assert found.missing == ()
        assert found.classes == classes
        assert len({i.name for i in found.items}) == count


def test_rows_of_several_splits_are_told_apart_by_their_column(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    path = tmp_path / "all.csv"
    path.write_text("video,class,split\na.mp4,dog,train\nb.mp4,cat,train\nc.mp4,dog,val\n")
    train = load_split("own", tmp_path, "train", file=path)
    assert ([i.path.name for i in train.items], train.names) == (["a.mp4", "b.mp4"], ("cat", "dog"))
    val = load_split("own", tmp_path, "val", file=path, names=train.names)
    assert [(i.path.name, i.label) for i in val.items] == [("c.mp4", 1.0)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a.mp4,nan\nb.mp4,cat\n", "line 2: class is 'nan', which stands for a value that is missing"),
        ("a.mp4,Dog\nb.mp4,dog\n", "the classes 'Dog' and 'dog' are spelt differently"),
    ],
)
def test_classes_that_are_none_or_one_in_two_spellings_are_refused(rows: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"video,class\n{rows}")
    with pytest.raises(VtrError, match=says):
        load_split("own", tmp_path, "train", file=tmp_path / "a.csv")


def test_names_of_own_data_find_their_files_without_folder_or_ending(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in "ab":
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(name.encode())
    (tmp_path / "a.csv").write_text("video,class\na.mp4,dog\nclips/b,cat\nclips/c.mp4,dog\n")
    found = load_split("own", tmp_path, "train", file=tmp_path / "a.csv")
    assert [i.path.name for i in found.items] == ["a.mp4", "b.mp4"]
    assert len(found.missing) == 1


def test_two_videos_of_one_name_in_different_folders_stay_apart_and_doubled_rows_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(video_bytes())
    path = tmp_path / "test.csv"
    path.write_text("a/x.mp4 0\nb/x.mp4 1\n")
    assert [i.name for i in load_split("k400", tmp_path, "test").items] == ["a/x.mp4", "b/x.mp4"]
    path.write_text("a/x.mp4 0\na/x.mp4 1\n")
    with pytest.raises(VtrError, match="listed 2 times"):
        load_split("k400", tmp_path, "test")
    with pytest.raises(VtrError, match="no train split of k400"):
        load_split("k400", tmp_path, "train")


def test_long_videos_are_cut_into_windows_whose_last_is_at_least_half() -> None:
    item = Item(path=Path("a"), label=0, name="a", duration=100.0)
    spans = [(w.start, w.end) for w in windows(item, 60.0, 16.0)]
    assert spans == [(0, 60), (16, 76), (32, 92), (48, 100), (64, 100)]
    short = Item(path=Path("a"), label=0, name="a", duration=59.0)
    assert windows(short, 60.0, 16.0) == [short]


def test_a_class_with_an_underscore_is_a_word(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "train.csv").write_text("path,label\na.mp4,1_0\nb.mp4,2_0\n")
    assert load_split("own", tmp_path, "train").names == ("1_0", "2_0")


def test_folders_of_programs_are_no_classes(tmp_path: Path) -> None:
    for name in (
        "train/cat/a.jpg",
        "train/cat/._a.jpg",
        "train/dog/b.jpg",
        "train/.ipynb_checkpoints/c.jpg",
        "train/@eaDir/d.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = load_split("imagenet", tmp_path, "train")
    assert found.classes == 2
    assert [(i.name, i.label) for i in found.items] == [("cat/a.jpg", 0), ("dog/b.jpg", 1)]
