"""What a library is before anything was asked: about it and its model, its newest videos, queries that it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Query

import vtr
from vtr.errors import VtrError
from vtr.library.files import shown
from vtr.library.library import Library
from vtr.library.rows import Metadata, VideoRow
from vtr.library.serve import queries
from vtr.library.serve.engine import Engine
from vtr.library.serve.media import TYPES
from vtr.library.serve.schema import MAX_K, Example, Examples, Info, Limits, Listed, Videos, Where, problems
from vtr.library.store import day_of
from vtr.library.where import parse_where
from vtr.models import registry

Kind = Literal["video", "image", "file"]
_CAPTIONS = ("caption", "captions", "description", "title", "text", "summary")  # columns, the best first
_LONGEST = 80  # characters of an example
_LOOKED_AT = 60  # videos, and subtitles, among which examples are looked for
_TRIED = 40  # of them
_MOST = 20  # examples
_KNOWN = {"demo": "coloured shapes that move, and nothing else"}  # by the corpus of a run


def add_first_view(app: FastAPI, engine: Engine) -> None:
    """Routes of the newest videos and of example queries."""

    @app.get("/api/videos", response_model=Videos, responses=problems(503), operation_id="videos")
    async def videos(
        limit: Annotated[int, Query(ge=1, le=MAX_K, description="number of videos")] = 24,
        first: Annotated[int, Query(ge=0, le=2**31, description="how many to pass over")] = 0,
        where: Where = "",
    ) -> Videos:
        """Videos by their date, the newest first."""
        return await engine.lookup.ask(_videos, limit, first, where)

    @app.get("/api/examples", response_model=Examples, responses=problems(503), operation_id="examples")
    async def examples(limit: Annotated[int, Query(ge=1, le=_MOST, description="at most so many")] = 6) -> Examples:
        """Queries that this library answers, taken from its captions and subtitles; none are made up."""
        stamp, found = await engine.quick.ask(known)
        return Examples(examples=found[:limit], library=stamp)

    kept: dict[tuple[str, int], list[Example]] = {}

    def known(library: Library) -> tuple[str, list[Example]]:
        key = (queries.stamp(library), library.read(library.store.generation))
        if key not in kept:
            found = _examples(library)
            kept.clear()
            kept[key] = found
        return key[0], kept[key]


def kind_of(path: str, lasts: bool) -> Kind:
    """What a browser can do with a file."""
    kind = TYPES.get(Path(path).suffix.lower(), "file/" if lasts else "image/").split("/")[0]
    return "video" if kind == "video" else "image" if kind == "image" else "file"


def about(library: Library, path: Path, limits: Limits) -> Info:
    """What /api/info says."""
    values = library.info()
    model = values["model"]
    trained, on = trained_on(library.model_path)
    return Info(
        name=shown(path.absolute().name),
        library=queries.stamp(library),
        model=None if model is None else shown(Path(model).name),
        trained=trained,
        trained_on=None if on is None else shown(on),
        knows=_KNOWN.get(on or ""),
        words=library.has_words(),
        frame_vectors=bool(values.get("frame_vectors")),
        confidence=library.read(library.store.calibrated) > 0,
        reranks=library.model.reranks,
        videos=values["videos"],
        segments=values["segments"],
        seconds=values["seconds"],
        unreadable=len(values["unreadable"]),
        cut_off=len(values["cut_off"]),
        window=values["window"],
        stride=values["stride"],
        columns=library.columns(),
        version=vtr.__version__,
        limits=limits,
    )


def trained_on(model: str | None) -> tuple[bool | None, str | None]:
    """Whether a model is trained, and on what, by its name or what its run wrote down; None where nothing says."""
    if model is None:
        return None, None
    if model.startswith(registry.OPEN_CLIP):
        _, _, tag = model.partition("/")
        return bool(tag), tag or None
    if registry.is_registered(model):
        return True, registry.find(model).data
    for folder in (Path(model), Path(model).parent):
        with suppress(OSError, ValueError, KeyError, TypeError, VtrError):
            if (folder / "source.json").is_file():
                return True, registry.find(json.loads((folder / "source.json").read_text())["name"]).data
            corpus = json.loads((folder / "run.json").read_text())["settings"]["corpus"]
            return True, Path(str(corpus)).name
    return None, None


def _videos(library: Library, limit: int, first: int, where: str) -> Videos:
    def read() -> Videos:
        condition, values = parse_where(where, library.columns()) if where.strip() else ("", [])
        total, rows = library.store.listed(condition, values, first, limit, newest=True)
        middles = library.store.middles([row.id for row in rows])
        listed = [_listed(row, middles[row.id]) for row in rows if row.id in middles]
        return Videos(total=total, first=first, videos=listed, library=queries.stamp(library))

    return library.read(read)


def _listed(row: VideoRow, segment: int) -> Listed:
    path = Path(row.path)
    title = next((v for k, v in row.metadata.items() if k.lower() == "title" and isinstance(v, str) and v.strip()), "")
    return Listed(
        video=row.id,
        segment=segment,
        name=shown(path.name),
        title=shown(title.strip() or path.stem),
        path=shown(row.path),
        duration=round(row.duration, 3),
        modified=day_of(row.facts.modified),
        kind=kind_of(row.path, row.duration > 0),
        metadata=row.metadata,
    )


def _examples(library: Library) -> list[Example]:
    """Captions and subtitles spread over the library, in turn, of which each finds something that it is sure of."""
    captions, said = library.read(lambda: (list(_captions(library)), list(_subtitles(library))))
    turns = {e.q.casefold(): e for pair in zip_longest(captions, said) for e in pair if e is not None}
    found = (e for e in list(turns.values())[:_TRIED] if _answered(library, e))
    return list(islice(found, _MOST))


def _answered(library: Library, example: Example) -> bool:
    with suppress(VtrError):
        return any(not hit.weak for hit in library.search(example.q, 1, by=example.by))
    return False


def _captions(library: Library) -> Iterator[Example]:
    for metadata in library.store.spread(_LOOKED_AT):
        text = _caption(metadata)
        if text:
            yield Example(q=text, by="picture", origin="caption")


def _caption(metadata: Metadata) -> str | None:
    """The beginning of what the metadata says of a video, where it is a sentence or a few words."""
    columns = {k.lower(): v for k, v in metadata.items() if isinstance(v, str)}
    for text in (columns.get(name) for name in _CAPTIONS):
        sentence = re.split(r"[.!?\n|;](?:\s|$)|\n", text.strip())[0].strip() if text else ""
        if " " in sentence and len(sentence) <= _LONGEST:
            return sentence
    return None


def _subtitles(library: Library) -> Iterator[Example]:
    for text in library.store.some_said(_LOOKED_AT):
        line = " ".join(text.split()).strip(' -–—.,!?…"“”')
        if 3 <= len(line.split()) <= 8 and len(line) <= _LONGEST:
            yield Example(q=line, by="words", origin="subtitle")
