"""`vtr serve`: a REST API (FastAPI) and one page over a library; /docs lists the routes.

Bounds on connections, on headers and on waiting for them are set here, what a request may do in `vtr.library.serve.guard`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import sys
from pathlib import Path
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vtr.errors import UsageError, VtrError
from vtr.library.index import parse_size
from vtr.library.serve.account import Log
from vtr.library.serve.app import MOST_UPLOAD, make_app
from vtr.library.serve.engine import LOCAL, ServerOptions

MAX_CONNECTIONS = 256
HEADER_SECONDS = 30.0  # for a request line and headers


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
    log: Log = "text",
    cors: tuple[str, ...] = (),
    root_path: str = "",
) -> int:
    """Serve until Ctrl-C; prints the page's address when it is ready.

    Args:
        token: None: none on this machine's own addresses, a random one elsewhere; "": none at all.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of every malformed upload
    local = host in LOCAL
    if token is None and not local:
        token = secrets.token_urlsafe(16)
    elif token == "" and not local:
        print(f"vtr: everyone who reaches {host}:{port} can see the videos of this library", file=sys.stderr)
    upload_bytes = _size(max_upload)
    listening = _listen(host, port)
    with listening:
        # Behind a token a foreign name does no harm, and which names lead to a public address cannot be known.
        hosts = {*LOCAL, host, *allow_hosts} if local or allow_hosts else None
        options = ServerOptions(
            token=token or None,
            hosts=None if hosts is None else frozenset(h.lower() for h in hosts),
            follow_links=follow_links,
            upload_bytes=upload_bytes,
            log=log,
            cors=cors,
            root_path=root_path,
        )
        app = make_app(path, model, options)
        listening.listen(128)
        key = f"#token={quote(token, safe='')}" if token else ""
        port = listening.getsockname()[1]
        for name in _names(host):
            print(f"http://{f'[{name}]' if ':' in name else name}:{port}/{key}", flush=True)
        print("Ctrl-C stops", file=sys.stderr)
        uvicorn.Server(server_config(app)).run(sockets=[listening])
    return 0


def server_config(app: ASGIApp) -> uvicorn.Config:
    """The uvicorn.Config of the server: bounds on connections, on headers and on waiting for them."""

    class Protocol(H11Protocol):
        """Closes a connection whose request line and headers do not arrive in time; uvicorn waits for ever."""

        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
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
    try:
        size = parse_size(text)
    except UsageError as error:
        raise UsageError(f"--max-upload: {error}") from None
    if size > MOST_UPLOAD:
        raise UsageError(f"--max-upload {text}: at most {MOST_UPLOAD >> 30}G, as uploads are kept in memory")
    return size


def _names(host: str) -> list[str]:
    """Addresses that lead to a host: 0.0.0.0 and :: are all of this machine's, and none to open."""
    if host not in ("0.0.0.0", "::", ""):
        return [host]
    names = ["localhost"]
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses which address others see
        names.append(str(probe.getsockname()[0]))
    return names


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(lambda say: f"{say.given('port', port)}: expected a number from 0 to 65535 (0: any free one)")
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
