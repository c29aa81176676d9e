"""The application: routes, errors as one line of JSON, the page, the guard before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import python_multipart  # noqa: F401 - FastAPI asks for it late, and not in one line
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser

import vtr
from vtr.data.decode import DecodeError
from vtr.errors import HTTP, UsageError, VtrError
from vtr.library.serve import queries
from vtr.library.serve.engine import UPLOADS, Engine, ServerOptions
from vtr.library.serve.first_view import add_first_view
from vtr.library.serve.front import add_page
from vtr.library.serve.guard import FAULT, OPEN, Guard
from vtr.library.serve.media import Refused
from vtr.library.serve.routes import add_curve, add_login, add_media, add_moments, add_queries, only_known
from vtr.library.serve.schema import UPLOAD_PATH
from vtr.library.serve.taking import add_taking

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

MOST_UPLOAD = 1 << 30  # bytes: uploads are kept in memory


def make_app(
    path: str | Path, model: VideoTextEncoder | str | Path | None = None, options: ServerOptions | None = None
) -> Guard:
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

    app = FastAPI(
        title="vtr",
        description="Moments of videos, found in words or by a clip.",
        version=vtr.__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
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
    add_login(app, options.token)
    if options.token is not None:
        _document_token(app)
    return Guard(
        app,
        token=options.token,
        hosts=None if options.hosts is None else set(options.hosts),
        upload=UPLOAD_PATH,
        upload_bytes=options.upload_bytes + (4 << 10),  # the form around the clip
        uploads=UPLOADS,
    )


def _handle_errors(app: FastAPI) -> None:
    def failed(_: Request, error: Exception) -> Response:
        headers = {"retry-after": "1"} if isinstance(error, queries.Busy) else None
        text = " ".join((error.said(HTTP) if isinstance(error, VtrError) else str(error)).split())
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


def _document_token(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in schema["paths"].items():
            if path not in OPEN:
                for operation in methods.values():
                    operation["security"] = [{"token": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
