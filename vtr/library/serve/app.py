"""The application: routes, errors as one line of JSON, the page, the guard before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import python_multipart  # noqa: F401 - FastAPI asks for it late, and not in one line
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import vtr
from vtr.data.decode import DecodeError
from vtr.errors import HTTP, UsageError, VtrError
from vtr.library.serve import queries
from vtr.library.serve.account import REQUEST, Account, Metrics
from vtr.library.serve.engine import UPLOADS, Engine, ServerOptions
from vtr.library.serve.first_view import add_first_view
from vtr.library.serve.front import add_page
from vtr.library.serve.guard import FAULT, OPEN, Guard, cookie_name
from vtr.library.serve.manual import add_manual
from vtr.library.serve.media import Refused
from vtr.library.serve.routes import add_curve, add_login, add_media, add_moments, add_queries, only_known
from vtr.library.serve.schema import UPLOAD_PATH
from vtr.library.serve.taking import add_taking

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

MOST_UPLOAD = 1 << 30  # bytes: uploads are kept in memory


def make_app(
    path: str | Path, model: VideoTextEncoder | str | Path | None = None, options: ServerOptions | None = None
) -> Account:
    """The ASGI application over a library; the model and the index are loaded here.

    Raises:
        VtrError: The library is damaged, was made with another model, or its model cannot be loaded.
    """
    options = options or ServerOptions()
    path = Path(path)
    # Uploads stay in memory (the guard bounds how large and how many): a full disk does no harm, and nothing is kept.
    MultiPartParser.spool_max_size = MOST_UPLOAD << 1
    engine = Engine(path, model, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    metrics = Metrics()
    app = FastAPI(
        title="vtr",
        description="Moments of videos, found in words or by a clip.",
        version=vtr.__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        servers=[{"url": options.root_path}] if options.root_path else None,
        lifespan=lifespan,
        dependencies=[Depends(only_known)],
    )
    _handle_errors(app)
    add_page(app)
    add_queries(app, engine, path, options)
    add_first_view(app, engine)
    add_moments(app, engine)
    add_curve(app, engine)
    add_media(app, engine)
    add_taking(app, engine)
    add_manual(app, engine, metrics)
    add_login(app, options)
    if options.token is not None:
        _document_token(app, options.token)
    guarded: ASGIApp = Guard(
        app,
        token=options.token,
        hosts=None if options.hosts is None else set(options.hosts),
        upload=UPLOAD_PATH,
        upload_bytes=options.upload_bytes + (4 << 10),  # the form around the clip
        uploads=UPLOADS,
        origins=options.cors,
    )
    if options.cors:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=options.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Range", "X-Request-ID"],
            expose_headers=["Content-Range", "Content-Disposition", "ETag", "Retry-After", "X-Request-ID", "X-Notes"],
        )
    return Account(guarded, metrics=metrics, log=options.log, root_path=options.root_path)


def _handle_errors(app: FastAPI) -> None:
    def failed(request: Request, error: Exception) -> Response:
        headers = {"retry-after": "1"} if isinstance(error, queries.Busy) else None
        text = " ".join((error.said(HTTP) if isinstance(error, VtrError) else str(error)).split())
        return _problem(request, text, _status(error), headers)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(p for p in first["loc"][1:] if isinstance(p, str))
        return _problem(request, f"{place}: {first['msg']}" if place else first["msg"], 422)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        headers = {
            k: "GET, HEAD" if (k.lower(), v) == ("allow", "GET") else v for k, v in (error.headers or {}).items()
        }
        return _problem(request, str(error.detail), error.status_code, headers)

    def broken(request: Request, _: Exception) -> Response:
        return _problem(request, FAULT, 500)  # the guard logs it

    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(VtrError, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http)


def _problem(request: Request, text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text, "request": request.scope.get(REQUEST)}, status, headers)


def _status(error: Exception) -> int:
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, queries.Busy):
        return 429
    if isinstance(error, UsageError):
        return 400
    return 422 if isinstance(error, DecodeError) else 500


def _document_token(app: FastAPI, token: str) -> None:
    plain = app.openapi
    ways = {
        "token": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": cookie_name(token)},
    }

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = ways
        for path, methods in schema["paths"].items():
            if path not in OPEN:
                for operation in methods.values():
                    operation["security"] = [{name: []} for name in ways]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
