"""The threads behind the API, and how a library is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vtr.library.serve import queries
from vtr.library.serve.door import Door
from vtr.library.serve.media import Files, Thumbnails

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

UPLOADS = 4  # that are received, decoded or waiting for it
DECODERS = 2  # processes that decode uploads
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a library is served.

    Attributes:
        token: What clients must know; None: nothing.
        hosts: Host names a request may be addressed to; None: any.
        follow_links: Serve symbolic links that lead out of their folder.
        upload_bytes: Largest clip that may be uploaded.
    """

    token: str | None = None
    hosts: frozenset[str] | None = LOCAL
    follow_links: bool = False
    upload_bytes: int = 64 << 20


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
