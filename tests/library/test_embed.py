"""`vtr embed`: shards to embeddings by several processes, resumable, and the library made of them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import small_model, video_bytes
from tests.library.victims import beside, embed_and_die, vtr
from vtr.cli import main, run
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.embed import embed
from vtr.library.imports import build_from
from vtr.library.verify import verify

CLIPS = [video_bytes(seed, frames=24) for seed in range(9)]  # 3 s each


def write_shard(path: Path, numbers: range, *, bad: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:

        def put(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for number in numbers:
            put(f"{number:04d}.mp4", CLIPS[number])
            put(f"{number:04d}.txt", f"caption {number}".encode())
            put(f"{number:04d}.json", json.dumps({"views": number, "list": [1]}).encode())
        picture = io.BytesIO()
        Image.new("RGB", (40, 40), "red").save(picture, "JPEG")
        put("still.jpg", picture.getvalue())
        if bad:
            put("bad.mp4", b"<html>404</html>")
            put("bad.txt", b"not a video")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(3):
        write_shard(tmp_path / "shards" / f"{shard:06d}.tar", range(3 * shard, 3 * shard + 3), bad=shard == 1)
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "shards"


def command(shards: Path) -> list[str]:
    out = shards.parent
    return [
        "embed",
        str(shards),
        "--model",
        str(out / "model"),
        "--out",
        str(out / "e"),
        "--window",
        "1",
        "--stride",
        "1",
    ]


def library_of(folder: Path) -> Library:
    return build_from(folder / "e", folder / "lib")


def test_two_ranks_share_the_shards_and_the_library_answers(shards: Path, tmp_path: Path, repo: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "vtr.cli", *command(shards)]
    done = subprocess.run(launch, cwd=repo, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    said = re.findall(r"(\d+) parts written", done.stderr)  # a line may stand behind the other rank's progress bar
    assert sum(map(int, said)) == 3
    assert len(said) == 2
    assert "1 unreadable" in done.stderr
    assert main(["index", "build", "--from", str(tmp_path / "e"), "--out", str(tmp_path / "lib")]) == 0
    library = Library.open(tmp_path / "lib")
    assert verify(library) == []
    assert library.info()["videos"] == 12
    assert library.store.segments() == 9 * 3 + 3
    assert len(library.info()["unreadable"]) == 1
    hit = library.search("a dog", k=1, where='caption = "caption 4"')[0]
    assert hit.path == f"{shards}/000001.tar/0004.mp4"
    assert hit.metadata == {"caption": "caption 4", "views": 4}


def test_accelerate_launches_it_too(shards: Path, tmp_path: Path, repo: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "vtr.cli", *command(shards)]
    done = subprocess.run(launch, cwd=repo, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "e").glob("*.parquet"))) == 3


def test_vectors_are_those_of_the_files_themselves_and_samples_can_be_looked_at_again(
    shards: Path, tmp_path: Path
) -> None:
    assert run(command(shards)) == 0
    library = library_of(tmp_path)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "4.mp4").write_bytes(CLIPS[4])
    with Library.create(tmp_path / "own", small_model(), window=1.0, stride=1.0) as own:
        own.add(tmp_path / "v")
        expected = own.search("a dog", k=9, all_moments=True, unmerged=True)
        found = library.search("a dog", k=9, all_moments=True, unmerged=True, where="views = 4")
        assert [(h.start, h.end) for h in found] == [(h.start, h.end) for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-5)
        again = library.search("a dog", k=1, rerank=3, where="views = 4")
        assert again[0].reranked
        assert again[0].score == pytest.approx(own.search("a dog", k=1, rerank=3)[0].score, abs=1e-3)
    assert library.search(like=tmp_path / "v" / "4.mp4", k=1)[0].path.endswith("0004.mp4")


def test_a_killed_process_loses_only_the_shard_it_was_at(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in range(3, 6):
        os.link(shards / f"{shard % 3:06d}.tar", shards / f"{shard:06d}.tar")
    process = beside(embed_and_die, command(shards), 3)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "e").glob("*.parquet")}
    assert len(kept) == 3
    partial = build_from(tmp_path / "e", tmp_path / "lib")  # what is there can be searched already
    assert verify(partial) == []
    partial.close()
    assert run(command(shards)) == 0
    assert "3 parts written" in capsys.readouterr().err
    assert all((tmp_path / "e" / name).stat().st_mtime_ns == when for name, when in kept.items())
    library = library_of(tmp_path)
    assert library.store.segments() == 2 * 30
    assert verify(library) == []


def test_a_second_build_takes_only_what_is_new_or_has_changed(shards: Path, tmp_path: Path) -> None:
    assert run(command(shards)) == 0
    with library_of(tmp_path) as library:
        before = {h.segment for h in library.search("a dog", k=100, all_moments=True, unmerged=True)}
    with library_of(tmp_path) as library:
        assert {h.segment for h in library.search("a dog", k=100, all_moments=True, unmerged=True)} == before
    write_shard(shards / "000000.tar", range(1))
    write_shard(shards / "000003.tar", range(8, 9))
    assert run(command(shards)) == 0
    with library_of(tmp_path) as library:
        names = sorted(h.path.split("shards/")[1] for h in library.search("a dog", k=100, unmerged=True))
        assert [n for n in names if n.startswith("000000")] == ["000000.tar/0000.mp4", "000000.tar/still.jpg"]
        assert "000003.tar/0008.mp4" in names
        assert len(names) == 2 + 4 + 4 + 2
        assert verify(library) == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_build_that_is_stopped_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    import vtr.library.imports as module

    assert run(command(shards)) == 0
    real, calls = module._import, [0]

    def stopped(*words: object) -> None:
        calls[0] += 1
        real(*words)  # type: ignore[arg-type]
        if calls[0] == count:
            raise KeyboardInterrupt  # after the vectors, before the commit

    monkeypatch.setattr(module, "_import", stopped)
    with pytest.raises(KeyboardInterrupt):
        library_of(tmp_path)
    monkeypatch.undo()
    library = library_of(tmp_path)
    assert library.store.segments() == 30
    assert library.store.rows() == 30
    assert verify(library) == []


def test_damaged_embeddings_are_made_again(shards: Path, tmp_path: Path) -> None:
    assert run(command(shards)) == 0
    part = sorted((tmp_path / "e").glob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(VtrError, match=r"is damaged .* run vtr embed again"):
        library_of(tmp_path)
    assert run(command(shards)) == 0
    assert library_of(tmp_path).store.segments() == 30


def test_a_damaged_shard_is_told_and_left_out_and_made_when_it_is_mended(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (shards / "000000.tar").read_bytes()
    (shards / "000000.tar").write_bytes(whole[: len(whole) // 2])
    assert main(command(shards)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 left out" in said
    assert "000000.tar" in said
    assert len(list((tmp_path / "e").glob("*.parquet"))) == 2
    (shards / "000000.tar").write_bytes(whole)
    assert main(command(shards)) == 0
    assert library_of(tmp_path).store.segments() == 30


def test_other_windows_or_another_model_need_another_folder(shards: Path, tmp_path: Path) -> None:
    assert run(command(shards)) == 0
    with pytest.raises(VtrError, match=r"has window 1\.0, asked for 2\.0"):
        run([*command(shards), "--window", "2"])
    small_model(seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(VtrError, match="has fingerprint"):
        run(command(shards))


def test_a_folder_without_embeddings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(VtrError, match="no embeddings"):
        library_of(tmp_path)


def test_what_one_process_has_done_the_next_one_skips(shards: Path, tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        report = embed([str(shards)], tmp_path / "e", small_model(), window=1.0, stride=1.0)
        made.append((report.parts, report.skipped))
    assert made == [(3, 0), (0, 3)]
    assert sum(pq.read_metadata(p).num_rows for p in (tmp_path / "e").glob("*.parquet")) == 30
    assert not any((tmp_path / "e" / "work").iterdir())  # nobody is at work any more


def test_files_are_embedded_with_their_lists_metadata_and_only_what_is_new_again(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(CLIPS[number])
    (folder / "text.mp4").write_text("no video")
    os.rename(folder / "2.mp4", folder / "2 {1..3}.mp4")  # no braces to expand: there is such a file
    listing = folder / "list.csv"
    listing.write_text("path,views\n0.mp4,5\n1.mp4,6\ntext.mp4,7\n")
    words = {"window": 1.0, "stride": 1.0}
    report = embed([str(listing)], tmp_path / "e", small_model(), **words)
    assert (report.videos, report.segments, len(report.failed)) == (3, 6, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "e").glob("*.parquet")}
    named = [str(listing), str(folder / "2 {1..3}.mp4"), str(folder)]
    report = embed(named, tmp_path / "e", small_model(), **words)
    assert (report.videos, report.failed) == (1, [])
    assert all(path.read_bytes() == kept for path, kept in before.items())
    (folder / "1.mp4").write_bytes(CLIPS[5])
    report = embed([str(folder / "1.mp4")], tmp_path / "e", small_model(), **words)
    assert report.parts == 1  # its part, with what else is in it
    with library_of(tmp_path) as library:
        library._accept(small_model())
        assert verify(library) == []
        assert library.info()["videos"] == 3
        assert len(library.info()["unreadable"]) == 1
        assert library.search(like=folder / "1.mp4", k=1)[0].path == str(folder / "1.mp4")
        assert library.search("a dog", where="views = 5")[0].path == str(folder / "0.mp4")


def test_a_killed_processs_claims_are_taken_over_by_one_that_waits(shards: Path, tmp_path: Path) -> None:
    for shard in range(3, 12):
        os.link(shards / f"{shard % 3:06d}.tar", shards / f"{shard:06d}.tar")
    process = beside(vtr, command(shards))
    while not list((tmp_path / "e").glob("work/*/0*.claim")):
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # alive, and holding what it has
    other = beside(vtr, command(shards))
    while len(list((tmp_path / "e").glob("*.parquet"))) < 11 - len(list((tmp_path / "e").glob("work/*/0*.claim"))):
        assert other.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    other.join(300)
    assert other.exitcode == 0
    assert library_of(tmp_path).store.segments() == 4 * 30
