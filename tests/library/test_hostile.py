"""What goes wrong around a library: one line that says what happened and what to do; what was committed stays.

A full disk and a read-only place are real ones: small file systems in a name space of their own (`unshare`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import small_model, video_bytes, write_videos
from tests.library.test_library import indexed_above
from vtr.cli import main, run
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.verify import verify


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def lib(tmp_path: Path, model: Path) -> Path:
    write_videos(tmp_path / "videos", 3)
    with Library.create(tmp_path / "lib", small_model(), model_path=str(model)) as library:
        library.add(tmp_path / "videos")
    return tmp_path / "lib"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


_STEPS = """
import shlex, subprocess, sys
from vtr.cli import main
for line in sys.stdin:
    if line.startswith("! "):
        subprocess.run(line[2:], shell=True, check=True, stderr=subprocess.DEVNULL)
    else:
        print("exit", main(shlex.split(line)), flush=True)
"""


def in_space(*steps: str) -> tuple[list[int], str, list[str]]:
    """Commands of vtr, and after `! ` of the shell, where file systems may be mounted: exit codes, stdout, errors."""
    command = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
    if subprocess.run([*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs unshare -rm (user name spaces)")
    done = subprocess.run(
        [*command, sys.executable, "-c", _STEPS],
        input="\n".join(steps),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]
    return codes, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("vtr: ")]


# -- links --------------------------------------------------------------------------------------------------------------


def test_links_to_folders_are_not_followed_and_links_to_files_elsewhere_are_told(
    lib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "outside", 2)
    (tmp_path / "outside" / "deep.mp4").write_bytes(video_bytes(8))
    (tmp_path / "videos" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "videos" / "loop").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "out.mp4").symlink_to(tmp_path / "outside" / "deep.mp4")
    (tmp_path / "videos" / "in.mp4").symlink_to("clip0.mp4")
    (tmp_path / "videos" / "self.mp4").symlink_to("self.mp4")
    code, _, err = said(capsys, "index", "sync", lib, tmp_path / "videos")
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert f"note: {tmp_path}/videos/folder: a link to a folder is not followed; name the folder itself" in notes
    assert any(
        "links that lead out of their folders: 1 (" in n and "out.mp4" in n and "--follow-links" in n for n in notes
    )
    with Library.open(lib, small_model()) as library:
        paths = {h.path for h in library.search("a dog runs", k=100, unmerged=True)}
        assert paths == {f"{tmp_path}/videos/{n}.mp4" for n in ("clip0", "clip1", "clip2", "in", "out")}
        assert verify(library, files=True) == []


# -- places that are full or cannot be written ----------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_and_the_next_call_goes_on(lib: Path, tmp_path: Path) -> None:
    write_videos(tmp_path / "more", 5, frames=16)
    (tmp_path / "mount").mkdir()
    for number in range(1500):  # little of each: copies of known content
        os.link(tmp_path / "more" / f"clip{number % 5}.mp4", tmp_path / "more" / f"copy-{'x' * 100}-{number}.mp4")
    there, fill = tmp_path / "mount", f"! dd if=/dev/zero of={tmp_path}/mount/rest bs=1k || true"
    codes, out, errors = in_space(
        f"! mount -t tmpfs -o size=400k tmpfs {there}",
        f"! cp -r {lib} {there}/lib",
        f"index add {there}/lib {tmp_path}/more",
        fill,
        f"search {there}/lib 'a dog runs'",
        f"! rm {there}/rest",
        f"index verify {there}/lib",
        fill,
        f"search {there}/lib 'a dog runs'",
        f"! rm {there}/rest; mount -o remount,size=64m {there}",
        f"index add {there}/lib {tmp_path}/more",
        f"index verify {there}/lib",
        f'! test -z "$(ls {there}/lib | grep tmp)"',
    )
    assert codes[0] == 1
    assert codes[2:] == [0, 0, 0, 0]
    assert "cannot be written" in errors[0]
    assert "what was committed is safe" in errors[0]
    # Where the log beside the database could not be put into it, opening it needs room too, and that is said.
    assert all("the disk is full, make room and call again" in line for line in errors[1:])
    assert len(errors) == 1 + codes[1]
    assert "clip" in out  # a search on the full disk
    first, second = [line for line in out.splitlines() if "all is well" in line]
    assert 3 < int(first.split(": ")[1].split()[0]) < 1508
    assert "1508 segments" in second


def test_an_index_for_which_there_is_no_room_is_left_out_and_the_old_one_stays(
    lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import faiss

    indexed_above(monkeypatch, 2)
    assert run(["index", "compact", str(lib)]) == 0
    old = (lib / "index.faiss").read_bytes()
    (tmp_path / "videos" / "new.mp4").write_bytes(video_bytes(9))

    def full(*_: object) -> None:
        raise RuntimeError("Error in void faiss::write_index: write error in index.faiss: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    code, _, err = said(capsys, "index", "add", lib, tmp_path / "videos")
    assert code == 1
    assert "No space left on device" in err.splitlines()[-1]
    assert "vtr index compact" in err.splitlines()[-1]
    monkeypatch.undo()
    assert (lib / "index.faiss").read_bytes() == old
    assert list(lib.glob("*.tmp")) == []
    with Library.open(lib, small_model()) as library:
        assert len(library.search("a dog runs")) == 4
        assert verify(library) == []


def read_only(lib: Path, videos: Path) -> list[str]:
    return [
        f"! mount --bind {lib} {lib} && mount -o remount,ro,bind {lib}",
        f"search {lib} 'a dog runs'",
        f"index info {lib} --json",
        f"index verify {lib}",
        f"index add {lib} {videos}",
        f"index sync {lib} {videos}",
        f"index remove {lib} {videos}",
        f"index compact {lib}",
    ]


def test_a_read_only_library_answers_and_says_that_it_cannot_be_written(lib: Path, tmp_path: Path) -> None:
    codes, out, errors = in_space(*read_only(lib, tmp_path / "videos"))
    assert codes == [0, 0, 0, 1, 1, 1, 1]
    assert out.count("clip") == 3
    assert "3 segments, all is well" in out
    assert len(errors) == 4
    assert all("cannot be written (Read-only file system)" in line for line in errors)


_WRITER = """
import os, sys
from tests.helpers import small_model
from vtr.library import Library
library = Library.open(sys.argv[1], small_model())
library.add(sys.argv[2])
os._exit(0)  # the write-ahead log stays, as after a kill
"""


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_writer_left_is_seen_in_a_read_only_place_or_said(
    lib: Path, tmp_path: Path, repo: Path, locks: bool
) -> None:
    (tmp_path / "videos" / "new.mp4").write_bytes(video_bytes(9))
    subprocess.run([sys.executable, "-c", _WRITER, lib, tmp_path / "videos"], cwd=repo, check=True, capture_output=True)
    assert (lib / "library.db-wal").stat().st_size
    if not locks:
        (lib / "library.db-shm").unlink()
    codes, out, errors = in_space(*read_only(lib, tmp_path / "videos"))
    if locks:
        assert codes == [0, 0, 0, 1, 1, 1, 1]
        assert "4 segments, all is well" in out
    else:
        assert codes == [1] * 7
        assert all("library.db-wal holds what a stopped writer left" in line for line in errors)


def test_a_reader_who_may_not_write_notices_a_writer_who_comes_later(
    lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    reader = Library.open(lib, small_model())
    assert len(reader.search("a dog runs")) == 3
    monkeypatch.undo()
    (tmp_path / "videos" / "new.mp4").write_bytes(video_bytes(9))
    with Library.open(lib, small_model()) as writer:
        writer.add(tmp_path / "videos")
        assert len(reader.search("a dog runs")) == 4


# -- another model, damaged files -----------------------------------------------------------------------------------------


def test_another_model_is_refused_before_anything_is_searched_or_added(
    lib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model(seed=1).save_pretrained(tmp_path / "other")
    (tmp_path / "videos" / "new.mp4").write_bytes(video_bytes(9))
    for words in (
        ("search", lib, "a dog runs", "--model", tmp_path / "other"),
        ("index", "add", lib, tmp_path / "videos", "--model", tmp_path / "other"),
        ("index", "build", tmp_path / "videos", "--out", lib, "--model", tmp_path / "other"),
    ):
        code, out, err = said(capsys, *words)
        assert (code, out) == (1, "")
        assert "was made with another model" in err.splitlines()[-1]
        assert "use that one, or build another library" in err.splitlines()[-1]
    with Library.open(lib, small_model()) as library:
        assert library.store.segments() == 3


def test_a_model_that_has_moved_is_named_anew(lib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").rename(tmp_path / "moved")
    code, _, err = said(capsys, "search", lib, "a dog runs")
    assert code == 1
    assert f"{tmp_path}/model" in err
    code, out, _ = said(capsys, "search", lib, "a dog runs", "--model", tmp_path / "moved")
    assert (code, out.count("clip")) == (0, 3)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"\xde\xad\xbe\xef" * (path.stat().st_size // 4))


@pytest.mark.parametrize("damage", [_cut, _flip, _overwrite, Path.unlink])
def test_a_damaged_index_is_told_once_it_matters_and_made_anew(
    lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    indexed_above(monkeypatch, 2)
    assert run(["index", "compact", str(lib)]) == 0
    _, right, _ = said(capsys, "search", lib, "a dog runs")
    damage(lib / "index.faiss")  # type: ignore[operator]
    code, out, err = said(capsys, "search", lib, "a dog runs")
    assert (code, out) == (0, right)
    assert ("warning" in err) == (damage is not Path.unlink)
    code, out, _ = said(capsys, "index", "verify", lib)
    assert code == 1
    assert "index.faiss" in out
    assert "vtr index compact" in out
    assert said(capsys, "index", "compact", lib)[0] == 0
    assert said(capsys, "index", "verify", lib)[0] == 0
    assert said(capsys, "search", lib, "a dog runs")[1] == right


@pytest.mark.parametrize("damage", [_overwrite, Path.unlink])
@pytest.mark.parametrize("verb", ["search", "info", "verify", "add"])
def test_a_database_that_cannot_be_read_is_one_line(
    lib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, verb: str
) -> None:
    damage(lib / "library.db")  # type: ignore[operator]
    words = {"search": ("search", lib, "a dog"), "add": ("index", "add", lib, tmp_path / "videos")}
    code, _, err = said(capsys, *words.get(verb, ("index", verb, lib)))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "library.db" in err
    assert "restore it" in err


def test_a_damaged_page_of_the_database_is_one_line_and_verify_names_it(
    lib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Library.open(lib, small_model()) as library:
        library.add(write_videos(tmp_path / "more", 60))
        library.store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray((lib / "library.db").read_bytes())
    for page in range(4096 * 2, len(content), 4096):
        content[page : page + 2000] = b"\xa5" * 2000
    (lib / "library.db").write_bytes(content)
    for words in (("search", lib, "a dog"), ("index", "add", lib, tmp_path / "videos"), ("index", "info", lib)):
        code, _, err = said(capsys, *words)
        assert code == 1, words
        assert "library.db" in err.splitlines()[-1]
        assert "Traceback" not in err
    code, out, err = said(capsys, "index", "verify", lib)
    assert code == 1
    assert "library.db" in out + err


def test_a_library_whose_vectors_are_gone_is_one_line(lib: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lib / "embeddings.f32").unlink()
    code, _, err = said(capsys, "search", lib, "a dog")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "embeddings.f32 is missing; restore it or build anew" in err
    code, out, _ = said(capsys, "index", "verify", lib)
    assert code == 1
    assert "embeddings.f32 is missing" in out


def test_a_copied_library_answers_as_the_original(lib: Path, tmp_path: Path) -> None:
    shutil.copytree(lib, tmp_path / "copy")
    with Library.open(lib, small_model()) as one, Library.open(tmp_path / "copy", small_model()) as other:
        assert one.search("a dog runs") == other.search("a dog runs")


def test_an_older_library_is_brought_up_to_date_where_it_can_be_written(lib: Path, tmp_path: Path) -> None:
    with Library.open(lib, small_model()) as library:
        expected = library.search("a dog runs")
        library.store.db.execute("DROP INDEX videos_by_origin")
        for column in ("crc", "meta", "origin"):
            library.store.db.execute(f"ALTER TABLE videos DROP COLUMN {column}")
        for table in ("counters", "columns", "imports"):
            library.store.db.execute(f"DROP TABLE {table}")
    with Library.open(lib, small_model()) as library:
        assert library.search("a dog runs") == expected
        (tmp_path / "videos" / "new.mp4").write_bytes(video_bytes(9))
        assert library.add(tmp_path / "videos").added == 1
        assert verify(library) == []


def test_a_library_of_a_later_format_is_refused(lib: Path) -> None:
    text = (lib / "library.json").read_text()
    (lib / "library.json").write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(VtrError, match="format 9, this vtr reads 1"):
        Library.open(lib)
