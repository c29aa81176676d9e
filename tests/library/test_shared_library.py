"""A library handed from thread to thread, used from several at once, closed, replaced by another one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.helpers import small_model, video_bytes, write_videos
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.serve import make_app
from vtr.library.store import Replaced, _Connection, is_damage


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_videos(tmp_path / "videos", 4)
    library = Library.create(tmp_path / "lib", small_model())
    library.add(tmp_path / "videos")
    return library


def test_a_library_may_be_handed_to_another_thread_and_closed_there(library: Library) -> None:
    def found() -> list[tuple[int, float]]:
        return [(hit.segment, hit.score) for hit in library.search("a dog runs")]

    expected = [(segment, pytest.approx(score, abs=1e-6)) for segment, score in found()]
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(found).result() == expected
        thread.submit(library.close).result()


def test_several_threads_search_at_once_while_one_adds_and_removes(library: Library, tmp_path: Path) -> None:
    more = write_videos(tmp_path / "more", 6, frames=16)
    always = {h.segment for h in library.search("a dog runs", k=100)}

    def search(number: int) -> bool:
        where = "duration < 1.9" if number % 3 == 0 else None
        return {h.segment for h in library.search(f"a dog runs {number}", k=100, where=where)} >= always

    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(search, n) for n in range(60)]
        for _ in range(3):
            threads.submit(library.add, more).result()
            library.remove([tmp_path / "more"])
        assert all(answer.result() for answer in answers)


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    db = sqlite3.connect(":memory:")
    ours = _Connection(db, frozen=False)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 0)
        del ours
    assert db.execute("SELECT 1").fetchone() == (1,)
    db.close()


def test_threads_that_write_wait_for_each_other(library: Library, tmp_path: Path) -> None:
    folders = [tmp_path / f"more{n}" for n in range(4)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "x.mp4").write_bytes(video_bytes(20 + number))
    with ThreadPoolExecutor(4) as threads:
        assert [report.added for report in threads.map(library.add, folders)] == [1, 1, 1, 1]
    assert library.info()["videos"] == 8


def test_a_closed_library_says_so_and_nothing_of_damage(library: Library) -> None:
    library.close()
    for call in (lambda: library.search("a dog runs"), library.info, library.columns, library.compact):
        with pytest.raises(VtrError, match="was closed: open it again") as error:
            call()
        assert "restore" not in str(error.value)
        assert "anew" not in str(error.value)


def test_only_a_damaged_file_is_called_damaged() -> None:
    assert is_damage(sqlite3.DatabaseError("file is not a database"))
    for other in (sqlite3.OperationalError("database is locked"), sqlite3.ProgrammingError("closed")):
        assert not is_damage(other)


def test_a_database_that_is_locked_is_no_damage(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked() -> bool:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(library.store, "empty", locked)
    with pytest.raises(VtrError, match="cannot be read at the moment") as error:
        library.search("a dog runs")
    assert "anew" not in str(error.value)


# -- replaced -------------------------------------------------------------------------------------------------------------


def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two libraries of one video each, of the same ids."""
    for name, seed in (("blue", 1), ("red", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").write_bytes(video_bytes(seed, frames=12 + 4 * seed))
        with Library.create(tmp_path / f"{name}.library", small_model()) as library:
            library.add(tmp_path / name)
    return tmp_path / "blue.library", tmp_path / "red.library"


def swap(there: Path, other: Path) -> None:
    there.rename(there.with_name("was"))
    other.rename(there)


def test_a_library_object_never_mixes_two_libraries(tmp_path: Path) -> None:
    there, other = two(tmp_path)
    with Library.open(there, small_model()) as library:
        assert Path(library.search("a dog")[0].path).name == "blue.mp4"
        swap(there, other)
        for call in (lambda: library.search("a dog"), lambda: library.add(tmp_path / "red"), library.compact):
            with pytest.raises(Replaced, match="replaced by another library since it was opened: open it again"):
                call()
    with Library.open(there, small_model()) as library:
        assert Path(library.search("a dog")[0].path).name == "red.mp4"


@pytest.mark.parametrize("warm", [False, True])
def test_a_server_answers_from_the_library_that_took_the_others_place(tmp_path: Path, warm: bool) -> None:
    there, other = two(tmp_path)
    with TestClient(make_app(there, small_model()), base_url="http://127.0.0.1") as client:
        old = client.get("/api/search", params={"q": "a dog"}).json() if warm else None
        if warm:
            assert client.get("/api/segments/1/thumbnail.jpg").status_code == 200
        blue = (tmp_path / "blue" / "blue.mp4").read_bytes()
        swap(there, other)
        answer = client.get("/api/search", params={"q": "a dog"}).json()
        assert [h["name"] for h in answer["hits"]] == ["red.mp4"]
        for params in ({}, {"library": answer["library"]}):
            file = client.get("/api/videos/1/file", params=params)
            assert file.content == (tmp_path / "red" / "red.mp4").read_bytes() != blue
            assert client.get("/api/segments/1/thumbnail.jpg", params=params).status_code == 200
        if old:  # what the page shows of the old library is never answered with the new one's pictures
            for path in ("segments/1/thumbnail.jpg", "segments/1/preview.jpg", "segments/1/similar", "videos/1/file"):
                refused = client.get(f"/api/{path}", params={"library": old["library"]})
                assert refused.status_code == 409
                assert "replaced by another one since" in refused.json()["error"]


def test_a_server_notices_a_library_that_is_made_anew_in_its_folder(tmp_path: Path) -> None:
    there, _ = two(tmp_path)
    with TestClient(make_app(there, small_model()), base_url="http://127.0.0.1") as client:
        first = client.get("/api/info").json()
        shutil.rmtree(there)
        assert client.get("/api/search", params={"q": "a"}).status_code == 503
        assert client.get("/health").status_code == 503
        with Library.create(there, small_model()) as library:
            library.add(tmp_path / "red")
        assert [h["name"] for h in client.get("/api/search", params={"q": "a"}).json()["hits"]] == ["red.mp4"]
        assert client.get("/api/info").json()["library"] != first["library"]
        assert client.get("/health").json() == {"status": "ok"}
