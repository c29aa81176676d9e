"""`vtr serve`: a REST API and one page over a library."""

from __future__ import annotations

from vtr.library.serve.app import make_app
from vtr.library.serve.engine import ServerOptions
from vtr.library.serve.server import serve, server_config

__all__ = ["ServerOptions", "make_app", "serve", "server_config"]
