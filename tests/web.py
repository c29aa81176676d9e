"""A web server on this machine that behaves as it is told: with ranges and without, slow, dropping connections."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web(ThreadingHTTPServer):
    """Files at `/NAME`; what comes before says how they are served: `/plain/NAME` (no ranges), `/drop/NAME` (each answer
    ends after 100 kB), `/dropplain/NAME` (the same, no ranges), `/stall/NAME` (silence after 1 kB), `/drip/NAME` (a few
    bytes at a time, for ever), `/moved/NAME` (a redirect), `/to/URL` (a redirect there), `/500/NAME`.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        way, _, name = self.path.strip("/").rpartition("/")
        if self.path.startswith("/to/"):
            return self._redirect(self.path[4:])
        if way == "moved":
            return self._redirect(f"/{name}")
        data = self.server.files.get(name)
        if data is None or way == "500":
            self.send_error(404 if data is None else 500)
            return None
        if not data and self.headers.get("Range"):
            self.send_error(416)
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked and way not in ("plain", "dropplain") else 0
        last = int(asked[2]) + 1 if asked and asked[2] and first else len(data)
        self.send_response(206 if asked and way not in ("plain", "dropplain") else 200)
        self.send_header("Content-Length", str(last - first))
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        if asked and way not in ("plain", "dropplain"):
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(data)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            self._send(data[first:last], way)
        return None

    def _send(self, data: bytes, way: str) -> None:
        if way in ("drop", "dropplain"):
            self.wfile.write(data[:100_000])
            self.close_connection = True
        elif way == "stall":
            self.wfile.write(data[:1000])
            self.server.over.wait(20)
            self.close_connection = True
        elif way == "drip":
            for place in range(len(data)):
                self.wfile.write(data[place : place + 1])
                if self.server.over.wait(0.05):
                    break
            self.close_connection = True
        else:
            self.wfile.write(data)

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def web() -> Iterator[Web]:
    """A server that runs meanwhile."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        time.sleep(0)
