"""A library on Milvus, for more than one machine holds: push to a collection, search it as a library.

Addresses: milvus://HOST:PORT/NAME; milvus+https://HOST:PORT/NAME; milvus:///ABSOLUTE/FILE.db/NAME for a file of Milvus
Lite. User and password, or a token, come from the environment variable MILVUS_TOKEN (`user:password`, or a key).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vtr.errors import UsageError, VtrError
from vtr.files import install_command
from vtr.library.export import segments
from vtr.library.found import Found
from vtr.library.library import Library
from vtr.library.milvus_bulk import ROWS as BULK_ROWS
from vtr.library.milvus_bulk import BulkImport
from vtr.library.rows import SegmentRow
from vtr.library.search import Searcher
from vtr.library.settings import FORMAT, ORIGIN, LibrarySettings
from vtr.library.store import folded
from vtr.library.tokens import TokenCache
from vtr.library.wanted import Wanted, unit
from vtr.library.where import Joined, Node, Not, interval
from vtr.threads import GRPC_FORKS

_BATCH = 500  # segments of an upsert: gRPC messages are at most 64 MB
BULK_FROM = 1_000_000  # new segments from which on they are imported in bulk, where a staging place is named
_UNDER_WAY = 4  # files that a server takes in at a time
_LIMIT = 16_384  # the most hits Milvus gives
_NO_DATE = -1e18
_FORMAT, _PAIRED = 2, 3  # of a collection: see `_Layout`
_FIELDS = ["path", "start", "end", "duration", "meta", "sha256"]


@dataclass(frozen=True)
class _Layout:
    """Where the two vectors of a segment stand: as it is, for words, and of length 1, for likeness.

    In two fields; or in one, the first before the second, on servers that know one vector field alone (before 2.4): a
    direction padded with zeros gives the same inner product.
    """

    paired: bool
    width: int

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> _Layout:
        return cls(settings["collection"] == _PAIRED, int(str(settings["width"])))

    @property
    def field(self) -> str:
        """That holds the vector as it is."""
        return "pair" if self.paired else "vector"

    def fields(self) -> dict[str, int]:
        """Widths by name."""
        return {"pair": 2 * self.width} if self.paired else {"vector": self.width, "unit": self.width}

    def stored(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """What the fields hold of vectors (n, w)."""
        if self.paired:
            return {"pair": np.concatenate([vectors, unit(vectors)], axis=1)}
        return {"vector": vectors, "unit": unit(vectors)}

    def asked(self, direction: np.ndarray, *, words: bool) -> tuple[str, list[float]]:
        """The field that is searched, and what by, for words or for the likeness of clips."""
        if not self.paired:
            return ("vector" if words else "unit"), direction.tolist()
        none = np.zeros(self.width, np.float32)
        return "pair", np.concatenate([direction, none] if words else [none, direction]).tolist()

    def vector(self, entity: Mapping[str, object]) -> np.ndarray:
        """The vector (w,) as it is."""
        return np.array(entity[self.field], np.float32)[: self.width]


def is_address(text: str | Path) -> bool:
    """Whether this names a library on Milvus."""
    # A Path makes one slash of two; tyro gives Paths.
    return re.match(r"milvus(\+https)?:/", str(text)) is not None


def _parsed(address: str) -> tuple[str, str]:
    """URI for pymilvus, and the collection's name."""
    match = re.fullmatch(r"milvus(\+https)?:(/{1,3})([^?#]+)/([A-Za-z_]\w{0,254})", str(address))
    if not match:
        raise UsageError(
            f"{address!r}: expected milvus://HOST:PORT/NAME, or milvus:///ABSOLUTE/FILE.db/NAME for Milvus Lite"
        )
    secure, slashes, where, name = match.groups()
    if slashes == "///" or where.endswith(".db"):
        return f"/{where}", name
    if not re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", where):
        raise UsageError(f"{address!r}: {where!r} is no HOST:PORT; a password belongs in MILVUS_TOKEN")
    return f"{'https' if secure else 'http'}://{where}", name


def _connected(uri: str) -> Any:
    try:
        os.environ.setdefault(GRPC_FORKS, "0")  # decoders are forked, and gRPC would break them
        from pymilvus import MilvusClient
    except ImportError as error:
        raise VtrError(f"Milvus needs pymilvus: {install_command('milvus')}") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are said here, in one line
    if uri.startswith("/") and not Path(uri).parent.is_dir():
        raise VtrError(f"{uri}: the folder {Path(uri).parent} does not exist")
    token = os.environ.get("MILVUS_TOKEN", "")
    return _call(uri, lambda: MilvusClient(uri, token=token, timeout=10))


def _call(uri: str, function: Callable[[], Any]) -> Any:
    """Call pymilvus; what goes wrong there becomes one line."""
    from pymilvus.exceptions import MilvusException

    try:
        return function()
    except (MilvusException, OSError, ImportError, RuntimeError) as error:
        said = " ".join(str(getattr(error, "message", "") or error).split())[:300]
        raise VtrError(f"Milvus at {uri}: {said}") from error


def _settings_of(client: Any, uri: str, name: str) -> dict[str, Any] | None:
    """What a collection's description says, or None where there is no such collection."""
    if not _call(uri, lambda: client.has_collection(name)):
        return None
    described = _call(uri, lambda: client.describe_collection(name))
    try:
        values = json.loads(described.get("description") or described.get("properties", {})["vtr"])["vtr"]
        if not all(k in values for k in ORIGIN):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise VtrError(f"{uri}: the collection {name} is not a library of vtr; choose another name") from error
    return dict(values)


# -- push -------------------------------------------------------------------------------------------------------------


def push(library: Library, address: str, *, staging: str | None = None, bulk_from: int = BULK_FROM) -> dict[str, int]:
    """Bring a collection up to date with a library; returns how many segments were written, removed and unchanged.

    Only what differs is sent, so a killed call goes on when called again.

    Args:
        library: What is pushed.
        address: See the module.
        staging: Where files for a bulk import may lie, see `vtr.library.milvus_bulk`; None: rows are sent one by one.
        bulk_from: New segments from which on they are imported in bulk.

    Raises:
        VtrError: The server cannot be reached, or the collection holds something else.
    """
    uri, name = _parsed(address)
    if staging is not None and uri.startswith("/"):
        raise UsageError("Milvus Lite imports nothing in bulk: leave the staging place out")
    client = _connected(uri)
    own = {**library.settings.origin, "id": library.settings.id, "collection": _FORMAT}
    there = _settings_of(client, uri, name)
    if there is None:
        own = _made(client, uri, name, own)
    elif there.get("collection") not in (_FORMAT, _PAIRED):
        raise _older(uri, name)
    elif there != {**own, "collection": there["collection"]}:
        raise VtrError(f"{uri}: the collection {name} holds another library (or other windows); choose another name")
    _call(uri, lambda: client.load_collection(name))
    bulk = None
    if not uri.startswith("/"):
        bulk = BulkImport(uri, os.environ.get("MILVUS_TOKEN", ""), name, staging or "", lambda f: _call(uri, f))
        bulk.settle()  # else what a killed call had begun would be sent again, and be there twice
        _call(uri, lambda: client.refresh_load(name))  # what was imported since it was loaded
    pushed = _Push(client, uri, name, library, _Layout.of(there or own))
    try:
        pushed.send(bulk if staging is not None and pushed.lacking >= bulk_from else None)
        pushed.remove()
    finally:
        _call(uri, client.close)
    return pushed.counts


class _Push:
    """A library on its way to a collection."""

    def __init__(self, client: Any, uri: str, name: str, library: Library, layout: _Layout) -> None:
        self.client, self.uri, self.name, self.library, self.layout = client, uri, name, library, layout
        self.counts = {"written": 0, "unchanged": 0, "removed": 0}
        self.stamps = {int(r["id"]): int(r["stamp"]) for r in _rows(client, uri, name, ["id", "stamp"])}
        self.lacking = library.store.segments() - len(self.stamps)

    def send(self, bulk: BulkImport | None) -> None:
        """Send what is new or has changed."""
        self.library.read(lambda: self._send(bulk))
        if bulk is not None:
            bulk.wait()
            self._ask(lambda: self.client.refresh_load(self.name))
        self._ask(lambda: self.client.flush(self.name))

    def _send(self, bulk: BulkImport | None) -> None:
        total, often = self.library.store.segments(), 0.1 if sys.stderr.isatty() else 30.0
        with tqdm(total=total, desc="push", unit="segment", file=sys.stderr, mininterval=often) as bar:
            for rows, vectors in segments(self.library, BULK_ROWS if bulk else _BATCH):
                values = [_values(row) for row in rows]
                changed, old = [], []
                for place, value in enumerate(values):
                    known = self.stamps.pop(int(str(value["id"])), None)
                    if known != value["stamp"]:
                        changed.append(place)
                        old += [] if known is None else [value["id"]]
                self.counts["unchanged"] += len(rows) - len(changed)
                if changed:
                    self._write([values[i] for i in changed], vectors[changed], old, bulk)
                bar.update(len(rows))

    def _write(
        self, values: list[dict[str, object]], vectors: np.ndarray, old: Sequence[object], bulk: BulkImport | None
    ) -> None:
        stored = self.layout.stored(vectors)
        if bulk is None:
            columns = {field: matrix.tolist() for field, matrix in stored.items()}
            batch = [{**value, **{f: c[i] for f, c in columns.items()}} for i, value in enumerate(values)]
            self._ask(lambda: self.client.upsert(self.name, batch))
        else:
            self._delete(old)  # an import adds, whatever is there
            bulk.send([_flat(value) for value in values], stored)
            bulk.wait(most=_UNDER_WAY)
        self.counts["written"] += len(values)

    def remove(self) -> None:
        """Remove what the library has no longer."""
        gone = list(self.stamps)
        self._delete(gone)
        self.counts["removed"] = len(gone)
        self._ask(lambda: self.client.flush(self.name))

    def _delete(self, ids: Sequence[object]) -> None:
        for start in range(0, len(ids), _BATCH):
            part = list(ids[start : start + _BATCH])
            self._ask(lambda: self.client.delete(self.name, ids=part))  # noqa: B023 - called at once

    def _ask(self, function: Callable[[], Any]) -> Any:
        return _call(self.uri, function)


def _older(uri: str, name: str) -> VtrError:
    return VtrError(f"{uri}: the collection {name} is of an older vtr: drop it, or choose another name, and push again")


def _made(client: Any, uri: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Make a collection; gives the settings that it was made with."""
    try:
        _call(uri, lambda: _create(client, uri, name, settings))
        return settings
    except VtrError as error:
        if "multiple vector fields" not in str(error):
            raise
    paired = {**settings, "collection": _PAIRED}
    _call(uri, lambda: _create(client, uri, name, paired))
    return paired


def _create(client: Any, uri: str, name: str, settings: dict[str, Any]) -> None:
    from pymilvus import DataType

    described = json.dumps({"vtr": settings})
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=described)
    schema.add_field("id", DataType.INT64, is_primary=True)
    # Inner products with the vectors are the similarity of texts; those with unit vectors the likeness of clips.
    vectors = _Layout.of(settings).fields()
    for field, width in vectors.items():
        schema.add_field(field, DataType.FLOAT_VECTOR, dim=width)
    for field in ("path", "path_folded"):
        schema.add_field(field, DataType.VARCHAR, max_length=16_384)
    schema.add_field("sha256", DataType.VARCHAR, max_length=64)
    for field in ("start", "end", "duration", "modified"):
        schema.add_field(field, DataType.DOUBLE)
    # Metadata as it is, and by kind for filters: a comparison with a text must not match a number.
    for field in ("meta", "numbers", "texts", "texts_folded"):
        schema.add_field(field, DataType.JSON)
    schema.add_field("stamp", DataType.INT64)
    index = client.prepare_index_params()
    for field in vectors:
        index.add_index(field, index_type="AUTOINDEX", metric_type="IP")
    # Milvus Lite (3.2) forgets descriptions, but keeps properties.
    properties = {"vtr": described} if uri.startswith("/") else None
    client.create_collection(name, schema=schema, index_params=index, properties=properties)


def _values(row: SegmentRow) -> dict[str, object]:
    """The fields of a segment, but for its vectors."""
    values = row.metadata
    texts = {k: v for k, v in values.items() if isinstance(v, str)}
    stamp = (row.path, row.start, row.end, row.duration, row.modified, row.meta)
    return {
        "id": row.id,
        "sha256": row.sha256 or "",
        "path": row.path,
        "path_folded": folded(row.path),
        "start": row.start,
        "end": row.end,
        "duration": row.duration,
        "modified": _NO_DATE if row.modified is None else row.modified,
        "meta": values,
        "numbers": {k: float(v) for k, v in values.items() if k not in texts},
        "texts": texts,
        "texts_folded": {k: folded(str(v)) for k, v in texts.items()},
        "stamp": zlib.crc32(repr(stamp).encode(errors="surrogateescape")),
    }


def _flat(values: dict[str, object]) -> dict[str, object]:
    """Fields as a file for an import has them: JSON as text."""
    return {k: json.dumps(v, ensure_ascii=False) if isinstance(v, dict) else v for k, v in values.items()}


def _rows(client: Any, uri: str, name: str, fields: list[str]) -> Iterator[dict[str, Any]]:
    iterator = _call(uri, lambda: client.query_iterator(name, batch_size=10_000, filter="", output_fields=fields))
    while rows := _call(uri, iterator.next):
        yield from rows
    iterator.close()


# -- filters ----------------------------------------------------------------------------------------------------------


def to_milvus(node: Node) -> str:
    """A filter as a Milvus expression; texts are quoted literals, never parts of the expression.

    Raises:
        UsageError: `~` over metadata with a text that holds %, _ or a backslash: Milvus cannot look for those there.
    """
    if isinstance(node, Joined):
        return "(" + f" {node.by} ".join(map(to_milvus, node.parts)) + ")"
    if isinstance(node, Not):
        return f"(not {to_milvus(node.part)})"
    if isinstance(node.value, tuple):
        signs, bounds = interval(node.sign, node.value)
        inside = " and ".join(f"modified {s} {b!r}" for s, b in zip(signs, bounds))
        inside = f"not ({inside})" if node.sign == "!=" else inside
        return f"(modified > {_NO_DATE / 2!r} and {inside})"
    sign = {"=": "=="}.get(node.sign, node.sign)
    if not node.meta:
        if sign == "~":
            return f"(path_folded like {_like(str(node.value))})"
        return f"({node.column} {sign} {_literal(node.value)})"
    if sign == "~":
        if re.search(r"[%_\\]", str(node.value)):
            raise UsageError(
                lambda say: (
                    f"{say.name('where')}: on Milvus, {node.column} ~ cannot look for % _ or \\ ({node.value!r})"
                )
            )
        column, test = f"texts_folded[{_quoted(node.column)}]", f"like {_like(str(node.value))}"
    else:
        kind = "texts" if isinstance(node.value, str) else "numbers"
        column, test = f"{kind}[{_quoted(node.column)}]", f"{sign} {_literal(node.value)}"
    return f"((exists {column}) and {column} {test})"  # servers before 2.4 need the inner brackets


def _literal(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _like(text: str) -> str:
    return _quoted("%" + re.sub(r"([%_\\])", r"\\\1", folded(text)) + "%")


class _Columns(list[str]):
    """Milvus does not list the metadata columns: a name is one if some segment has a value for it."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        super().__init__()
        self._has = has

    def __contains__(self, name: object) -> bool:
        return self._has(str(name))


# -- search -----------------------------------------------------------------------------------------------------------


class MilvusLibrary(Searcher):
    """A library that was pushed to Milvus; searched as a `Library` is.

    Args:
        address: See the module.
        model: The model, or its path; default: that of the library, where this machine has it.

    Raises:
        VtrError: The server cannot be reached, has no such collection, or it is of another model.
    """

    def __init__(self, address: str | Path, model: Any | None = None) -> None:
        self.path = str(address)
        self._uri, self._name = _parsed(str(address))
        if self._uri.startswith("/") and not os.path.exists(self._uri):
            raise VtrError(f"{self._uri}: no such file; make it with: vtr index push LIBRARY --to {address}")
        self._client = _connected(self._uri)
        settings = _settings_of(self._client, self._uri, self._name)
        if settings is None:
            raise VtrError(f"{self._uri} has no collection {self._name}; make it with: vtr index push LIBRARY --to …")
        if settings.get("collection") not in (_FORMAT, _PAIRED):
            raise _older(self._uri, self._name)
        self._layout = _Layout.of(settings)
        _call(self._uri, lambda: self._client.load_collection(self._name))
        self.settings = LibrarySettings.from_json({"format": FORMAT, **settings})
        self._model, self._model_path = None, self.settings.model
        self._cache = TokenCache()
        if isinstance(model, str | Path):
            self._model_path = str(model)
        elif model is not None:
            self._accept(model)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def columns(self) -> list[str]:
        """A list that knows of any name whether it is a metadata column."""

        def has(name: str) -> bool:
            expression = f"(exists numbers[{_quoted(name)}]) or (exists texts[{_quoted(name)}])"
            return bool(
                _call(
                    self._uri,
                    lambda: self._client.query(self._name, filter=expression, output_fields=["id"], limit=1),
                )
            )

        return _Columns(has)

    def _search(self, wanted: Wanted, count: int, expression: str) -> list[Found]:
        """The best segments of each direction; where several count, or words and examples, scored again together."""
        again = not wanted.plain or wanted.weight != 1 or wanted.measure == "mixed"
        rows: dict[int, tuple[float, dict[str, object]]] = {}
        first = 0 if wanted.words is None else 1
        for number, direction in enumerate(wanted.directions):
            field, asked = self._layout.asked(direction, words=number < first)
            answer = _call(
                self._uri,
                lambda f=field, a=asked: self._client.search(  # type: ignore[misc]
                    self._name,
                    data=[a],
                    anns_field=f,
                    limit=count,
                    filter=expression,
                    output_fields=[*_FIELDS, self._layout.field] if again else _FIELDS,
                    consistency_level="Strong",
                ),
            )
            rows.update((int(r["id"]), (float(r["distance"]), r["entity"])) for r in answer[0])
        scores = {number: distance for number, (distance, _) in rows.items()}
        if again and rows:
            vectors = np.stack([self._layout.vector(entity) for _, entity in rows.values()])
            scores = dict(zip(rows, wanted.scores(vectors).tolist()))
        found = [_found(scores[number], number, entity) for number, (_, entity) in rows.items()]
        return sorted(found, key=lambda f: -f.score)[:count]

    def _nearest(self, wanted: Wanted, count: int, where: Node | None) -> tuple[list[Found], bool]:
        most = min(count, _LIMIT)
        found = self._search(wanted, most, "" if where is None else to_milvus(where))
        return found, len(found) < count or count >= _LIMIT

    def _moments(self, wanted: Wanted, paths: Sequence[str], where: Node | None) -> list[Found]:
        expression = f"path in [{', '.join(map(_quoted, paths))}]"
        if where is not None:
            expression += f" and {to_milvus(where)}"
        return self._search(wanted, _LIMIT, expression)

    def _copies(self, contents: Collection[str]) -> dict[str, list[str]]:
        out: dict[str, set[str]] = {}
        if contents:
            expression = f"sha256 in [{', '.join(map(_quoted, sorted(contents)))}]"
            rows = _call(
                self._uri,
                lambda: self._client.query(
                    self._name, filter=expression, output_fields=["path", "sha256"], limit=_LIMIT
                ),
            )
            for row in rows:
                out.setdefault(str(row["sha256"]), set()).add(str(row["path"]))
        return {content: sorted(paths) for content, paths in out.items()}

    def _vector_of(self, segment: int) -> tuple[np.ndarray, Found]:
        rows = _call(
            self._uri,
            lambda: self._client.get(self._name, ids=[int(segment)], output_fields=[self._layout.field, *_FIELDS]),
        )
        if not rows:
            raise VtrError(f"{self.path} has no segment {segment}; hits show theirs as #NUMBER")
        return self._layout.vector(rows[0]), _found(1.0, segment, rows[0])


def _found(score: float, segment: int, row: dict[str, Any]) -> Found:
    meta = row.get("meta") or {}
    values = json.loads(meta) if isinstance(meta, str) else dict(meta)
    return Found(
        score,
        score,
        False,
        segment,
        row["path"],
        row["start"],
        row["end"],
        row["duration"],
        values,
        row["sha256"] or None,
    )
