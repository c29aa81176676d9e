"""A backup is made while others write, agrees with itself, and answers as the library did at that moment."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import vtr.library.backup
from tests.helpers import small_model
from vtr.cli import run
from vtr.errors import VtrError
from vtr.library.backup import backup
from vtr.library.library import Library
from vtr.library.settings import LibrarySettings
from vtr.library.store import checksum
from vtr.library.verify import verify

WIDTH = 16


def settings() -> LibrarySettings:
    return LibrarySettings(
        model=None, fingerprint=small_model().fingerprint(), width=WIDTH, window=8, stride=4, frames=4
    )


def write(library: Library, name: str) -> None:
    """One more video of three segments, as an importer writes it."""
    vectors = np.random.default_rng(len(name)).standard_normal((3, WIDTH)).astype(np.float32)
    store = library.store
    with store.writing(), store.change():
        row = store.append(vectors)
        video = store.db.execute(
            "INSERT INTO videos (path, duration, crc) VALUES (?, 16, ?)", (name, checksum(vectors))
        ).lastrowid
        spans = [(video, 4.0 * n, 4.0 * n + 8, row + n) for n in range(3)]
        store.db.executemany('INSERT INTO segments (video, start, "end", row) VALUES (?, ?, ?, ?)', spans)


def test_a_backup_while_another_writes_is_whole_and_of_one_moment(tmp_path: Path) -> None:
    library = Library.create_from(tmp_path / "lib", settings())
    stop, written = threading.Event(), threading.Event()

    def writer() -> None:
        with Library.open(tmp_path / "lib") as own:
            number = 0
            while not stop.is_set():
                write(own, f"/videos/{number}.mp4")
                number += 1
                written.set()

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        assert written.wait(30)
        assert [backup(library, tmp_path / f"copy{n}") for n in range(5)] == [[]] * 5
    finally:
        stop.set()
        thread.join()
    for n in range(5):
        with Library.open(tmp_path / f"copy{n}") as copy:
            count = copy.store.segments()
            assert count == 3 * copy.info()["videos"] > 0
            assert np.array_equal(copy.store.vectors(), library.store.vectors()[:count])
            write(copy, "/videos/later.mp4")  # it is a library like others
            assert verify(copy) == []


def test_a_backup_begins_again_where_the_library_is_compacted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library.create_from(tmp_path / "lib", settings())
    for name in ("/videos/a.mp4", "/videos/bb.mp4"):
        write(library, name)
    copy_file, compacted = vtr.library.backup._copy_file, []

    def late(source: Path, *rest: object) -> None:
        if not compacted:
            compacted.append(True)
            with Library.open(tmp_path / "lib") as other:
                other.remove(["/videos/a.mp4"])
                other.store.compact()
        copy_file(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(vtr.library.backup, "_copy_file", late)
    assert backup(library, tmp_path / "copy") == []
    with Library.open(tmp_path / "copy") as copy:
        assert copy.store.segments() == 3
    assert not (tmp_path / "copy.partial").exists()


def test_a_backup_of_an_empty_library_and_over_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Library.create_from(tmp_path / "lib", settings()).close()
    assert run(["index", "backup", str(tmp_path / "lib"), str(tmp_path / "copy")]) == 0
    assert "all is well" in capsys.readouterr().out
    with pytest.raises(VtrError, match="is there already"):
        run(["index", "backup", str(tmp_path / "lib"), str(tmp_path / "copy")])
