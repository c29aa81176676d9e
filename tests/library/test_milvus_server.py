"""Milvus as a server of its own: push, search, only differences, bulk import, kills in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import small_model
from vtr.errors import VtrError
from vtr.library import Library
from vtr.library.encode import settings_of
from vtr.library.imports import build_from
from vtr.library.parts import Part, PartVideo, begin, write_part
from vtr.library.rows import Span

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install -e '.[milvus]'")
pytest.importorskip("milvus", reason="no Milvus server here: pip install --no-deps milvus==2.3.5")

import milvus

from vtr.library.milvus import MilvusLibrary, push

pytestmark = pytest.mark.slow  # the server takes half a minute: pytest -m slow tests/library/test_milvus_server.py


VIDEOS, MOMENTS, WIDTH = 300, 10, 16
COUNT = VIDEOS * MOMENTS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    running = milvus.MilvusServer(debug=False)
    running.set_base_dir(str(folder))
    running.start()
    try:
        yield f"milvus://127.0.0.1:{running.listen_port}"
    finally:
        running.stop()


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """3,000 segments of random vectors, around which texts can be looked for."""
    settings = settings_of(small_model(), str(tmp_path / "model"), 8.0, 4.0)
    small_model().save_pretrained(tmp_path / "model")
    begin(tmp_path / "e", settings)
    rng = np.random.default_rng(0)
    videos = [
        PartVideo(
            path=f"/v/{i:04d}.mp4",
            duration=48.0,
            metadata={"views": i, "title": f"Film {i % 7}"},
            spans=[Span(4.0 * m, 4.0 * m + 8.0) for m in range(MOMENTS)],
        )
        for i in range(VIDEOS)
    ]
    vectors = rng.standard_normal((COUNT, WIDTH)).astype(np.float32)
    write_part(tmp_path / "e" / "all-0.parquet", Part(videos=videos, vectors=vectors), origin=settings.origin)
    with build_from(tmp_path / "e", tmp_path / "lib") as made:
        made._accept(small_model())
        yield made


def stored(address: str) -> list[int]:
    """Ids of all segments that are there, as often as they are."""
    from pymilvus import MilvusClient

    where, name = address.removeprefix("milvus://").split("/")
    client = MilvusClient(f"http://{where}")
    client.load_collection(name)
    out: list[int] = []
    for first in range(0, 2 * COUNT, 1000):
        rows = client.query(name, filter=f"id >= {first} and id < {first + 1000}", output_fields=["id"],
                            consistency_level="Strong")  # fmt: skip
        out += [int(r["id"]) for r in rows]
    client.close()
    return out


def hits(library: Any, **words: Any) -> list[tuple[str, float, float]]:
    return [(h.path, h.start, round(h.score, 3)) for h in library.search("a dog runs", **words)]


def test_push_search_filter_remove_and_push_again(server: str, library: Library) -> None:
    to = f"{server}/first"
    assert push(library, to) == {"written": COUNT, "unchanged": 0, "removed": 0}
    remote = MilvusLibrary(to, small_model())
    for words in (
        {"k": 10},
        {"k": 10, "where": "views < 50"},
        {"k": 10, "where": 'title = "Film 3"', "all_moments": True},
    ):
        assert hits(remote, **words) == hits(library, **words)
    with pytest.raises(VtrError, match="unsupported pattern"):  # servers before 2.4: one line, and no wrong hits
        remote.search("a dog", where='title ~ "film 3"')
    assert push(library, to) == {"written": 0, "unchanged": COUNT, "removed": 0}
    best = library.search("a dog runs", k=1)[0].path
    library.remove([best])
    assert push(library, to) == {"written": 0, "unchanged": COUNT - MOMENTS, "removed": MOMENTS}
    assert hits(remote, k=10) == hits(library, k=10)
    assert best not in {h[0] for h in hits(remote, k=10)}


def test_a_bulk_import_gives_what_rows_one_by_one_give(server: str, library: Library, tmp_path: Path) -> None:
    to, staging = f"{server}/second", tmp_path / "staging"
    assert push(library, to, staging=str(staging), bulk_from=1000)["written"] == COUNT
    assert list(staging.iterdir()) == []
    remote = MilvusLibrary(to, small_model())
    for words in ({"k": 10}, {"k": 10, "where": "views < 50"}, {"k": 10, "where": 'title = "Film 3"'}):
        assert hits(remote, **words) == hits(library, **words)
    assert sorted(stored(to)) == list(range(1, COUNT + 1))
    assert push(library, to, staging=str(staging), bulk_from=1)["unchanged"] == COUNT


# A push that kills itself where the third batch, or file, is to be sent: what came before is with the server.
KILLED = """
import os, signal, sys
import vtr.library.milvus as m
m._BATCH, m.BULK_ROWS = 500, 1000
write, calls = m._Push._write, []
def once(self, *words):
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    write(self, *words)
m._Push._write = once
m.push(m.Library.open(sys.argv[1]), sys.argv[2], staging=sys.argv[3] or None, bulk_from=1)
"""


@pytest.mark.parametrize("bulk", [False, True])
def test_a_push_that_is_killed_goes_on(server: str, library: Library, tmp_path: Path, repo: Path, bulk: bool) -> None:
    to = f"{server}/{'killed_bulk' if bulk else 'killed'}"
    staging = str(tmp_path / "staging") if bulk else ""
    done = subprocess.run([sys.executable, "-c", KILLED, str(library.path), to, staging], cwd=repo, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    sent = 2 * (1000 if bulk else 500)
    again = push(library, to, staging=staging or None, bulk_from=1)
    print(f"killed after {sent} segments; then {again}")
    assert again == {"written": COUNT - sent, "unchanged": sent, "removed": 0}
    assert sorted(stored(to)) == list(range(1, COUNT + 1))
    assert hits(MilvusLibrary(to, small_model()), k=10) == hits(library, k=10)
