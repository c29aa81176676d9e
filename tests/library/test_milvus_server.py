"""Milvus as a server of its own: push, search, only differences, bulk import, kills in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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


@pytest.mark.parametrize("bulk", [False, True])
def test_a_push_that_is_killed_goes_on(server: str, library: Library, tmp_path: Path, repo: Path, bulk: bool) -> None:
    to = f"{server}/{'killed_bulk' if bulk else 'killed'}"
    words = ["--staging", str(tmp_path / "staging"), "--bulk-from", "1"] if bulk else []
    command = [sys.executable, "-m", "vtr.cli", "index", "push", str(library.path), "--to", to, *words]
    process = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)
    begun = False
    while not begun and process.poll() is None:
        if bulk:
            begun = any((tmp_path / "staging").glob("*.parquet"))
        else:
            try:
                begun = len(stored(to)) > 0
            except Exception:  # there is no such collection yet
                begun = False
        time.sleep(0.05)
    time.sleep(0.3 if bulk else 0.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(stored(to))
    done = push(library, to, staging=str(tmp_path / "staging") if bulk else None, bulk_from=1)
    print(f"{before} segments were there after the kill; then {done}")
    assert done["written"] + done["unchanged"] == COUNT
    assert sorted(stored(to)) == list(range(1, COUNT + 1))
    assert hits(MilvusLibrary(to, small_model()), k=10) == hits(library, k=10)
