"""Routes by which moments leave the server: clips and lists."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Response

from vtr.data.decode.cut import cut
from vtr.library.serve import queries
from vtr.library.serve.engine import Engine
from vtr.library.serve.media import TYPES, Files, Moment, Refused, identity
from vtr.library.serve.schema import FILE, LIST, Asked, Begin, End, Id, Of, problems
from vtr.library.timeline import timeline

MOST_SECONDS = 300.0  # of a clip
MOST_BYTES = 256 << 20
_DECODE = 30.0  # seconds without progress after which a clip is given up


class Taken(Asked):
    """A query, and the form in which its hits are wanted."""

    format: Annotated[Literal["edl", "fcpxml", "csv", "srt", "json"], Query(description="of the list")]


def with_ends(moment: Moment, start: float | None, end: float | None) -> Moment:
    """A segment's moment with a hit's ends, which may be finer, or those of several segments.

    Raises:
        Refused: It would end before it begins, or begin after its video.
    """
    if start is None and end is None:
        return moment
    first, last = moment.start if start is None else start, min(moment.end if end is None else end, moment.lasts)
    if first >= last:
        raise Refused(
            400, f"a clip from {first:g} to {last:g} s of {moment.lasts:g} s: expected a start before its end"
        )
    return replace(moment, start=first, end=last)


def clip_of(files: Files, moment: Moment, exact: bool) -> tuple[bytes, str]:
    """A moment as a file of its own, and its ending.

    Raises:
        Refused: Its video is gone or has changed, is an image, or the moment is too long.
        DecodeError: It gives no frames.
    """
    if moment.end <= moment.start:
        raise Refused(400, f"{moment.video.name} is an image: there is nothing to cut")
    if moment.end - moment.start > MOST_SECONDS:
        raise Refused(413, f"the moment is longer than the {MOST_SECONDS:.0f} s of a clip")
    opened = files.open(moment.video)
    try:
        before = identity(opened.fd)
        source = opened.whole() if opened.first else Path(moment.video.path)
        with tempfile.TemporaryDirectory(prefix="vtr-clip-") as folder:
            try:
                made = cut(
                    source,
                    moment.start,
                    moment.end,
                    Path(folder) / "clip",
                    exact=exact,
                    lasts=moment.lasts,
                    timeout=_DECODE,
                )
            except OSError as error:
                raise Refused(503, f"the clip cannot be written ({error.strerror})") from error
            if made.path.stat().st_size > MOST_BYTES:
                raise Refused(413, f"the clip has more than {MOST_BYTES >> 20} MB; with `exact` it is smaller")
            data = made.path.read_bytes()
    finally:
        opened.close()
    # It was cut by its path: that must still be the file that was checked.
    again = files.open(moment.video)
    try:
        if identity(again.fd) != before:
            raise Refused(409, f"{moment.video.name} is changing; try again")
    finally:
        again.close()
    return data, made.path.suffix


def add_taking(app: FastAPI, engine: Engine) -> None:
    @app.get(
        "/api/segments/{segment}/clip",
        response_class=Response,
        responses={**problems(404, 409, 410, 503), 200: FILE[200]},
        operation_id="clip",
    )
    async def clip(
        segment: Id,
        exact: Annotated[
            bool, Query(description="from the very frame: encoded again; else from a key frame on")
        ] = False,
        start: Begin = None,
        end: End = None,
        of: Of = None,
    ) -> Response:
        """A moment as a file of its own: a copy from the key frame before it, or exact."""
        moment = with_ends(await engine.lookup.ask(queries.moment_of, segment, of), start, end)
        data, ending = await engine.uploads.run(clip_of, engine.files, moment, exact)
        named = {"content-disposition": f'attachment; filename="clip_{segment}{ending}"'}
        return Response(data, media_type=TYPES[ending], headers=named)

    @app.get(
        "/api/export",
        response_class=Response,
        responses={**problems(503), **LIST},
        operation_id="export",
    )
    async def export(asked: Annotated[Taken, Query()]) -> Response:
        """The hits of a query for other programs: an edit list, a table, or subtitles; parameters as of a search."""
        lane = engine.slow if asked.rerank else engine.quick
        answered = await lane.ask(queries.search, asked.q, asked.k, **asked.options())
        hits = [hit for hit, _ in answered.pairs]
        text, notes = await engine.opening.run(timeline, f".{asked.format}", hits, asked.title)
        kinds = {"csv": "text/csv", "json": "application/json", "fcpxml": "application/xml"}
        named = {"content-disposition": f'attachment; filename="hits.{asked.format}"'}
        if told := "; ".join([*answered.notes, *notes]):
            named["x-notes"] = " ".join(told.encode("ascii", "backslashreplace").decode().split())
        return Response(
            text.encode("utf-8", "replace"), media_type=kinds.get(asked.format, "text/plain"), headers=named
        )
