"""`vtr serve`: what the API answers, what it refuses, and what a user sees when something is wrong."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.helpers import small_model, video_bytes, write_videos
from tests.library.serving import make_library, running
from vtr import cli
from vtr.errors import VtrError
from vtr.files import install_command
from vtr.library import Library, encode

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("httpx", reason="pip install -e '.[dev]'")

from fastapi.testclient import TestClient

from bench.serve_load import LoadSettings
from bench.serve_load import run as put_load_on
from vtr.library.embed import embed
from vtr.library.imports import build_from
from vtr.library.serve import ServerOptions, make_app
from vtr.library.serve import queries as serve_queries
from vtr.library.serve import server as serve
from vtr.library.serve.media import Refused, byte_range


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lib` and `videos`; not to be changed."""
    folder = tmp_path_factory.mktemp("serve")
    make_library(folder)
    return folder


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[TestClient]:
    with TestClient(make_app(made / "lib", small_model()), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Starts servers over a library of the test's own in `tmp_path/lib`, with videos in `tmp_path/videos`."""
    make_library(tmp_path)
    clients: list[TestClient] = []

    def started(**options: Any) -> TestClient:
        app = make_app(tmp_path / "lib", small_model(), ServerOptions(**options))
        client = TestClient(app, base_url="http://127.0.0.1")
        client.__enter__()
        clients.append(client)
        return client

    yield started
    for client in clients:
        client.__exit__(None, None, None)


def video_named(client: TestClient, name: str) -> dict[str, Any]:
    hits = client.get("/api/search", params={"q": "a dog runs", "where": f'path ~ "{name}"'}).json()["hits"]
    return hits[0]


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_search_answers_as_the_library_does(client: TestClient, made: Path) -> None:
    with Library.open(made / "lib", small_model()) as library:
        expected = library.search("a dog runs", k=5, all_moments=True, unmerged=True, where="start < 1.5")
    params = {"q": "a dog runs", "k": 5, "all_moments": True, "unmerged": True, "where": "start < 1.5"}
    answer = client.get("/api/search", params=params).json()
    assert [(h["segment"], h["path"], h["start"]) for h in answer["hits"]] == [
        (h.segment, h.path, h.start) for h in expected
    ]
    assert [h["rank"] for h in answer["hits"]] == [1, 2, 3, 4, 5]
    assert {h["kind"] for h in answer["hits"]} == {"video"}


def test_several_texts_unwanted_ones_and_moments_of_a_video_are_asked_for_as_in_the_library(
    client: TestClient, made: Path
) -> None:
    with Library.open(made / "lib", small_model()) as library:
        expected = library.search(["a dog", "a red car"], k=2, minus=["water"], moments=2, unmerged=True)
    params: dict[str, Any] = {"q": ["a dog", "a red car"], "minus": "water", "k": 2, "moments": 2, "unmerged": True}
    answer = client.get("/api/search", params=params).json()
    assert answer["query"] == "a dog + a red car − water"
    assert [(h["segment"], h["rank"], h["moment"], h["score"]) for h in answer["hits"]] == [
        (h.segment, h.rank, h.moment, pytest.approx(h.score, abs=1e-4)) for h in expected
    ]
    assert {h["moment"] for h in answer["hits"]} == {1, 2}


def test_things_in_order_sure_hits_and_curves_are_asked_for_as_in_the_library(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 2, frames=40)  # 5 s
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "videos")
        expected = library.search("a dog", k=2, then="a red car")
        curve = library.curve(expected[0].path, "a dog")
    with TestClient(make_app(tmp_path / "lib", small_model()), base_url="http://127.0.0.1") as client:
        answer = client.get("/api/search", params={"q": "a dog", "then": "a red car", "k": 2}).json()
        assert [h["segment"] for h in answer["hits"]] == [h.segment for h in expected]
        assert [s["text"] for s in answer["hits"][0]["steps"]] == ["a dog", "a red car"]
        found = client.get(f"/api/videos/{answer['hits'][0]['video']}/curve", params={"q": "a dog"}).json()
        assert found["scores"] == pytest.approx(curve.scores.tolist(), abs=1e-3)
        assert client.get("/api/videos/999/curve", params={"q": "a dog"}).status_code == 404
        assert client.get("/api/search", params={"q": "a dog", "min_score": 2}).status_code == 422


def test_metadata_comes_with_the_hits_and_filters_them(start: Callable[..., TestClient], tmp_path: Path) -> None:
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos", metadata={str(tmp_path / "videos" / "clip1.mp4"): {"author": "Ada <b>"}})
    client = start()
    assert client.get("/api/info").json()["columns"] == ["author"]
    hits = client.get("/api/search", params={"q": "a", "where": 'author ~ "ada"'}).json()["hits"]
    assert [(h["name"], h["metadata"]) for h in hits] == [("clip1.mp4", {"author": "Ada <b>"})]


def test_samples_of_a_shard_are_shown_and_played_out_of_it(tmp_path: Path) -> None:
    two = video_bytes(2, frames=30)  # kept: x264 does not promise the same bytes twice
    shard = write_shard(tmp_path / "a.tar", {"one.mp4": video_bytes(1, frames=30), "x.y/two.MP4": two})
    embed([str(shard)], tmp_path / "embedded", small_model(), model_path=None, window=2.0, stride=1.0)
    build_from(tmp_path / "embedded", tmp_path / "lib")
    with TestClient(make_app(tmp_path / "lib", small_model()), base_url="http://127.0.0.1") as client:
        hit = video_named(client, "two")
        url = f"/api/videos/{hit['video']}/file"
        assert statuses(client, hit)[:2] == (200, 200)
        assert client.get(url).content == two
        assert client.get(url, headers={"range": "bytes=-5"}).content == two[-5:]
        write_shard(shard, {"one.mp4": video_bytes(1, frames=30), "x.y/two.MP4": video_bytes(3, frames=30)})
        assert statuses(client, hit)[:2] == (409, 409)
        write_shard(shard, {"one.mp4": video_bytes(1, frames=30)})
        status, picture, error = statuses(client, hit)
        assert (status, picture) == (410, 410)
        assert "no longer in its shard" in error


def test_careful_ranking_says_so(client: TestClient) -> None:
    hits = client.get("/api/search", params={"q": "a dog runs", "rerank": 50}).json()["hits"]
    assert [h["reranked"] for h in hits] == [True, True, True]


def test_more_like_this_leaves_out_the_moments_own_video(client: TestClient) -> None:
    own = video_named(client, "clip1")
    hits = client.get(f"/api/segments/{own['segment']}/similar").json()["hits"]
    assert {h["name"] for h in hits} == {"clip0.mp4", "clip2.mp4"}
    hits = client.get(f"/api/segments/{own['segment']}/similar", params={"all_moments": True, "k": 100}).json()["hits"]
    assert own["segment"] not in [h["segment"] for h in hits]
    assert "clip1.mp4" in [h["name"] for h in hits]


def test_an_uploaded_copy_of_a_moment_finds_it_first(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 4)  # shorter than a window: the upload is embedded as the moment was
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos")
    with TestClient(make_app(tmp_path / "lib", small_model()), base_url="http://127.0.0.1") as client:
        answer = client.post("/api/search/clip", files={"clip": ("x.mp4", video_bytes(2))}, data={"k": "3"})
    assert answer.status_code == 200
    hits = answer.json()["hits"]
    assert hits[0]["name"] == "clip2.mp4"
    assert hits[0]["score"] == pytest.approx(hits[0]["similarity"])
    assert len(hits) == 3


def test_filters_hold_for_uploads_and_for_more_like_this(client: TestClient) -> None:
    where = 'path ~ "clip2"'
    hits = client.post(
        "/api/search/clip", files={"clip": ("x.mp4", video_bytes(0))}, data={"where": where, "all_moments": "true"}
    ).json()["hits"]
    assert {h["name"] for h in hits} == {"clip2.mp4"}
    own = video_named(client, "clip1")["segment"]
    hits = client.get(f"/api/segments/{own}/similar", params={"where": where}).json()["hits"]
    assert [h["name"] for h in hits] == ["clip2.mp4"]


def test_pictures_are_jpeg_and_previews_six_frames_wide(client: TestClient) -> None:
    from PIL import Image

    segment = video_named(client, "clip0")["segment"]
    one = Image.open(io.BytesIO(client.get(f"/api/segments/{segment}/thumbnail.jpg").content))
    six = Image.open(io.BytesIO(client.get(f"/api/segments/{segment}/preview.jpg").content))
    assert (one.format, one.size) == ("JPEG", (48, 48))
    assert six.size == (6 * 48, 48)
    asked = f"/api/segments/{segment}/preview.jpg"
    own, later = client.get(asked), client.get(asked, params={"start": 2.5, "end": 3.5})
    assert later.content != own.content == client.get(asked).content
    assert client.get(asked, params={"start": 3, "end": 2}).status_code == 400


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=10-", (10, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=90-999", (90, 100)),
        ("bytes=5-4", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=1-" + "9" * 400, None),
        ("bytes=٣-٤", None),
    ],
)
def test_byte_ranges_are_read_as_rfc_9110_says(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=-0", "bytes=200-300"])
def test_a_range_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(Refused) as error:
        byte_range(header, 100)
    assert error.value.status == 416


def test_files_come_whole_in_ranges_and_as_downloads(client: TestClient, made: Path) -> None:
    url = f"/api/videos/{video_named(client, 'clip0')['video']}/file"
    content = (made / "videos" / "clip0.mp4").read_bytes()
    whole = client.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "video/mp4")
    part = client.get(url, headers={"range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, content[5:10])
    assert part.headers["content-range"] == f"bytes 5-9/{len(content)}"
    head = client.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))
    for tags in ("{}", "W/{}", '"other", {}', "*"):
        known = {"if-none-match": tags.format(whole.headers["etag"])}
        assert client.get(url, headers=known).status_code == 304
    assert client.head(url, headers={"range": "bytes=5-9"}).status_code == 200
    assert client.post(url).headers["allow"] == "GET, HEAD"
    assert client.get(url, headers={"range": "bytes=5-9", "if-range": '"old"'}).content == content
    assert client.get(url, headers={"range": f"bytes={len(content)}-"}).headers["content-range"] == (
        f"bytes */{len(content)}"
    )
    assert client.get(url, params={"download": True}).headers["content-disposition"].startswith("attachment")


def test_open_files_are_closed_after_each_answer(client: TestClient) -> None:
    url = f"/api/videos/{video_named(client, 'clip0')['video']}/file"

    def open_videos() -> int:
        links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).endswith("clip0.mp4") for link in links)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc/self/fd on this system")
    for headers in ({}, {"range": "bytes=0-3"}, {"range": "bytes=99999999-"}):
        client.get(url, headers=headers)
    client.head(url)
    client.get("/api/segments/1/thumbnail.jpg")
    assert open_videos() == 0


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    text = page.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text
    assert "//cdn" not in text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]


def test_the_schema_describes_every_answer_and_its_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/health", "/api/segments/{segment}", "/api/info", "/api/search", "/api/search/clip", "/api/segments/{segment}/similar", "/api/login",
        "/api/segments/{segment}/thumbnail.jpg", "/api/segments/{segment}/preview.jpg", "/api/videos/{video}/file",
        "/api/videos/{video}/curve", "/api/segments/{segment}/clip", "/api/export",
        "/api/videos", "/api/examples", "/metrics",
    }  # fmt: skip
    assert "HTTPValidationError" not in json.dumps(schema)


# -- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"q": ""}, 422, "q: "),
        ({"q": ["a"] * 9}, 422, "at most 8"),
        ({"q": "a", "minus": " "}, 400, "empty query"),
        ({"q": "a", "moments": 2, "all_moments": True}, 400, "all_moments and moments exclude each other"),
        ({"q": "a" * 501}, 422, "at most 500"),
        ({"q": "a", "k": 0}, 422, "k: "),
        ({"q": "a", "k": 101}, 422, "100"),
        ({"q": "a", "rerank": 51}, 422, "50"),
        ({"q": "a", "where": "a" * 1001}, 422, "1000"),
        ({"q": "a", "where": "1=1; DROP TABLE videos"}, 400, "where: "),
        ({"q": "  \t "}, 400, "empty query"),
        ({"q": "a", "k": [1, 2]}, 400, "k is given 2 times: expected once"),
        ({"q": "a", "within": 5}, 400, "within is about then and before"),
        ({"q": "a", "momments": 2}, 400, "unknown parameter 'momments': did you mean 'moments'?"),
    ],
)
def test_requests_out_of_bounds_are_refused_in_one_line(
    client: TestClient, params: dict[str, Any], status: int, words: str
) -> None:
    answer = client.get("/api/search", params=params)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "target",
    [
        "/../../../../etc/passwd",
        "/api/videos/../../../etc/passwd/file",
        "/api/videos/..%2f..%2f..%2fetc%2fpasswd/file",
        "/api/videos/%2e%2e/file",
        "/api/videos/1/file/../../../../etc/passwd",
        "/api/segments/1%00/thumbnail.jpg",
        "/api/videos/-1/file",
        "/api/videos/1e9/file",
        "/api/videos/99999999999999999999999999/file",
        "//etc/passwd",
        "/serve.html",
        "/%",
    ],
)
def test_paths_lead_nowhere(client: TestClient, target: str) -> None:
    with running(client.app, lifespan="off") as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        connection.putrequest("GET", target)  # as it is: no client in between that tidies it up
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status in (400, 404, 422)
    assert b"root:" not in body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"\x00\xff" * 5000, "upload: "),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "playlist"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (video_bytes(0)[:400], "upload: "),
    ],
)
def test_hostile_uploads_are_refused_with_the_cause(client: TestClient, body: bytes, words: str) -> None:
    answer = client.post("/api/search/clip", files={"clip": ("<b>../../x.mp4", body)})
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_a_field_of_an_upload_that_there_is_not_is_refused(client: TestClient) -> None:
    answer = client.post("/api/search/clip", files={"clip": ("x", video_bytes(1))}, data={"momments": "2"})
    assert (answer.status_code, "did you mean 'moments'?" in answer.json()["error"]) == (400, True)


def test_uploads_are_decoded_in_a_process_of_their_own(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = encode.read_moments
    monkeypatch.setattr(encode, "read_moments", lambda *a, **kw: seen.append(kw["isolated"]) or real(*a, **kw))
    assert client.post("/api/search/clip", files={"clip": ("x", video_bytes(1))}).status_code == 200
    assert seen == [True]


def test_an_upload_needs_no_room_on_a_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")  # as a full disk: no file can be made
    clip = video_bytes(1) + b"\0" * (3 << 20)
    assert client.post("/api/search/clip", files={"clip": ("x.mp4", clip)}).status_code == 200


def test_bodies_over_the_limit_are_refused_with_and_without_a_declared_length(start: Callable[..., TestClient]) -> None:
    client = start(upload_bytes=10_000)
    answer = client.post("/api/search/clip", files={"clip": ("x", b"a" * 20_000)})
    assert (answer.status_code, "too large" in answer.json()["error"]) == (413, True)
    answer = client.post("/api/search/clip", files={"clip": ("x", b"a" * 12_000)})
    assert answer.status_code == 413

    def parts() -> Iterator[bytes]:
        yield b'--m\r\nContent-Disposition: form-data; name="clip"; filename="x"\r\n\r\n'
        for _ in range(50):
            yield b"a" * 1000

    kind = {"content-type": "multipart/form-data; boundary=m"}
    assert client.post("/api/search/clip", content=parts(), headers=kind).status_code == 413
    assert client.post("/api/login", content=b"{" + b" " * 70_000, headers=kind).status_code == 413


def test_more_requests_than_may_wait_are_told_to_come_back(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_queries.Lane.__init__, "__kwdefaults__", {"waiting": 1, "cores": None})
    client = start()
    go, began = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> list[Any]:
        began.set()
        go.wait(20)
        return []

    monkeypatch.setattr(serve_queries, "search", slow)
    first = threading.Thread(target=client.get, args=("/api/search?q=a",))
    first.start()
    began.wait(20)
    answer = client.get("/api/search?q=a")
    go.set()
    first.join()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_a_connection_that_never_ends_its_headers_is_closed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.5)
    with running(client.app, lifespan="off") as address:
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=20) as slow:
            slow.sendall(b"GET /api/info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
            slow.sendall(b"GET /api/info HTTP/1.1\r\nX-Slow:")  # the next one on the same connection
            while slow.recv(1 << 16):
                pass  # ends when the server closes; the socket's own limit would raise


def test_a_fault_of_the_server_is_logged_there_and_not_shown(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = start()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret of the machine")

    monkeypatch.setattr(serve_queries, "search", broken)
    answer = client.get("/api/search?q=a")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret of the machine" in caplog.text


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_other_host_names_and_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/api/info", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "127.0.0.1.evil.example:8000"}).status_code == 403
    assert client.get("/api/info", headers={"host": "localhost:8000"}).status_code == 200
    files = {"clip": ("x", video_bytes(1))}
    assert client.post("/api/search/clip", files=files, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/search/clip", files=files, headers={"origin": "null"}).status_code == 403
    assert client.post("/api/search/clip", files=files, headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_with_a_token_only_the_page_is_open(start: Callable[..., TestClient]) -> None:
    client = start(token="geheim")
    assert client.get("/").status_code == 200
    for path in (
        "/api/info",
        "/api/search?q=a",
        "/api/videos/1/file",
        "/api/segments/1/thumbnail.jpg",
        "/openapi.json",
    ):
        refused = client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get(path, headers={"authorization": "Bearer falsch"}).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer geheim"}).status_code == 200


def test_the_token_becomes_a_cookie_that_scripts_cannot_read(start: Callable[..., TestClient]) -> None:
    client = start(token="geheim")
    assert client.post("/api/login", json={"token": "falsch"}).status_code == 401
    answer = client.post("/api/login", json={"token": "geheim"})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 204
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "geheim" not in cookie
    assert client.get("/api/info").status_code == 200


# -- faults -----------------------------------------------------------------------------------------------------------


def statuses(client: TestClient, hit: dict[str, Any]) -> tuple[int, int, str]:
    file = client.get(f"/api/videos/{hit['video']}/file")
    picture = client.get(f"/api/segments/{hit['segment']}/thumbnail.jpg")
    return file.status_code, picture.status_code, "" if file.status_code == 200 else file.json()["error"]


def test_a_replaced_video_is_refused_until_it_is_indexed_again(
    start: Callable[..., TestClient], tmp_path: Path
) -> None:
    client, file = start(), tmp_path / "videos" / "clip0.mp4"
    hit = video_named(client, "clip0")
    assert statuses(client, hit)[:2] == (200, 200)  # and the thumbnail is in memory now
    file.write_bytes(video_bytes(7, frames=30))
    assert statuses(client, hit) == (
        409,
        409,
        "clip0.mp4 has changed since it was indexed; index it again to see it",
    )
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos")
    assert statuses(client, hit)[0] in (200, 404)
    assert client.get(f"/api/segments/{hit['segment']}/thumbnail.jpg").status_code == 404
    assert statuses(client, video_named(client, "clip0"))[:2] == (200, 200)


def test_other_content_of_the_same_size_and_time_is_refused(start: Callable[..., TestClient], tmp_path: Path) -> None:
    client, file = start(), tmp_path / "videos" / "clip0.mp4"
    hit, facts = video_named(client, "clip0"), file.stat()
    assert statuses(client, hit)[:2] == (200, 200)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert statuses(client, hit)[:2] == (409, 409)


def test_a_touched_video_is_still_served(start: Callable[..., TestClient], tmp_path: Path) -> None:
    client = start()
    os.utime(tmp_path / "videos" / "clip0.mp4", (1, 1))
    assert statuses(client, video_named(client, "clip0"))[:2] == (200, 200)


@pytest.mark.parametrize("what", ["gone", "folder", "pipe", "unreadable"])
def test_what_took_the_place_of_a_video_is_not_opened(
    start: Callable[..., TestClient], tmp_path: Path, what: str
) -> None:
    client, file = start(), tmp_path / "videos" / "clip0.mp4"
    hit = video_named(client, "clip0")
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "unreadable":
        file.symlink_to(file)  # a link to itself
    status, picture, error = statuses(client, hit)
    assert status == picture
    assert status == (409 if what in ("folder", "pipe") else 410)
    assert error.startswith("clip0.mp4 ")


def test_a_link_out_of_its_folder_is_served_only_where_that_is_asked_for(
    start: Callable[..., TestClient], tmp_path: Path
) -> None:
    (tmp_path / "secret.mp4").write_bytes(video_bytes(9, frames=30))
    (tmp_path / "videos" / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "videos" / "in.mp4").symlink_to("clip1.mp4")
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos")
    client = start()
    status, picture, error = statuses(client, video_named(client, "out.mp4"))
    assert (status, picture) == (403, 403)
    assert "leads out of its folder" in error
    assert statuses(client, video_named(client, "in.mp4"))[:2] == (200, 200)
    assert statuses(start(follow_links=True), video_named(client, "out.mp4"))[:2] == (200, 200)


def test_a_video_that_becomes_a_link_is_refused(start: Callable[..., TestClient], tmp_path: Path) -> None:
    client, file = start(), tmp_path / "videos" / "clip0.mp4"
    hit = video_named(client, "clip0")
    file.rename(tmp_path / "elsewhere.mp4")
    file.symlink_to(tmp_path / "elsewhere.mp4")
    assert statuses(client, hit)[:2] == (403, 403)
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert statuses(client, hit)[:2] == (403, 403)
    assert statuses(start(follow_links=True), hit)[:2] == (409, 409)


def test_files_that_are_no_media_by_name_are_only_offered_as_downloads(
    start: Callable[..., TestClient], tmp_path: Path
) -> None:
    page = tmp_path / "videos" / "page.html"
    page.write_bytes(video_bytes(4))
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.add(page)
    client = start()
    answer = client.get(f"/api/videos/{video_named(client, 'page.html')['video']}/file")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_a_removed_video_is_gone_at_once(start: Callable[..., TestClient], tmp_path: Path) -> None:
    client = start()
    hit = video_named(client, "clip0")
    with Library.open(tmp_path / "lib", small_model()) as library:
        library.remove([tmp_path / "videos" / "clip0.mp4"])
    assert statuses(client, hit)[:2] == (404, 404)
    assert client.get(f"/api/segments/{hit['segment']}/similar").status_code == 404
    names = [h["name"] for h in client.get("/api/search?q=a").json()["hits"]]
    assert sorted(names) == ["clip1.mp4", "clip2.mp4"]


def damage_database(lib: Path) -> None:
    (lib / "library.db").write_bytes(b"not a database at all " * 100)
    for name in ("library.db-wal", "library.db-shm"):
        (lib / name).unlink(missing_ok=True)


def damage_settings(lib: Path) -> None:
    (lib / "library.json").write_text("{")


def drop_vectors(lib: Path) -> None:
    (lib / "embeddings.f32").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_database, "cannot be opened"),
        (damage_settings, "cannot be read"),
        (drop_vectors, "shorter than library.db says"),
        (shutil.rmtree, "not a library"),
    ],
)
def test_a_damaged_library_is_said_in_one_line_before_anything_is_served(
    made: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(made / "lib", tmp_path / "lib")
    damage(tmp_path / "lib")
    with pytest.raises(VtrError, match=words) as error:
        make_app(tmp_path / "lib", small_model())
    assert "\n" not in str(error.value)


def test_a_library_of_another_model_is_refused(made: Path) -> None:
    with pytest.raises(VtrError, match="another model"):
        make_app(made / "lib", small_model(seed=1))


def test_a_damaged_index_is_made_again_in_memory(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lib", tmp_path / "lib")
    (tmp_path / "lib" / "index.faiss").write_bytes(b"broken" * 50)
    with TestClient(make_app(tmp_path / "lib", small_model()), base_url="http://127.0.0.1") as client:
        assert len(client.get("/api/search?q=a").json()["hits"]) == 3


def test_a_database_that_breaks_while_it_is_served_is_said(start: Callable[..., TestClient], tmp_path: Path) -> None:
    client = start()
    assert client.get("/api/info").status_code == 200
    with sqlite3.connect(tmp_path / "lib" / "library.db") as db:
        db.execute("DROP TABLE segments")
    for path in ("/api/search?q=a", "/api/segments/1/similar", "/api/segments/1/thumbnail.jpg"):
        answer = client.get(path)
        assert answer.status_code == 500
        assert "library.db cannot be read" in answer.json()["error"]


def test_an_empty_library_is_served(tmp_path: Path) -> None:
    Library.create(tmp_path / "lib", small_model()).close()
    with TestClient(make_app(tmp_path / "lib", small_model()), base_url="http://127.0.0.1") as client:
        assert client.get("/api/info").json()["segments"] == 0
        assert client.get("/api/search?q=a").json()["hits"] == []
        assert client.post("/api/search/clip", files={"clip": ("x", video_bytes(1))}).json()["hits"] == []


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_decoded_once_and_memory_is_bounded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.library.serve import media as serve_media

    made_of: list[int] = []

    def strip(_: Any, moment: serve_media.Moment, *__: int) -> bytes:
        made_of.append(moment.id)
        time.sleep(0.05)
        return b"x" * 400

    monkeypatch.setattr(serve_media, "_strip", strip)
    with Library.open(made / "lib") as library:
        moments = [serve_queries.moment_of(library, i) for i in (1, 2, 3)]
    thumbnails = serve_media.Thumbnails(serve_media.Files(), capacity=1000)
    threads = [threading.Thread(target=thumbnails.get, args=(moments[0], 1, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made_of == [1]
    for moment in (moments[1], moments[0], moments[2], moments[0], moments[1]):
        thumbnails.get(moment, 1, 10)
    assert made_of == [1, 2, 3, 2]  # the second was asked for longest ago when room for the third was made
    assert thumbnails._size <= 1000


# -- the whole server -------------------------------------------------------------------------------------------------


def started_server(lib: Path, model: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "vtr.cli", "serve", str(lib), "--model", str(model), "--port", "0", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a job in a shell's background hands down that Ctrl-C is ignored; the server is to hear it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_command_prints_its_address_answers_and_ends_with_ctrl_c(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "model")
    process, address = started_server(made / "lib", tmp_path / "model", "--token", "a b")
    try:
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/#token=a%20b")
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
        connection.request("GET", "/api/search?q=dog", headers={"authorization": "Bearer a b"})
        assert len(json.loads(connection.getresponse().read())["hits"]) == 3
        assert cli.main(["serve", str(made / "lib"), "--port", str(urlsplit(address).port)]) == 1  # it is taken
        busy = capsys.readouterr().err
        assert "cannot be listened on" in busy
        assert busy.count("\n") == 1
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_without_a_package_it_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [m for m in sys.modules if m.startswith("vtr.library.serve") or m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("vtr.library.serve", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["serve", "any.library"]) == 1
    assert capsys.readouterr().err == f"vtr: vtr serve needs {name}: {install_command('serve')}\n"


def test_a_public_address_gets_a_token_without_being_asked(made: Path, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    process, address = started_server(made / "lib", tmp_path / "model", "--host", "0.0.0.0")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=120)
        connection.request("GET", "/api/info")
        assert connection.getresponse().status == 401
        assert len(address.split("#token=")[1]) >= 20
    finally:
        process.terminate()
        process.communicate(timeout=120)


@pytest.mark.parametrize("size", ["", "0", "64 MB!", "-1", "nan", "2G"])
def test_a_size_that_is_none_is_a_usage_error(size: str) -> None:
    with pytest.raises(VtrError, match="--max-upload"):
        serve._size(size)
    assert serve._size("2M") == 2 << 20


def test_many_clients_at_once_are_all_answered(client: TestClient, made: Path) -> None:
    answered = 0
    with running(client.app, lifespan="off") as address:
        mix = (
            "search,thumbnail,file,similar,curve,preview,videos,export,info,cut,clip"  # all but those that are refused
        )
        load = LoadSettings(url=address, clients=20, seconds=1.5, clip=made / "videos" / "clip0.mp4", mix=mix)
        while answered <= 50:  # so many, however busy the machine is
            tally = put_load_on(load)
            assert tally.failed == 0
            assert tally.statuses[200] > 0
            assert set(tally.statuses) <= {200, 206, 400, 404, 405, 416, 422, 429}
            answered += tally.statuses[200]


def test_no_request_that_the_schema_allows_or_forbids_breaks_the_server(client: TestClient, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("pip install -e '.[dev]'")
    # In an address an array of one text is a text: where it follows links it takes `minus=true` for a refused one.
    (tmp_path / "schemathesis.toml").write_text("[phases.stateful.checks.negative_data_rejection]\nenabled = false\n")
    with running(client.app, lifespan="off") as address:
        done = subprocess.run(
            # Which texts are filters, and which bytes are videos, a schema cannot say.
            [program, "run", f"{address}/openapi.json", "--max-examples", "8", "--exclude-checks",
             "positive_data_acceptance", "--max-response-time", "60", "--request-timeout", "60", "--generation-database", "none", "--no-color", "--seed", "1"],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
