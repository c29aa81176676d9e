"""What running `vtr serve` asks for: log, request ids, metrics, the manual, other sites' pages, a prefix, HEAD."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import small_model
from tests.library.serving import make_library
from vtr.errors import UsageError

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("httpx", reason="pip install -e '.[dev]'")

from fastapi.testclient import TestClient

from vtr.library.serve import ServerOptions, make_app
from vtr.library.serve.account import LOGGER

Start = Callable[[ServerOptions], TestClient]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library; not to be changed."""
    return make_library(tmp_path_factory.mktemp("operations"), count=2)


@pytest.fixture
def start(library: Path) -> Iterator[Start]:
    clients: list[TestClient] = []

    def started(options: ServerOptions) -> TestClient:
        clients.append(TestClient(make_app(library, small_model(), options), base_url="http://127.0.0.1"))
        return clients[-1].__enter__()

    yield started
    for client in clients:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_line_a_request_is_logged_without_query_and_token(
    kind: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    client = start(ServerOptions(log=kind, token="geheim"))
    logger = logging.getLogger(LOGGER)
    logger.addHandler(caplog.handler)
    given = {"Authorization": "Bearer geheim", "X-Request-ID": "mine-1"}
    assert client.get("/api/search", params={"q": "a private thing"}, headers=given).headers["x-request-id"] == "mine-1"
    client.get("/api/se%0Aarch", headers=given)
    logger.removeHandler(caplog.handler)
    first, second = (record.getMessage() for record in caplog.records)
    assert "private" not in first + second
    assert "geheim" not in first + second
    assert "\n" not in second
    if kind == "json":
        values = json.loads(first)
        assert (values["method"], values["path"], values["status"]) == ("GET", "/api/search", 200)
        assert values["request"] == "mine-1"
    else:
        assert " GET /api/search 200 " in first
        assert first.endswith(" mine-1")


def test_an_id_that_is_not_sane_is_replaced_and_problems_carry_theirs(start: Start) -> None:
    client = start(ServerOptions(token="t"))
    for path, status in (("/api/info", 401), ("/nowhere", 401), ("/health", 200)):
        answer = client.get(path, headers={"X-Request-ID": 'a" b' + "c" * 300})
        assert answer.status_code == status
        made = answer.headers["x-request-id"]
        assert made.isalnum()
        assert answer.json().get("request", made) == made
    answer = client.get("/api/search", headers={"Authorization": "Bearer t", "X-Request-ID": "r.2"})
    assert (answer.status_code, answer.json()["request"]) == (422, "r.2")


def test_metrics_count_requests_by_route_and_searches_by_kind(start: Start) -> None:
    client = start(ServerOptions())
    segment = client.get("/api/search", params={"q": "a dog"}).json()["hits"][0]["segment"]
    client.get(f"/api/segments/{segment}/similar")
    client.get("/api/segments/999/thumbnail.jpg")
    client.get("/no/such/place")
    text = client.get("/metrics").text
    for line in (
        'vtr_requests_total{method="GET",route="/api/search",status="200"} 1.0',
        'vtr_requests_total{method="GET",route="/api/segments/{segment}/thumbnail.jpg",status="404"} 1.0',
        'vtr_requests_total{method="GET",route="other",status="404"} 1.0',
        'vtr_searches_total{kind="text"} 1.0',
        'vtr_searches_total{kind="similar"} 1.0',
        "vtr_requests_under_way 1.0",
        "vtr_library_videos 2.0",
    ):
        assert line in text.splitlines()
    assert 'vtr_request_seconds_count{route="/api/search"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert start(ServerOptions(token="t")).get("/metrics").status_code == 401


def test_the_manual_describes_every_route_without_anything_from_elsewhere(start: Start) -> None:
    client = start(ServerOptions(token="t"))
    client.headers["Authorization"] = "Bearer t"
    page, schema = client.get("/docs"), client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        assert path in page.text
        assert all(o["operationId"] in page.text for o in methods.values())
        assert path == "/health" or all(o.get("security") or path == "/api/login" for o in methods.values())
    assert {s["type"] for s in schema["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    assert "min_score" in page.text
    assert "http" not in page.text.lower().replace("http-equiv", "")
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_pages_of_other_sites_may_ask_where_they_are_named(start: Start) -> None:
    client = start(ServerOptions(token="t", cors=("https://example.org",)))
    wanted = {"Origin": "https://example.org", "Authorization": "Bearer t"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = client.options("/api/search/clip", headers={"Origin": "https://example.org", **asked})
    assert before.headers["access-control-allow-origin"] == "https://example.org"
    answer = client.get("/api/info", headers=wanted)
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    assert client.post("/api/login", json={"token": "t"}, headers=wanted).status_code == 204
    other = {**wanted, "Origin": "https://other.org"}
    assert "access-control-allow-origin" not in client.get("/api/info", headers=other).headers
    assert client.post("/api/login", json={"token": "t"}, headers=other).status_code == 403


def test_behind_a_prefix_requests_come_with_it_and_without(start: Start) -> None:
    client = start(ServerOptions(token="t", root_path="/videos"))
    assert (
        client.post("/videos/api/login", json={"token": "t"})
        .headers["set-cookie"]
        .endswith("Path=/videos/; SameSite=strict")
    )
    client.headers["Authorization"] = "Bearer t"
    assert client.get("/videos/").text == client.get("/").text
    assert client.get("/videos", follow_redirects=False).headers["location"] == "/videos/"
    assert client.get("/videos/api/info").json() == client.get("/api/info").json()
    assert client.get("/videosapi/info").status_code == 404
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/videos"}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cors": ("https://example.org/",)}, "expected an origin"),
        ({"cors": ("example.org",)}, "expected an origin"),
        ({"root_path": "videos"}, "expected a prefix"),
        ({"root_path": "/videos/"}, "expected a prefix"),
        ({"root_path": "/api"}, "expected a prefix"),
    ],
)
def test_origins_and_prefixes_that_are_none_are_said(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServerOptions(**options)  # type: ignore[arg-type]


def test_head_is_answered_as_get_without_a_body(start: Start) -> None:
    client = start(ServerOptions())
    video = client.get("/api/videos").json()["videos"][0]["video"]
    for path in ("/", "/health", "/api/info", f"/api/videos/{video}/file", "/api/search?q=a", "/nowhere"):
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert client.head(f"/api/videos/{video}/file").headers["content-length"] != "0"
    assert client.head("/api/login").status_code == 405
