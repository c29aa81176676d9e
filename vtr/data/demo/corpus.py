"""A small rendered corpus that trains a real model in minutes: clips, images, a benchmark, direction pairs.

Layout of the folder::

    corpus.json                        settings, version, ceilings; written last
    train/video/000000.tar ... sizes.json     KEY.mp4 KEY.txt KEY.json, siblings next to each other
    train/image/000000.tar ... sizes.json     KEY.jpg KEY.txt KEY.json
    benchmark/videos/video0000.mp4 ... test.json msrvtt_jsfusion.csv benchmark.json
    pairs/videos/pair0000a.mp4 ...     pairs.json
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from vtr.data.demo import build
from vtr.errors import UsageError, VtrError
from vtr.files import import_root
from vtr.threads import cores

VERSION = 2  # raise it whenever the same settings would give other files


@dataclass(frozen=True, kw_only=True)
class DemoCorpus:
    """A finished demo corpus on disk."""

    root: Path
    seed: int
    clips: int
    images: int
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def train_video(self) -> Path:
        """Folder of the clip shards (`000000.tar` ..., `sizes.json`)."""
        return self.root / "train" / "video"

    @property
    def train_image(self) -> Path:
        """Folder of the image shards."""
        return self.root / "train" / "image"

    @property
    def benchmark_videos(self) -> Path:
        """The 500 clips of the benchmark; a folder of videos to build a library from, too."""
        return self.root / "benchmark" / "videos"

    @property
    def benchmark_json(self) -> Path:
        """[{"video", "caption"}], the official evaluation format."""
        return self.root / "benchmark" / "test.json"

    @property
    def benchmark_csv(self) -> Path:
        """The same in MSRVTT's JSFusion format: key, vid_key, video_id, sentence."""
        return self.root / "benchmark" / "msrvtt_jsfusion.csv"

    @property
    def validation_json(self) -> Path:
        """[{"video", "caption"}] of clips to choose settings and checkpoints by; they are in `videos` beside it."""
        return self.root / "validation" / "validation.json"

    @property
    def pairs_videos(self) -> Path:
        """The clips of the direction pairs."""
        return self.root / "pairs" / "videos"

    @property
    def pairs_json(self) -> Path:
        """[{"kind", "video_a", "caption_a", "video_b", "caption_b"}]."""
        return self.root / "pairs" / "pairs.json"


def ensure_demo_corpus(
    root: Path | str,
    *,
    seed: int = 0,
    clips: int = 8000,
    images: int = 2000,
    workers: int | None = None,
    progress: bool = True,
) -> DemoCorpus:
    """The demo corpus in the folder `root`, made if it is not there yet or was made with other settings.

    Args:
        root: Folder of the corpus. It is made beside its final place and moved there when it is complete.
        seed: The same seed and numbers give the same files, however many processes made them.
        clips: Training clips, siblings included; a multiple of 8.
        images: Training images; a multiple of 8.
        workers: Processes; by default one per core this process may use, 8 at most.
        progress: Show a progress bar on stderr.

    Raises:
        UsageError: `clips` or `images` is not a positive multiple of 8.
        VtrError: `root` holds something else, or can't be written, or a process failed.
    """
    for name, value in (("clips", clips), ("images", images)):
        if value <= 0 or value % build.BLOCK:
            raise UsageError(f"demo corpus: {name} is {value}, expected a positive multiple of {build.BLOCK}")
    root = Path(root).absolute()
    settings = {"version": VERSION, "seed": seed, "clips": clips, "images": images}
    found = _complete(root, settings)
    if found is not None:
        return found
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f".{root.name}.lock"):  # of several ranks one makes the corpus, the others wait
            found = _complete(root, settings)  # another process may have made it while this one waited
            if found is not None:
                return found
            _make(root, settings, workers or min(8, cores()), progress)
    except OSError as error:
        raise VtrError(f"demo corpus: {root} can't be written ({error}); choose another folder") from error
    return open_demo_corpus(root)


def open_demo_corpus(root: Path | str) -> DemoCorpus:
    """The finished demo corpus in `root`, whatever its settings.  Raises VtrError where there is none."""
    root = Path(root).absolute()
    record = _record(root)
    if record is None:
        raise VtrError(f"{root}: no finished demo corpus there (corpus.json is missing or unreadable)")
    return DemoCorpus(
        root=root,
        seed=record["settings"]["seed"],
        clips=record["settings"]["clips"],
        images=record["settings"]["images"],
        ceilings=record["ceilings"],
    )


def demo_texts(root: Path | str) -> list[str]:
    """Every training text of the corpus: captions, other wordings and siblings' captions, each once, in order."""
    texts: dict[str, None] = {}
    corpus = open_demo_corpus(root)
    for shard in sorted([*corpus.train_video.glob("*.tar"), *corpus.train_image.glob("*.tar")]):
        with tarfile.open(shard) as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.name.endswith(".json") else None
                if handle is not None:
                    meta = json.load(handle)
                    for name in ("caption", "paraphrase", "sibling_caption"):
                        if meta[name]:
                            texts[meta[name]] = None
    return list(texts)


def _record(root: Path) -> dict | None:
    try:
        record = json.loads((root / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"settings", "ceilings", "files"} <= record.keys() else None


def _complete(root: Path, settings: dict[str, int]) -> DemoCorpus | None:
    """The corpus if it is there with these settings and no file is missing or of another length."""
    record = _record(root)
    if record is None or record["settings"] != settings:
        return None
    for name, size in record["files"].items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    return open_demo_corpus(root)


def _make(root: Path, settings: dict[str, int], workers: int, progress: bool) -> None:
    known = {"corpus.json", "held_out.json", "train", "benchmark", "pairs", "validation"}
    if root.exists() and not (root.is_dir() and {path.name for path in root.iterdir()} <= known):
        raise VtrError(f"demo corpus: {root} holds something else; choose an empty folder or one that does not exist")
    seed, clips, images = settings["seed"], settings["clips"], settings["images"]
    for left in root.parent.glob(f".{root.name}.*.partial"):  # of a run that was killed; the lock keeps others out
        shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=root.parent))
    try:
        for folder in ("train/video", "train/image", "benchmark/videos", "pairs/videos", "validation/videos"):
            (building / folder).mkdir(parents=True)
        _run(building, seed, build.tasks(clips, images), workers, progress)
        ceilings = build.write_annotations(building, seed)
        build.write_description(building, seed, clips, images)
        files = {
            p.relative_to(building).as_posix(): p.stat().st_size for p in sorted(building.rglob("*")) if p.is_file()
        }
        record = {"settings": settings, "ceilings": ceilings, "files": files}
        (building / "corpus.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if root.exists():
            shutil.rmtree(root)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _run(root: Path, seed: int, tasks: list[str], workers: int, progress: bool) -> None:
    """Run the tasks in `workers` processes; in this one if there is only one worker."""
    from tqdm import tqdm

    total = sum(int(task.split()[2]) for task in tasks)
    bar = tqdm(total=total, desc="demo corpus", unit="clip", disable=not progress, file=sys.stderr)
    with bar:
        if workers <= 1:
            for task in tasks:
                build.run_task(root, seed, task)
                bar.update(int(task.split()[2]))
            return
        todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        for task in tasks:
            todo.put(task)
        failures: list[str] = []

        def serve() -> None:
            # Plain processes rather than multiprocessing: nothing is forked from a process with threads, and a caller
            # without a `__main__` guard works too.
            with _worker(root, seed) as ask:
                while not failures:
                    try:
                        task = todo.get_nowait()
                    except queue.Empty:
                        return
                    failure = ask(task)
                    if failure is not None:
                        failures.append(f"{task!r}: {failure}")
                        return
                    bar.update(int(task.split()[2]))

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, len(tasks)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise VtrError(f"demo corpus: a worker failed at {failures[0]}")


@contextmanager
def _worker(root: Path, seed: int) -> Iterator[Callable[[str], str | None]]:
    """A worker process: call what is yielded with a task; it answers None, or the cause if the worker failed."""
    package_parent = str(import_root())
    path = os.pathsep.join(p for p in (package_parent, os.environ.get("PYTHONPATH", "")) if p)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vtr.data.demo.build", str(root), str(seed)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as talk:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(task: str) -> str | None:
            with suppress(BrokenPipeError):  # a worker that is gone answers nothing, which the next line notices
                requests.write(task + "\n")
                requests.flush()
            if answers.readline() == f"done {task}\n":
                return None
            code = process.wait()
            talk.seek(0)
            return (talk.read().strip().splitlines() or [f"the process ended with code {code}"])[-1]

        try:
            yield ask
        finally:
            with suppress(BrokenPipeError):
                requests.close()  # the worker ends at the end of its input
            answers.close()
            process.wait()
