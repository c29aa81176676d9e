"""What is said in the videos of a library, in SQLite's full-text index: all SQL about it, and how a query is asked.

The index holds a text for each segment in which something is said: all cues that overlap it. What is said is found by
the words of a query, each weighted by how rare it is, so that a hit's share is 1 where all of them are said.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vtr.data.subtitles import Cue, Track
from vtr.library.rows import Span

_TABLE = "words USING fts5(text, tokenize='porter unicode61 remove_diacritics 2')"
SCHEMA = f"""
CREATE VIRTUAL TABLE IF NOT EXISTS {_TABLE};
CREATE TABLE IF NOT EXISTS tracks (
    id INTEGER PRIMARY KEY, video INTEGER NOT NULL REFERENCES videos(id) ON DELETE CASCADE, name TEXT NOT NULL,
    beside INTEGER NOT NULL, bytes INTEGER, modified REAL, sha256 TEXT, problem TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS cues (
    track INTEGER NOT NULL REFERENCES tracks(id) ON DELETE CASCADE, start REAL NOT NULL, end REAL NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS listened (video INTEGER PRIMARY KEY REFERENCES videos(id) ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS tracks_of ON tracks(video);
CREATE INDEX IF NOT EXISTS cues_of ON cues(track);
CREATE TRIGGER IF NOT EXISTS words_gone AFTER DELETE ON segments BEGIN DELETE FROM words WHERE rowid = old.id; END;
"""
_QUOTES = re.compile("[“”„‟«»]")
# Scripts without spaces between words: each of their signs is a word of the index, and words are phrases.
_SIGNS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[\U00020000-\U0003ffff])"
)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A subtitle file as it was when it was read; None where it could not be."""

    bytes: int | None
    modified: float | None
    sha256: str | None


def terms_of(text: str) -> list[str]:
    """A query's words and its "phrases" as strings of SQLite's full-text queries: nothing in them is an operator."""
    found, parts = list[str](), _QUOTES.sub('"', text).split('"')
    for place, part in enumerate(parts):
        words, quoted = _words_of(part), place % 2 == 1 and place < len(parts) - 1
        found += [" ".join(words)] if quoted else words
    return list(dict.fromkeys(_term(text) for text in found if text))


def _words_of(text: str) -> list[str]:
    """Runs of letters and digits with the marks on them, and apostrophes inside."""
    plain = (c if c.isalnum() or c in "'’" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return [word for part in "".join(plain).split() if (word := part.strip("'’"))]


def _term(text: str) -> str:
    """A phrase as it is in the index; also as it was written, for libraries of before that was folded."""
    forms = dict.fromkeys((_spaced(_folded(text)), _spaced(text.lower())))
    return "(" + " OR ".join(f'"{form}"' for form in forms) + ")"


def _folded(text: str) -> str:
    """Text without what makes no difference: case, accents and vowel points, full and half width, ligatures."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    bare = (c for c in apart if not ("\u0300" <= c <= "\u036f" or 10 <= unicodedata.combining(c) <= 35))
    return unicodedata.normalize("NFKC", "".join(bare))


def _spaced(text: str) -> str:
    return " ".join(_SIGNS.sub(r" \1 ", text).split())


class Words:
    """Statements over what is said; a subclass gives the connection."""

    @property
    def db(self) -> sqlite3.Connection:
        raise NotImplementedError

    # -- writing ------------------------------------------------------------------------------------------------------

    def set_tracks(self, video: int, tracks: Iterable[tuple[Track, Beside | None]], *, beside: bool) -> None:
        """Replace the tracks of a video: those of files beside it, or those inside it. Within `change`."""
        self.db.execute("DELETE FROM tracks WHERE video = ? AND beside = ?", (video, beside))
        for track, file in tracks:
            facts = (None, None, None) if file is None else (file.bytes, file.modified, file.sha256)
            cursor = self.db.execute(
                "INSERT INTO tracks (video, name, beside, bytes, modified, sha256, problem) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (video, track.name, beside, *facts, track.problem),
            )
            rows = ((cursor.lastrowid, *cue) for cue in track.cues)
            self.db.executemany("INSERT INTO cues (track, start, end, text) VALUES (?, ?, ?, ?)", rows)
        if not beside:
            self.db.execute("INSERT OR IGNORE INTO listened VALUES (?)", (video,))
        self._index(video)

    def copy_inner_tracks(self, video: int, other: int) -> None:
        """Give a video the tracks inside another of the same content, within `change`."""
        if self.was_heard(other):
            tracks = [
                (Track(name=n, cues=self._cues("track = ?", (i,)), problem=p), None) for i, n, p in self._inner(other)
            ]
            self.set_tracks(video, tracks, beside=False)

    def _inner(self, video: int) -> list[tuple[int, str, str]]:
        return self.db.execute(
            "SELECT id, name, problem FROM tracks WHERE video = ? AND NOT beside", (video,)
        ).fetchall()

    def touch_track(self, video: int, name: str, file: Beside) -> None:
        """Write down that a subtitle file has another date and the same content."""
        sql = "UPDATE tracks SET bytes = ?, modified = ? WHERE video = ? AND name = ? AND beside"
        self.db.execute(sql, (file.bytes, file.modified, video, name))

    def _index(self, video: int) -> None:
        """Put what is said in the segments of a video into the full-text index, anew."""
        self.db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM segments WHERE video = ?)", (video,))
        cues = self.cues_of(video)
        if not cues:
            return
        find = within(cues)
        for number, start, end in self.db.execute(
            "SELECT id, start, end FROM segments WHERE video = ?", (video,)
        ).fetchall():
            said = dict.fromkeys(cue.text for cue in find(Span(start, end)))
            if said:
                text = "\n".join(_spaced(_folded(t)) for t in said)
                self.db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, text))

    # -- reading ------------------------------------------------------------------------------------------------------

    def was_heard(self, video: int) -> bool:
        """Whether it was looked for text tracks inside a video; older vtr did not."""
        return self.db.execute("SELECT 1 FROM listened WHERE video = ?", (video,)).fetchone() is not None

    def files_beside(self, video: int) -> dict[str, Beside]:
        """The subtitle files of a video as they were read, by name."""
        sql = "SELECT name, bytes, modified, sha256 FROM tracks WHERE video = ? AND beside"
        return {r[0]: Beside(bytes=r[1], modified=r[2], sha256=r[3]) for r in self.db.execute(sql, (video,))}

    def cues_of(self, video: int) -> list[Cue]:
        """All that is said in a video, by time."""
        return self._cues("track IN (SELECT id FROM tracks WHERE video = ?)", (video,))

    def _cues(self, condition: str, values: Sequence[object]) -> list[Cue]:
        sql = f"SELECT DISTINCT start, end, text FROM cues WHERE {condition} ORDER BY start, end"
        return [Cue._make(r) for r in self.db.execute(sql, values)]

    def has_words(self) -> bool:
        """Whether anything is said in the library."""
        try:
            return self.db.execute("SELECT 1 FROM words LIMIT 1").fetchone() is not None
        except sqlite3.OperationalError:  # a read-only library of before there were words, or an SQLite without FTS5
            return False

    def some_said(self, count: int) -> list[str]:
        """Up to so many cues, spread over the library."""
        try:
            last = int(self.db.execute("SELECT COALESCE(MAX(rowid), 0) FROM cues").fetchone()[0])
            places = range(1, last + 1, max(1, last // count))
            rows = [self.db.execute("SELECT text FROM cues WHERE rowid >= ? LIMIT 1", (p,)).fetchone() for p in places]
        except sqlite3.OperationalError:  # a read-only library of before there were words
            return []
        return list(dict.fromkeys(r[0] for r in rows[:count] if r))

    def spoken(self) -> tuple[int, list[str]]:
        """How many videos have subtitles, and what could not be taken of them as it stands, a line each."""
        try:
            sql = "SELECT COUNT(DISTINCT video) FROM tracks WHERE EXISTS (SELECT 1 FROM cues WHERE track = tracks.id)"
            count = int(self.db.execute(sql).fetchone()[0])
            sql = (
                "SELECT path, tracks.name, problem FROM tracks JOIN videos ON videos.id = video WHERE problem != '' "
                "ORDER BY path, tracks.name"
            )
            return count, [problem_line(*row) for row in self.db.execute(sql)]
        except sqlite3.OperationalError:
            return 0, []

    def heard(
        self, texts: Sequence[str], minus: Sequence[str], allowed: np.ndarray | None, least: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Segments in which words of the texts are said, the best first: ids (n,), and shares (n,) of the words that are
        said there, each weighted by how rare it is, 0 to 1.

        Args:
            texts, minus: What is looked for, and what must not be said in whole.
            allowed: Ids of the segments that a filter allows; None: all.
            least: Share of the words.
        """
        none = np.zeros(0, np.int64), np.zeros(0)
        terms = list(dict.fromkeys(term for text in texts for term in terms_of(text)))
        if not terms or not self.has_words():
            return none
        total = int(self.db.execute("SELECT COUNT(*) FROM words").fetchone()[0])
        places = {term: self._where(term) for term in terms}
        weights = {term: float(np.log1p((total - len(p) + 0.5) / (len(p) + 0.5))) for term, p in places.items()}
        whole = sum(weights.values())
        shares: dict[int, float] = defaultdict(float)
        for term, ids in places.items():
            for number in ids:
                shares[number] += weights[term] / whole
        unwanted = {number for text in minus for number in self._all_of(terms_of(text))}
        may = None if allowed is None else set(allowed.tolist())
        kept = [n for n, s in shares.items() if s >= least - 1e-9 and n not in unwanted and (may is None or n in may)]
        if not kept:
            return none
        ranks = dict(self.db.execute("SELECT rowid, bm25(words) FROM words WHERE words MATCH ?", (" OR ".join(terms),)))
        kept.sort(key=lambda n: (-round(shares[n], 6), ranks.get(n, 0.0), n))
        return np.array(kept, np.int64), np.array([min(1.0, shares[n]) for n in kept])

    def _where(self, query: str) -> list[int]:
        return [r[0] for r in self.db.execute("SELECT rowid FROM words WHERE words MATCH ?", (query,))]

    def _all_of(self, terms: Sequence[str]) -> list[int]:
        return self._where(" AND ".join(terms)) if terms else []

    def said_in(self, segments: Mapping[int, Span], texts: Sequence[str]) -> dict[int, tuple[Cue, ...]]:
        """Cues of segments in which words of the texts are said; all of a segment's where no single one has any."""
        terms = " OR ".join(term for text in texts for term in terms_of(text))
        if not terms:
            return dict.fromkeys(segments, ())
        finders: dict[int, Callable[[Span], list[Cue]]] = {}
        inside: dict[int, list[Cue]] = {}
        for number, span in segments.items():
            [video] = self.db.execute("SELECT video FROM segments WHERE id = ?", (number,)).fetchone() or (0,)
            if video not in finders:
                finders[video] = within(self.cues_of(video))
            inside[number] = finders[video](span)
        every = list(dict.fromkeys(cue for cues in inside.values() for cue in cues))
        with contextlib.closing(sqlite3.connect(":memory:")) as db:  # which cue it is, as the index would find it
            db.execute(f"CREATE VIRTUAL TABLE {_TABLE}")
            rows = ((place, _spaced(_folded(cue.text))) for place, cue in enumerate(every))
            db.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", rows)
            found = {every[place] for [place] in db.execute("SELECT rowid FROM words WHERE words MATCH ?", (terms,))}
        return {n: tuple([cue for cue in cues if cue in found] or cues) for n, cues in inside.items()}


def within(cues: Sequence[Cue]) -> Callable[[Span], list[Cue]]:
    """What finds the cues (by time) that are said in a segment; all of them in an image's."""
    starts, longest = [cue.start for cue in cues], max((cue.end - cue.start for cue in cues), default=0.0)

    def find(span: Span) -> list[Cue]:
        start, end = span
        if end <= start:
            return list(cues)
        near = cues[bisect_left(starts, start - longest - 1e-6) : bisect_left(starts, end)]
        return [c for c in near if c.end > start or c.end == c.start >= start]

    return find


def problem_line(path: str, name: str, problem: str) -> str:
    """What is wrong with a track of a video, in one line."""
    return f"{path}, {name}: {problem}"
