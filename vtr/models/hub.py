"""Whether the hub can be reached, asked before a library tries for half a minute."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlparse

from huggingface_hub import constants


def reach_hub() -> None:
    """Raise where the hub's name is not known: there is no network."""
    if not urllib.request.getproxies():  # a proxy resolves names itself
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where there is no network the hub library looks in its cache at once, instead of trying for half a minute."""
    before = constants.HF_HUB_OFFLINE
    try:
        reach_hub()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
