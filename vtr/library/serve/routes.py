"""The routes of the API: queries, pictures and files, the token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, get_origin

from fastapi import FastAPI, File, Form, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import FormData

from vtr.errors import UsageError, unknown_name
from vtr.library.files import shown
from vtr.library.found import Hit, hit_dict
from vtr.library.library import Library
from vtr.library.serve import queries
from vtr.library.serve.engine import Engine, ServerOptions
from vtr.library.serve.file_answer import FileAnswer
from vtr.library.serve.first_view import about, kind_of
from vtr.library.serve.guard import cookie_name, cookie_value
from vtr.library.serve.schema import (
    FILE,
    MAX_K,
    MAX_MOMENTS,
    MAX_WHERE,
    PICTURE,
    UPLOAD_PATH,
    All,
    AllMoments,
    Answer,
    Asked,
    Begin,
    CurveAnswer,
    End,
    Health,
    Id,
    Info,
    K,
    Limits,
    Login,
    Moment,
    Moments,
    Of,
    Unmerged,
    Unwanted,
    WhatFor,
    Where,
    problems,
)
from vtr.library.serve.taking import with_ends


async def only_known(request: Request) -> None:
    """Refuse parameters and fields of a form that a route does not have, or has once: none must be ignored."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.include_in_schema:  # the page's parameters are the page's own
        known = dict(k for p in route.dependant.query_params for k in _kinds(p.alias, p.field_info.annotation))
        fields = dict.fromkeys([p.alias for p in route.dependant.body_params])
        form = await request.form() if route.path == UPLOAD_PATH else FormData()
        for given, among in ((request.query_params, known), (form, fields)):
            for name in given:
                if name not in among:
                    raise unknown_name("parameter", name[:100], among or ["none"])
                if get_origin(among[name]) is not list and len(values := given.getlist(name)) > 1:
                    raise UsageError(f"{name} is given {len(values)} times: expected once")


def _kinds(alias: str, kind: object) -> list[tuple[str, object]]:
    """What a parameter is called in an address, and its type; a model stands for one of each of its fields."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return [(alias, kind)]
    return [(field.alias or name, field.annotation) for name, field in kind.model_fields.items()]


def add_queries(app: FastAPI, engine: Engine, path: Path, options: ServerOptions) -> None:
    """Routes of /api/info and of searching."""
    limits = Limits(upload_bytes=options.upload_bytes)

    @app.get("/health", response_model=Health, responses=problems(503), operation_id="health")
    async def health() -> Health:
        """Whether the library can be read."""
        await engine.lookup.ask(lambda library: library.read(library.store.segments))
        return Health()

    @app.get("/api/info", response_model=Info, responses=problems(503), operation_id="info")
    async def info() -> Info:
        """What the library holds, and the limits of requests."""
        return await engine.lookup.ask(about, path, limits)

    @app.get("/api/search", response_model=Answer, responses=problems(400, 503), operation_id="search")
    async def search(asked: Annotated[Asked, Query()]) -> Answer:
        """Moments for a text, or for several; of one text also what others come after or before."""
        lane = engine.slow if asked.rerank else engine.quick
        return await _answer(asked.title, lambda: lane.ask(queries.search, asked.q, asked.k, **asked.options()))

    @app.post(UPLOAD_PATH, response_model=Answer, responses=problems(400, 408, 503), operation_id="search_by_clip")
    async def search_clip(
        clip: Annotated[UploadFile, File(description="a video or an image")],
        k: Annotated[int, Form(ge=1, le=MAX_K)] = 24,
        where: Annotated[str, Form(max_length=MAX_WHERE)] = "",
        all_moments: Annotated[bool, Form()] = False,
        moments: Annotated[int, Form(ge=1, le=MAX_MOMENTS)] = 1,
        unmerged: Annotated[bool, Form()] = False,
        all: Annotated[bool, Form()] = False,
    ) -> Answer:
        """Moments like a clip or an image. It is decoded in a process of its own and not kept."""
        body = await clip.read()
        if len(body) > options.upload_bytes:
            raise HTTPException(413, f"the clip is too large: at most {options.upload_bytes} bytes")

        async def found() -> queries.Answered:
            library = await engine.opening.run(engine.door.library)
            frames, notes = await engine.uploads.run(queries.clip_frames, library, body)
            options = {"like": frames, **_common(where, all_moments, moments, unmerged, all)}
            answered = await engine.slow.ask(queries.search, (), k, **options)
            return answered._replace(notes=[*notes, *answered.notes])

        return await _answer(shown(clip.filename or "clip")[:200], found)


def add_curve(app: FastAPI, engine: Engine) -> None:
    """The route of a video's curve."""

    @app.get(
        "/api/videos/{video}/curve",
        response_model=CurveAnswer,
        responses=problems(400, 404, 409, 503),
        operation_id="curve",
    )
    async def curve(
        video: Id,
        q: WhatFor,
        minus: Annotated[Unwanted, Query(default_factory=list)],
        of: Of = None,
    ) -> CurveAnswer:
        """How well a video fits a text from moment to moment."""
        found, library = await engine.quick.ask(queries.curve, video, q, minus, of)
        values = {**found.as_dict(), "query": " + ".join(q), "video": video, "library": library}
        return CurveAnswer.model_validate(values)


def add_moments(app: FastAPI, engine: Engine) -> None:
    """Routes of one moment, and of those like it."""

    @app.get("/api/segments/{segment}", response_model=Answer, responses=problems(404, 409, 503), operation_id="moment")
    async def moment(segment: Id, of: Of = None) -> Answer:
        """One moment by its id."""
        return await _answer(f"#{segment}", lambda: engine.lookup.ask(_one, segment, of))

    @app.get(
        "/api/segments/{segment}/similar",
        response_model=Answer,
        responses=problems(400, 404, 409, 503),
        operation_id="similar",
    )
    async def similar(
        segment: Id,
        k: K = 24,
        where: Where = "",
        all_moments: AllMoments = False,
        moments: Moments = 1,
        unmerged: Unmerged = False,
        all: All = False,
        of: Of = None,
    ) -> Answer:
        """Moments like one of the library; of other videos, unless `all_moments`."""
        own = await engine.lookup.ask(queries.moment_of, segment, of)
        options = {"more": segment, "of": own.library, **_common(where, all_moments, moments, unmerged, all)}
        return await _answer(
            f"{own.video.name}, {own.start:.1f} s", lambda: engine.quick.ask(queries.search, (), k, **options)
        )


def _one(library: Library, segment: int, of: str | None) -> queries.Answered:
    """A moment by its id, as if it had been searched for."""
    queries.moment_of(library, segment, of)
    row = library.store.details([segment])[segment]
    hit = Hit(
        score=1.0,
        path=row.path,
        start=row.start,
        end=row.end,
        duration=row.duration,
        segment=row.id,
        rank=1,
        similarity=1.0,
        measure="likeness",
        match=1.0,
        metadata=row.metadata,
    )
    return queries.Answered([(hit, row.video)], [], queries.stamp(library))


def _common(where: str, all_moments: bool, moments: int, unmerged: bool, all: bool) -> dict[str, object]:
    return {
        "where": where if where.strip() else None,
        "all_moments": all_moments,
        "moments": moments,
        "unmerged": unmerged,
        "all": all,
    }


async def _answer(query: str, found: Callable[[], Awaitable[queries.Answered]]) -> Answer:
    started = time.perf_counter()
    answered = await found()
    moments = []
    for hit, video in answered.pairs:
        values = {**hit_dict(hit), "path": shown(hit.path), "name": shown(Path(hit.path).name)}
        for name in ("copies", "near_copies"):
            values[name] = [shown(copy) for copy in getattr(hit, name)]
        moments.append(
            Moment.model_validate({**values, "video": video, "kind": kind_of(hit.path, hit.end > hit.start)})
        )
    spent = round(1000 * (time.perf_counter() - started), 1)
    return Answer(query=query, hits=moments, milliseconds=spent, notes=answered.notes, library=answered.library)


def add_media(app: FastAPI, engine: Engine) -> None:
    """Routes of pictures and files."""

    async def picture(
        segment: int, of: str | None, frames: int, width: int, start: float | None, end: float | None
    ) -> Response:
        moment = with_ends(await engine.lookup.ask(queries.moment_of, segment, of), start, end)
        jpeg = await engine.pictures.run(engine.thumbnails.get, moment, frames, width)
        # Without the library in the address, the next picture under it may be another library's.
        kept = "private, max-age=600" if of else "private, no-cache"
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": kept})

    refusals = problems(400, 404, 409, 410, 503)

    @app.get(
        "/api/segments/{segment}/thumbnail.jpg",
        response_class=Response,
        responses={**refusals, **PICTURE},
        operation_id="thumbnail",
    )
    async def thumbnail(segment: Id, start: Begin = None, end: End = None, of: Of = None) -> Response:
        """What the player shows where a moment begins, at most 480 pixels wide."""
        return await picture(segment, of, 1, 480, start, end)

    @app.get(
        "/api/segments/{segment}/preview.jpg",
        response_class=Response,
        responses={**refusals, **PICTURE},
        operation_id="preview",
    )
    async def preview(segment: Id, start: Begin = None, end: End = None, of: Of = None) -> Response:
        """Six frames of a moment side by side, each at most 320 pixels wide."""
        return await picture(segment, of, 6, 320, start, end)

    @app.get(
        "/api/videos/{video}/file",
        response_class=Response,
        responses={**problems(404, 409, 410, 416, 503), **FILE},
        operation_id="file",
    )
    async def file(
        request: Request,
        video: Id,
        of: Of = None,
        download: Annotated[bool, Query(description="as an attachment")] = False,
        range: Annotated[str | None, Header(description="one byte range, as in bytes=0-1023")] = None,
    ) -> Response:
        """The file, whole or one byte range of it, if it is still the one that was indexed."""
        known = await engine.lookup.ask(queries.video_of, video, of)
        opened = await engine.opening.run(engine.files.open, known)
        try:
            return FileAnswer(request, opened, known, range, download)
        except BaseException:
            opened.close()
            raise


def add_login(app: FastAPI, options: ServerOptions) -> None:
    @app.post("/api/login", status_code=204, response_class=Response, responses=problems(400), operation_id="login")
    async def login(given: Login) -> Response:
        """Set a cookie for the token, so that pictures and videos of the page can be asked for."""
        response, token = Response(status_code=204), options.token
        if token is None:
            return response
        if not secrets.compare_digest(given.token.encode("utf-8", "replace"), token.encode()):
            await asyncio.sleep(0.5)
            raise HTTPException(401, "that is not the token the server printed", {"www-authenticate": "Bearer"})
        place = f"{options.root_path}/"
        response.set_cookie(cookie_name(token), cookie_value(token), httponly=True, samesite="strict", path=place)
        return response
