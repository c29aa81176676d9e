"""The routes of the API: queries, pictures and files, the token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, File, Form, Header, HTTPException, Query, Request, Response, UploadFile

import vtr
from vtr.library.files import shown
from vtr.library.search import Hit, hit_dict
from vtr.library.serve import queries
from vtr.library.serve.engine import Engine, ServerOptions
from vtr.library.serve.file_answer import FileAnswer
from vtr.library.serve.guard import cookie_name, cookie_value
from vtr.library.serve.media import TYPES
from vtr.library.serve.schema import (
    FILE,
    MAX_K,
    MAX_MOMENTS,
    MAX_RERANK,
    MAX_TEXTS,
    MAX_WHERE,
    PICTURE,
    UPLOAD_PATH,
    AllMoments,
    Answer,
    Id,
    Info,
    K,
    Limits,
    Login,
    Moment,
    Moments,
    Where,
    Words,
    problems,
)


def add_queries(app: FastAPI, engine: Engine, path: Path, options: ServerOptions) -> None:
    limits = Limits(upload_bytes=options.upload_bytes)

    @app.get("/api/info", response_model=Info, responses=problems())
    async def info() -> Info:
        """What the library holds, and the limits of requests."""
        values = await engine.lookup.ask(lambda library: library.info())
        return Info(
            name=shown(path.absolute().name),
            videos=values["videos"],
            segments=values["segments"],
            seconds=values["seconds"],
            unreadable=len(values["unreadable"]),
            window=values["window"],
            stride=values["stride"],
            columns=await engine.lookup.ask(lambda library: library.columns()),
            version=vtr.__version__,
            limits=limits,
        )

    @app.get("/api/search", response_model=Answer, responses=problems(400))
    async def search(
        q: Annotated[
            list[Words],
            Query(max_length=MAX_TEXTS, description="what to look for; several count the same", examples=[["a dog"]]),
        ],
        minus: Annotated[
            list[Words], Query(default_factory=list, max_length=MAX_TEXTS, description="texts that are unwanted")
        ],
        k: K = 24,
        rerank: Annotated[
            int, Query(ge=0, le=MAX_RERANK, description="best segments that the cross-modal decoder looks at again")
        ] = 0,
        where: Where = "",
        all_moments: AllMoments = False,
        moments: Moments = 1,
    ) -> Answer:
        """Moments for a text, or for several."""
        lane = engine.slow if rerank else engine.quick
        options = {"rerank": rerank, "minus": minus, "moments": moments, **_common(where, all_moments)}
        shown_query = " + ".join(q) + "".join(f" \u2212 {text}" for text in minus)
        return await _answer(shown_query, lambda: lane.ask(queries.search, q, k, **options))

    @app.post(UPLOAD_PATH, response_model=Answer, responses=problems(400, 408))
    async def search_clip(
        clip: Annotated[UploadFile, File(description="a video or an image")],
        k: Annotated[int, Form(ge=1, le=MAX_K)] = 24,
        where: Annotated[str, Form(max_length=MAX_WHERE)] = "",
        all_moments: Annotated[bool, Form()] = False,
        moments: Annotated[int, Form(ge=1, le=MAX_MOMENTS)] = 1,
    ) -> Answer:
        """Moments like a clip or an image. It is decoded in a process of its own and not kept."""
        body = await clip.read()
        if len(body) > options.upload_bytes:
            raise HTTPException(413, f"the clip is too large: at most {options.upload_bytes} bytes")

        async def found() -> list[tuple[Hit, int]]:
            frames = await engine.uploads.run(queries.clip_frames, engine.library, body)
            options = {"like": frames, "moments": moments, **_common(where, all_moments)}
            return await engine.slow.ask(queries.search, (), k, **options)

        return await _answer(shown(clip.filename or "clip")[:200], found)

    @app.get("/api/segments/{segment}/similar", response_model=Answer, responses=problems(400, 404))
    async def similar(
        segment: Id, k: K = 24, where: Where = "", all_moments: AllMoments = False, moments: Moments = 1
    ) -> Answer:
        """Moments like one of the library; of other videos, unless `all_moments`."""
        own = await engine.lookup.ask(queries.moment_of, segment)
        options = {"more": segment, "moments": moments, **_common(where, all_moments)}
        return await _answer(
            f"{own.video.name}, {own.start:.1f} s", lambda: engine.quick.ask(queries.search, (), k, **options)
        )


def _common(where: str, all_moments: bool) -> dict[str, object]:
    return {"where": where if where.strip() else None, "all_moments": all_moments}


async def _answer(query: str, found: Callable[[], Awaitable[list[tuple[Hit, int]]]]) -> Answer:
    started = time.perf_counter()
    pairs = await found()
    moments = []
    for hit, video in pairs:
        kind = TYPES.get(Path(hit.path).suffix.lower(), "file/").split("/")[0]
        values = {**hit_dict(hit), "path": shown(hit.path), "name": shown(Path(hit.path).name)}
        moments.append(Moment(**values, video=video, kind=kind if kind in ("video", "image") else "file"))
    return Answer(query=query, hits=moments, milliseconds=round(1000 * (time.perf_counter() - started), 1))


def add_media(app: FastAPI, engine: Engine) -> None:
    async def picture(segment: int, frames: int, width: int) -> Response:
        moment = await engine.lookup.ask(queries.moment_of, segment)
        jpeg = await engine.pictures.run(engine.thumbnails.get, moment, frames, width)
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    refusals = problems(404, 409, 410)

    @app.get("/api/segments/{segment}/thumbnail.jpg", response_class=Response, responses={**refusals, **PICTURE})
    async def thumbnail(segment: Id) -> Response:
        """What the player shows where a moment begins, at most 480 pixels wide."""
        return await picture(segment, 1, 480)

    @app.get("/api/segments/{segment}/preview.jpg", response_class=Response, responses={**refusals, **PICTURE})
    async def preview(segment: Id) -> Response:
        """Six frames of a moment side by side, each at most 320 pixels wide."""
        return await picture(segment, 6, 320)

    async def file(
        request: Request,
        video: Id,
        download: Annotated[bool, Query(description="as an attachment")] = False,
        range: Annotated[str | None, Header(description="one byte range, as in bytes=0-1023")] = None,
    ) -> Response:
        """The file, whole or one byte range of it, if it is still the one that was indexed."""
        known = await engine.lookup.ask(queries.video_of, video)
        opened = await engine.opening.run(engine.files.open, known)
        try:
            return FileAnswer(request, opened, known, range, download)
        except BaseException:
            opened.close()
            raise

    responses = {**problems(404, 409, 410, 416), **FILE}
    app.get("/api/videos/{video}/file", response_class=Response, responses=responses)(file)
    app.head("/api/videos/{video}/file", include_in_schema=False)(file)


def add_login(app: FastAPI, token: str | None) -> None:
    @app.post("/api/login", status_code=204, response_class=Response, responses=problems(400))
    async def login(given: Login) -> Response:
        """Set a cookie for the token, so that pictures and videos of the page can be asked for."""
        response = Response(status_code=204)
        if token is None:
            return response
        if not secrets.compare_digest(given.token.encode("utf-8", "replace"), token.encode()):
            await asyncio.sleep(0.5)
            raise HTTPException(401, "that is not the token the server printed", {"www-authenticate": "Bearer"})
        response.set_cookie(cookie_name(token), cookie_value(token), httponly=True, samesite="strict", path="/")
        return response
