"""Shards: written, read, counted, built from lists, verified; what is wrong is said."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.helpers import video_bytes, write_videos
from vtr.cli import main
from vtr.data.build import build_shards, read_rows
from vtr.data.shards import ShardWriter, count_samples, expand_shards, iterate_samples, shard_sizes
from vtr.data.verify import verify_shards
from vtr.errors import VtrError


def write(folder: Path, count: int = 10, per: int = 4) -> list[str]:
    with ShardWriter(folder, per) as writer:
        for i in range(count):
            writer.write(f"{i:04d}", "mp4", b"video%d" % i, f"caption {i}", {"n": i})
    return expand_shards(str(folder))


def test_what_is_written_is_read_in_order_with_captions_and_json(tmp_path: Path) -> None:
    shards = write(tmp_path)
    assert [Path(s).name for s in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    samples = [s for shard in shards for s in iterate_samples(shard)]
    assert [(s.key, s.caption, s.media, s.meta) for s in samples] == [
        (f"{i:04d}", f"caption {i}", b"video%d" % i, {"n": i}) for i in range(10)
    ]
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"000000.tar": 4, "000001.tar": 4, "000002.tar": 2}


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert [Path(x).read_bytes() for x in a] == [Path(x).read_bytes() for x in b]


def test_a_part_of_a_shard_is_read_by_number(tmp_path: Path) -> None:
    shard = write(tmp_path, 6, 6)[0]
    assert [s.key for s in iterate_samples(shard, 2, 5)] == ["0002", "0003", "0004"]
    assert count_samples(shard) == 6


def test_sizes_are_counted_where_no_table_lists_them(tmp_path: Path) -> None:
    shards = write(tmp_path)
    (tmp_path / "sizes.json").unlink()
    assert shard_sizes(shards) == [4, 4, 2]


def test_a_cut_tar_says_after_how_many_samples(tmp_path: Path) -> None:
    shard = Path(write(tmp_path, 8, 8)[0])
    shard.write_bytes(shard.read_bytes()[:9000])
    with pytest.raises(VtrError, match="damaged after"):
        list(iterate_samples(str(shard)))


def test_missing_shards_of_a_list_are_all_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(VtrError, match=r"000003\.tar.*000004\.tar"):
        expand_shards(str(tmp_path / "{000000..000004}.tar"))


def test_a_pipe_is_refused_with_what_is_expected() -> None:
    with pytest.raises(VtrError, match=r"shell.*expected paths or URLs"):
        expand_shards("pipe:rm -rf /")


def test_lists_are_joined_by_double_colons(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(expand_shards(f"{tmp_path}/000000.tar::{tmp_path}/{{000001..000002}}.tar")) == 3


def listing(folder: Path, rows: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(rows)
    return path


def test_a_list_becomes_shards_and_bad_files_are_listed(tmp_path: Path) -> None:
    write_videos(tmp_path, 3)
    (tmp_path / "bad.mp4").write_bytes(b"<html>")
    path = listing(tmp_path, "video,caption\nclip0.mp4,one\nbad.mp4,two\nclip1.mp4,three\ngone.mp4,four\nclip2.mp4,\n")
    report = build_shards(path, tmp_path / "out", shard_size=2, workers=1)
    assert report.written == 2
    assert len(report.bad) == 3
    assert "bad.mp4" in report.bad[0]
    again = build_shards(path, tmp_path / "out", shard_size=2, workers=1)
    assert again.skipped_shards == 3
    assert again.written == 2


def test_a_build_that_lost_a_shard_makes_only_that_one_again(tmp_path: Path) -> None:
    write_videos(tmp_path, 4)
    path = listing(tmp_path, "video,caption\n" + "".join(f"clip{i}.mp4,c{i}\n" for i in range(4)))
    build_shards(path, tmp_path / "out", shard_size=2, workers=1)
    (tmp_path / "out" / ".journal" / "000001.json").unlink()
    kept = (tmp_path / "out" / "000000.tar").stat().st_mtime_ns
    report = build_shards(path, tmp_path / "out", shard_size=2, workers=1)
    assert (report.skipped_shards, report.written) == (1, 4)
    assert (tmp_path / "out" / "000000.tar").stat().st_mtime_ns == kept


def test_reencoding_changes_the_short_side(tmp_path: Path) -> None:
    from vtr.data.decode import probe

    write_videos(tmp_path, 1)
    path = listing(tmp_path, '{"video": "clip0.mp4", "caption": "x"}\n', "list.jsonl")
    build_shards(path, tmp_path / "out", workers=1, short_side=32, gop=4)
    sample = next(iterate_samples(str(tmp_path / "out" / "000000.tar")))
    info = probe(sample.media)
    assert (info.width, info.height, info.frames) == (32, 32, 12)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"film,title\na,b\n", "film, title; expected"),
        (b"video,caption\n", "no rows"),
        (b"video,caption\na.mp4,caf\xe9\n", "line 2 is not UTF-8"),
        (b"key,video,caption\n1,a.mp4,x\n1,b.mp4,y\n", "lines 2 and 3"),
    ],
)
def test_a_bad_list_is_one_clear_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(VtrError, match=says) as error:
        read_rows(path)
    assert "\n" not in str(error.value)


def test_a_missing_list_and_an_unwritable_folder_end_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "build", str(tmp_path / "no.csv"), "--out", str(tmp_path / "o")]) == 1
    assert "no such file" in capsys.readouterr().err
    path = listing(tmp_path, "video,caption\na.mp4,x\n")
    assert main(["shards", "build", str(path), "--out", "/proc/nowhere"]) == 1
    assert "/proc/nowhere" in capsys.readouterr().err


def test_verify_counts_and_names_what_is_wrong(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 10) as writer:
        writer.write("good", "mp4", video_bytes(), "fine")
        writer.write("html", "mp4", b"<html></html>", "not a video")
        writer.write("mute", "mp4", video_bytes(), "")
    report = verify_shards(expand_shards(str(tmp_path)))
    assert (report.samples, report.videos) == (3, 2)
    assert len(report.bad) == 2
    assert not report.broken
    (tmp_path / "sizes.json").write_text('{"000000.tar": 5}')
    assert "found 3" in verify_shards(expand_shards(str(tmp_path))).broken[0]


def test_real_shards_are_read_as_they_are(shared: Path) -> None:
    folder = shared / "data" / "shards"
    images = list(iterate_samples(str(folder / "cc12m-train-0000.tar")))
    assert len(images) == 32
    assert all(s.caption and s.media and s.extension == "jpg" for s in images)
    report = verify_shards([str(folder / "video2dataset_return_all_test.tar")])
    assert (report.samples, report.videos, report.images) == (6, 3, 3)
    assert len(report.bad) == 3


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        import io

        for name, data in (("a.mp4", b"v"), ("a.txt", b"t"), ("a.pkl", bomb), ("a.pyd", bomb)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sample = next(iterate_samples(str(tmp_path / "x.tar")))
    assert (sample.media, sample.caption) == (b"v", "t")
