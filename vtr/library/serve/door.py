"""The library that is served, opened again where another one has taken its place in its folder."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from vtr.errors import VtrError
from vtr.library.library import Library
from vtr.library.serve.media import Refused
from vtr.library.settings import LibrarySettings
from vtr.library.store import Replaced

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

P = ParamSpec("P")
T = TypeVar("T")
_ATTEMPTS = 3


class Door:
    """Gives threads the library of a folder.

    Args:
        path: The folder.
        model: The model, its path, or None for the library's own.
    """

    def __init__(self, path: Path, model: VideoTextEncoder | str | Path | None) -> None:
        self.path, self._model = path, model
        self._lock = threading.Lock()
        self._library: Library | None = None

    def library(self) -> Library:
        """The library that is in the folder now.

        Raises:
            Refused: There is none at this moment.
            VtrError: It cannot be opened, or is of a model that cannot be loaded.
        """
        with self._lock:
            if self._library is None:
                self._library = Library.open(self.path, self._model)
                return self._library
            try:
                self._library.store.check_place()
            except Replaced as error:
                if not (self.path / "library.db").is_file() or not (self.path / "library.json").is_file():
                    raise Refused(503, f"{error}; try again in a moment") from error
                self._library = self._reopened(self._library)
            return self._library

    def _reopened(self, old: Library) -> Library:
        """What is in the folder now, with the model that is loaded where it fits. Threads may still use the old one."""
        same = LibrarySettings.read(self.path).fingerprint == old.settings.fingerprint
        return Library.open(self.path, old.model if same else None)

    def ask(self, function: Callable[Concatenate[Library, P], T], *values: P.args, **more: P.kwargs) -> T:
        """`function(library, *values, **more)`; again where the library is replaced meanwhile."""
        for _ in range(_ATTEMPTS):
            library = self.library()
            try:
                return function(library, *values, **more)
            except Replaced:
                continue
            except sqlite3.Error as error:
                raise VtrError(f"{self.path}/library.db cannot be read ({error})") from error
        raise Refused(503, f"{self.path} is being replaced; try again in a moment")

    def close(self) -> None:
        """Let go of the library."""
        if self._library is not None:
            self._library.close()
