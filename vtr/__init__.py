"""vtr: ask for a moment in a video in words.

    >>> import vtr
    >>> model = vtr.load("runs/demo")
    >>> model.encode_video("clip.mp4").embedding.shape
    torch.Size([1, 16])
    >>> model.encode_text("a dog").embedding.shape
    torch.Size([1, 16])
    >>> [video.path for video in model.rank("a dog", ["a.mp4", "b.mp4"])]
    ['b.mp4', 'a.mp4']

docs/python.md has the rest.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# The code folders (encoders/, kernels/, pretrain/, eval/, data_manifests/) are sub-packages of `vtr`. An installed
# wheel has them inside the package folder; a checkout has them beside it, so there the repo root joins `__path__`.
_root = Path(__path__[0]).resolve().parent
if (_root / "pyproject.toml").is_file() and (_root / "encoders").is_dir():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from vtr.data.decode import DecodeError
    from vtr.errors import UsageError, VtrError
    from vtr.library import Hit, Hits, Library
    from vtr.models.load import load, load_encoder
    from vtr.models.rank import Ranked, Ranking
    from vtr.models.video_text import VideoTextModel

__all__ = [
    "DecodeError",
    "Hit",
    "Hits",
    "Library",
    "Ranked",
    "Ranking",
    "UsageError",
    "VideoTextModel",
    "VtrError",
    "load",
    "load_encoder",
]
# Lazy: `import vtr` stays instant, torch and the rest load with the first name that needs them.
_PLACES = {
    "vtr.data.decode": ("DecodeError",),
    "vtr.errors": ("UsageError", "VtrError"),
    "vtr.library": ("Hit", "Hits", "Library"),
    "vtr.models.load": ("load", "load_encoder"),
    "vtr.models.rank": ("Ranked", "Ranking"),
    "vtr.models.video_text": ("VideoTextModel",),
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module 'vtr' has no attribute {name!r}")
