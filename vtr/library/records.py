"""Videos and segments of a library: all SQL about them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from vtr.library.near import FRAMES
from vtr.library.rows import Facts, Failure, Metadata, SegmentRow, Span, Value, VideoRow, as_json

# Segment ids are never used twice (AUTOINCREMENT), so an id from an old index never means another moment.
SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, bytes INTEGER, modified REAL, sha256 TEXT,
    duration REAL, reason TEXT, crc INTEGER, meta TEXT, origin TEXT, kind TEXT, lacking TEXT
);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, video INTEGER NOT NULL REFERENCES videos(id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, row INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS segments_of ON segments(video);
CREATE INDEX IF NOT EXISTS videos_by_content ON videos(sha256);
CREATE INDEX IF NOT EXISTS videos_by_size ON videos(bytes);
CREATE INDEX IF NOT EXISTS videos_by_time ON videos(modified);
CREATE INDEX IF NOT EXISTS videos_by_origin ON videos(origin) WHERE origin IS NOT NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS columns (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS unrelated (number INTEGER PRIMARY KEY, vector BLOB NOT NULL, score REAL NOT NULL);
CREATE TABLE IF NOT EXISTS looks (
    segment INTEGER PRIMARY KEY REFERENCES segments(id) ON DELETE CASCADE, pictures BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS imports (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, modified REAL NOT NULL);
"""
# Columns of `videos` that older libraries lack.
LATER = {"crc": "INTEGER", "meta": "TEXT", "origin": "TEXT", "kind": "TEXT", "lacking": "TEXT"}
_MARKS = 500  # parameters of one statement
_VIDEO = "id, path, bytes, modified, sha256, duration, reason, kind, crc, meta, origin, lacking"
_SEGMENT = (
    "segments.id, videos.id, videos.path, segments.start, segments.end, videos.duration, videos.modified, "
    "videos.sha256, segments.row, videos.meta FROM segments JOIN videos ON videos.id = segments.video"
)
# What must not be found in a library, and how it is counted; {rows} is the number of vectors.
_CHECKS = {
    "segments of videos that are not there": "SELECT COUNT(*) FROM segments WHERE video NOT IN (SELECT id FROM videos)",
    "rows that two segments share": "SELECT COUNT(*) - COUNT(DISTINCT row) FROM segments",
    "moments that are there twice": "SELECT COUNT(*) FROM (SELECT 1 FROM segments GROUP BY video, start, end HAVING COUNT(*) > 1)",
    "moments whose times make no sense": "SELECT COUNT(*) FROM segments WHERE NOT (start >= 0 AND end >= start)",
    "readable videos without a segment": "SELECT COUNT(*) FROM videos WHERE reason IS NULL "
    "AND id NOT IN (SELECT video FROM segments)",
    "unreadable videos with segments": "SELECT COUNT(*) FROM videos WHERE reason IS NOT NULL "
    "AND id IN (SELECT video FROM segments)",
    "rows beyond the last one": "SELECT COUNT(*) FROM segments WHERE row < 0 OR row >= {rows}",
}


class Records:
    """Statements over the tables of one library; a subclass gives the connection."""

    @property
    def db(self) -> sqlite3.Connection:
        raise NotImplementedError

    # -- videos -------------------------------------------------------------------------------------------------------

    def video_at(self, path: str) -> VideoRow | None:
        """The video of a path."""
        return next(self._videos("path = ?", (path,)), None)

    def paths_named(self, name: str, most: int = 3) -> list[str]:
        """Some paths of files of a name, wherever they lie."""
        sql = "SELECT path FROM videos WHERE substr(path, -length(?)) = ? ORDER BY path LIMIT ?"
        return [path for [path] in self.db.execute(sql, (f"/{name}", f"/{name}", most))]

    def video(self, number: int) -> VideoRow | None:
        """The video of an id."""
        return next(self._videos("id = ?", (number,)), None)

    def readable_files(self) -> list[VideoRow]:
        """Videos that are files of their own and could be read, by path."""
        return list(self._videos("reason IS NULL AND origin IS NULL ORDER BY path"))

    def listed(
        self, condition: str, values: Sequence[object], first: int, count: int, *, newest: bool = False
    ) -> tuple[int, list[VideoRow]]:
        """How many readable videos a condition over `segments` and `videos` allows, and some of them.

        Args:
            condition, values: "" for all videos.
            first, count: How many are passed over, and how many are given.
            newest: By date, those without one last; otherwise by path.
        """
        inside = "reason IS NULL"
        if condition:
            inside += (
                " AND id IN (SELECT videos.id FROM segments JOIN videos ON videos.id = segments.video "
                f"WHERE {condition})"
            )
        total = int(self.db.execute(f"SELECT COUNT(*) FROM videos WHERE {inside}", values).fetchone()[0])
        order = "modified DESC, id DESC" if newest else "path"
        return total, list(self._videos(f"{inside} ORDER BY {order} LIMIT ? OFFSET ?", (*values, count, first)))

    def spread(self, count: int) -> list[Metadata]:
        """Metadata of up to so many readable videos that have some, spread over the library."""
        where = "FROM videos WHERE meta IS NOT NULL AND reason IS NULL"
        total = int(self.db.execute(f"SELECT COUNT(*) {where}").fetchone()[0])
        sql = f"SELECT meta FROM (SELECT meta, ROW_NUMBER() OVER (ORDER BY id) - 1 AS place {where}) WHERE place % ? = 0 LIMIT ?"
        return [_metadata(r[0]) for r in self.db.execute(sql, (max(1, total // count), count))]

    def middles(self, videos: Collection[int]) -> dict[int, int]:
        """The segment in the middle of each of these videos."""
        out = {}
        for video in videos:
            ids = [r[0] for r in self.db.execute("SELECT id FROM segments WHERE video = ? ORDER BY start", (video,))]
            out.update({video: ids[len(ids) // 2]} if ids else {})
        return out

    def of_content(self, sha256: str, but: str = "") -> list[VideoRow]:
        """Readable files of this content, except the one at the path `but`."""
        return list(self._videos("sha256 = ? AND reason IS NULL AND path != ? AND origin IS NULL", (sha256, but)))

    def size_is_known(self, size: int | None) -> bool:
        """Whether there is a file of so many bytes; where there is none, no file of that size is a copy."""
        sql = "SELECT 1 FROM videos WHERE bytes = ? AND sha256 IS NOT NULL LIMIT 1"
        return self.db.execute(sql, (size,)).fetchone() is not None

    def paths_below(self, folder: str) -> list[str]:
        """Paths of the files in a folder (its full path), sorted."""
        inside = folder.rstrip("/") + "/"
        sql = "SELECT path FROM videos WHERE substr(path, 1, ?) = ? AND origin IS NULL ORDER BY path"
        return [r[0] for r in self.db.execute(sql, (len(inside), inside))]

    def reasons(self) -> list[str]:
        """Why files could not be read, by path."""
        return [r[0] for r in self.db.execute("SELECT reason FROM videos WHERE reason IS NOT NULL ORDER BY path")]

    def cut_off(self) -> list[str]:
        """What is lacking of files that are searched as far as they go, by path."""
        sql = "SELECT path, lacking FROM videos WHERE lacking != '' ORDER BY path"
        return [f"{path}: {lacking}" for path, lacking in self.db.execute(sql)]

    def totals(self) -> tuple[int, float]:
        """Number of readable videos, and their seconds."""
        sql = "SELECT COUNT(*) FILTER (WHERE reason IS NULL), COALESCE(SUM(duration), 0) FROM videos"
        count, seconds = self.db.execute(sql).fetchone()
        return int(count), float(seconds)

    def insert_video(
        self,
        path: str,
        facts: Facts,
        spans: Sequence[Span],
        first_row: int,
        *,
        crc: int | None,
        duration: float | None = None,
        failure: Failure | None = None,
        metadata: Mapping[str, Value] | None = None,
        origin: str | None = None,
        lacking: str = "",
    ) -> int:
        """Put in a video and its segments, whose vectors begin at `first_row`, within `change`; returns its id."""
        length = max((s.end for s in spans), default=0.0) if duration is None else duration
        reason, kind = (None, None) if failure is None else (failure.reason, failure.kind)
        cursor = self.db.execute(
            "INSERT INTO videos (path, bytes, modified, sha256, duration, reason, kind, crc, origin, lacking) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (path, *facts, length, reason, kind, crc, origin, lacking),
        )
        assert cursor.lastrowid is not None
        self.db.executemany(
            "INSERT INTO segments (video, start, end, row) VALUES (?, ?, ?, ?)",
            [(cursor.lastrowid, s.start, s.end, first_row + i) for i, s in enumerate(spans)],
        )
        if metadata:
            self.set_metadata(cursor.lastrowid, metadata)
        return cursor.lastrowid

    def update_file(self, number: int, path: str, facts: Facts) -> None:
        """Write down where a video lies now, and its size and time, within `change` or alone."""
        self.db.execute("UPDATE videos SET path = ?, bytes = ?, modified = ? WHERE id = ?", (path, *facts[:2], number))

    def set_metadata(self, video: int, values: Mapping[str, Value] | None) -> None:
        """Replace a video's metadata, within `change`."""
        self.db.execute("UPDATE videos SET meta = ? WHERE id = ?", (as_json(values), video))
        self.db.executemany("INSERT OR IGNORE INTO columns VALUES (?)", [(n,) for n in values or ()])

    def delete_video(self, number: int) -> None:
        """Forget a video and its segments, within `change`."""
        self.db.execute("DELETE FROM videos WHERE id = ?", (number,))

    def delete_path(self, path: str, *, below: bool = False) -> int:
        """Forget the video of a path, with `below` also all in that folder; returns how many. Within `change`."""
        inside = path.rstrip("/") + "/"
        sql = "DELETE FROM videos WHERE path = ? OR (? AND substr(path, 1, ?) = ?)"
        return self.db.execute(sql, (path, below, len(inside), inside)).rowcount

    def copies(self, contents: Collection[str]) -> dict[str, list[str]]:
        """Paths of all readable videos of each content, sorted."""
        wanted, out = sorted(contents), dict[str, list[str]]()
        for start in range(0, len(wanted), _MARKS):
            part = wanted[start : start + _MARKS]
            marks = ",".join("?" * len(part))
            sql = f"SELECT sha256, path FROM videos WHERE sha256 IN ({marks}) AND reason IS NULL ORDER BY path"
            for content, path in self.db.execute(sql, part):
                out.setdefault(content, []).append(path)
        return out

    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        try:
            return [r[0] for r in self.db.execute("SELECT name FROM columns ORDER BY name")]
        except sqlite3.OperationalError:
            return []

    def _videos(self, condition: str, values: Sequence[object] = ()) -> Iterator[VideoRow]:
        for r in self.db.execute(f"SELECT {_VIDEO} FROM videos WHERE {condition}", values):
            yield VideoRow(
                id=r[0],
                path=r[1],
                facts=Facts(*r[2:5]),
                duration=r[5] or 0.0,
                failure=None if r[6] is None else Failure(reason=r[6], kind=r[7]),
                crc=r[8],
                metadata=_metadata(r[9]),
                origin=r[10],
                lacking=r[11] or "",
            )

    # -- embeddings of shards -----------------------------------------------------------------------------------------

    def imported(self, name: str) -> tuple[int, float] | None:
        """Size and time of a file of embeddings when it was taken in."""
        found = self.db.execute("SELECT bytes, modified FROM imports WHERE name = ?", (name,)).fetchone()
        return None if found is None else (int(found[0]), float(found[1]))

    def begin_import(self, name: str, size: int, modified: float) -> None:
        """Forget what a file of embeddings gave before, and note its state, within `change`."""
        self.db.execute("DELETE FROM videos WHERE origin = ?", (name,))
        self.db.execute("INSERT OR REPLACE INTO imports VALUES (?, ?, ?)", (name, size, modified))

    # -- segments -----------------------------------------------------------------------------------------------------

    def segments(self) -> int:
        """Number of live segments."""
        return int(self.db.execute("SELECT COUNT(*) FROM segments").fetchone()[0])

    def segments_up_to(self, number: int) -> int:
        """Number of live segments with ids up to this one."""
        return int(self.db.execute("SELECT COUNT(*) FROM segments WHERE id <= ?", (number,)).fetchone()[0])

    def last_segment(self) -> int:
        """The highest id of a live segment, 0 where there is none."""
        return int(self.db.execute("SELECT COALESCE(MAX(id), 0) FROM segments").fetchone()[0])

    def empty(self) -> bool:
        """Whether there is no segment."""
        return self.db.execute("SELECT 1 FROM segments LIMIT 1").fetchone() is None

    def pairs(self, after: int = 0, condition: str = "", values: Sequence[object] = ()) -> np.ndarray:
        """Ids and rows (n, 2) int64 of segments with ids above `after`, by id.

        Args:
            after: 0 gives all.
            condition, values: An SQL condition over `segments` and `videos`, and its parameters.
        """
        if condition:
            sql = "SELECT segments.id, row FROM segments JOIN videos ON videos.id = segments.video"
            cursor = self.db.execute(f"{sql} WHERE segments.id > ? AND {condition}", (after, *values))
        else:
            cursor = self.db.execute("SELECT id, row FROM segments WHERE id > ? ORDER BY id", (after,))
        # Streamed: ten million pairs are 160 MB, ten million Python tuples well over 1 GB.
        out = np.fromiter(cursor, dtype=np.dtype((np.int64, 2)))
        return out[np.argsort(out[:, 0], kind="stable")] if condition else out

    def pairs_of(self, paths: Sequence[str]) -> np.ndarray:
        """As `pairs`, of these videos."""
        return self.pairs(0, f"videos.path IN ({','.join('?' * len(paths))})", paths)

    def details(self, ids: Collection[int]) -> dict[int, SegmentRow]:
        """Those segments that exist, by id."""
        wanted, out = [int(i) for i in ids], dict[int, SegmentRow]()
        for start in range(0, len(wanted), _MARKS):
            part = wanted[start : start + _MARKS]
            marks = ",".join("?" * len(part))
            rows = self.db.execute(f"SELECT {_SEGMENT} WHERE segments.id IN ({marks})", part)
            out.update((r[0], SegmentRow._make(r)) for r in rows)
        return out

    def each_segment(self, size: int) -> Iterator[list[SegmentRow]]:
        """All segments by id, in blocks."""
        cursor = self.db.execute(f"SELECT {_SEGMENT} ORDER BY segments.id")
        while rows := cursor.fetchmany(size):
            yield [SegmentRow._make(r) for r in rows]

    def spans_of(self, video: int) -> tuple[list[Span], list[int]]:
        """Spans and rows of a video's segments."""
        sql = "SELECT start, end, row FROM segments WHERE video = ? ORDER BY row"
        rows = self.db.execute(sql, (video,)).fetchall()
        return [Span(r[0], r[1]) for r in rows], [r[2] for r in rows]

    def spans_between(self, path: str, low: float, high: float) -> tuple[list[Span], list[int]]:
        """As `spans_of`, of those segments of the video at a path that reach into a span, by time."""
        sql = (
            "SELECT start, end, row FROM segments WHERE video = (SELECT id FROM videos WHERE path = ?) "
            "AND end >= ? AND start <= ? ORDER BY start"
        )
        rows = self.db.execute(sql, (path, low, high)).fetchall()
        return [Span(r[0], r[1]) for r in rows], [r[2] for r in rows]

    def rows_of_videos(self) -> Iterator[tuple[str, int | None, list[int]]]:
        """Path, checksum and rows of each video that has segments."""
        sql = "SELECT videos.id, path, crc, row FROM videos JOIN segments ON segments.video = videos.id ORDER BY videos.id, row"
        current: tuple[int, str, int | None] | None = None
        rows: list[int] = []
        for number, path, crc, row in self.db.execute(sql):
            if current is not None and current[0] != number:
                yield current[1], current[2], rows
                rows = []
            current = (number, path, crc)
            rows.append(row)
        if current is not None:
            yield current[1], current[2], rows

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Row of each segment, -1 where it does not exist (any more)."""
        rows: dict[int, int] = {}
        for start in range(0, len(ids), _MARKS):
            part = [int(i) for i in ids[start : start + _MARKS]]
            marks = ",".join("?" * len(part))
            rows.update(self.db.execute(f"SELECT id, row FROM segments WHERE id IN ({marks})", part).fetchall())
        return np.array([rows.get(int(i), -1) for i in ids], np.int64)

    # -- tiny pictures, see vtr.library.near --------------------------------------------------------------------------

    def set_looks(self, video: int, pictures: np.ndarray) -> None:
        """Tiny pictures (n, F, bytes) of a video's segments, in the order of their rows; within `change`."""
        sql = "SELECT id FROM segments WHERE video = ? ORDER BY row"
        ids = [r[0] for r in self.db.execute(sql, (video,))]
        rows = zip(ids, (p.tobytes() for p in pictures), strict=True)
        self.db.executemany("INSERT INTO looks (segment, pictures) VALUES (?, ?)", rows)

    def looks_of(self, video: int) -> np.ndarray | None:
        """As they were set; None where a segment has none."""
        found = self._looks("segments.video = ? ORDER BY row", (video,))
        pictures = [p for _, p in found if p is not None]
        return np.stack(pictures) if pictures and len(pictures) == len(found) else None

    def looks_between(self, path: str, start: float, end: float) -> list[tuple[Span, np.ndarray]]:
        """The tiny pictures (F, bytes) of a video's segments that reach into a span."""
        condition = (
            "segments.video = (SELECT id FROM videos WHERE path = ?) AND segments.end >= ? AND segments.start <= ?"
        )
        return [(span, p) for span, p in self._looks(condition, (path, start, end)) if p is not None]

    def _looks(self, condition: str, values: Sequence[object]) -> list[tuple[Span, np.ndarray | None]]:
        sql = f"SELECT start, end, pictures FROM segments LEFT JOIN looks ON segment = segments.id WHERE {condition}"
        try:
            rows = self.db.execute(sql, values).fetchall()
        except sqlite3.OperationalError:  # a read-only library of before there were any
            return []
        return [
            (Span(start, end), None if blob is None else np.frombuffer(blob, np.uint8).reshape(FRAMES, -1))
            for start, end, blob in rows
        ]

    # -- texts that have no answer, see vtr.library.calibrate ---------------------------------------------------------

    def unrelated(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (m, w) and best scores (m,) of unrelated texts; none in a library of before there were any."""
        try:
            rows = self.db.execute("SELECT vector, score FROM unrelated ORDER BY number").fetchall()
        except sqlite3.OperationalError:
            rows = []
        vectors = np.array([np.frombuffer(r[0], np.float32) for r in rows], np.float32)
        return vectors, np.array([r[1] for r in rows], np.float64)

    def set_unrelated(self, vectors: np.ndarray, scores: np.ndarray) -> None:
        """Replace them, within `change`."""
        self.db.execute("DELETE FROM unrelated")
        rows = zip(vectors.astype(np.float32), scores.tolist())
        self.db.executemany("INSERT INTO unrelated (vector, score) VALUES (?, ?)", ((v.tobytes(), s) for v, s in rows))

    # -- checks -------------------------------------------------------------------------------------------------------

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file."""
        return [r[0] for r in self.db.execute("PRAGMA integrity_check(20)") if r[0] != "ok"]

    def contradictions(self, rows: int) -> list[str]:
        """What the tables must not hold and do, with how many; `rows` is the number of vectors."""
        counts = {what: self.db.execute(sql.format(rows=rows)).fetchone()[0] for what, sql in _CHECKS.items()}
        return [f"{count} {what}" for what, count in counts.items() if count]


def _metadata(text: str | None) -> Metadata:
    return json.loads(text) if text else {}
