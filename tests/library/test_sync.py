"""The life cycle: sync by content, forgetting, compaction, checks, long videos, limits that are written down."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, video_bytes, write_videos
from tests.library.test_library import indexed_above
from vtr.cli import run
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.verify import advice, verify


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_videos(tmp_path / "videos", 4)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    return library


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


def names(library: Library) -> set[str]:
    return {Path(h.path).name for h in library.search("a dog runs", k=100)}


def test_sync_adds_what_is_new_does_again_what_changed_and_drops_what_vanished(library: Library, videos: Path) -> None:
    before = {h.path: h.segment for h in library.search("a dog runs")}
    (videos / "clip0.mp4").unlink()
    (videos / "clip1.mp4").write_bytes(video_bytes(50))
    (videos / "new.mp4").write_bytes(video_bytes(51))
    report = library.sync(videos)
    assert (report.added, report.removed, report.unchanged, report.moved, report.failed) == (2, 1, 2, 0, [])
    assert names(library) == {"clip1.mp4", "clip2.mp4", "clip3.mp4", "new.mp4"}
    after = {h.path: h.segment for h in library.search("a dog runs")}
    assert after[str(videos / "clip2.mp4")] == before[str(videos / "clip2.mp4")]
    assert after[str(videos / "clip1.mp4")] != before[str(videos / "clip1.mp4")]
    assert verify(library, files=True) == []


def test_sync_notices_a_change_that_kept_size_and_time_and_quick_does_not(library: Library, videos: Path) -> None:
    clip = videos / "clip1.mp4"
    facts, content = clip.stat(), bytearray(clip.read_bytes())
    content[-1] ^= 1
    clip.write_bytes(content)
    os.utime(clip, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert library.sync(videos, quick=True).unchanged == 4
    assert verify(library, files=True) == [f"{clip}: the file has changed; vtr index sync does it again"]
    report = library.sync(videos)
    assert (report.added, report.unchanged) == (1, 3)
    assert verify(library, files=True) == []


def test_a_renamed_file_keeps_its_vectors_and_is_not_encoded(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = next(h.segment for h in library.search("a dog runs") if h.path.endswith("clip2.mp4"))
    (videos / "deeper").mkdir()
    (videos / "clip2.mp4").rename(videos / "deeper" / "renamed.mp4")
    monkeypatch.setattr(Library, "_pipeline", lambda *_: pytest.fail("encoded again"))
    report = library.sync(videos)
    assert (report.moved, report.added, report.removed, report.unchanged) == (1, 0, 0, 3)
    assert next(h.segment for h in library.search("a dog runs") if h.path.endswith("renamed.mp4")) == segment
    assert verify(library, files=True) == []


def test_two_files_that_change_names_are_told_apart(library: Library, videos: Path) -> None:
    (videos / "clip0.mp4").rename(videos / "x")
    (videos / "clip1.mp4").rename(videos / "clip0.mp4")
    (videos / "x").rename(videos / "clip1.mp4")
    library.sync(videos)
    assert verify(library, files=True) == []
    assert library.store.segments() == 4


def test_a_copy_is_not_encoded_again_and_outlives_the_original(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(videos / "clip0.mp4", videos / "copy.mp4")
    monkeypatch.setattr(Library, "_pipeline", lambda *_: pytest.fail("encoded again"))
    assert library.add(videos).known == 1
    (videos / "clip0.mp4").unlink()
    assert library.sync(videos).removed == 1
    library.compact()
    assert names(library) == {"clip1.mp4", "clip2.mp4", "clip3.mp4", "copy.mp4"}
    assert verify(library, files=True) == []


def test_sync_leaves_files_elsewhere_alone(library: Library, videos: Path, tmp_path: Path) -> None:
    write_videos(tmp_path / "videos2", 1)
    (tmp_path / "videos2" / "clip0.mp4").rename(tmp_path / "videos2" / "other.mp4")
    library.add(tmp_path / "videos2")
    (tmp_path / "videos2" / "other.mp4").unlink()
    assert library.sync(videos).removed == 0
    assert "other.mp4" in names(library)


def test_a_folder_that_is_gone_or_empty_forgets_nothing_unless_that_is_meant(library: Library, videos: Path) -> None:
    videos.rename(videos.with_name("elsewhere"))
    with pytest.raises(VtrError, match="no such folder"):
        library.sync(videos)
    videos.mkdir()  # as a mount point of a disk that is not mounted
    with pytest.raises(VtrError, match="is a disk not mounted") as error:
        library.sync(videos)
    assert "\n" not in str(error.value)
    assert library.store.segments() == 4
    assert library.sync(videos, may_be_empty=True).removed == 4
    assert library.search("a dog runs") == []


def test_files_of_a_folder_that_cannot_be_listed_are_not_forgotten(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "deep").mkdir()
    (videos / "clip3.mp4").rename(videos / "deep" / "clip3.mp4")
    library.sync(videos)
    real = os.scandir

    def scandir(place: object = ".") -> object:
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    report = library.sync(videos)
    assert report.removed == 0
    assert report.failed == [f"{videos / 'deep'}: the folder cannot be read"]
    assert library.store.segments() == 4


def test_what_cannot_be_read_any_more_keeps_its_vectors(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtr.library.ingest as module

    os.utime(videos / "clip0.mp4", (1, 1))

    def refused(file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "sha256", refused)
    report = library.add(videos)
    assert report.failed == [f"{videos / 'clip0.mp4'}: Permission denied"]
    assert "clip0.mp4" in names(library)


# -- compaction and checks ----------------------------------------------------------------------------------------------


def test_compaction_frees_the_room_of_what_was_forgotten_and_changes_no_answer(library: Library, videos: Path) -> None:
    library.remove([videos / "clip0.mp4", videos / "clip2.mp4"])
    before = library.search("a dog runs")
    size = library.store.vectors_file().stat().st_size
    done = library.compact()
    assert done["segments"] == 2
    assert library.store.vectors_file().stat().st_size == size / 2 == done["saved"]
    assert len(list(library.path.glob("embeddings*"))) == 1
    assert library.search("a dog runs") == before
    assert verify(library) == []
    library.add(videos)
    assert names(library) == {f"clip{i}.mp4" for i in range(4)}
    assert verify(library) == []


def test_a_reader_goes_on_while_another_process_compacts(library: Library, videos: Path) -> None:
    reader = Library.open(library.path, small_model())
    reader.search("a dog runs")
    library.remove([videos / "clip0.mp4"])
    before = library.search("a dog runs")
    library.compact()
    assert reader.search("a dog runs") == before


def test_an_index_grows_with_the_library_and_is_made_again_when_it_no_longer_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_videos(tmp_path / "videos", 6, frames=40)
    library = Library.create(tmp_path / "lib", small_model(), window=0.5, stride=0.25)
    indexed_above(monkeypatch, 20)
    library.add(videos[:2])
    first = library.info()["index"]
    assert first["type"] == "ivf-flat"
    library.add(videos[2:])
    second = library.info()["index"]
    assert second["count"] == library.store.segments()
    assert second["trained_on"] == first["trained_on"]  # 3 times as many: not trained again, but measured
    assert second["measured_on"] == second["count"]
    assert verify(library) == []
    library.remove(videos[1:])
    assert library.info()["index"]["type"] == "flat"  # few are left: exact search
    assert not (library.path / "index.faiss").exists()
    assert verify(library) == []


def test_too_little_memory_is_said_and_the_library_still_answers(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed_above(monkeypatch, 2)
    library.set_limits(max_memory=10)
    with pytest.raises(VtrError, match="max_memory"):
        library.compact()
    again = Library.open(library.path, small_model())
    assert again.settings.max_memory == 10
    assert len(again.search("a dog runs")) == 4
    again.set_limits(max_memory=1 << 30)
    again.compact()
    assert verify(again) == []


def test_segments_behind_the_index_are_advice_not_a_fault(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed_above(monkeypatch, 2)
    assert verify(library) == []
    assert "vtr index compact" in advice(library)[0]
    library.compact()
    assert advice(library) == []
    (library.path / "index.faiss").unlink()
    assert ["index.faiss is missing" in line for line in verify(library)] == [True]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("UPDATE segments SET row = 0", "rows that two segments share"),
        ("UPDATE segments SET row = row + 100", "rows beyond the last one"),
        ("UPDATE segments SET end = start - 1", "times make no sense"),
        ("DELETE FROM segments WHERE id = 1", "without a segment"),
        ("UPDATE videos SET reason = 'x' WHERE id = 1", "unreadable videos with segments"),
        ("INSERT INTO segments SELECT NULL, video, start, end, 3 FROM segments WHERE id = 1", "there twice"),
        ("UPDATE segments SET video = 77 WHERE id = 2", "videos that are not there"),
        ("UPDATE videos SET crc = 5 WHERE id = 1", "vectors are not those that were written"),
    ],
)
def test_verify_names_what_does_not_agree(library: Library, sql: str, says: str) -> None:
    assert verify(library) == []
    library.store.db.execute("PRAGMA foreign_keys=OFF")
    with library.store.db:
        library.store.db.execute(sql)
    assert any(says in line for line in verify(library)), verify(library)


def test_verify_sees_a_changed_byte_of_the_vectors(library: Library) -> None:
    with library.store.vectors_file().open("r+b") as file:
        file.seek(70)
        file.write(b"\x01")
    assert len(verify(library)) == 1
    assert "remove it and add it again" in verify(library)[0]


def test_verify_on_the_command_line_exits_1_when_something_is_wrong(
    library: Library, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", "verify", str(library.path)]) == 0
    assert "4 segments, all is well" in capsys.readouterr().out
    (videos / "clip0.mp4").unlink()
    assert run(["index", "verify", str(library.path)]) == 0
    capsys.readouterr()
    assert run(["index", "verify", str(library.path), "--files", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["problems"] == [
        f"{videos / 'clip0.mp4'}: the file is gone; "
        + "vtr index sync of the folder it is in now finds it again, vtr index remove forgets it"
    ]


def test_the_verbs_of_the_life_cycle_work_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = write_videos(tmp_path / "videos", 3)
    small_model().save_pretrained(tmp_path / "model")
    lib, folder = str(tmp_path / "lib"), str(tmp_path / "videos")
    build = ["index", "build", folder, "--model", str(tmp_path / "model"), "--out", lib]
    assert run([*build, "--window", "1", "--stride", "0.5", "--max-memory", "1G", "--token-cache", "1M"]) == 0
    assert "3 added" in capsys.readouterr().err
    videos[0].unlink()
    assert run(["index", "sync", lib, folder]) == 0
    assert "2 unchanged, 1 removed" in capsys.readouterr().err
    assert run(["index", "remove", lib, str(videos[1])]) == 0
    assert run(["index", "add", lib, folder]) == 0
    assert run(["index", "compact", lib]) == 0
    assert "recall@10 1" in capsys.readouterr().err
    assert run(["index", "info", lib, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["videos"], info["max_memory"], info["token_cache"]) == (2, 1 << 30, 1 << 20)
    assert (info["window"], info["stride"]) == (1.0, 0.5)


def test_a_long_video_is_embedded_in_constant_memory(tmp_path: Path) -> None:
    """An hour at 8 fps: its frames alone would be 200 MB at 48 pixels."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "hour.mp4").write_bytes(_hour())
    library = Library.create(tmp_path / "lib", small_model(), window=8.0, stride=8.0)
    library.add(write_videos(tmp_path / "short", 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = library.add(tmp_path / "videos")
    assert report.segments >= 449
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10  # KiB
    last = library.search("a dog", k=1000, all_moments=True, unmerged=True)
    assert max(h.end for h in last) == pytest.approx(3600, abs=9)


def _hour() -> bytes:
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(450):
            picture = np.full((48, 48, 3), random.integers(0, 255, 3), np.uint8)
            for _ in range(64):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def test_a_file_of_a_size_that_no_other_has_is_hashed_after_its_windows(
    library: Library, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtr.library.ingest as module

    before: list[str] = []
    real = module.sha256

    def noted(file: Path) -> str:
        before.append(file.name)
        return real(file)

    monkeypatch.setattr(module, "sha256", noted)
    content = (videos / "clip0.mp4").read_bytes()
    (videos / "longer.mp4").write_bytes(content + b"\0\0\0\x08free")
    (videos / "copy.mp4").write_bytes(content)
    report = library.add(videos)
    assert (report.added, report.known) == (2, 1)
    assert before == ["copy.mp4"]  # the decoder has hashed the other
    assert library.store.video_at(str(videos / "longer.mp4")).facts.sha256 == real(videos / "longer.mp4")  # type: ignore[union-attr]
