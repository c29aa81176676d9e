"""What lies at an address: the same bytes as the file's, however its server behaves; this network is left alone."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import video_bytes
from tests.web import Web, web
from vtr.data.decode import DecodeError, TimeLimit, read_windows
from vtr.data.uri import Access, Address, Refused, Unreachable, is_public, is_uri, shown_uri

HERE = Access(private=True)
LONG = np.random.default_rng(0).bytes(1_500_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    with web() as running:
        running.files = {"long.bin": LONG, "clip.mp4": video_bytes(3, frames=40), "empty.mp4": b""}
        yield running


@pytest.mark.parametrize("way", ["", "plain/", "drop/", "moved/"])
def test_the_bytes_are_those_of_the_file(server: Web, way: str) -> None:
    at = Address(f"{server.url}/{way}long.bin", HERE)
    assert at.size() == len(LONG)
    assert at.modified() == 1445412480.0
    with at.open() as file:
        assert file.read() == LONG
        file.seek(-1000, 2)
        assert file.read(500) == LONG[-1000:-500]
        file.seek(70_000)
        assert file.read(10) == LONG[70_000:70_010]


def test_only_what_is_read_is_asked_for_where_the_server_sends_ranges(server: Web) -> None:
    server.asked.clear()
    with Address(f"{server.url}/long.bin", HERE).open() as file:
        file.seek(1_200_000)
        assert file.read(1000) == LONG[1_200_000:1_201_000]
        file.seek(500_000)
        assert file.read(1000) == LONG[500_000:501_000]
    assert len(server.asked) == 3  # once to see what it is, once for each place


def test_an_address_can_be_sent_to_another_process(server: Web) -> None:
    at = Address(f"{server.url}/long.bin", HERE)
    assert at.size() == len(LONG)
    again = pickle.loads(pickle.dumps(at))
    assert again == at
    assert again.open().read(5) == LONG[:5]


@pytest.mark.parametrize("way", ["", "plain/"])
def test_windows_of_an_address_are_those_of_the_file(server: Web, way: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(server.files["clip.mp4"])
    shape = {"window": 2.0, "stride": 1.0, "frames": 4, "size": 32}
    own = list(read_windows(tmp_path / "clip.mp4", **shape))
    far = list(read_windows(Address(f"{server.url}/{way}clip.mp4", HERE), **shape))
    assert [(w.start, w.end) for w in far] == [(w.start, w.end) for w in own]
    assert all((a.frames == b.frames).all() for a, b in zip(far, own))


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("stall/long.bin", "sent less than|does not answer"),
        ("drip/long.bin", "sent less than"),
        ("dropplain/long.bin", "dropped after 100000 of 1500000 bytes"),
        ("500/long.bin", "says 500"),
        ("nothing.mp4", "says 404"),
        ("empty.mp4", "the file is empty"),
    ],
)
def test_what_cannot_be_had_is_one_line_in_bounded_time(server: Web, way: str, said: str) -> None:
    at = Address(f"{server.url}/{way}", replace(HERE, timeout=1.0))
    with pytest.raises(DecodeError, match=said) as error:
        list(read_windows(at, window=2.0, stride=1.0, frames=4, size=32))
    assert str(error.value).startswith(f"{server.url}/{way}: ")
    assert isinstance(error.value, TimeLimit) == (way not in ("nothing.mp4", "empty.mp4"))  # tried again another time


def test_a_file_without_ranges_is_fetched_up_to_a_bound(server: Web) -> None:
    with pytest.raises(Refused, match="sends no ranges, and it has over 1000000 bytes"):
        Address(f"{server.url}/plain/long.bin", Access(private=True, most=1_000_000)).open()


def test_this_machine_and_private_networks_are_refused_unless_asked_for(server: Web, tmp_path: Path) -> None:
    server.asked.clear()
    (tmp_path / "x").write_text("secret")
    port = server.server_address[1]
    for uri in (
        f"{server.url}/long.bin",
        f"http://localhost:{port}/long.bin",
        f"http://[::ffff:127.0.0.1]:{port}/long.bin",
        f"http://2130706433:{port}/long.bin",
        "http://169.254.169.254/latest/meta-data",
        f"file://{tmp_path}/x",
        "memory://x",
        f"s3://x::file://{tmp_path}/x",
    ):
        with pytest.raises(Refused):
            Address(uri, Access(timeout=1.0)).open()
    assert server.asked == []
    assert Address(f"file://{tmp_path}/x", HERE).open().read() == b"secret"


def test_a_redirect_to_this_machine_is_refused_by_what_is_connected_to(
    server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the open net whose server redirects here, and one that means this machine only the second time."""
    import vtr.data.uri as module

    real = socket.getaddrinfo
    port = server.server_address[1]

    def named(host: str, *words: object, **more: object) -> list:
        return real("127.0.0.1" if host.endswith(".example.org") else host, *words, **more)

    seen: list[str] = []

    def public(address: str) -> bool:  # the first connection counts as one to the open net
        seen.append(address)
        return len(seen) == 1

    monkeypatch.setattr(socket, "getaddrinfo", named)
    monkeypatch.setattr(module, "is_public", public)
    with pytest.raises(Refused, match=r"127\.0\.0\.1 is an address of this machine"):
        Address(f"http://www.example.org:{port}/to/http://other.example.org:{port}/long.bin", Access()).open()
    seen.clear()
    at = Address(f"http://www.example.org:{port}/long.bin", Access())
    assert at.size() == len(LONG)
    with pytest.raises(Refused):
        at.open().read(10)
    with pytest.raises(Refused, match=r"redirected to file://"):
        Address(f"{server.url}/to/file:///etc/passwd", HERE).open()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1",
     "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::"],
)  # fmt: skip
def test_addresses_of_no_open_net_are_known(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_open_net_are_known() -> None:
    assert is_public("8.8.8.8")
    assert is_public("2606:4700::1111")


def test_messages_show_neither_password_nor_signature() -> None:
    assert shown_uri("https://me:pw@host.org/a.mp4?X-Amz-Signature=1") == "https://host.org/a.mp4?…"
    assert is_uri("s3://bucket/x.mp4")
    assert not is_uri("/a/b://c")


def test_object_stores_are_read_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/films/clip.mp4", video_bytes(3, frames=40))
    at = Address("memory://films/clip.mp4", HERE)
    assert at.size() == len(video_bytes(3, frames=40)) or at.size() > 0
    assert len(list(read_windows(at, window=2.0, stride=1.0, frames=4, size=32))) == 4
    with pytest.raises(DecodeError, match="no such file"):
        Address("memory://films/none.mp4", HERE).open()
    assert issubclass(Unreachable, TimeLimit)
