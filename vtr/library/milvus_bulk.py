"""Bulk import into Milvus: segments as Parquet files where the server reads them, and its import tasks watched.

The files lie in a staging place: s3://BUCKET/FOLDER of the server's own bucket (also gs:// and the like, through fsspec),
or a folder of the server's machine where it keeps its data in files (as `milvus-server` does). They go when they are in.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vtr.data.uri import is_uri
from vtr.errors import VtrError

ROWS = 50_000  # of a file
_LOOK = 0.5  # seconds between two looks at a task
_OVER = ("Completed", "Failed", "Failed and cleaned")


class BulkImport:
    """Rows into a collection, a file at a time.

    Args:
        uri: The server's, http://HOST:PORT.
        token: `user:password`, or "".
        name: The collection.
        staging: Where files lie for the server.
        call: Calls the server; what goes wrong there becomes one line.
    """

    def __init__(self, uri: str, token: str, name: str, staging: str, call: Callable[[Callable[[], Any]], Any]) -> None:
        self.name, self.staging, self._call = name, staging.rstrip("/"), call
        self._alias = uuid.uuid4().hex
        self._tasks: dict[int, str] = {}
        with _quiet():
            from pymilvus import connections, utility

            self._utility = utility
            call(lambda: connections.connect(alias=self._alias, uri=uri, token=token, timeout=10))

    def settle(self) -> None:
        """Wait for what an earlier call has given to the server: it may still be taking it in."""
        while any(
            t.state_name not in _OVER
            for t in self._asked(lambda u: u.list_bulk_insert_tasks(100, self.name, using=self._alias))
        ):
            time.sleep(_LOOK)

    def send(self, rows: Sequence[dict[str, object]], vectors: Mapping[str, np.ndarray]) -> None:
        """Write a file of rows with their vectors (n, ·) by field, and have it imported."""
        columns = {k: pa.array([row[k] for row in rows]) for k in rows[0]}
        for key, matrix in vectors.items():
            places = pa.array(np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32))
            columns[key] = pa.ListArray.from_arrays(places, pa.array(matrix.reshape(-1)))
        file = f"{self.staging}/{self.name}-{uuid.uuid4().hex}.parquet"
        with self._staged(file) as target:
            # Without Arrow's own schema: servers before 2.4 know no fixed-size lists, and Parquet has none.
            pq.write_table(pa.table(columns), target, store_schema=False)
        path = file.split("://", 1)[1].split("/", 1)[1] if is_uri(file) else os.path.abspath(file)
        task = self._asked(lambda u: u.do_bulk_insert(self.name, [path], using=self._alias))
        self._tasks[int(task)] = file

    def wait(self, most: int = 0) -> None:
        """Wait until no more than so many files are under way.

        Raises:
            VtrError: The server could not take one.
        """
        while len(self._tasks) > most:
            for task, file in list(self._tasks.items()):
                state = self._asked(lambda u: u.get_bulk_insert_state(task, using=self._alias))  # noqa: B023 - called at once
                if state.state_name in _OVER:
                    del self._tasks[task]
                    self._remove(file)
                if state.state_name in _OVER[1:]:
                    raise VtrError(
                        f"Milvus cannot import from {self.staging} ({' '.join(str(state.failed_reason).split())[:300]}); "
                        "it must be the server's own bucket, or a folder it reads"
                    )
            if len(self._tasks) > most:
                time.sleep(_LOOK)

    def _asked(self, function: Callable[[Any], Any]) -> Any:
        with _quiet():
            return self._call(lambda: function(self._utility))

    @contextmanager
    def _staged(self, file: str) -> Iterator[IO[bytes]]:
        try:
            if is_uri(file):
                import fsspec

                with fsspec.open(file, "wb") as target:
                    yield target
            else:
                os.makedirs(os.path.dirname(file), exist_ok=True)
                with open(file, "wb") as target:
                    yield target
        except (OSError, ImportError, ValueError) as error:
            raise VtrError(f"{self.staging}: cannot be written ({error})") from error

    @staticmethod
    def _remove(file: str) -> None:
        if is_uri(file):
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(file)
            filesystem.rm(path)
        else:
            os.unlink(file)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymilvus 3 calls its older interface deprecated, and has no other for this
        yield
