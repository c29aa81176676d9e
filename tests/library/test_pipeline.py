"""The pipeline from files to vectors: the same library whatever works on it, and files that take a decoder down."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import small_model, video_bytes, write_videos
from vtr.data.decode.types import Source
from vtr.errors import UsageError, VtrError
from vtr.library import Library, decoders, encode
from vtr.library.decoders import default_workers, forkable
from vtr.library.found import hit_dict
from vtr.library.pipeline import Job, Pipeline
from vtr.library.rows import Embedded, Failure
from vtr.library.settings import LibrarySettings, Work
from vtr.library.verify import verify
from vtr.threads import GRPC_FORKS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="decoding processes are forked")


class _Killer:
    """A source that kills, or fills the memory of, the process that opens it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self) -> Source:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory":
            bytearray(decoders._MEMORY + (1 << 30))
        if self.how == "still":
            signal.alarm(1)
            time.sleep(30)
        if self.how == "unopened":
            raise FileNotFoundError(2, "No such file or directory")
        if self.how == "nice":
            raise OSError(5, f"niceness {os.nice(0)}")
        raise ZeroDivisionError("a bug")


def _settings() -> LibrarySettings:
    return LibrarySettings(model=None, fingerprint="", width=16, window=1.0, stride=0.5, frames=4)


def _run(jobs: list[Job[int]], workers: int) -> dict[int, Embedded | Failure | None]:
    with Pipeline(small_model(), _settings(), Work(workers=workers)) as pipeline:
        found = list(pipeline.run(jobs))
    assert [key for key, _ in found] == [job.key for job in jobs]
    return dict(found)


@pytest.mark.parametrize(("cores", "threads", "share"), [(1, 1, 1), (3, 3, 1), (34, 16, 2)])
def test_cores_encode_a_window_each_and_torch_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, share: int
) -> None:
    paths = write_videos(tmp_path, 6, frames=30)
    jobs = [Job(key=k, source=path) for k, path in enumerate(paths)]
    seen = set[tuple[str, int]]()
    real = encode.encoded

    def noting(*given: object, **more: object) -> np.ndarray:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("vtr.library.devices.encoded", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with Pipeline(small_model(), _settings(), Work(workers=2)) as pipeline:
            assert sum(t.name == "encode cpu" for t in threading.enumerate()) == threads
            found = dict(pipeline.run(jobs))
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert seen == {("encode cpu", share)}
    for job in jobs:
        one = found[job.key]
        assert isinstance(one, Embedded)
        exact = encode.embed_file(paths[job.key], _settings(), small_model())
        np.testing.assert_allclose(one.vectors, exact, atol=1e-6)


def _rows(library: Library) -> list[tuple[object, ...]]:
    sql = "SELECT v.path, s.start, s.end, s.row, s.id FROM segments s JOIN videos v ON v.id = s.video ORDER BY s.row"
    return library.store.db.execute(sql).fetchall()


def test_any_number_of_workers_makes_the_same_library(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(folder, 7)
    for number, frames in ((7, 90), (8, 40)):
        (folder / f"clip{number}.mp4").write_bytes(video_bytes(number, frames=frames))
    (folder / "bad.mp4").write_bytes(b"\0" * 99)
    (folder / "copy.mp4").write_bytes((folder / "clip7.mp4").read_bytes())
    (folder / "twin.mp4").write_bytes(b"\0" * 99)
    made = []
    for workers in (0, 1, 2, 4):
        library = Library.create(tmp_path / f"lib{workers}", small_model(), window=1.0, stride=0.5)
        report = library.add(folder, work=Work(workers=workers))
        assert verify(library, files=True) == []
        told = (report.added, report.known, [line.rpartition("/")[2] for line in report.failed])
        made.append((_rows(library), told, np.array(library.store.vectors())))
        library.close()
    assert made[0][1][:2] == (10, 1)
    assert len(made[0][1][2]) == 2
    for rows, told, vectors in made[1:]:
        assert (rows, told) == made[0][:2]
        assert np.abs(vectors - made[0][2]).max() <= 1e-6


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("killed", "crashed", "took its decoder down (SIGKILL)"),
        ("memory", "crashed", "needs more memory than a decoder may have"),
        ("still", "slow", "stood still"),
        ("unopened", "unopened", "No such file"),
        ("bug", "crashed", "ZeroDivisionError"),
    ],
)
def test_a_file_that_takes_its_decoder_down_costs_that_file(how: str, kind: str, said: str) -> None:
    clip = video_bytes(0, frames=16)
    jobs = [Job(key=n, source=_Killer(how) if n in (1, 2) else clip, name=f"file{n}") for n in range(5)]
    found = _run(jobs, workers=2)
    for number in (0, 3, 4):
        assert isinstance(found[number], Embedded)
    for number in (1, 2):
        failure = found[number]
        assert isinstance(failure, Failure)
        assert failure.kind == kind
        assert failure.reason.startswith(f"file{number}: ")
        assert said in failure.reason


def test_what_encodes_on_the_cpu_goes_before_what_decodes() -> None:
    failure = _run([Job(key=0, source=_Killer("nice"), name="file")], workers=1)[0]
    assert isinstance(failure, Failure)
    assert failure.reason == f"file: niceness {min(19, os.nice(0) + 10)}"


def test_jobs_are_taken_only_when_somebody_can_decode_them() -> None:
    clip, taken, least = video_bytes(0, frames=16), 0, []

    def jobs() -> Iterator[Job[int] | None]:
        nonlocal taken
        for number in range(80):
            taken += 1
            if number == 5:
                yield None  # not known yet
            yield Job(key=number, source=None if number % 4 == 3 else clip)

    with Pipeline(small_model(), _settings(), Work(workers=1)) as pipeline:
        for key, found in pipeline.run(jobs()):
            assert (found is None) == (key % 4 == 3)
            least.append(taken - key)
    assert least[-1] == 1
    assert max(least) < 45  # some batches of 16 windows may wait, each file has three


def test_what_goes_wrong_in_the_model_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> np.ndarray:
        raise VtrError("not finite")

    monkeypatch.setattr("vtr.library.devices.encoded", broken)
    with pytest.raises(VtrError, match="not finite"):
        _run([Job(key=0, source=video_bytes(0, frames=16))], workers=1)


def test_no_process_outlives_its_owner(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    owner = os.fork()
    if owner == 0:
        pipeline = Pipeline(small_model(), _settings(), Work(workers=2))
        steps = pipeline.run(Job(key=n, source=video_bytes(n, frames=16)) for n in range(4))
        next(steps)
        (tmp_path / "pids").write_text(" ".join(str(d.pid) for d in pipeline._decoders.all))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    _until(lambda: not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids))


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_quick_look_is_written_down_and_marks_each_hit(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(folder, 3)
    library = Library.create(tmp_path / "lib", small_model(), window=1.0, stride=0.5)
    library.add(folder, keyframes=True)
    assert library.info()["keyframes"] is True
    again = Library.open(tmp_path / "lib", small_model())
    assert [hit_dict(h)["keyframes"] for h in again.search("a dog runs")] == [True] * 3
    with pytest.raises(VtrError, match="made of key frames"):
        again.add(folder, keyframes=False)
    plain = Library.create(tmp_path / "plain", small_model(), window=1.0, stride=0.5)
    plain.add(folder)
    assert not any(h.keyframes for h in plain.search("a dog runs"))
    assert _rows(plain) == _rows(again)  # the same segments, seen less closely


def test_precision_and_its_parity_are_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(folder, 2)
    library = Library.create(tmp_path / "lib", small_model(), window=1.0, stride=0.5)
    library.add(folder, work=Work(precision="bf16"))
    assert library.info()["precision"] == "bf16"
    parity = library.info()["parity"]
    assert parity is not None
    assert 0.98 < parity <= 1
    (folder / "more.mp4").write_bytes(video_bytes(9, frames=16))
    library.add(folder)
    assert library.info()["precision"] == "bf16+fp32"


def test_what_cannot_be_worked_with_is_refused() -> None:
    with pytest.raises(UsageError, match="0 or more"):
        Work(workers=-1)
    with pytest.raises(UsageError, match="no such device"):
        Pipeline(small_model(), _settings(), Work(devices=("cuda:99",)))
    with pytest.raises(UsageError, match="precision"):
        Pipeline(small_model(), _settings(), Work(precision="fp8"))


def test_beside_grpc_nothing_is_forked_unless_its_own_support_of_forks_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", sys)
    monkeypatch.setenv(GRPC_FORKS, "1")
    assert (forkable(), default_workers()) == (False, 0)
    monkeypatch.setenv(GRPC_FORKS, "0")
    assert forkable() == (sys.platform == "linux")
