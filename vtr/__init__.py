"""vtr: ask for a moment in a video in words. Public names: `load`, `VideoTextModel`, `Library`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Library", "VideoTextModel", "VtrError", "load"]

# The code folders (encoders/, kernels/, pretrain/, eval/, data_manifests/) are sub-packages of `vtr`. An installed
# wheel has them inside the package folder; a checkout has them beside it, so there the repo root joins `__path__`.
_root = Path(__path__[0]).resolve().parent
if (_root / "pyproject.toml").is_file() and (_root / "encoders").is_dir():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from vtr.errors import VtrError
    from vtr.library import Library
    from vtr.models.load import load
    from vtr.models.video_text import VideoTextModel


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: `import vtr` stays instant, torch and the rest load with the first name that needs them.
    if name == "load":
        from vtr.models.load import load

        return load
    if name == "VideoTextModel":
        from vtr.models.video_text import VideoTextModel

        return VideoTextModel
    if name == "Library":
        from vtr.library import Library

        return Library
    if name == "VtrError":
        from vtr.errors import VtrError

        return VtrError
    raise AttributeError(f"module 'vtr' has no attribute {name!r}")
