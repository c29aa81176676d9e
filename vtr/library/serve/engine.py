"""The threads behind the API, and how a library is served."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from vtr.errors import UsageError
from vtr.library.serve import queries
from vtr.library.serve.account import Log
from vtr.library.serve.door import Door
from vtr.library.serve.media import Files, Thumbnails

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

UPLOADS = 4  # that are received, decoded or waiting for it
DECODERS = 2  # processes that decode uploads
_ROUTES = ("api", "docs", "health", "metrics", "openapi.json")
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a library is served.

    Attributes:
        token: What clients must know; None: nothing.
        hosts: Host names a request may be addressed to; None: any.
        follow_links: Serve symbolic links that lead out of their folder.
        upload_bytes: Largest clip that may be uploaded.
        log: One line a request on stderr: "text", "json" or "off".
        cors: Other web sites whose pages may ask, as in https://example.org; "*": all.
        root_path: Prefix under which a proxy shows the server, as in /videos; "" for none.
    """

    token: str | None = None
    hosts: frozenset[str] | None = LOCAL
    follow_links: bool = False
    upload_bytes: int = 64 << 20
    log: Log = "off"
    cors: tuple[str, ...] = ()
    root_path: str = ""

    def __post_init__(self) -> None:
        for origin in self.cors:
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise UsageError(
                    lambda say, o=origin: (  # type: ignore[misc]
                        f"{say.given('cors', o)}: expected an origin, as in https://example.org (no path), or * for all"
                    )
                )
        path = self.root_path
        if path and (not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) or path.split("/")[1] in _ROUTES):
            raise UsageError(
                lambda say: (
                    f"{say.given('root_path', path)}: expected a prefix, as in /videos: no / at its end, and none of "
                    f"{', '.join('/' + r for r in _ROUTES)} at its beginning"
                )
            )


class Engine:
    """The threads behind the API.

    Quick queries, slow ones (re-ranking, encoding a clip) and look-ups have a lane each, so that a slow one never
    holds up the others; pictures and uploads are decoded beside them.
    """

    def __init__(self, path: Path, model: VideoTextEncoder | str | Path | None, options: ServerOptions) -> None:
        self.door = Door(path, model)
        self.quick = queries.Lane(self.door, cores=1)
        self.slow = queries.Lane(self.door, waiting=32, cores=torch.get_num_threads())
        self.lookup = queries.Lane(self.door, waiting=1024)
        self.pictures = queries.Pool(2, waiting=512)
        self.opening = queries.Pool(4, waiting=512)
        self.uploads = queries.Pool(DECODERS, waiting=UPLOADS)
        self.files = Files(follow_links=options.follow_links)
        self.thumbnails = Thumbnails(self.files)
        try:
            self.quick.now(queries.warm_up)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for part in (self.quick, self.slow, self.lookup, self.pictures, self.opening, self.uploads):
            part.close()
        self.door.close()
