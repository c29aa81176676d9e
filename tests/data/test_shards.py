"""Shards: written, read, counted, built from lists, verified; what is wrong is said."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import video_bytes, write_tar, write_videos
from vtr.cli import main
from vtr.data.build import build_shards, read_rows
from vtr.data.shard_reader import FILES, TarIndex, captions_in
from vtr.data.shards import (
    ShardWriter,
    count_samples,
    expand_shards,
    iterate_samples,
    members_of,
    sample_keys,
    sample_of,
    shard_sizes,
)
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
        for name, data in (("a.mp4", b"v"), ("a.txt", b"t"), ("a.pkl", bomb), ("a.pyd", bomb)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sample = next(iterate_samples(str(tmp_path / "x.tar")))
    assert (sample.media, sample.caption) == (b"v", "t")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_alike_in_every_form_of_a_tar(form: int, tmp_path: Path) -> None:
    names = ["a/1.mp4", "a/1.txt", "b/2.mp4", "b/2.txt", "c" * 90 + ".mp4", "c" * 90 + ".json"]
    names += ["d" * 60 + "/" + "e" * 70 + ".mp4", "._f.mp4", "noending", "g.mp4"]
    names += ["é 1.mp4", "h" * 180 + ".mp4"] if form != tarfile.USTAR_FORMAT else []
    path = write_tar(tmp_path / "a.tar", [(n, bytes(i * 300)) for i, n in enumerate(names)], form)
    with tarfile.open(path) as real:
        expected = [(m.offset, m.offset_data, m.offset_data + m.size, m.name) for m in real if m.isfile()]
    assert list(members_of(str(path))) == expected
    keys = [s.key for s in iterate_samples(str(path))]
    assert sample_keys(str(path)) == keys
    assert count_samples(str(path)) == len(keys)
    index = TarIndex(str(path))
    assert [index.read(i).key for i in range(len(keys))] == keys  # type: ignore[union-attr]


def test_a_sample_begins_where_a_member_stands_a_second_time(tmp_path: Path) -> None:
    members = [(f"{k}.{e}", f"{i}{e}".encode()) for i, k in enumerate("aab") for e in ("mp4", "txt")]
    path = str(write_tar(tmp_path / "a.tar", members))
    assert [(s.key, s.caption) for s in iterate_samples(path)] == [("a", "0txt"), ("a", "1txt"), ("b", "2txt")]
    assert count_samples(path) == 3
    assert [TarIndex(path).read(i).nth for i in range(3)] == [0, 1, 0]  # type: ignore[union-attr]


def test_archives_joined_behind_each_other_are_named_by_every_reader(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{k}.tar", [(f"{k}.mp4", b"v"), (f"{k}.txt", b"x")]) for k in "ab"]
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    said = r"another archive is behind its end \(byte 2048\).*tar --concatenate"
    with pytest.raises(VtrError, match=said):
        list(iterate_samples(str(path)))
    with pytest.raises(VtrError, match="damaged after 1 samples.*" + said):
        count_samples(str(path))
    assert re.search(said, TarIndex(str(path)).damage)


def test_a_sparse_member_is_read_alike_by_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:  # as tar --sparse writes it
        data = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        info = tarfile.TarInfo("GNUSparseFile.0/a.mp4")
        info.size = len(data)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a.mp4",
            "GNU.sparse.realsize": "9000",
        }
        out.addfile(info, io.BytesIO(data))
        text = tarfile.TarInfo("a.txt")
        text.size = 1
        out.addfile(text, io.BytesIO(b"x"))
    sample = next(iterate_samples(str(path)))
    assert (sample.media, sample.caption) == (b"data" + bytes(8996), "x")
    index = TarIndex(str(path))
    assert (index.damage, index.read(0)) == ("", sample)


@pytest.mark.parametrize(
    ("head", "says"),
    [(b"\x1f\x8b\x08", "gzip-compressed"), (b"PK\x03\x04", "a zip archive"), (b"<html>", "a web page")],
)
def test_what_is_no_tar_is_told_what_it_is(head: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(head.ljust(2000, b"0"))
    with pytest.raises(VtrError, match=f"a.tar: not a readable tar .it is {says}"):
        list(iterate_samples(str(tmp_path / "a.tar")))
    assert says in TarIndex(str(tmp_path / "a.tar")).damage


@pytest.mark.parametrize(
    ("members", "captions", "fault"),
    [
        ({"txt": b"one"}, ("one",), ""),
        ({"txt": "\ufeffone\r\n".encode()}, ("one",), ""),
        ({"txt": b"one\n\ntwo\n"}, ("one", "two"), ""),
        ({"txt": b"a long\ncaption", "json": b'{"caption": "a long caption"}'}, ("a long\ncaption",), ""),
        ({"txt": "a\u2028b".encode()}, ("a\u2028b",), ""),
        ({"txt": b"caf\xe9"}, (), "not UTF-8"),
        ({"json": b'{"caption": "one"}'}, ("one",), ""),
        ({"json": b'{"caption": ["one", "two"]}'}, ("one", "two"), ""),
        ({"json": b'{"caption": 7}'}, (), "the number 7, not text"),
        ({"json": b'{"caption": ["one", 2]}'}, (), "caption 2 of 2 is the number 2"),
        ({"json": b'{"caption": null}'}, (), "no caption: its members are mp4, json"),
        ({"json": b"{"}, (), "not JSON"),
        ({"json": b'["one"]'}, (), "no caption"),
        ({"txt": b" ", "json": b'{"caption": "one"}'}, ("one",), ""),
        ({"txt": b"None"}, (), "'None' stands for a value that is missing"),
        ({"txt": b"one\n...\n"}, (), "caption 2 of 2: no caption: '...'"),
        ({"txt": b"['one', 'two']"}, ("one", "two"), ""),
        ({"txt": b"one", "json": b"{"}, ("one",), ""),
        ({}, (), "no caption: its members are mp4, and captions are read from .txt"),
    ],
)
def test_captions_are_read_from_the_txt_or_the_json(
    members: dict[str, bytes], captions: tuple[str, ...], fault: str
) -> None:
    sample = sample_of("key", {"mp4": b"v", **members})
    assert sample.captions == captions
    assert fault in sample.fault
    assert bool(sample.fault) == bool(fault)


def test_verify_names_the_members_and_the_rule_and_fails_where_nothing_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = video_bytes()
    for name, members, says in (
        (
            "dots",
            [("show 1 (v1.0).mp4", clip), ("show 1 (v1.0).txt", b"x")],
            ["show 1 (v1", "0).mp4, 0).txt", "first dot"],
        ),
        ("multi", [("a.input.mp4", clip), ("a.outputs.txt", b"x")], ["input.mp4, outputs.txt", "first dot"]),
        ("other", [("a.video", clip), ("a.caption", b"x")], ["video, caption", "mp4, webm"]),
        ("text", [("a.mp4", clip), ("a.json", b'{"text": "x"}')], ["no caption", "mp4, json", '"caption" in .json']),
        ("number", [("a.mp4", clip), ("a.json", b'{"caption": 3}')], ["the caption is the number 3, not text"]),
        ("cut", [("a.mp4", clip[:-300]), ("a.txt", b"x")], ["cut off: 300 of its"]),
    ):
        assert main(["shards", "verify", str(write_tar(tmp_path / f"{name}.tar", members))]) == 1
        out = capsys.readouterr().out
        assert all(word in out for word in says), out
    good = str(write_tar(tmp_path / "good.tar", [("a.mp4", clip), ("a.txt", b"x")]))
    assert main(["shards", "verify", good, str(tmp_path / "text.tar")]) == 0


def test_verify_lists_equal_keys_in_a_shard_and_in_two(tmp_path: Path) -> None:
    clip = video_bytes()
    for name, keys in (("a", "112"), ("b", "23")):
        write_tar(tmp_path / f"{name}.tar", [m for k in keys for m in ((f"{k}.mp4", clip), (f"{k}.txt", b"x"))])
    report = verify_shards(expand_shards(str(tmp_path)))
    assert report.samples == 5
    assert [line.partition(" ")[0] for line in report.equal] == ["a.tar#1:", "b.tar#2:"]
    assert not report.failed


def captions_of(out: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(s.key, s.captions) for shard in expand_shards(str(out)) for s in iterate_samples(shard)]


def test_a_build_called_again_builds_what_changed_and_keeps_the_rest(tmp_path: Path) -> None:
    write_videos(tmp_path, 6)
    rows = ["video,caption", *(f"clip{i}.mp4,caption {i}" for i in range(4)), "clip9.mp4,not there yet"]
    path, out = listing(tmp_path, "\n".join(rows) + "\n"), tmp_path / "out"

    def build(**more: object) -> tuple[int, int, int, int, int]:
        report = build_shards(path, out, shard_size=2, workers=1, **more)  # type: ignore[arg-type]
        sizes = json.loads((out / "sizes.json").read_text())
        assert sum(sizes.values()) == report.written == len(captions_of(out))
        return report.written, report.skipped_shards, report.rebuilt, report.removed, len(report.bad)

    assert build() == (4, 0, 0, 0, 1)
    kept = (out / "000000.tar").stat().st_mtime_ns
    rows[3] = "clip2.mp4,corrected"  # of the second shard
    (tmp_path / "clip9.mp4").write_bytes((tmp_path / "clip5.mp4").read_bytes())  # of the third
    listing(tmp_path, "\n".join(rows) + "\n")
    assert build() == (5, 1, 2, 0, 0)
    assert captions_of(out)[2] == ("000000002", ("corrected",))
    assert build() == (5, 3, 0, 0, 0)
    listing(tmp_path, "\n".join([*rows, "clip4.mp4,new", "clip5.mp4,newer"]) + "\n")
    assert build() == (7, 2, 1, 0, 0)
    assert (out / "000000.tar").stat().st_mtime_ns == kept
    listing(tmp_path, "\n".join(rows[:3]) + "\n")
    assert build() == (2, 1, 0, 3, 0)
    assert sorted(p.name for p in out.glob("*.tar")) == ["000000.tar"]
    other = tmp_path / "other"
    write_videos(other, 2)
    assert build(root=other) == (2, 0, 1, 0, 0)
    with pytest.raises(VtrError, match=r"short_side 0, now 32.*choose another folder"):
        build(short_side=32)


def test_a_build_into_the_shards_of_another_list_is_refused(tmp_path: Path) -> None:
    write_videos(tmp_path, 2)
    build_shards(listing(tmp_path, "video,caption\nclip0.mp4,x\n"), tmp_path / "out", workers=1)
    with pytest.raises(VtrError, match="holds shards made with other settings"):
        build_shards(listing(tmp_path, "video,caption\nclip1.mp4,y\n", "b.csv"), tmp_path / "out", workers=1)
    assert captions_of(tmp_path / "out") == [("000000000", ("x",))]


def test_what_a_killed_build_left_is_finished_and_cleared(tmp_path: Path) -> None:
    write_videos(tmp_path, 4)
    path, out = (
        listing(tmp_path, "video,caption\n" + "".join(f"clip{i}.mp4,c{i}\n" for i in range(4))),
        tmp_path / "out",
    )
    build_shards(path, out, shard_size=2, workers=2)
    whole = [p.read_bytes() for p in sorted(out.glob("*.tar"))]
    (out / "000001.tar").unlink()
    (out / ".journal" / "000001.json").unlink()
    (out / "000001.tar.tmp").write_bytes(b"half")
    build_shards(path, out, shard_size=2, workers=2)
    assert [p.read_bytes() for p in sorted(out.glob("*.tar"))] == whole
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("options", [{}, {"short_side": 32}])
def test_a_cut_off_video_is_never_built_into_shards(options: dict[str, int], tmp_path: Path) -> None:
    paths = write_videos(tmp_path, 2, frames=40)
    paths[0].write_bytes(paths[0].read_bytes()[:-200])
    path = listing(tmp_path, "video,caption\nclip0.mp4,x\nclip1.mp4,y\n")
    report = build_shards(path, tmp_path / "out", workers=1, **options)
    assert report.written == 1
    assert report.bad[0].startswith("line 2: ")
    assert "cut off" in report.bad[0]


def test_ids_of_a_list_become_keys_that_differ(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    ids = ["a.b", "a_b", "a/b", "007", "7", "A", "a", "x" * 200, "é 1", "0"]
    rows = [{"id": i, "video": "clip0.mp4", "caption": f"id {n}"} for n, i in enumerate(ids)]
    rows.append({"id": 12, "video": "clip0.mp4", "caption": "id 10"})
    path = listing(tmp_path, json.dumps(rows), "list.json")
    assert build_shards(path, tmp_path / "out", workers=1).written == 11
    found = captions_of(tmp_path / "out")
    assert [captions for _, captions in found] == [(f"id {n}",) for n in range(11)]
    assert len({key for key, _ in found}) == 11
    assert [key for key, _ in found][3:] == [*ids[3:], "12"]
    assert not verify_shards(expand_shards(str(tmp_path / "out"))).equal


def test_several_captions_of_a_row_are_one_sample(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    path = listing(tmp_path, '{"video": "clip0.mp4", "caption": ["a dog\\nruns", "a cat"]}\n', "list.jsonl")
    build_shards(path, tmp_path / "out", workers=1)
    assert captions_of(tmp_path / "out") == [("000000000", ("a dog runs", "a cat"))]


def test_a_name_without_an_ending_finds_its_video_and_a_url_is_refused(tmp_path: Path) -> None:
    write_videos(tmp_path / "v", 2)
    rows = "video_id,sentence\nclip0,x\nv/clip1,y\nclip7,z\nhttps://example.org/a.mp4,u\n"
    report = build_shards(listing(tmp_path, rows), tmp_path / "out", workers=1)
    assert report.written == 2
    assert "clip7: no such file" in report.bad[0]
    assert "is a URL: download it first" in report.bad[1]


def test_shards_of_the_earlier_writer_are_read_as_they_were(tmp_path: Path) -> None:
    members = [("a.mp4", b"v"), ("a.txt", b"two\nlines"), ("a.json", json.dumps({"caption": "two\nlines"}).encode())]
    sample = next(iterate_samples(str(write_tar(tmp_path / "a.tar", members))))
    assert (sample.caption, sample.captions) == ("two\nlines", ("two\nlines",))


def test_captions_of_shards_and_lists_are_read_without_their_media(tmp_path: Path) -> None:
    members = [
        ("a.mp4", b"v"),
        ("a.txt", b"one\ntwo"),
        ("b.mp4", b"v"),
        ("b.json", b'{"caption": "three"}'),
        ("c.mp4", b"v"),
    ]
    assert list(captions_in(str(write_tar(tmp_path / "a.tar", members)))) == ["one", "two", "three"]
    path = listing(tmp_path, "video,caption\na.mp4,four\nb.mp4,nan\nc.mp4,five\n")
    assert list(captions_in(FILES + str(path))) == ["four", "five"]


@pytest.mark.parametrize("name", ["001.tar.gz", "001.tgz", "001.TAR"])
def test_a_folder_of_shards_leaves_no_packed_one_out_in_silence_but_system_files(name: str, tmp_path: Path) -> None:
    for other in ("000.tar", "._000.tar"):
        (tmp_path / other).write_bytes(b"")
    assert expand_shards(str(tmp_path)) == [str(tmp_path / "000.tar")]
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(VtrError, match=f"{re.escape(name)}: shards end in .tar and are not compressed"):
        expand_shards(str(tmp_path))


def test_whatever_a_build_takes_its_readers_find_in_the_shards(tmp_path: Path) -> None:
    names = ("a.tif", "b.jfif", "c.m2ts", "d.MPEG", "e.apng", "f.heic")
    for name in names:
        kind = {"a.tif": "TIFF", "b.jfif": "JPEG"}.get(name)
        if kind:
            Image.new("RGB", (16, 16)).save(tmp_path / name, kind)
        else:  # what it holds is told by its first bytes
            (tmp_path / name).write_bytes(video_bytes())
    listing = tmp_path / "list.csv"
    listing.write_text("file,caption\n" + "".join(f"{name},of {name}\n" for name in names))
    report = build_shards(listing, tmp_path / "out", workers=1)
    found = list(iterate_samples(str(tmp_path / "out" / "000000.tar")))
    assert report.written == len([s for s in found if s.media]) == len(names)
    assert [s.extension for s in found] == [name[2:].lower() for name in names]
    verified = verify_shards([str(tmp_path / "out" / "000000.tar")])
    assert (verified.images, verified.videos, verified.bad) == (2, 4, [])


def test_a_member_of_two_endings_is_no_media() -> None:
    assert sample_of("k", {"front.mp4": b"x", "rear.mp4": b"y", "txt": b"a"}).media == b""
