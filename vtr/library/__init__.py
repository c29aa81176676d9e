"""The search library: a folder that remembers videos, their segments and embeddings, and answers queries."""

from __future__ import annotations

from vtr.library.library import Hit, Hits, Library

__all__ = ["Hit", "Hits", "Library"]
