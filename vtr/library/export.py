"""A library as Parquet: one row a segment, with its vector and its video's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vtr.errors import VtrError
from vtr.files import install_command, write_atomically
from vtr.library.library import Library
from vtr.library.rows import SegmentRow
from vtr.library.store import day_of

_GROUP = 10_000  # rows of a row group


def segments(library: Library, size: int = _GROUP) -> Iterator[tuple[list[SegmentRow], np.ndarray]]:
    """Blocks of segments, and their vectors (n, w)."""
    vectors = library.store.vectors()
    for rows in library.store.each_segment(size):
        yield rows, np.ascontiguousarray(vectors[[r.row for r in rows]])


def export(library: Library, out: Path) -> int:
    """Write all segments to a Parquet file; returns how many.

    Columns: segment, path, start, end, duration, modified (ISO 8601), sha256, metadata (JSON), embedding (float32).
    The file's own metadata, under the key `vtr`, says which model and windows they are of.

    Raises:
        VtrError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise VtrError(f"Parquet needs pyarrow: {install_command()}") from error
    width = library.settings.width
    schema = pa.schema(
        [
            ("segment", pa.int64()),
            ("path", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("duration", pa.float64()),
            ("modified", pa.string()),
            ("sha256", pa.string()),
            ("metadata", pa.string()),
            ("embedding", pa.list_(pa.float32(), width)),
        ],
        metadata={"vtr": json.dumps(library.settings.origin)},
    )

    def write(partial: Path) -> int:
        written = 0
        with pq.ParquetWriter(partial, schema) as writer:
            for rows, vectors in segments(library):
                columns = [pa.array(c, f.type) for c, f in zip(zip(*map(_values, rows)), schema)]
                flat = pa.array(vectors.reshape(-1))
                writer.write_table(
                    pa.Table.from_arrays([*columns, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema)
                )
                written += len(rows)
        return written

    try:
        with write_atomically(out) as partial:
            return library.read(lambda: write(partial))
    except OSError as error:
        raise VtrError(
            lambda say, why=error.strerror or error: f"{say.given('out', out)}: cannot be written ({why})"  # type: ignore[misc]
        ) from error


def _values(r: SegmentRow) -> tuple[object, ...]:
    return r.id, r.path, r.start, r.end, r.duration, day_of(r.modified), r.sha256, r.meta
