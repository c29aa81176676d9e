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
