"""Kills writers of a library at random moments and looks at what is left: `python -m tests.library.killing -n 50`.

For each moment a library is prepared, one of build, add, remove, sync and compact is begun in a process of its own,
killed with SIGKILL after a random part of the time it takes, and then: `verify` finds nothing wrong, every video is there
whole, as it was before or as it shall be, with the vectors of its content; the same call again ends where an undisturbed
one ends. Prints one line a moment; exit code 1 when one was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads of a pool would not live on in forked processes

import faiss
import numpy as np
import torch
from tqdm import tqdm

from tests.helpers import small_model, video_bytes
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library import index as indexes
from vtr.library.verify import verify

WINDOW, STRIDE = 1.0, 0.5
Videos = dict[str, str]  # {path: sha256 of its content}


@dataclass
class Case:
    """An operation on a prepared library.

    Attributes:
        call: The operation.
        before, after: What the library holds before and after it.
        begin: Makes the folder of videos, and the library, as they are before it.
    """

    call: Callable[[], object]
    before: Videos
    after: Videos
    begin: Callable[[], None]


class Place:
    """A folder with videos and a library."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.lib, self.prepared = folder / "videos", folder / "lib", folder / "prepared"
        self.model = small_model()
        self.contents = [video_bytes(seed, frames=16) for seed in range(24)]
        self.sums = [hashlib.sha256(c).hexdigest() for c in self.contents]
        self.known = self._vectors(folder)

    def _vectors(self, folder: Path) -> dict[str, tuple[list[tuple[float, float]], np.ndarray]]:
        """Times and vectors of each content, by its hash, from an undisturbed library."""
        for number, content in enumerate(self.contents):
            self._put(folder / "all" / f"{number}.mp4", content)
        with Library.create(folder / "reference", self.model, window=WINDOW, stride=STRIDE) as library:
            library.add(folder / "all")
            return _held(library)

    @staticmethod
    def _put(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def library(self) -> Library:
        return Library.create(self.lib, self.model, window=WINDOW, stride=STRIDE)

    def _folder(self, files: dict[str, int]) -> Videos:
        shutil.rmtree(self.videos, ignore_errors=True)
        for name, content in files.items():
            self._put(self.videos / name, self.contents[content])
        return self._named(files)

    def _named(self, files: dict[str, int]) -> Videos:
        return {str(self.videos / name): self.sums[content] for name, content in files.items()}

    def case(self, name: str) -> Case:
        """The operation of this name."""
        old = {f"a/{n}.mp4": n for n in range(12)}
        new = {f"b/{n}.mp4": n for n in range(12, 24)}
        # Half of the old ones vanish or change, one is renamed, others are new.
        synced = {f"a/{n}.mp4": n for n in range(6)} | {f"a/{n}.mp4": n + 6 for n in range(6, 9)}
        synced |= {"a/renamed.mp4": 9} | {f"b/{n}.mp4": n for n in range(15, 20)}
        start, there, after, call = {
            "build": ({}, old | new, old | new, lambda: self.library().add(self.videos)),
            "add": (old, old | new, old | new, lambda: self.library().add(self.videos)),
            "remove": (old | new, old | new, old, self._remove),
            "sync": (old, synced, synced, lambda: self.library().sync(self.videos)),
            "compact": (new, old | new, new, lambda: self.library().compact()),
        }[name]

        def begin() -> None:
            shutil.rmtree(self.lib, ignore_errors=True)
            ready = self.prepared / name
            if start and not ready.exists():
                self._folder({**start, **old} if name == "compact" else start)
                with self.library() as library:
                    library.add(self.videos)
                    if name == "compact":
                        library.remove([self.videos / "a"])
                shutil.copytree(self.lib, ready)
            elif start:
                shutil.copytree(ready, self.lib)
            self._folder(there)

        return Case(call, self._named(start), self._named(after), begin)

    def _remove(self) -> None:
        with self.library() as library:
            try:
                library.remove([self.videos / "b"])
            except VtrError as error:  # a call that was killed had done it
                if "is not in" not in str(error):
                    raise

    def left(self, case: Case) -> str:
        """What is wrong with the library that a kill left behind; nothing when all is well."""
        if not (self.lib / "library.json").exists():
            return "" if not case.before else "library.json is gone"
        with Library.open(self.lib, self.model) as library:
            if wrong := self._faults(library):
                return wrong
            kept = dict(library.store.db.execute("SELECT path, sha256 FROM videos"))
            for path, digest in kept.items():
                renamed = digest in case.before.values() and digest in case.after.values()
                if digest not in (case.before.get(path), case.after.get(path)) and not renamed:
                    return f"{path} has a content it never had"
            for path, digest in case.before.items():
                if case.after.get(path) == digest and kept.get(path) != digest:
                    return f"{path} is lost"
        return ""

    def done(self, case: Case) -> str:
        """What is wrong with the library after the call was made again."""
        with Library.open(self.lib, self.model) as library:
            if wrong := self._faults(library):
                return wrong
            kept = dict(library.store.db.execute("SELECT path, sha256 FROM videos"))
            if kept != case.after:
                return f"holds {len(kept)} videos, expected {len(case.after)}, or others"
            stale = [p.name for p in self.lib.iterdir() if p.name.endswith(".tmp")]
            return f"left behind: {stale}" if stale else ""

    def _faults(self, library: Library) -> str:
        if problems := verify(library):
            return "; ".join(problems)
        for digest, (spans, vectors) in _held(library).items():
            expected = self.known[digest]
            if spans != expected[0]:
                return f"segments lost or doubled: {spans}, expected {expected[0]}"
            if not np.allclose(vectors, expected[1], atol=1e-5):
                return "vectors of another video"
        moments = library.search("a dog runs", k=1000, all_moments=True, unmerged=True)
        if len({h.segment for h in moments}) != len(moments) or len(moments) != library.store.segments():
            return f"a search gives {len(moments)} of {library.store.segments()} segments"
        return ""


def _held(library: Library) -> dict[str, tuple[list[tuple[float, float]], np.ndarray]]:
    out: dict[str, tuple[list[tuple[float, float]], np.ndarray]] = {}
    vectors = library.store.vectors()
    for number, digest in library.store.db.execute("SELECT id, sha256 FROM videos").fetchall():
        rows = library.store.db.execute(
            "SELECT start, end, row FROM segments WHERE video = ? ORDER BY row", (number,)
        ).fetchall()
        out[digest] = [(r[0], r[1]) for r in rows], np.array(vectors[[r[2] for r in rows]])
    return out


def _child(function: Callable[[], object]) -> int:
    """Begin a call in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            # tqdm's own lock is a semaphore that forked processes share: one killed inside would stop all after it.
            tqdm.set_lock(threading.RLock())
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


def run(moments: int, seed: int, folder: Path) -> int:
    """Kill at so many moments; returns how many went wrong."""
    indexes.EXACT_UP_TO, indexes.TAIL_UP_TO = 10, 5  # an index, made again on the way, as large libraries have one
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    draw, wrong = random.Random(seed), 0
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        place = Place(folder)
        names = ["build", "add", "remove", "sync", "compact"]
        cases = {name: place.case(name) for name in names}
        takes = {}
        for name, case in cases.items():
            for _ in range(3):
                case.begin()
                start = time.perf_counter()
                if os.waitpid(_child(case.call), 0)[1]:
                    raise RuntimeError(f"{name} fails undisturbed")
                takes[name] = min(takes.get(name, 9e9), time.perf_counter() - start)
        number = 0
        while number < moments:
            name = names[number % len(names)]
            case, after = cases[name], draw.random() * takes[name]
            case.begin()
            pid = _child(case.call)
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
            if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                continue  # it was quicker
            number += 1
            fault = place.left(case)
            if not fault:
                again = os.waitpid(_child(case.call), 0)[1]
                fault = "the call again fails" if again else place.done(case)
            wrong += bool(fault)
            print(
                f"{number:3} {name:8} killed after {after * 1e3:5.1f} of {takes[name] * 1e3:5.1f} ms: "
                f"{fault or 'consistent'}",
                flush=True,
            )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(args.moments, args.seed, Path(folder))
    print(f"{args.moments} moments, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
