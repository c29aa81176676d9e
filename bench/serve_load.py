"""Puts load on a running `vtr serve`, and counts what came back and how fast.

python -m bench.serve_load http://127.0.0.1:8000 --clients 50 --seconds 60
python -m bench.serve_load http://127.0.0.1:8000 --mix search,similar --clip cat.mp4

Each client asks one thing after the other as the page does: words, more like this, pictures, parts of videos, and, with
--clip, an upload now and then. Prints counts and latencies; exits 1 if the server failed (5xx) or did not answer.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import tyro

from bench.command import parsed
from vtr.errors import UsageError, VtrError, reports_errors

_WORDS = "a red blue small large dog man woman circle car water moves left right runs on grass street at night".split()  # noqa: SIM905
_MIX = (("search", 50), ("thumbnail", 25), ("file", 12), ("similar", 8), ("preview", 3), ("info", 1), ("clip", 1))


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Ask a server many things at once for a while."""

    url: tyro.conf.Positional[str]
    """Of the server: http://HOST:PORT."""
    clients: int = 50
    """Each asks one thing after the other."""
    seconds: float = 60.0
    """How long."""
    clip: Path | None = None
    """A clip to upload now and then."""
    token: str | None = None
    """Of a server that asks for one."""
    mix: Annotated[str | None, tyro.conf.arg(metavar="NAME,…")] = None
    """Only these of: search thumbnail file similar preview info clip."""


@dataclass
class Tally:
    """What came back: seconds by kind of request, counts by status, and requests that got no answer."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    broken: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failed(self) -> int:
        """Requests that the server failed at or did not answer."""
        return sum(n for status, n in self.statuses.items() if status >= 500) + len(self.broken)

    def lines(self, wall: float) -> list[str]:
        """A table for people."""
        every = sorted(s for values in self.seconds.values() for s in values)
        out = [f"{'':<10}{'requests':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}"]
        for name, values in [*sorted(self.seconds.items()), ("all", every)]:
            ordered = sorted(values)
            if ordered:
                cuts = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99)]
                row = "".join(f"{1000 * s:>9.1f}" for s in (*cuts, ordered[-1]))
                out.append(f"{name:<10}{len(ordered):>9}{row}")
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        out.append(f"{len(every) / wall:.0f} requests/s; statuses {statuses}; no answer {len(self.broken)}")
        return [*out, *sorted(set(self.broken))[:5]]


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
    names = settings.mix.split(",") if settings.mix else [n for n, _ in _MIX if n != "clip" or settings.clip]
    weights = [dict(_MIX).get(name, 0) for name in names]
    if not all(weights) or ("clip" in names and not settings.clip):
        raise UsageError(f"--mix {settings.mix}: expected some of {', '.join(n for n, _ in _MIX)} (clip with --clip)")
    clip = settings.clip.read_bytes() if settings.clip else b""
    tally = Tally()
    until = time.monotonic() + settings.seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        connection = http.client.HTTPConnection(*address, timeout=60)
        while time.monotonic() < until:
            kind = chance.choices(names, weights)[0]
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
    return tally


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
    if kind == "info":
        return "GET", "/api/info", None, {}
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
    print("\n".join(tally.lines(time.monotonic() - started)))
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
