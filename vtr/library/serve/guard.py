"""What stands before the API: allowed hosts and origins, the token, limits on bodies, headers, and no stack traces."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtr.library.serve.account import REQUEST

log = logging.getLogger("vtr.serve")

FAULT = "the server failed at this request; its log says why"
SMALL_BODY = 64 << 10  # bytes, for requests that carry no clip
_QUIET = 30.0  # seconds without a byte of a body
_WHOLE = 300.0  # seconds for a whole body
# Need no token: the page (which holds no data), the way to get in, and whether the server is well.
OPEN = ("/", "/api/login", "/health")

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_POLICY = (b"content-security-policy", b"default-src 'none'; sandbox; frame-ancestors 'none'")


class _Gone(Exception):
    """The body is not read any further; an answer was sent already."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        token: What a client must know, or None.
        hosts: Host names a request may be addressed to; None: any. It keeps other web sites from reaching a server
            without a token through a name of theirs that resolves to this machine.
        upload: Path whose body may be `upload_bytes` long.
        upload_bytes: Bytes.
        uploads: Number of uploads at the same time.
        origins: Other web sites whose pages may ask ("*": all).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: set[str] | None,
        upload: str,
        upload_bytes: int,
        uploads: int,
        origins: tuple[str, ...] = (),
    ) -> None:
        self.app, self.token, self.hosts, self.origins = app, token, hosts, origins
        self.upload, self.upload_bytes, self.uploads = upload, upload_bytes, uploads
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # there are no web sockets here
        answer = _Answer(send, scope.get(REQUEST))
        headers = {k.lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused:
            return await answer.error(*refused)
        upload = scope["path"] == self.upload and scope["method"] == "POST"
        if upload and self._uploading >= self.uploads:
            return await answer.error(429, "too many uploads at once; try again in a moment", retry=2)
        self._uploading += upload
        try:
            body = _Body(receive, answer, self.upload_bytes if upload else SMALL_BODY)
            await self.app(scope, body, answer)
        except _Gone:
            pass
        except Exception:
            # The client learns that it failed, the log why.
            log.exception("%s %s failed (%s)", scope["method"], scope["path"], scope.get(REQUEST, "-"))
            if answer.started and not answer.finished:
                raise  # the connection is cut: a half answer must not look whole
            await answer.error(500, FAULT)
        finally:
            self._uploading -= upload

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host = headers.get(b"host", "")
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            name = ""
        if self.hosts is not None and name not in self.hosts:
            return 403, "this server does not answer under that host name; --allow-host NAME would add it"
        origin = headers.get(b"origin")
        foreign = origin and not {origin, "*"} & {*self.origins} and urlsplit_netloc(origin) != host.lower()
        if scope["method"] not in ("GET", "HEAD") and foreign:
            return 403, "requests from other web sites are refused"
        if self.token is not None and scope["path"] not in OPEN and not self._known(headers):
            return 401, "a token is needed: Authorization: Bearer TOKEN (the server printed it when it started)"
        length = headers.get(b"content-length", "0")
        limit = self.upload_bytes if scope["path"] == self.upload else SMALL_BODY
        if not length.isdigit() or int(length) > limit:
            return 413, f"the request is too large: at most {limit} bytes"
        return None

    def _known(self, headers: dict[bytes, str]) -> bool:
        assert self.token is not None
        kind, _, given = headers.get(b"authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get(cookie_name(self.token))
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, cookie_value(self.token))


def cookie_name(token: str) -> str:
    """Of its own for each server: browsers share the cookies of all ports of a host."""
    return "vtr_" + hashlib.sha256(b"name " + token.encode()).hexdigest()[:8]


def cookie_value(token: str) -> str:
    """Proof that the browser knew the token, without the token."""
    return hashlib.sha256(b"cookie " + token.encode()).hexdigest()


def _same(a: str, b: str) -> bool:
    return secrets.compare_digest(a.encode("utf-8", "surrogateescape"), b.encode("utf-8", "surrogateescape"))


def urlsplit_netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


class _Answer:
    """`send` with the headers that every answer carries; remembers whether an answer has begun."""

    def __init__(self, send: Send, request: str | None) -> None:
        self._send, self._request = send, request
        self.started = self.finished = self.closed = False

    async def __call__(self, message: Message) -> None:
        if self.closed:
            return
        if message["type"] == "http.response.start":
            self.started = True
            present = {k.lower() for k, _ in message["headers"]}
            extra = [h for h in (*_HEADERS, _POLICY) if h[0] not in present]
            message = {**message, "headers": [*message["headers"], *extra]}
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body")
        await self._send(message)

    async def error(self, status: int, text: str, retry: int | None = None) -> None:
        """One JSON line, after which the application's own answer is dropped."""
        if self.started:
            self.closed = True
            return
        body = json.dumps({"error": text, "request": self._request}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if retry is not None:
            headers.append((b"retry-after", str(retry).encode()))
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})
        self.closed = True


class _Body:
    """`receive` with a limit on bytes and on time."""

    def __init__(self, receive: Receive, answer: _Answer, limit: int) -> None:
        self._receive, self._answer, self._limit = receive, answer, limit
        self._bytes, self._whole = 0, False
        self._until: float | None = None

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # only tells when the client goes
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + _WHOLE
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, min(_QUIET, self._until - now)))
        except asyncio.TimeoutError:
            await self._answer.error(408, "the request did not arrive in time")
            raise _Gone from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body")
            if self._bytes > self._limit:
                await self._answer.error(413, f"the request is too large: at most {self._limit} bytes")
                raise _Gone
        return message
