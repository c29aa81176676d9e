"""Whether the hub can be reached, asked before a library tries for half a minute."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlparse


def reach_hub() -> None:
    """Raise where the hub's name is not known: there is no network."""
    from huggingface_hub import constants

    if not urllib.request.getproxies():  # a proxy resolves names itself
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
