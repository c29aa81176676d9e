"""kill -9 at any moment of an `add`: the next call goes on; nothing is lost, nothing is there twice."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, write_videos
from tests.library.test_library import indexed_above
from tests.library.victims import add_and_die, beside, search_meanwhile
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library import index as indexes
from vtr.library.verify import verify


@pytest.mark.parametrize(
    ("place", "when", "count", "kept"),
    [
        ("append", "after", 1, 2),
        ("append", "after", 3, 4),
        ("count", "before", 4, 3),
        ("write", "before", 1, 3),  # the index is made while videos are added, and at the end
        ("write", "after", 1, 3),
        ("write", "after", 2, 5),
        ("settings", "after", 2, 5),
    ],
)
def test_a_killed_add_goes_on_with_nothing_lost_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, when: str, count: int, kept: int
) -> None:
    clips = write_videos(tmp_path / "source", 5)
    (tmp_path / "videos").mkdir()
    for clip in clips:
        if clip is clips[2]:  # two are in the library before the accident
            with Library.create(tmp_path / "lib", small_model()) as library:
                library.add(tmp_path / "videos")
        clip.rename(tmp_path / "videos" / clip.name)
    victim = beside(add_and_die, place, when, count, tmp_path / "lib", tmp_path / "videos")
    victim.join(300)
    assert victim.exitcode == -signal.SIGKILL
    indexed_above(monkeypatch, 2)
    again = Library.open(tmp_path / "lib", small_model())
    assert verify(again) == []
    assert again.info()["segments"] == kept
    assert len(again.search("a dog runs")) == kept  # a reader sees what was committed, whatever index.faiss holds
    report = again.add(tmp_path / "videos")
    assert (report.added, report.unchanged) == (5 - kept, kept)
    rows = [r[0] for r in again.store.db.execute("SELECT row FROM segments ORDER BY row")]
    assert len(set(rows)) == 5
    fresh = Library.create(tmp_path / "fresh", small_model())
    fresh.add(tmp_path / "videos")
    expected = [(h.path, round(h.score, 5)) for h in fresh.search("a dog runs")]
    assert [(h.path, round(h.score, 5)) for h in again.search("a dog runs")] == expected
    stored = indexes.read(tmp_path / "lib" / "index.faiss")
    assert stored is not None
    assert stored.faiss.ntotal == 5
    assert verify(again) == []


def test_writers_killed_at_random_moments_leave_a_consistent_library(repo: Path) -> None:
    """VTR_KILLS=50 for more moments."""
    count = os.environ.get("VTR_KILLS", "8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.library.killing", "-n", count, "--seed", os.environ.get("VTR_SEED", "0")],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{count} moments, 0 wrong\n")


def test_several_processes_search_while_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed_above(monkeypatch, 10)
    write_videos(tmp_path / "kept", 3, frames=16)
    more = write_videos(tmp_path / "more", 8, frames=16)
    library = Library.create(tmp_path / "lib", small_model(), window=1.0, stride=0.5)
    library.add(tmp_path / "kept")
    context = multiprocessing.get_context("forkserver")
    ready, over, searches = context.Semaphore(0), context.Event(), context.SimpleQueue()
    readers = [beside(search_meanwhile, tmp_path / "lib", 9, ready, over, searches) for _ in range(3)]
    try:
        for _ in readers:
            assert ready.acquire(timeout=300), [reader.exitcode for reader in readers]
        for _ in range(6):
            library.add(tmp_path / "more")
            library.remove([more[0], more[1]])
            library.compact()
            library.add(more[:2])
            library.remove([tmp_path / "more"])
            library.compact()
    finally:
        over.set()
        for reader in readers:
            reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]  # what one found wrong it has written to stderr
    assert all(searches.get() >= 5 for _ in readers)
    assert verify(library) == []


def test_an_index_that_is_replaced_at_that_moment_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vtr.library.verify as module

    indexed_above(monkeypatch, 2)
    videos = write_videos(tmp_path / "videos", 8)
    writer = Library.create(tmp_path / "lib", small_model())
    writer.add(videos[:4])
    reader, left = Library.open(tmp_path / "lib", small_model()), videos[4:]

    def write_once() -> None:
        """After the reader's view of the database has begun."""
        reader.store.generation()
        if left:
            writer.add([left.pop(), left.pop()])

    def read() -> indexes.Snapshot:
        write_once()
        return reader.snapshot()

    snapshot = reader.read(read)
    assert snapshot.base is not None
    assert len(snapshot) == 8 - len(left)
    real = module._database

    def database(library: Library) -> list[str]:
        write_once()
        return real(library)

    monkeypatch.setattr(module, "_database", database)
    assert verify(reader) == []
    assert "damaged" not in capsys.readouterr().err


def test_rows_are_never_given_out_again_so_a_readers_map_stays_valid(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 2)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    held = library.store.vectors()
    before = held.copy()
    library.remove([tmp_path / "videos"])
    assert library.search("a dog runs") == []
    library.add(tmp_path / "videos" / "clip0.mp4")
    np.testing.assert_array_equal(held, before)
    assert library.store.rows() == 3


def test_an_index_of_equal_size_but_an_older_generation_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed_above(monkeypatch, 1)
    videos = write_videos(tmp_path / "videos", 3)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(videos[:2])
    old = (tmp_path / "lib" / "index.faiss").read_bytes(), (tmp_path / "lib" / "library.json").read_text()
    library.remove([videos[0]])
    library.add(videos[2])
    (tmp_path / "lib" / "index.faiss").write_bytes(old[0])  # as a kill before the index was written leaves it
    (tmp_path / "lib" / "library.json").write_text(old[1])
    again = Library.open(tmp_path / "lib", small_model())
    assert verify(again) == []
    assert {Path(h.path).name for h in again.search("a dog runs")} == {"clip1.mp4", "clip2.mp4"}


def test_an_index_newer_than_a_restored_database_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed_above(monkeypatch, 1)
    videos = write_videos(tmp_path / "videos", 4)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(videos[:2])
    shutil.copytree(tmp_path / "lib", tmp_path / "backup")
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.add(videos[2:])
    shutil.copy(tmp_path / "lib" / "index.faiss", tmp_path / "backup" / "index.faiss")
    restored = Library.open(tmp_path / "backup", small_model())
    assert len(restored.search("a dog runs")) == 2
    assert any("newer than library.db" in line for line in verify(restored))
    restored.add(videos)
    assert verify(restored) == []
    assert len(restored.search("a dog runs")) == 4


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("library.json", b"{", "library.json cannot be read"),
        ("library.json", b'{"format": 1}', "lacks"),
        ("library.db", b"junk" * 2000, "cannot be opened"),
        ("library.db", None, "library.db is missing"),
        ("embeddings.f32", b"short", "shorter than library.db says"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    write_videos(tmp_path / "videos", 1)
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos")
    if content is None:
        (tmp_path / "lib" / name).unlink()
    else:
        (tmp_path / "lib" / name).write_bytes(content)
    with pytest.raises(VtrError, match=says) as error:
        Library.open(tmp_path / "lib", small_model()).search("a dog runs")
    assert "\n" not in str(error.value)


def test_what_a_killed_writer_leaves_running_for_a_moment_holds_up_nobody(tmp_path: Path, repo: Path) -> None:
    """As a decoding process that was forked just now: it has the lock until it has closed what is not its own."""
    Library.create(tmp_path / "lib", small_model()).close()
    script = (
        "import os, signal, sys, time; from pathlib import Path; from vtr.library.store import Store\n"
        "with Store(Path(sys.argv[1]), 16).writing():\n"
        "    if os.fork() == 0:\n        time.sleep(1.5); os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "lib")], cwd=repo, check=False)
    library = Library.open(tmp_path / "lib", small_model())
    assert library.add(write_videos(tmp_path / "videos", 1)).added == 1


def test_a_library_whose_making_was_killed_at_any_file_is_made_by_the_next_call(tmp_path: Path) -> None:
    for name in ("library.db", "library.db-journal", "library.json.1.tmp"):  # a journal, until SQLite writes ahead
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / name).write_bytes(b"")
        library = Library.create(tmp_path / "lib", small_model())
        assert library.store.segments() == 0
        library.close()
        shutil.rmtree(tmp_path / "lib")
