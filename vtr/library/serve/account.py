"""What every request leaves behind: its id, one line of the log, its share of the metrics. HEAD where there is a GET."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Log = Literal["text", "json", "off"]

HEAD = "vtr.head"  # in a scope: the answer's body is not wanted
REQUEST = "vtr.request"  # in a scope: the request's id
LOGGER = "vtr.serve.access"
_SANE = re.compile(r"[\w.:/+=@-]{1,100}", re.ASCII)
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
_SEARCHES = {"search": "text", "search_by_clip": "clip", "similar": "similar", "export": "text"}  # by operation


class Metrics:
    """Counts for Prometheus, of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files
        own = {"registry": self.registry}
        self.requests = Counter("vtr_requests", "Requests that were answered", ["method", "route", "status"], **own)
        self.seconds = Histogram(
            "vtr_request_seconds", "Seconds until an answer was sent whole", ["route"], buckets=_BUCKETS, **own
        )
        self.searches = Counter("vtr_searches", "Searches that were answered", ["kind"], **own)
        self.under_way = Gauge("vtr_requests_under_way", "Requests that are being answered", **own)
        self.videos = Gauge("vtr_library_videos", "Videos that can be searched", **own)
        self.segments = Gauge("vtr_library_segments", "Segments that can be searched", **own)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Take in a request that was answered."""
        route = scope.get("route")
        name = getattr(route, "path", "other")  # a path that leads nowhere must not become a series of its own
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.requests.labels(method, name, str(status)).inc()
        self.seconds.labels(name).observe(seconds)
        kind = _SEARCHES.get(str(getattr(route, "operation_id", "")))
        if kind and status == 200:
            self.searches.labels(kind).inc()


@dataclass
class _Sent:
    """What went out of an answer."""

    status: int = 499  # the client left before there was one
    size: int = 0


class Account:
    """ASGI middleware around everything else.

    Args:
        app: What answers.
        metrics: Are counted.
        log: One line a request to stderr: "text", "json", or "off". Neither queries nor headers are in it.
        root_path: Prefix under which a proxy shows the server, as in /videos; requests may come with it or without.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, log: Log = "off", root_path: str = "") -> None:
        self.app, self.metrics, self.log, self.root_path = app, metrics, log, root_path
        self._logger = access_log() if log != "off" else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, sent, begun = _request_id(scope), _Sent(), time.perf_counter()
        inner = {**scope, REQUEST: request, "path": self._without_root(scope["path"])}
        if scope["method"] == "HEAD":
            inner |= {"method": "GET", HEAD: True}

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request.encode())]}
            elif message["type"] == "http.response.body":
                if inner.get(HEAD):
                    message = {**message, "body": b""}
                sent.size += len(message.get("body", b""))
            await send(message)

        with self.metrics.under_way.track_inprogress():
            try:
                if self.root_path and scope["path"] == self.root_path:  # the page's addresses are relative
                    await pass_on(_moved(f"{self.root_path}/"))
                    await pass_on({"type": "http.response.body", "body": b""})
                else:
                    await self.app(inner, receive, pass_on)
            finally:
                seconds = time.perf_counter() - begun
                self.metrics.count({**inner, "method": scope["method"]}, sent.status, seconds)
                if self._logger is not None:
                    self._logger.info(self._line(scope, sent, seconds, request))

    def _without_root(self, path: str) -> str:
        inside = self.root_path and path.startswith(f"{self.root_path}/")
        return path[len(self.root_path) :] if inside else path

    def _line(self, scope: Scope, sent: _Sent, seconds: float, request: str) -> str:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        client = (scope.get("client") or ("-",))[0]
        path = quote(scope["path"], safe="/:@,+;=~")[:500]
        spent = round(1000 * seconds, 1)
        if self.log == "text":
            return f"{now} {client} {scope['method']} {path} {sent.status} {sent.size}B {spent}ms {request}"
        values = {"time": now, "client": client, "method": scope["method"], "path": path, "status": sent.status}
        return json.dumps({**values, "bytes": sent.size, "ms": spent, "request": request})


def access_log() -> logging.Logger:
    """The logger of requests: to stderr, unless the program has given it another handler."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


def _request_id(scope: Scope) -> str:
    """The client's own where it is a sane one, so that one request can be followed through several programs."""
    given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
    return given if _SANE.fullmatch(given) else uuid.uuid4().hex[:16]


def _moved(place: str) -> Message:
    headers = [(b"location", place.encode("latin-1", "replace")), (b"content-length", b"0")]
    return {"type": "http.response.start", "status": 308, "headers": headers}
