"""A library as Parquet: one row a segment, with its vector and its video's metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtr.errors import VtrError
from vtr.files import install_command
from vtr.library.library import Library
from vtr.library.store import day_of

_GROUP = 10_000  # rows of a row group


def segments(library: Library, size: int = _GROUP) -> Iterator[tuple[list[tuple[Any, ...]], np.ndarray]]:
    """Blocks of (id, path, start, end, duration, modified, sha256, metadata as JSON), and their vectors (n, w)."""
    vectors = library.store.vectors()
    cursor = library.store.db.execute(
        "SELECT segments.id, path, start, end, duration, modified, sha256, meta, row FROM segments "
        "JOIN videos ON videos.id = segments.video ORDER BY segments.id"
    )
    while rows := cursor.fetchmany(size):
        yield [r[:8] for r in rows], np.ascontiguousarray(vectors[[r[8] for r in rows]])


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
    width = library.settings["width"]
    kept = ("model", "fingerprint", "width", "window", "stride", "frames")
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
        metadata={"vtr": json.dumps({k: library.settings[k] for k in kept})},
    )
    partial = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    count = 0

    def write() -> int:
        written = 0
        with pq.ParquetWriter(partial, schema) as writer:
            for rows, vectors in segments(library):
                columns = [pa.array(c, f.type) for c, f in zip(zip(*_days(rows)), schema)]
                flat = pa.array(vectors.reshape(-1))
                writer.write_table(
                    pa.Table.from_arrays([*columns, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema)
                )
                written += len(rows)
        return written

    try:
        count = library._read(write)
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise VtrError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return count


def _days(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(*r[:5], day_of(r[5]), *r[6:]) for r in rows]
