"""Files at URLs: opened for reading, or asked for without being read."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import BinaryIO, cast

from vtr.errors import VtrError

_OWN = ("http://", "https://", "file://")  # the others (s3://, gs://, hf://) come through fsspec


def open_remote(url: str, timeout: float = 60.0) -> BinaryIO:
    """Open a URL for reading: http(s) and file itself, others through fsspec.

    Raises:
        VtrError: It cannot be opened.
    """
    try:
        if url.startswith(_OWN):
            return cast(BinaryIO, urllib.request.urlopen(url, timeout=timeout))
        import fsspec

        return cast(BinaryIO, fsspec.open(url, "rb").open())
    except (OSError, ImportError, ValueError, urllib.error.URLError) as error:
        raise VtrError(f"{url}: cannot be opened ({error})") from error


def remote_is_there(url: str, timeout: float = 30.0) -> bool:
    """Whether a URL names a file, asked for without reading it."""
    try:
        if url.startswith(_OWN):
            method = None if url.startswith("file://") else "HEAD"
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout).close()
            return True
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        return bool(filesystem.exists(path))
    except (OSError, ImportError, ValueError, urllib.error.URLError):
        return False
