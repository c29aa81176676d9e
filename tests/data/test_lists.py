"""Lists: columns by any of their names, captions and ids as the field has them; what is none is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtr.data.lists import Entry, read_list
from vtr.errors import VtrError


def entries(folder: Path, name: str, content: str | bytes | object, split: str | None = None) -> tuple[Entry, ...]:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_list(path, split=split).entries


def pairs(found: tuple[Entry, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(e.videos[0], e.captions) for e in found]


@pytest.mark.parametrize(
    "header",
    ["video,caption", "path,text", "file,sentence", "Video,Caption", "VIDEO ID,Title", "video_id,description", "Image,TEXT",
     "filename,caption", "clip,text", "file_name,captions", "videoid,name", "name,caption", "id,caption", "url,caption"],
)  # fmt: skip
def test_a_column_is_known_by_any_of_its_names(header: str, tmp_path: Path) -> None:
    assert pairs(entries(tmp_path, "a.csv", f"{header}\na.mp4,A dog\n")) == [("a.mp4", ("A dog",))]
    video, caption = header.split(",")
    row = {caption: "A dog", video: "a.mp4"}
    for name, content in (
        ("a.json", json.dumps([row])),
        ("a.jsonl", json.dumps(row)),
        ("b.jsonl", f"{json.dumps(row)}\n" * 2),
    ):
        assert pairs(entries(tmp_path, name, content))[0] == ("a.mp4", ("A dog",))


def test_a_file_and_a_caption_win_over_weaker_names_of_the_same(tmp_path: Path) -> None:
    text = "id,name,title,caption,video_id,video\n1,n,t,A dog,v7,a.mp4\n"
    found = entries(tmp_path, "a.csv", text)[0]
    assert (found.videos, found.captions, found.key) == (("a.mp4",), ("A dog",), "1")
    assert found.more == {"id": "1", "name": "n", "title": "t", "caption": "A dog", "video_id": "v7"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("video,caption,text\na.mp4,A dog,A cat\n", "the caption is column 'caption', not 'text'"),
        ("video,text,title,caption1\na.mp4,A dog,,A cat\n", "the caption is column 'text', not 'caption1'"),
        ('{"video": "a.mp4", "Sentence": "A dog", "query": "A cat"}\n' * 2, "'Sentence', not 'query'"),
        ('{"v1": {"text": "A dog", "description": "A cat"}, "v2": {"text": "A"}}', "'text', not 'description'"),
        ("path,caption,filename\nx/a.mp4,A dog,b.mp4\n", "the file is column 'path', not 'filename'"),
        ("path,caption,filename,text\nx/a.mp4,A dog,a.webm,A  dog\n", ""),
    ],
)
def test_of_two_columns_that_could_be_meant_it_is_said_which_is_read(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{'csv' if text[0] in 'vp' else 'json'}"
    path.write_text(text)
    for _ in range(2):
        read_list(path)
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == bool(says)


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        (None, "the caption is null, not text"),
        (float("nan"), "the caption is NaN, not text"),
        (7, "the caption is the number 7, not text"),
        (True, "the caption is true, not text"),
        ({"en": "a dog"}, "the caption is an object, not text"),
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("...", "no letter or digit"),
        ("nan", "a value that is missing"),
        ("None", "a value that is missing"),
        ([], "an empty list"),
        (["a dog", None], "caption 2 of 2 is null"),
        (["a dog", ""], "caption 2 of 2: no caption"),
        ([["a dog"]], "caption 1 of 1 is a list"),
    ],
)
def test_a_caption_that_is_no_text_is_named_with_its_line(caption: object, says: str, tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "caption": "fine"}, {"video": "b.mp4", "caption": caption}]
    found = entries(tmp_path, "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    assert found[0].bad == ""
    assert says in found[1].bad
    assert found[1].place == "line 2"
    assert found[1].captions == ()


def test_words_of_every_script_and_emoji_are_captions(tmp_path: Path) -> None:
    texts = ["一个男人在遛狗", "🐶🐱", "café", "3", "[music]", "['twas night"]
    found = entries(tmp_path, "a.json", [{"video": f"{i}.mp4", "caption": t} for i, t in enumerate(texts)])
    assert [e.captions for e in found] == [(t,) for t in texts]


@pytest.mark.parametrize(
    ("value", "key"),
    [(0, "0"), (7, "7"), ("007", "007"), ("7", "7"), ("a" * 200, "a" * 200), ("a.b", "a.b"), (" x ", "x")],
)
def test_ids_are_texts_or_whole_numbers_as_they_are_written(value: object, key: str, tmp_path: Path) -> None:
    assert entries(tmp_path, "a.json", [{"id": value, "video": "v.mp4", "caption": "A dog"}])[0].key == key
    assert entries(tmp_path, "b.json", [{"video": value, "caption": "A dog"}])[0].videos == (key,)


@pytest.mark.parametrize("value", [None, "", " ", 1.5, True, [1], {"a": 1}])
def test_an_id_that_is_none_is_named_with_its_line(value: object, tmp_path: Path) -> None:
    rows = [{"id": 1, "video": "v.mp4", "caption": "A dog"}, {"id": value, "video": "w.mp4", "caption": "A cat"}]
    found = entries(tmp_path, "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    assert found[0].bad == ""
    assert "id of this row" in found[1].bad


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list of texts", [{"video": "a", "caption": ["x", "y"]}]),
        ("list of texts in a cell", "video,caption\na,\"['x', 'y']\"\n"),
        ("JSON list in a cell", 'video,caption\na,"[""x"", ""y""]"\n'),
        ("numbered columns", "video,caption1,caption2,caption3\na,x,y,\n"),
        ("VATEX", [{"videoID": "a", "enCap": ["x", "y"], "chCap": ["甲"]}]),
        ("MSVD captions", {"a": ["x", "y"]}),
        ("ActivityNet Captions", {"a": {"duration": 9.0, "timestamps": [[0, 1], [2, 3]], "sentences": ["x", "y"]}}),
        ("MSR-VTT", {"videos": [{"video_id": "a", "id": 0}],
                     "sentences": [{"video_id": "a", "caption": "x"}, {"video_id": "a", "caption": "y"}]}),
        ("COCO", {"info": {}, "images": [{"id": 5, "file_name": "a"}],
                  "annotations": [{"image_id": 5, "caption": "x", "id": 1}, {"image_id": 5, "caption": "y", "id": 2}]}),
        ("Karpathy", {"dataset": "flickr30k", "images": [{"filename": "a", "split": "test",
                      "sentences": [{"raw": "x", "tokens": ["x"]}, {"raw": "y", "tokens": ["y"]}]}]}),
        ("YouCook2", {"database": {"a": {"subset": "training", "annotations": [
            {"segment": [0, 1], "sentence": "x"}, {"segment": [1, 2], "sentence": "y"}]}}}),
    ],
)  # fmt: skip
def test_several_captions_of_a_video_are_read_as_the_field_has_them(name: str, content: object, tmp_path: Path) -> None:
    assert pairs(entries(tmp_path, "a.csv" if isinstance(content, str) else "a.json", content)) == [("a", ("x", "y"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("DiDeMo", [{"video": "a", "description": "x", "times": [[0, 1]]}, {"video": "a", "description": "y"}]),
        ("rows", "video,caption\na,x\na,y\n"),
        ("MSVD table", "VideoID,Start,End,Language,Description\na,0,5,English,x\na,0,5,French,z\na,0,5,English,y\n"),
        ("MSVD release", "# comment\nabcdefghijk_0_5 x\nabcdefghijk_0_5 y\n"),
        ("LSMDC", "a\t0\t1\t0\t1\tx\na\t0\t1\t0\t1\ty\n"),
    ],
)
def test_captions_of_one_video_may_stand_apart(name: str, content: object, tmp_path: Path) -> None:
    found = entries(tmp_path, "a.txt" if isinstance(content, str) else "a.json", content)
    assert [e.captions for e in found] == [("x",), ("y",)]
    assert len({e.videos for e in found}) == 1


@pytest.mark.parametrize(
    "content",
    [{"v/a.mp4": "A dog"}, {"annotations": [{"video": "v/a.mp4", "caption": "A dog"}]}, {"test": {"v/a.mp4": ["A dog"]}},
     {"data": [{"path": "v/a.mp4", "text": "A dog"}], "version": 2}],
)  # fmt: skip
def test_an_object_around_the_list_is_seen_through(content: object, tmp_path: Path) -> None:
    assert pairs(entries(tmp_path, "a.json", content)) == [("v/a.mp4", ("A dog",))]


def test_one_split_of_several_has_to_be_said(tmp_path: Path) -> None:
    both = {"train": [{"video": "a", "caption": "x"}], "test": [{"video": "b", "caption": "y"}]}
    assert pairs(entries(tmp_path, "a.json", both, "test")) == [("b", ("y",))]
    with pytest.raises(VtrError, match="has no split, only test, train"):
        entries(tmp_path, "a.json", both)
    with pytest.raises(VtrError, match="has no split 'val', only test, train"):
        entries(tmp_path, "a.json", both, "val")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "video,caption,Split\na,x,train\nb,y,TEST\nc,z,val\n"),
        ("a.json", {"images": [{"filename": "a", "split": "restval", "sentences": [{"raw": "x"}]},
                               {"filename": "b", "split": "test", "sentences": [{"raw": "y"}]}]}),
        ("a.json", {"database": {"a": {"subset": "training", "annotations": [{"sentence": "x"}]},
                                 "b": {"subset": "testing", "annotations": [{"sentence": "y"}]}}}),
        ("a.json", {"videos": [{"video_id": "a", "split": "train"}, {"video_id": "b", "split": "test"}],
                    "sentences": [{"video_id": "a", "caption": "x"}, {"video_id": "b", "caption": "y"}]}),
    ],
)  # fmt: skip
def test_rows_of_several_splits_are_told_apart_by_their_column(name: str, content: object, tmp_path: Path) -> None:
    assert pairs(entries(tmp_path, name, content, "test")) == [("b", ("y",))]
    assert pairs(entries(tmp_path, name, content, "train")) == [("a", ("x",))]
    with pytest.raises(VtrError, match=r"its rows have no split, only .*tes.*; say which"):
        entries(tmp_path, name, content)
    with pytest.raises(VtrError, match="its rows have no split 'dance'"):
        entries(tmp_path, name, content, "dance")


def test_a_column_of_one_split_or_of_something_else_chooses_nothing(tmp_path: Path) -> None:
    for values in ("test test", "left right"):
        rows = [f"{v},x,{s}\n" for v, s in zip("ab", values.split())]
        assert len(entries(tmp_path, "a.csv", "video,caption,split\n" + "".join(rows), "test")) == 2
    with pytest.raises(VtrError, match="line 3: its split is empty"):
        entries(tmp_path, "a.csv", "video,caption,split\na,x,test\nb,y,\n", "test")


@pytest.mark.parametrize(
    "content",
    [{"video": {"0": "a", "1": "b"}, "caption": {"0": "x", "1": "y"}}, {"video": ["a", "b"], "caption": ["x", "y"]},
     {"columns": ["video", "caption"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]}],
)  # fmt: skip
def test_a_table_that_was_written_by_columns_is_read_by_rows(content: object, tmp_path: Path) -> None:
    assert pairs(entries(tmp_path, "a.json", content)) == [("a", ("x",)), ("b", ("y",))]


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    for content in ({"video": ["a", "b"], "caption": ["x"]}, {"columns": ["video", "caption"], "data": [["a"]]}):
        with pytest.raises(VtrError, match=r"are not of one length|has not 2 cells"):
            entries(tmp_path, "a.json", content)


def test_marks_that_joined_files_leave_in_the_middle_belong_to_no_cell(tmp_path: Path) -> None:
    part = "\ufeffvideo,caption\na.mp4,\ufeffA dog\n"
    found = entries(tmp_path, "a.csv", part + part + "\ufeff\u200bb.mp4\u200b,A cat\n")
    assert [e.bad for e in found] == ["", "the header once more", "", ""]
    assert pairs(found)[0] == pairs(found)[2] == ("a.mp4", ("A dog",))
    assert pairs(found)[3] == ("b.mp4", ("A cat",))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"video": "a", "caption": "A dog \ud83d"}, "the caption holds half a character"),
        ({"video": "a\udc80", "caption": "A dog"}, "video holds half a character"),
        (
            {"video": "a", "caption": ["a", "dog", "runs"]},
            "single words (a, dog, runs …), as the tokens of one caption",
        ),
    ],
)
def test_half_characters_and_tokens_are_no_captions(row: object, says: str, tmp_path: Path) -> None:
    assert says in entries(tmp_path, "a.json", [row])[0].bad


def test_a_mapping_of_clips_to_names_is_no_list_of_captions(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match="two names a line"):
        entries(tmp_path, "a.txt", "abcdefghijk_0_5 vid1\nabcdefghijk_5_9 vid2\n")


def test_empty_rows_at_the_end_of_a_spreadsheet_are_none_and_one_in_the_middle_is_named(tmp_path: Path) -> None:
    found = entries(tmp_path, "a.csv", "video;caption\na.mp4;x\n;\nb.mp4;y\n;\n;\n")
    assert [e.bad for e in found] == ["", "video is empty", ""]


def test_a_header_that_stands_once_more_is_named(tmp_path: Path) -> None:
    found = entries(tmp_path, "a.csv", "video,caption\na.mp4,x\nvideo,caption\nb.mp4,y\n")
    assert [e.bad for e in found] == ["", "the header once more", ""]


def test_rows_with_other_keys_than_the_rest_are_named(tmp_path: Path) -> None:
    found = entries(tmp_path, "a.json", [{"video": "a", "caption": "x"}, {"video": "b"}, {"caption": "z"}])
    assert ["not as the others" in e.bad for e in found] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "film,plot\na,b\n", "line 1: found columns film, plot; expected columns named in the first line"),
        ("a.csv", "film,title\na,b\n", "columns film, title; expected"),
        ("a.csv", "a.mp4,A dog\nb.mp4,A cat\n", "line 1: found columns a.mp4, A dog; expected"),
        ("a.json", [{"film": "a", "plot": "b"}], "its entries have film, plot; expected"),
        ("a.json", {}, "an empty object"),
        ("a.json", "video,caption\n", "not JSON"),
        ("a.csv", "video,caption\n", "no rows"),
    ],
)
def test_a_list_without_the_columns_says_what_it_has_and_what_was_expected(
    name: str, content: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(VtrError, match=says):
        entries(tmp_path, name, content)


def test_a_list_without_captions_says_so_where_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a.mp4", "b.mp4"]')
    with pytest.raises(VtrError, match="without captions"):
        read_list(tmp_path / "a.json").need_captions()


def test_metadata_are_a_file_and_its_other_columns_whatever_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,year,title,id\nx/a.mp4,1999,A film,\nb.mp4,,nan,\n,1,2,3\n")
    found = read_list(tmp_path / "a.csv", captions=False).entries
    assert (found[0].videos, found[0].more) == (("x/a.mp4",), {"year": "1999", "title": "A film", "id": ""})
    assert [(e.place, e.bad) for e in found] == [("line 2", ""), ("line 3", ""), ("line 4", "path is empty")]
    (tmp_path / "a.csv").write_text("film,year\nx,1\n")
    with pytest.raises(VtrError, match="no header; expected columns named in the first line, one of them for the file"):
        read_list(tmp_path / "a.csv", captions=False)


@pytest.mark.parametrize(
    ("columns", "spans"),
    [
        ("start,end", ("0,0.5", "0.5,1")),
        ("Start Time,End Time", ("00:00,00:01", "00:01,00:02")),
        ("start_frame,end_frame", ("0,5", "5,10")),
        ("timestamp,no", ("0,1", "3,2")),
        ("Start_timestamp,End_timestamp", ("00:00:01.000,00:00:02.000", "00:00:03.000,00:00:04.000")),
    ],
)
def test_captions_of_parts_of_one_file_are_refused_and_equal_spans_are_none(
    columns: str, spans: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"video,{columns},caption\na.mp4,{spans[0]},red\na.mp4,{spans[0]},scarlet\nb.mp4,{spans[1]},blue\n")
    assert [e.captions for e in read_list(path).entries] == [("red",), ("scarlet",), ("blue",)]
    path.write_text(f"video,{columns},caption\na.mp4,{spans[0]},red\na.mp4,{spans[1]},blue\n")
    with pytest.raises(VtrError, match=r"line 3: tells of a part of a\.mp4 .* and line 2 .* of another"):
        read_list(path)


def test_what_excel_writes_for_texts_and_for_errors_is_seen_through(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('id,file,caption\n="007",a.mp4,"=""red"""\n8,b.mp4,#NAME?\n')
    first, second = read_list(path).entries
    assert (first.key, first.captions) == ("007", ("red",))
    assert "'#NAME?' stands for a value that is missing" in second.bad


def test_sentences_of_a_paragraph_are_captions_of_the_whole_whatever_their_times(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"video": "a.mp4", "caption": ["red", "blue"], "timestamp": [[0, 5], [5, 9]]}]))
    assert read_list(path).entries[0].captions == ("red", "blue")


def test_captions_of_several_spans_in_one_row_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("videoID,timestamp,caption\na,\"[['0:00', '0:05'], ['0:05', '0:10']]\",\"['red', 'blue']\"\n")
    with pytest.raises(VtrError, match=r"line 2: tells of a part of a .* and the same row of another"):
        read_list(path)


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['red' 'a, b']", ("red", "a, b")),  # NumPy's
        ("['red'\n 'blue']", ("red", "blue")),
        ("['it''s red', \"x's\"]", ("it's red", "x's")),  # quotes doubled as SQL has them
        ("['red', 'blue']", ("red", "blue")),
    ],
)
def test_texts_listed_in_a_cell_are_not_glued(cell: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        json.dumps({"video": "a.mp4", "captions": cell}) + "\n" + json.dumps({"video": "b.mp4", "captions": "b"})
    )
    assert read_list(path).entries[0].captions == texts
