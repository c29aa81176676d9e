"""A library served over HTTP for tests: in this process, on a free port."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tests.helpers import small_model, write_videos
from vtr.library import Library


def make_library(folder: Path, count: int = 3) -> Path:
    """A library of `count` clips of 3.75 s in windows of 2 s; its videos are in `folder/videos`."""
    write_videos(folder / "videos", count, frames=30)
    with Library.create(folder / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(folder / "videos")
    return folder / "lib"


@contextlib.contextmanager
def running(app: Any, lifespan: Literal["on", "off"] = "on") -> Iterator[str]:
    """Serve an ASGI application; gives its address. With lifespan "off" the application outlives it."""
    import uvicorn

    from vtr.library.serve import server_config

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        config = server_config(app)
        config.lifespan = lifespan
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
