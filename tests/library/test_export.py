"""A library as a Parquet file: every segment with its vector and metadata."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_model, write_videos
from vtr.cli import main, run
from vtr.files import install_command
from vtr.library import Library


@pytest.fixture
def library(tmp_path: Path) -> Library:
    videos = write_videos(tmp_path / "videos", 3, frames=24)
    library = Library.create(tmp_path / "lib", small_model(), model_path="/runs/m", window=1.0, stride=0.5)
    library.add(videos, metadata={str(videos[1]): {"views": 7, "title": "a “dog”"}})
    library.remove([videos[0]])
    return library


def test_every_segment_is_exported_with_vector_metadata_and_model(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    monkeypatch.setattr("vtr.library.export._GROUP", 4)
    out = tmp_path / "segments.parquet"
    assert run(["index", "export", str(library.path), "--out", str(out)]) == 0
    assert f"{library.store.segments()} segments" in capsys.readouterr().err
    rows = pq.read_table(out).to_pylist()
    hits = {h.segment: h for h in library.search("a dog", k=100, all_moments=True, unmerged=True)}
    assert [r["segment"] for r in rows] == sorted(hits)
    for row in rows:
        hit = hits[row["segment"]]
        assert (row["path"], row["start"], row["end"], row["duration"]) == (hit.path, hit.start, hit.end, hit.duration)
        assert json.loads(row["metadata"] or "{}") == hit.metadata
        assert len(row["sha256"]) == 64
        assert row["modified"].startswith("20")
        own = library.store.vectors()[library.store.rows_of(np.array([row["segment"]]))[0]]
        np.testing.assert_array_equal(np.array(row["embedding"], np.float32), own)
    kept = json.loads(pq.read_schema(out).metadata[b"vtr"])
    assert (kept["fingerprint"], kept["window"]) == (library.settings.fingerprint, 1.0)
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_file_that_cannot_be_written_is_one_line(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    capsys.readouterr()
    assert main(["index", "export", str(library.path), "--out", "/proc/none/x.parquet"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "--out /proc/none/x.parquet: cannot be written" in err


def test_without_pyarrow_the_command_that_installs_it_is_said(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    capsys.readouterr()
    assert main(["index", "export", str(library.path), "--out", str(tmp_path / "x.parquet")]) == 1
    assert install_command() in capsys.readouterr().err
