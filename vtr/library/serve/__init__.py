"""`vtr serve`: a REST API and one page over a library."""

from __future__ import annotations

from vtr.library.serve.server import ServerOptions, make_app, serve, server_config

__all__ = ["ServerOptions", "make_app", "serve", "server_config"]
