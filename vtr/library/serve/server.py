"""`vtr serve`: a REST API (FastAPI, OpenAPI at /openapi.json) and one page over a library.

GET  /                                   the page
GET  /api/info                           what the library holds, and the limits
GET  /api/search?q=…&minus=…&where=…      moments for texts
POST /api/search/clip                    moments like an uploaded clip or image (multipart, field `clip`)
GET  /api/segments/ID/similar            moments like one of the library
GET  /api/segments/ID/thumbnail.jpg      its middle frame; preview.jpg: six frames side by side
GET  /api/videos/ID/file                 the file itself, in byte ranges
POST /api/login                          a token for a cookie, where the server has one
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import python_multipart  # noqa: F401 - FastAPI asks for it late, and not in one line
import uvicorn
from fastapi import FastAPI, File, Form, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser
from uvicorn.protocols.http.h11_impl import H11Protocol

import vtr
from vtr.data.decode import DecodeError
from vtr.errors import UsageError, VtrError
from vtr.files import package_file
from vtr.library.files import shown
from vtr.library.search import Hit, hit_dict
from vtr.library.serve import queries
from vtr.library.serve.guard import FAULT, Guard, cookie_name, cookie_value
from vtr.library.serve.media import TYPES, Files, Opened, Refused, Thumbnails, Video, byte_range

MAX_K = 100
MAX_QUERY = 500  # characters
MAX_TEXTS = 8  # wanted, and as many unwanted
MAX_MOMENTS = 20  # of one video
MAX_WHERE = 1000  # characters
MAX_RERANK = 50  # segments
MAX_CONNECTIONS = 256
HEADER_SECONDS = 30.0  # for a request line and headers
UPLOADS = 4  # that are received, decoded or waiting for it
DECODERS = 2  # processes that decode uploads
_PART = 256 << 10  # bytes of a file that are read at once
_MOST_UPLOAD = 1 << 30  # bytes: uploads are kept in memory
_UPLOAD_PATH = "/api/search/clip"
_LOCAL = {"127.0.0.1", "localhost", "::1"}


class Moment(BaseModel):
    """One hit: a moment of a video."""

    rank: int
    score: float
    similarity: float
    reranked: bool
    segment: int
    video: int
    path: str
    name: str
    start: float
    end: float
    duration: float
    moment: Annotated[int, Field(description="1 for the best moment of its video")]
    metadata: dict[str, str | int | float | bool]
    kind: Literal["video", "image", "file"]


class Answer(BaseModel):
    """The hits of a query, best first."""

    query: str
    hits: list[Moment]
    milliseconds: float


class Limits(BaseModel):
    """What a request may ask for."""

    k: int = MAX_K
    query: int = MAX_QUERY
    texts: int = MAX_TEXTS
    where: int = MAX_WHERE
    rerank: int = MAX_RERANK
    moments: int = MAX_MOMENTS
    upload_bytes: int


class Info(BaseModel):
    """What the library holds."""

    name: str
    videos: int
    segments: int
    seconds: float
    unreadable: int
    window: float
    stride: float
    columns: Annotated[list[str], Field(description="metadata that filters may use")]
    version: str
    limits: Limits


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Login(BaseModel):
    """The token that the server printed."""

    token: Annotated[str, Field(max_length=1000)]


K = Annotated[int, Query(ge=1, le=MAX_K, description="number of hits")]
Where = Annotated[str, Query(max_length=MAX_WHERE, description='filter, as in: duration < 60 and path ~ "dog"')]
AllMoments = Annotated[bool, Query(description="several moments of one video, each with a rank of its own")]
Moments = Annotated[int, Query(ge=1, le=MAX_MOMENTS, description="up to so many moments of a video, together")]
Words = Annotated[str, Field(min_length=1, max_length=MAX_QUERY)]
Id = Annotated[int, InPath(ge=1, le=2**63 - 1, examples=[1])]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in (*statuses, 401, 403, 413, 422, 429, 500)}


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        "description": "a JPEG picture",
    }
}
_BYTES = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {**_BYTES, "description": "the file"},
    206: {**_BYTES, "description": "the bytes asked for"},
    304: {"description": "unchanged"},
}


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a library is served.

    Attributes:
        token: What clients must know; None: nothing.
        hosts: Host names a request may be addressed to; None: any.
        follow_links: Serve symbolic links that lead out of their folder.
        upload_bytes: Largest clip that may be uploaded.
    """

    token: str | None = None
    hosts: frozenset[str] | None = frozenset(_LOCAL)
    follow_links: bool = False
    upload_bytes: int = 64 << 20


class Engine:
    """The threads behind the API.

    Quick queries, slow ones (re-ranking, encoding a clip) and look-ups have a lane each, so that a slow one never
    holds up the others; pictures and uploads are decoded beside them.
    """

    def __init__(self, path: Path, model: Any | None, options: ServerOptions) -> None:
        import torch

        self.model = model
        self.quick = queries.Lane(path, lambda: model, cores=1)
        self.slow = queries.Lane(path, lambda: self.model, waiting=32, cores=torch.get_num_threads())
        self.lookup = queries.Lane(path, lambda: None, waiting=1024)
        self.pictures = queries.Pool(2, waiting=512)
        self.opening = queries.Pool(4, waiting=512)
        self.uploads = queries.Pool(DECODERS, waiting=UPLOADS)
        self.files = Files(follow_links=options.follow_links)
        self.thumbnails = Thumbnails(self.files)
        try:
            self.library = self.quick.now(queries.warm_up)  # only for what needs no database
            self.model = self.library.model
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for part in (self.quick, self.slow, self.lookup, self.pictures, self.opening, self.uploads):
            part.close()


def make_app(path: str | Path, model: Any | None = None, options: ServerOptions | None = None) -> Any:
    """The ASGI application over a library; the model and the index are loaded here.

    Raises:
        VtrError: The library is damaged, was made with another model, or its model cannot be loaded.
    """
    options = options or ServerOptions()
    path = Path(path)
    # Uploads stay in memory (the guard bounds how large and how many): a full disk does no harm, and nothing is kept.
    MultiPartParser.spool_max_size = _MOST_UPLOAD << 1
    engine = Engine(path, model, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(
        title="vtr",
        description="Moments of videos, found in words or by a clip.",
        version=vtr.__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    _handle_errors(app)
    _page(app)
    _queries(app, engine, path, options)
    _media(app, engine)
    _login(app, options.token)
    if options.token is not None:
        _document_token(app)
    return Guard(
        app,
        token=options.token,
        hosts=None if options.hosts is None else set(options.hosts),
        upload=_UPLOAD_PATH,
        upload_bytes=options.upload_bytes + (4 << 10),  # the form around the clip
        uploads=UPLOADS,
    )


def _handle_errors(app: FastAPI) -> None:
    def failed(_: Request, error: Exception) -> Response:
        headers = {"retry-after": "1"} if isinstance(error, queries.Busy) else None
        text = " ".join(str(error).split())
        if isinstance(error, UsageError):
            # What is a flag there is a parameter here.
            text = re.sub(r"(?<![\w-])-{1,2}([a-z][a-z-]*)", lambda m: m[1].replace("-", "_"), text)
        return JSONResponse({"error": text}, _status(error), headers)

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(p for p in first["loc"][1:] if isinstance(p, str))
        return JSONResponse({"error": f"{place}: {first['msg']}" if place else first["msg"]}, 422)

    def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    def broken(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": FAULT}, 500)  # the guard logs it

    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(VtrError, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http)


def _status(error: Exception) -> int:
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, queries.Busy):
        return 429
    if isinstance(error, UsageError):
        return 400
    return 422 if isinstance(error, DecodeError) else 500


def _page(app: FastAPI) -> None:
    html = package_file("vtr.library.serve", "page.html").read_text(encoding="utf-8")
    allowed = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers={"content-security-policy": policy, "cache-control": "no-cache"})


def _queries(app: FastAPI, engine: Engine, path: Path, options: ServerOptions) -> None:
    limits = Limits(upload_bytes=options.upload_bytes)

    @app.get("/api/info", response_model=Info, responses=_problems())
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

    @app.get("/api/search", response_model=Answer, responses=_problems(400))
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

    @app.post(_UPLOAD_PATH, response_model=Answer, responses=_problems(400, 408))
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

    @app.get("/api/segments/{segment}/similar", response_model=Answer, responses=_problems(400, 404))
    async def similar(
        segment: Id, k: K = 24, where: Where = "", all_moments: AllMoments = False, moments: Moments = 1
    ) -> Answer:
        """Moments like one of the library; of other videos, unless `all_moments`."""
        own = await engine.lookup.ask(queries.moment_of, segment)
        options = {"more": segment, "moments": moments, **_common(where, all_moments)}
        return await _answer(
            f"{own.video.name}, {own.start:.1f} s", lambda: engine.quick.ask(queries.search, (), k, **options)
        )


def _common(where: str, all_moments: bool) -> dict[str, Any]:
    return {"where": where if where.strip() else None, "all_moments": all_moments}


async def _answer(query: str, found: Callable[[], Any]) -> Answer:
    started = time.perf_counter()
    pairs: list[tuple[Hit, int]] = await found()
    moments = []
    for hit, video in pairs:
        kind = TYPES.get(Path(hit.path).suffix.lower(), "file/").split("/")[0]
        values = {**hit_dict(hit), "path": shown(hit.path), "name": shown(Path(hit.path).name)}
        moments.append(Moment(**values, video=video, kind=kind if kind in ("video", "image") else "file"))
    return Answer(query=query, hits=moments, milliseconds=round(1000 * (time.perf_counter() - started), 1))


def _media(app: FastAPI, engine: Engine) -> None:
    async def picture(segment: int, frames: int, width: int) -> Response:
        moment = await engine.lookup.ask(queries.moment_of, segment)
        jpeg = await engine.pictures.run(engine.thumbnails.get, moment, frames, width)
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    refusals = _problems(404, 409, 410)

    @app.get("/api/segments/{segment}/thumbnail.jpg", response_class=Response, responses={**refusals, **_PICTURE})
    async def thumbnail(segment: Id) -> Response:
        """The middle frame of a moment, at most 480 pixels wide."""
        return await picture(segment, 1, 480)

    @app.get("/api/segments/{segment}/preview.jpg", response_class=Response, responses={**refusals, **_PICTURE})
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
            return _FileAnswer(request, opened, known, range, download)
        except BaseException:
            opened.close()
            raise

    responses = {**_problems(404, 409, 410, 416), **_FILE}
    app.get("/api/videos/{video}/file", response_class=Response, responses=responses)(file)
    app.head("/api/videos/{video}/file", include_in_schema=False)(file)


class _FileAnswer(Response):
    """One open file, or a range of it, in parts; closed at the end whatever happens."""

    def __init__(self, request: Request, opened: Opened, video: Video, wanted: str | None, download: bool) -> None:
        size = opened.size
        kind = TYPES.get(Path(video.path).suffix.lower(), "application/octet-stream")
        tag = f'"{opened.tag}"'
        headers = {
            "accept-ranges": "bytes",
            "etag": tag,
            "cache-control": "private, no-cache",
            "content-security-policy": "default-src 'none'; media-src 'self'; img-src 'self'; "
            "style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'",
        }
        place = "inline" if kind.startswith(("video/", "image/")) and not download else "attachment"
        name = Path(video.path).name
        headers["content-disposition"] = f"{place}; filename*=UTF-8''{quote(name, safe='')}"
        status = 200
        self._first, self._end = 0, size
        if request.headers.get("if-none-match") == tag:
            status, self._end = 304, 0
        elif request.headers.get("if-range", tag) == tag:
            try:
                found = byte_range(wanted, size)
            except Refused as error:
                raise HTTPException(416, str(error), {"content-range": f"bytes */{size}"}) from None
            if found:
                status, (self._first, self._end) = 206, found
                headers["content-range"] = f"bytes {self._first}-{self._end - 1}/{size}"
        if status != 304:
            headers["content-length"] = str(self._end - self._first)
        self._opened, self._request = opened, request
        super().__init__(None, status, headers, kind)
        if status == 304:
            del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self._end if scope["method"] == "HEAD" else self._first
            while at < self._end:
                part = await asyncio.to_thread(self._opened.read, min(_PART, self._end - at), at)
                if not part:
                    raise OSError(f"a file became shorter while it was served ({self._end - at} bytes are missing)")
                at += len(part)
                await send({"type": "http.response.body", "body": part, "more_body": at < self._end})
                if await self._request.is_disconnected():
                    return
            if self._first == self._end or scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._opened.close()


def _login(app: FastAPI, token: str | None) -> None:
    @app.post("/api/login", status_code=204, response_class=Response, responses=_problems(400))
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


def _document_token(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in schema["paths"].items():
            if path != "/api/login":
                for operation in methods.values():
                    operation["security"] = [{"token": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def serve(
    path: Path,
    *,
    host: str,
    port: int,
    token: str | None,
    model: str | None,
    follow_links: bool,
    allow_hosts: tuple[str, ...],
    max_upload: str,
) -> int:
    """Serve until Ctrl-C; prints the page's address when it is ready.

    Args:
        token: None: none on this machine's own addresses, a random one elsewhere; "": none at all.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of every malformed upload
    local = host in _LOCAL
    if token is None and not local:
        token = secrets.token_urlsafe(16)
    elif token == "" and not local:
        print(f"vtr: everyone who reaches {host}:{port} can see the videos of this library", file=sys.stderr)
    upload_bytes = _size(max_upload)
    listening = _listen(host, port)
    with listening:
        # Behind a token a foreign name does no harm, and which names lead to a public address cannot be known.
        hosts = {*_LOCAL, host, *allow_hosts} if local or allow_hosts else None
        options = ServerOptions(
            token=token or None,
            hosts=None if hosts is None else frozenset(h.lower() for h in hosts),
            follow_links=follow_links,
            upload_bytes=upload_bytes,
        )
        app = make_app(path, model, options)
        listening.listen(128)
        shown_host = f"[{host}]" if ":" in host else host
        key = f"#token={quote(token, safe='')}" if token else ""
        print(f"http://{shown_host}:{listening.getsockname()[1]}/{key}", flush=True)
        print("Ctrl-C stops", file=sys.stderr)
        uvicorn.Server(server_config(app)).run(sockets=[listening])
    return 0


def server_config(app: Any) -> Any:
    """The uvicorn.Config of the server: bounds on connections, on headers and on waiting for them."""

    class Protocol(H11Protocol):
        """Closes a connection whose request line and headers do not arrive in time; uvicorn waits for ever."""

        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()  # a request is being answered
            elif self._limit is None:
                self._limit = self.loop.call_later(HEADER_SECONDS, self._late)

        def _unwatch(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

        def _late(self) -> None:
            self._limit = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 << 10,
        http=Protocol,
        ws="none",
        lifespan="on",
    )


def _size(text: str) -> int:
    from vtr.library.index import parse_size

    try:
        size = parse_size(text)
    except UsageError as error:
        raise UsageError(f"--max-upload: {error}") from None
    if size > _MOST_UPLOAD:
        raise UsageError(f"--max-upload {text}: at most {_MOST_UPLOAD >> 30}G, as uploads are kept in memory")
    return size


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"--host {host}: no such address ({error})") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise VtrError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port") from error
    return listening
