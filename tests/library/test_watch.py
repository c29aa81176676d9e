"""A library that follows its folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import small_model, video_bytes, write_videos
from vtr.library import Library
from vtr.library.ingest import AddReport
from vtr.library.settings import Work
from vtr.library.watch import _Unrest, needs_polling, watch

HERE = Work(workers=0)


def content(library: Library) -> list[tuple[str, str | None, list[tuple[float, float]]]]:
    """What a library holds, however it came to."""
    videos = library.store.readable_files()
    return [(v.path, v.facts.sha256, [tuple(s) for s in library.store.spans_of(v.id)[0]]) for v in videos]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_videos(tmp_path / "videos", 2, frames=16)
    return tmp_path


@pytest.mark.parametrize("poll", [False, True])
def test_what_happens_in_a_folder_happens_in_the_library(place: Path, poll: bool) -> None:
    folder, stop = place / "videos", threading.Event()
    with Library.create(place / "lib", small_model(), window=2.0, stride=2.0) as library:
        reports: Iterator[AddReport] = watch(library, [folder], poll=poll, rest=0.2, stop=stop, work=HERE)
        assert next(reports).added == 2
        (folder / "new").mkdir()
        (folder / "new" / "c.mp4").write_bytes(video_bytes(7, 16))
        assert next(reports).added == 1
        (folder / "clip0.mp4").rename(folder / "renamed.mp4")
        assert next(reports).moved == 1
        (folder / "new" / "c.srt").write_text("1\n00:00:01,000 --> 00:00:01,500\nhello\n")
        assert next(reports).spoken == 1
        (folder / "clip1.mp4").unlink()
        assert next(reports).removed == 1
        shutil.rmtree(folder / "new")
        assert next(reports).removed == 1
        stop.set()
        assert list(reports) == []
        assert [Path(path).name for path, _, _ in content(library)] == ["renamed.mp4"]


def test_a_file_that_grows_is_left_alone_until_it_rests(place: Path) -> None:
    path = place / "videos" / "film.mp4"
    path.write_bytes(b"a")
    unrest = _Unrest(rest=0.0)
    unrest.heard(str(path), new=True)
    path.write_bytes(b"ab")
    assert unrest.look() == (set(), {str(path)})
    assert unrest.look() == ({str(path)}, set())
    path.unlink()
    unrest.done({str(path)})
    assert unrest.look() == (set(), {str(path)})  # it is gone since: that is news


def test_files_that_are_left_stay_as_they_were_in_the_library(place: Path) -> None:
    folder = place / "videos"
    with Library.create(place / "lib", small_model(), window=2.0, stride=2.0) as library:
        library.add(folder, work=HERE)
        before = content(library)
        (folder / "clip0.mp4").write_bytes(video_bytes(5, 8)[:300])
        (folder / "clip1.mp4").unlink()
        (folder / "half.mp4").write_bytes(video_bytes(6, 8)[:300])
        leave = [str(folder / name) for name in ("clip0.mp4", "clip1.mp4", "half.mp4")]
        report = library.sync(folder, leave=leave, work=HERE)
        assert (report.failed, report.removed, content(library)) == ([], 0, before)


def test_a_folder_that_is_taken_away_is_not_forgotten(place: Path) -> None:
    folder, stop, lines = place / "videos", threading.Event(), list[str]()

    def problem(line: str) -> None:
        lines.append(line)
        stop.set()

    with Library.create(place / "lib", small_model(), window=2.0, stride=2.0) as library:
        reports = watch(library, [folder], rest=0.1, stop=stop, problem=problem, work=HERE)
        next(reports)
        os.rename(folder, place / "away")
        assert list(reports) == []
        assert lines[0].startswith(f"{folder}: no such folder")
        assert len(content(library)) == 2


def test_a_folder_that_comes_to_the_place_of_another_is_listened_to(place: Path) -> None:
    folder, stop = place / "videos", threading.Event()
    with Library.create(place / "lib", small_model(), window=2.0, stride=2.0) as library:
        reports = watch(library, [folder], poll=False, rest=0.1, stop=stop, work=HERE)
        next(reports)
        shutil.copytree(folder, place / "other")
        (place / "other" / "clip0.mp4").rename(place / "other" / "clip9.mp4")
        folder.rename(place / "away")
        (place / "other").rename(folder)
        assert next(reports).moved == 1
        (folder / "clip9.mp4").unlink()
        assert next(reports).removed == 1
        stop.set()


def test_a_start_waits_for_another_writer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtr.library.watch._PATIENCE", 0.01)
    Library.create(place / "lib", small_model(), window=2.0, stride=2.0).close()
    writing, lines = contextlib.ExitStack(), list[str]()

    def problem(line: str) -> None:
        lines.append(line)
        writing.close()

    with Library.open(place / "lib", small_model()) as library, Library.open(place / "lib") as other:
        writing.enter_context(other.store.writing())
        assert next(watch(library, [place / "videos"], rest=0, problem=problem, work=HERE)).added == 2
    assert "another process is writing" in lines[0]


def test_file_systems_that_tell_nothing_are_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert (needs_polling(tmp_path / "videos"), needs_polling(tmp_path.parent)) == (True, False)
