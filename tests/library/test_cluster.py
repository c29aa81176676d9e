"""`vtr embed --engine ray`: the parts are those of one process, also where a node dies in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import small_model, write_videos
from vtr.library.embed import embed
from vtr.library.parts import read_part

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = pytest.mark.slow  # a cluster takes ten seconds to come up: pytest -m slow tests/library/test_cluster.py


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.other = made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def vectors(folder: Path) -> dict[tuple[str, float, float], np.ndarray]:
    """Vectors by moment; each moment once."""
    out: dict[tuple[str, float, float], np.ndarray] = {}
    for path in folder.glob("*.parquet"):
        part = read_part(path, 16)
        rows = iter(part.vectors)
        for video in part.videos:
            for span in video.spans:
                assert (video.path, *span) not in out
                out[(video.path, *span)] = next(rows)
    return out


def test_a_node_that_dies_costs_its_unfinished_parts_alone(cluster: Any, tmp_path: Path) -> None:
    from vtr.library.cluster import embed as spread

    write_videos(tmp_path / "v", 30, frames=48)
    (tmp_path / "v" / "bad.mp4").write_bytes(b"<html>")
    words = {"window": 1.0, "stride": 0.25}
    embed([str(tmp_path / "v")], tmp_path / "one", small_model(), **words)
    there: list[int] = []

    def kill() -> None:
        while len(list((tmp_path / "e").glob("*.parquet"))) < 4:
            time.sleep(0.02)
        there.append(len(list((tmp_path / "e").glob("*.parquet"))))
        cluster.remove_node(cluster.other, allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    report = spread([str(tmp_path / "v")], tmp_path / "e", small_model(), part_bytes=1, **words)
    thread.join()
    print(f"{there[0]} parts when the node died, {report}")
    assert there[0] < 31
    assert len(report.failed) == 1
    assert report.damaged == []
    own, far = vectors(tmp_path / "one"), vectors(tmp_path / "e")
    assert own.keys() == far.keys()
    assert len(own) == 30 * 21
    assert max(float(np.abs(own[k] - far[k]).max()) for k in own) < 1e-6
    again = spread([str(tmp_path / "v")], tmp_path / "e", small_model(), part_bytes=1, **words)
    assert (again.parts, again.skipped) == (0, 31)
