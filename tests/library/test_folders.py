"""Folders as they are: what is left out and counted, moves, metadata that fits nothing, dates, locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import small_model, video_bytes, write_tar, write_videos
from vtr.cli import main
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.files import media_source, read_metadata, texts_like_numbers
from vtr.library.rows import Metadata
from vtr.library.scan import find_media
from vtr.library.work import wanted


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def picture(path: Path, colour: str = "green") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(path)
    return path


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    """One video and one photo, and what Macs, NAS boxes and desktops put beside them."""
    album = tmp_path / "nas" / "album"
    put(album / "IMG_0001.MOV", video_bytes(0))
    picture(album / "IMG_0002.JPG")
    for name in ("IMG_0001.MOV", "IMG_0002.JPG"):
        put(album / f"._{name}", b"\0\5\x16\7\0\2\0\0Mac OS X")
    for name in (".DS_Store", "Thumbs.db", "film.mkv.part", "clip.mp4.crdownload", "clip.temp.mp4", "notes.xyz"):
        put(album / name)
    put(album / "big.mp4", video_bytes(7)[:300])
    put(album / "big.mp4.aria2")
    for place in ("@eaDir/IMG_0002.JPG/SYNOPHOTO_THUMB_XL.jpg", ".@__thumb/s100.jpg", "../#recycle/old.jpg"):
        picture(album / place)
    picture(tmp_path / "nas" / "$RECYCLE.BIN" / "S-1-5" / "$RABC.jpg")
    picture(tmp_path / "nas" / ".Trash-1000" / "files" / "deleted.jpg")
    picture(tmp_path / "nas" / ".hidden" / "x.jpg")
    put(tmp_path / "nas" / ".secret.mp4", video_bytes(3))
    return tmp_path / "nas"


def names(library: Library) -> set[str]:
    return {Path(h.path).name for h in library.search("a dog runs", k=100)}


def test_what_systems_put_into_folders_is_left_out_and_counted(
    nas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Library.create(tmp_path / "lib", small_model()) as library:
        report = library.add(nas)
        assert names(library) == {"IMG_0001.MOV", "IMG_0002.JPG"}
    assert report.failed == []
    for part in (
        "2 ._*",
        "1 .part",
        "1 .crdownload",
        "1 .xyz",
        "1 .DS_Store",
        "1 @eaDir",
        "1 #recycle",
        "1 .Trash-1000",
    ):
        assert part in report.skipped
    files, folders = report.skipped.split("; ")
    assert files.startswith("11 files skipped: ")
    assert folders.startswith("6 folders skipped: ")
    small_model().save_pretrained(tmp_path / "model")
    assert main(["index", "build", str(nas), "--out", str(tmp_path / "other"), "--model", str(tmp_path / "model")]) == 0
    assert report.skipped in capsys.readouterr().err


def test_previews_that_programs_keep_beside_their_originals_are_left_out(tmp_path: Path) -> None:
    for place in (
        "Fotos.photoslibrary/originals/0/A1.jpg",
        "Fotos.photoslibrary/resources/derivatives/A1_1_105_c.jpg",
        "films/film.trickplay/320 - 10x10/0.jpg",
        "Catalog Previews.lrdata/root.jpg",
        "LOST.DIR/1.jpg",
        "Network Trash Folder/2.jpg",
        "resources/mine.jpg",
    ):
        picture(tmp_path / "v" / place)
    found = find_media([tmp_path / "v"])
    assert {f.name for f in found.files} == {"A1.jpg", "mine.jpg"}
    assert "1 previews of a .photoslibrary" in found.skipped()
    assert "1 *.trickplay" in found.skipped()


def test_hidden_files_are_taken_where_that_is_asked_for_and_trash_is_not(nas: Path, tmp_path: Path) -> None:
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(nas, include_hidden=True)
        found = {Path(h.path).name for h in library.search("a dog runs", k=100, unmerged=True)}
        assert found == {"IMG_0001.MOV", "IMG_0002.JPG", ".secret.mp4", "x.jpg"}


def test_a_folder_named_outright_is_searched_whatever_its_name(nas: Path) -> None:
    assert [f.name for f in find_media([nas / ".hidden"]).files] == ["x.jpg"]
    assert [f.name for f in find_media([nas / "#recycle"]).files] == ["old.jpg"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (("*.png",), {"a.mp4", "b.mp4"}),
        (("raw",), {"a.mp4", "c.png"}),
        (("raw/*.mp4",), {"a.mp4", "c.png"}),
        (("raw/",), {"a.mp4", "c.png"}),
        (("a.*", "*.png"), {"b.mp4"}),
        (("other/*",), {"a.mp4", "b.mp4", "c.png"}),
    ],
)
def test_files_and_folders_are_left_out_by_pattern(tmp_path: Path, patterns: tuple[str, ...], left: set[str]) -> None:
    for name in ("a.mp4", "raw/b.mp4", "c.png"):
        put(tmp_path / "v" / name)
    scan = find_media([tmp_path / "v"], exclude=patterns)
    assert {f.name for f in scan.files} == left
    assert ("(excluded)" in scan.skipped()) == (len(left) < 3)


def test_what_is_left_out_is_remembered_and_a_sync_goes_by_it(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 3)
    with Library.create(tmp_path / "lib", small_model()) as library:
        assert library.add(tmp_path / "v", exclude=["clip0*"]).added == 2
        assert library.sync(tmp_path / "v").removed == 0
        assert names(library) == {"clip1.mp4", "clip2.mp4"}
        assert library.sync(tmp_path / "v", exclude=["clip1*"]).removed == 1
        assert names(library) == {"clip0.mp4", "clip2.mp4"}
        assert library.info()["exclude"] == ("clip1*",)
    with Library.open(tmp_path / "lib", small_model()) as library:
        assert library.sync(tmp_path / "v").added == 0
        assert library.sync(tmp_path / "v", exclude=[""]).added == 1
        assert names(library) == {v.name for v in videos}


@pytest.mark.parametrize(
    "ending",
    [
        "3g2",
        "asf",
        "f4v",
        "dv",
        "rmvb",
        "divx",
        "m2v",
        "h264",
        "ivf",
        "apng",
        "jfif",
        "heif",
        "ogm",
        "hevc",
        "insv",
        "MP4",
        "Jpe",
    ],
)
def test_more_endings_are_media(tmp_path: Path, ending: str) -> None:
    put(tmp_path / "v" / f"x.{ending}")
    assert len(find_media([tmp_path / "v"]).files) == 1


def test_a_folder_of_other_files_says_what_was_there(tmp_path: Path) -> None:
    put(tmp_path / "v" / "a.xyz")
    put(tmp_path / "v" / "b.mkv.part")
    with pytest.raises(
        VtrError, match=r"no video or image files in this folder \(2 files skipped: 1 .xyz, 1 .part\)|1 .part"
    ):
        find_media([tmp_path / "v"])


# -- moves ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["add", "sync"])
def test_a_renamed_folder_is_a_move_not_doubles(tmp_path: Path, call: str) -> None:
    write_videos(tmp_path / "before", 3)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "before")
        segments = {h.segment for h in library.search("a dog runs")}
        (tmp_path / "before").rename(tmp_path / "after")
        report = getattr(library, call)(tmp_path / "after")
        assert (report.moved, report.added, report.known) == (3, 0, 0)
        hits = library.search("a dog runs", unmerged=True)
        assert {h.segment for h in hits} == segments
        assert {Path(h.path).parent for h in hits} == {tmp_path / "after"}


def test_a_copy_whose_other_file_is_still_there_is_no_move(tmp_path: Path) -> None:
    [video] = write_videos(tmp_path / "v", 1)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "v")
        put(tmp_path / "v" / "copy.mp4", video.read_bytes())
        report = library.add(tmp_path / "v")
        assert (report.moved, report.known, report.added) == (0, 1, 1)


def test_a_model_that_has_moved_is_named_with_what_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "model")
    write_videos(tmp_path / "v", 1)
    assert (
        main(
            ["index", "build", str(tmp_path / "v"), "--out", str(tmp_path / "lib"), "--model", str(tmp_path / "model")]
        )
        == 0
    )
    (tmp_path / "model").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["search", str(tmp_path / "lib"), "a dog"]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/model" in err
    assert "name it with --model" in err
    with pytest.raises(VtrError, match=r"name it with model$"):
        Library.open(tmp_path / "lib").search("a dog")


# -- metadata -------------------------------------------------------------------------------------------------------------


def test_metadata_that_fits_no_file_is_said(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 2)
    with Library.create(tmp_path / "lib", small_model()) as library:
        report = library.add(
            tmp_path / "v",
            metadata={"clip0.mp4": {"views": 1}, "clip9.mp4": {"views": 2}, str(videos[0]): {"views": 3}},
        )
        [note] = report.notes
        assert note.startswith("metadata: 2 of 3 rows fit no file of the library (first: ")
        assert "relative to the folder that the listing is in" in note


def test_metadata_columns_with_names_of_ours_are_said_when_given_and_when_asked_for(tmp_path: Path) -> None:
    [video] = write_videos(tmp_path / "v", 1)
    with Library.create(tmp_path / "lib", small_model()) as library:
        report = library.add(tmp_path / "v", metadata={str(video): {"date": "1999-01-02", "views": 3}})
        assert report.notes == ["metadata: in a filter, date are the file's own; ask for these columns as meta.date"]
        hits = library.search("a dog", where='date >= "2020" and views = 3')
        assert len(hits) == 1
        assert hits.notes == ["date in the filter is the file's own; the metadata column is meta.date"]
        assert library.search("a dog", where='meta.date < "2000"').notes == []
        with pytest.raises(VtrError) as error:
            library.search("a dog", where="datum > 3")
        assert str(error.value).count("'date'") <= 1


def test_two_rows_of_one_file_with_other_values_are_refused(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,views\na.mp4,3\nb.mp4,1\n./a.mp4,3\n")
    assert len(read_metadata(listing)) == 2
    listing.write_text("path,views\na.mp4,3\nb.mp4,1\n./a.mp4,4\n")
    with pytest.raises(VtrError, match=r"line 4: \./a\.mp4 has other values in line 2"):
        read_metadata(listing)


def test_texts_that_look_like_numbers_and_dates_are_told_as_a_filter_does_not_read_them() -> None:
    rows: list[Metadata] = [
        {
            "price": "12,25",
            "views": 3,
            "day": "03.02.2024",
            "share": "5 %",
            "id": "007",
            "when": "2024-02-03",
            "say": "4 dogs",
        },
        {
            "price": "1.000,5",
            "views": "1 000",
            "day": "3/2/24",
            "share": 1,
            "id": "12",
            "when": "2024",
            "say": "5 or 6",
        },
    ]
    told = [note.split(" is ")[0] for note in texts_like_numbers(rows)]
    assert told == [f"metadata: {name}" for name in ("price", "day", "share", "views")]


def test_metadata_of_a_file_that_is_in_the_library_already_is_taken(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "v", 2)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "v")
        report = library.add(videos[1], metadata={str(videos[0]): {"views": 7}})
        assert report.notes == []
        assert [Path(h.path).name for h in library.search("a dog", where="views = 7")] == ["clip0.mp4"]


# -- dates, locks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "shown"), [(2.0**40, "@1099511627776"), (-3e9, "18"), (-6.3e10, "@-63000000000"), (None, None)]
)
def test_time_stamps_that_no_calendar_holds_are_shown_as_seconds(stamp: float | None, shown: str | None) -> None:
    from vtr.library.store import day_of

    found = day_of(stamp)
    assert found == shown or (found is not None and shown is not None and found.startswith(shown))


def test_a_library_with_such_a_stamp_is_exported_and_filtered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    write_videos(tmp_path / "v", 2)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "v")
        with library.store.change():
            library.store.db.execute("UPDATE videos SET modified = ? WHERE path LIKE '%clip0%'", (2.0**40,))
        assert len(library.search("a dog", where='date < "9999"')) == 1
        assert len(library.search("a dog", where='date > "9999"')) == 1
        assert len(library.search("a dog", where='date >= "0001" and date <= "9999-12-31"')) == 1
    assert main(["index", "export", str(tmp_path / "lib"), "--out", str(tmp_path / "x.parquet")]) == 0


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.library import store as module

    write_videos(tmp_path / "v", 1)
    with Library.create(tmp_path / "lib", small_model()) as library:

        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(module.fcntl, "flock", flock)
        with pytest.raises(VtrError, match=r"gives no lock \(No locks available\).*local disk") as error:
            library.add(tmp_path / "v")
        assert "another process" not in str(error.value)


def test_a_list_to_be_embedded_finds_its_files_as_every_list_does(tmp_path: Path) -> None:
    names = ["007.mp4", "cafe\u0301.mp4", "sub/deep.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("video\n007\ncaf\u00e9.mp4\ndeep.mp4\ngone.mp4\n", encoding="utf-8")
    found = [item.name for item in wanted([str(tmp_path / "list.csv")]).items]
    assert found == [str(tmp_path / name) for name in (*names, "gone.mp4")]


def test_a_sample_whose_members_are_written_with_capitals_is_found_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x/A.MP4", b"film"), ("x/A.txt", b"a dog")])
    assert media_source(str(tmp_path / "a.tar" / "x" / "A.mp4")) == b"film"
    with pytest.raises(VtrError, match="no such sample"):
        media_source(str(tmp_path / "a.tar" / "x" / "a.mp4"))


def test_rows_of_one_file_that_differ_are_counted_and_a_lists_metadata_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "one.csv").write_text("path,caption\na.mp4,a dog\na.mp4,a cat\nb.mp4,a cow\n")
    found = wanted([str(tmp_path), str(tmp_path / "one.csv")])
    assert [item.metadata for item in found.items] == [{"caption": "a dog"}, {"caption": "a cow"}]
    assert found.skipped.endswith(
        f"1 with several rows of metadata that differ, all but the first left out (first: {tmp_path / 'a.mp4'})"
    )
