"""Processes beside a test that die or are read from: forked from a server that has loaded torch, seconds each otherwise."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers import small_model
from vtr.cli import main
from vtr.library import Library, index, unit
from vtr.library.store import Store


def beside(function: Callable[..., object], *words: Any) -> BaseProcess:
    """Begin a function of this module in a process of its own, which shares nothing with the test's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "torch"])
    process = context.Process(target=_alone, args=(function, *words))
    process.start()
    return process


def _alone(function: Callable[..., object], *words: Any) -> None:
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    function(*words)


def add_and_die(place: str, when: str, count: int, lib: Path, videos: Path) -> None:
    """`add`, killed at the `count`th call of a function: "before" or "after" it has done its work."""
    owner, name = {
        "append": (Store, "append"),
        "count": (Store, "_count"),
        "write": (index, "write"),
        "settings": (Library, "_write_settings"),
    }[place]
    real, calls = getattr(owner, name), [0]
    index.EXACT_UP_TO, index.TAIL_UP_TO = 2, 0  # an index as large libraries have one
    library = Library.open(lib, small_model())

    def killed(*given: object) -> object:
        calls[0] += 1
        if calls[0] == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        out = real(*given)
        if calls[0] == count and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    setattr(owner, name, killed)
    library.add(videos)


def vtr(words: list[str]) -> None:
    """A command."""
    raise SystemExit(main(words))


def embed_and_die(words: list[str], after: int) -> None:
    """`vtr embed`, killed when it has done so many parts and would write the next."""
    real, calls = unit.write_part, [0]

    def killed(*given: Any, **named: Any) -> None:
        if calls[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        real(*given, **named)

    unit.write_part = killed
    main(words)


def search_meanwhile(lib: Path, kept: int, ready: Any, over: Any, searches: Any) -> None:
    """Search until `over`: whatever is written meanwhile, `kept` moments of /kept/ are found, always with the same scores."""
    index.EXACT_UP_TO, index.TAIL_UP_TO = 10, 5
    library = Library.open(lib, small_model())
    seen, count = set(), 0
    ready.release()
    while not over.is_set():
        where = "duration < 100" if count % 2 else None
        hits = library.search("a dog runs", k=100, all_moments=True, unmerged=True, where=where)
        assert len({h.segment for h in hits}) == len(hits)
        assert len({(h.path, h.start) for h in hits}) == len(hits)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        always = [h for h in hits if "/kept/" in h.path]
        assert len(always) == kept, len(always)
        seen |= {(h.path, h.start, round(h.score, 4)) for h in always}
        count += 1
    assert len(seen) == kept, seen
    searches.put(count)
