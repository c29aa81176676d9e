"""Parts: what is written is read, by vtr and by whatever reads Parquet; damage is told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vtr.errors import VtrError
from vtr.library.parts import Damaged, Part, PartVideo, Source, read_heading, read_part, segment_id, write_part
from vtr.library.rows import Facts, Failure, Span

ORIGIN = {"model": "m", "fingerprint": "f", "width": 4, "window": 2.0, "stride": 1.0, "frames": 8}
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    videos = [
        PartVideo(path="/v/a.mp4", facts=Facts(9, 1.5, "ab"), duration=3.0, metadata={"views": 7, "title": "é"},
                  spans=[Span(0.0, 2.0), Span(1.0, 3.0)], lacking="cut off"),
        PartVideo(path="/v/bad.mp4", failure=Failure(reason="/v/bad.mp4: is text", kind="unreadable"), metadata={"x": 1}),
        PartVideo(path="/v/b.mp4", duration=2.0, spans=[Span(0.0, 2.0)]),
    ]  # fmt: skip
    path = tmp_path / "p-0.parquet"
    sources = [Source(name="/v/a.mp4", bytes=9, modified=1.5), Source(name="/v/bad.mp4", again=True)]
    write_part(path, Part(videos=videos, vectors=VECTORS), origin=ORIGIN, unit="u", sources=sources)
    return path


def test_what_is_written_is_read(part: Path) -> None:
    read = read_part(part, 4)
    assert (read.vectors == VECTORS).all()
    assert [(v.path, len(v.spans)) for v in read.videos] == [("/v/a.mp4", 2), ("/v/b.mp4", 1), ("/v/bad.mp4", 0)]
    assert read.videos[0].metadata == {"views": 7, "title": "é"}
    assert (read.videos[0].facts, read.videos[0].lacking) == (Facts(9, 1.5, "ab"), "cut off")
    assert read.videos[2].failure == Failure(reason="/v/bad.mp4: is text", kind="unreadable")
    heading = read_heading(part)
    assert (heading.unit, heading.rows, heading.sources[1].again) == ("u", 3, True)


def test_vectors_are_fixed_size_lists_and_ids_are_those_of_the_moments(part: Path) -> None:
    table = pq.read_table(part)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert table["id"].to_pylist()[1] == segment_id("/v/a.mp4", Span(1.0, 3.0))
    assert len(set(table["id"].to_pylist())) == 3


def test_pandas_reads_it_as_it_is(part: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert (np.stack(pandas.read_parquet(part)["embedding"]) == VECTORS).all()


def test_duckdb_reads_it_as_it_is(part: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    found = duckdb.sql(f"select path, count(*), max(embedding[4]) from '{part}' group by path order by path")
    assert found.fetchall() == [("/v/a.mp4", 2, 7.0), ("/v/b.mp4", 1, 11.0)]


LANCE = """
import sys, lance, pyarrow.parquet as pq
data = lance.write_dataset(pq.read_table(sys.argv[1]), sys.argv[2])
print(data.to_table(nearest={"column": "embedding", "q": [8.0, 9.0, 10.0, 11.0], "k": 1})["path"].to_pylist())
"""


@pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="Lance is not installed")
def test_lance_reads_it_as_it_is_and_finds_neighbours(part: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", LANCE, str(part), str(tmp_path / "x.lance")]  # by itself: it must not be forked
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.strip() == "['/v/b.mp4']", done.stderr


def test_damage_and_foreign_files_are_told(part: Path, tmp_path: Path) -> None:
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    with pytest.raises(Damaged, match="run vtr embed again"):
        read_part(part, 4)
    place = whole.index(VECTORS[1].tobytes()[:8]) if VECTORS[1].tobytes()[:8] in whole else 40
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    with pytest.raises(Damaged):
        read_part(part, 4)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(VtrError, match="did not write"):
        read_heading(tmp_path / "other.parquet")
