"""Puts load on a running `vtr serve`, and counts what came back and how fast.

python -m bench.serve_load http://127.0.0.1:8000 --clients 50 --seconds 60
python -m bench.serve_load http://127.0.0.1:8000 --mix search,similar --clip cat.mp4
python -m bench.serve_load http://127.0.0.1:8000 --clients 8 --requests 10000 --clip cat.mp4 --out docs/results/serve.md

Each client asks one thing after the other as the page does: words, more like this, pictures, parts of videos, curves, cut
clips, lists, and, with --clip, an upload now and then; some requests are such as no page makes. Prints counts, latencies,
and the server's memory on the way (as /metrics tells it); exits 1 if the server failed (5xx) or did not answer.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import re
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import tyro

from bench.command import machine, parsed, save, table
from vtr.errors import UsageError, VtrError, reports_errors

_WORDS = "a red blue small large dog man woman circle car water moves left right runs on grass street at night".split()  # noqa: SIM905
_MIX = (
    ("search", 40), ("thumbnail", 22), ("file", 12), ("similar", 7), ("bad", 6), ("curve", 4), ("preview", 3),
    ("videos", 2), ("export", 1), ("info", 1), ("cut", 1), ("clip", 1),
)  # fmt: skip
_BAD = (
    "GET /api/search", "GET /api/search?q=a&k=0", "GET /api/search?q=a&where=1%3D1%3B+DROP", "GET /api/search?q=%FF&k=x",
    "GET /api/search?q=a&unknown=1", "GET /api/segments/0/clip", "GET /api/segments/99999999/preview.jpg",
    "GET /api/videos/99999999/file", "GET /api/videos/../../etc/passwd", "GET /api/export?q=a&format=exe",
    "POST /api/search/clip", "POST /api/login", "DELETE /api/info", "GET /%00", "OPTIONS /api/search",
)  # fmt: skip
_MEMORY_EVERY = 1000  # requests


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Ask a server many things at once for a while."""

    url: tyro.conf.Positional[str]
    """Of the server: http://HOST:PORT."""
    clients: int = 50
    """Each asks one thing after the other."""
    seconds: float = 60.0
    """How long, at most where --requests is given."""
    requests: int | None = None
    """How many in all, instead of for a while."""
    clip: Path | None = None
    """A clip to upload now and then."""
    token: str | None = None
    """Of a server that asks for one."""
    mix: Annotated[str | None, tyro.conf.arg(metavar="NAME,…")] = None
    """Only these of: search thumbnail file similar bad curve preview videos export info cut clip."""
    out: Path | None = None
    """Also write the table to this file."""


@dataclass
class Tally:
    """What came back: seconds by kind of request, counts by status, and requests that got no answer."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    broken: list[str] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)  # requests until then, MiB of the server
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failed(self) -> int:
        """Requests that the server failed at or did not answer."""
        return sum(n for status, n in self.statuses.items() if status >= 500) + len(self.broken)

    @property
    def count(self) -> int:
        """Requests so far."""
        return sum(self.statuses.values()) + len(self.broken)

    def report(self, wall: float) -> str:
        """Tables for people."""
        every = [s for values in self.seconds.values() for s in values]
        rows = []
        for name, values in [*sorted(self.seconds.items()), ("all", every)]:
            ordered = sorted(values)
            cuts = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99)] if ordered else []
            rows.append([name, len(ordered), *(f"{1000 * s:.1f}" for s in (*cuts, *ordered[-1:]))])
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        parts = [
            table(["kind", "requests", "p50 ms", "p95 ms", "p99 ms", "max ms"], rows),
            f"{len(every) / wall:.0f} requests/s; statuses {statuses}; no answer {len(self.broken)}",
            *sorted(set(self.broken))[:5],
        ]
        if self.memory:
            numbers = [[count, f"{mib:.0f}"] for count, mib in self.memory]
            parts.append(table(["requests so far", "memory of the server, MiB"], numbers))
        return "\n\n".join(parts)


def run(settings: LoadSettings) -> Tally:
    """Put the load on and return what came back.

    Raises:
        VtrError: The server cannot be reached or holds nothing.
    """
    parts = urlsplit(settings.url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"{settings.url!r}: expected an address such as http://127.0.0.1:8000")
    address = (parts.hostname, parts.port or 80)
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    try:
        connection = http.client.HTTPConnection(*address, timeout=60)
        status, body = _ask(connection, "GET", "/api/search?q=a&k=100&all_moments=true", None, headers)
    except (OSError, http.client.HTTPException) as error:
        raise VtrError(f"{settings.url}: no answer ({error}); start it with: vtr serve LIBRARY") from error
    hits = json.loads(body).get("hits") if status == 200 else None
    if not hits:
        raise VtrError(f"{settings.url}: no hits to ask for (status {status}): {body[:200]!r}")
    clip = settings.clip.read_bytes() if settings.clip else b""
    chooser = _chooser(settings)
    tally, most = Tally(), settings.requests or sys.maxsize
    until = sys.maxsize if settings.requests else time.monotonic() + settings.seconds
    taken = itertools.count()

    def client(number: int) -> None:
        chance = random.Random(number)
        connection = http.client.HTTPConnection(*address, timeout=60)
        while time.monotonic() < until and (place := next(taken)) < most:
            if place % _MEMORY_EVERY == 0:
                _note_memory(address, headers, tally, place)
            kind = chooser(chance)
            method, path, body, extra = _request(kind, chance, chance.choice(hits), clip)
            started = time.perf_counter()
            try:
                status, _ = _ask(connection, method, path, body, {**headers, **extra})
            except (OSError, http.client.HTTPException) as error:
                with tally.lock:
                    tally.broken.append(f"{kind}: {type(error).__name__} {error}")
                connection.close()
                continue
            with tally.lock:
                tally.seconds[kind].append(time.perf_counter() - started)
                tally.statuses[status] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(settings.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _note_memory(address, headers, tally, tally.count)
    return tally


def _chooser(settings: LoadSettings) -> Callable[[random.Random], str]:
    """What draws the next kind of request."""
    names = settings.mix.split(",") if settings.mix else [n for n, _ in _MIX if n != "clip" or settings.clip]
    weights = [dict(_MIX).get(name, 0) for name in names]
    if not all(weights) or ("clip" in names and not settings.clip):
        raise UsageError(f"--mix {settings.mix}: expected some of {', '.join(n for n, _ in _MIX)} (clip with --clip)")
    return lambda chance: chance.choices(names, weights)[0]


def _note_memory(address: tuple[str, int], headers: dict[str, str], tally: Tally, place: int) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        _, text = _ask(http.client.HTTPConnection(*address, timeout=60), "GET", "/metrics", None, headers)
        found = re.search(rb"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
        if found:
            with tally.lock:
                tally.memory.append((place, float(found[1]) / 2**20))


def _request(
    kind: str, chance: random.Random, hit: dict[str, Any], clip: bytes
) -> tuple[str, str, bytes | None, dict[str, str]]:
    segment = hit["segment"]
    if kind == "search":
        words = " ".join(chance.choices(_WORDS, k=chance.randint(1, 8)))
        where = chance.choice(["", "", '&where=duration < 20 and path ~ "a"'])
        return "GET", quote(f"/api/search?q={words}&k=24{where}", safe="/?=&"), None, {}
    if kind == "file":
        start = chance.randrange(1 << 16)
        return "GET", f"/api/videos/{hit['video']}/file", None, {"Range": f"bytes={start}-{start + (1 << 18)}"}
    if kind == "clip":
        mark = uuid.UUID(int=chance.getrandbits(128)).hex
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="clip"; filename="clip"\r\n\r\n'.encode()
            + clip
            + f"\r\n--{mark}--\r\n".encode()
        )
        return "POST", "/api/search/clip", body, {"Content-Type": f"multipart/form-data; boundary={mark}"}
    if kind == "bad":
        method, _, path = chance.choice(_BAD).partition(" ")
        junk = chance.randbytes(chance.randrange(2000)) if method == "POST" else None
        return method, path, junk, {"Content-Type": chance.choice(["multipart/form-data; boundary=x", "text/plain"])}
    if kind in ("curve", "export"):
        words = "+".join(chance.choices(_WORDS, k=3))
        form = chance.choice(["edl", "fcpxml", "csv", "srt", "json"])
        path = (
            f"/api/export?q={words}&k=5&format={form}"
            if kind == "export"
            else f"/api/videos/{hit['video']}/curve?q={words}"
        )
        return "GET", path, None, {}
    if kind == "cut":
        return "GET", f"/api/segments/{segment}/clip?exact={chance.choice(['true', 'false'])}", None, {}
    if kind in ("info", "videos"):
        return "GET", f"/api/{kind}", None, {}
    name = {"similar": "similar", "thumbnail": "thumbnail.jpg", "preview": "preview.jpg"}[kind]
    return "GET", f"/api/segments/{segment}/{name}", None, {}


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(LoadSettings, __doc__, argv)
    started = time.monotonic()
    tally = run(settings)
    report = tally.report(time.monotonic() - started)
    print(report)
    if settings.out:
        values = vars(settings) | {"url": "http://127.0.0.1:8000", "token": None}
        flags = " ".join(f"--{k} {v}" for k, v in values.items() if k in ("clients", "requests") and v)
        facts = ", ".join(f"{k} {v}" for k, v in machine().items())
        head = f"`python -m bench.serve_load {values['url']} {flags} --clip CLIP --out docs/results/serve.md`, {facts}."
        save(settings.out, f"# Load on `vtr serve`\n\n{head}\n\n{report}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
