"""Files of the Hugging Face hub: from its cache at once, from the network where there is one, or one line that says how."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

_PATIENCE = 2.0  # seconds until a hub that does not answer counts as out of reach


def reach_hub() -> None:
    """Raise OSError where the hub cannot be reached, at once; the hub's library would try for half a minute."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if urllib.request.getproxies():
        return  # a proxy resolves names itself
    place = urlparse(constants.ENDPOINT)
    found: list[OSError | None] = []

    def connect() -> None:
        try:
            port = place.port or (80 if place.scheme == "http" else 443)
            socket.create_connection((place.hostname or "", port), timeout=_PATIENCE).close()
            found.append(None)
        except OSError as error:
            found.append(error)

    # Looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    error = found[0] if found else TimeoutError(f"{place.hostname} does not answer")
    if error is not None:
        raise error


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


def cached(repository: str, file: str) -> Path | None:
    """A file that is in the cache."""
    found = try_to_load_from_cache(repository, file, cache_dir=constants.HF_HUB_CACHE)
    return Path(found) if isinstance(found, str) else None


def download(repository: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository with the files of these patterns; the network is asked.

    Raises:
        Exception: No network (OSError), no such repository, gated: the hub library raises many kinds.
    """
    reach_hub()
    return Path(snapshot_download(repository, allow_patterns=list(patterns), cache_dir=constants.HF_HUB_CACHE))
