"""The door to every model: a run, a model folder, an official checkpoint, open_clip's, or a hub id."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from vtr.errors import UsageError, VtrError
from vtr.models import registry
from vtr.models.official import load_checkpoint
from vtr.models.open_clip import PREFIX, OpenClipModel
from vtr.models.recognition import RecognitionModel
from vtr.models.video_text import VideoTextModel


def load(name: str | Path, device: str | torch.device | None = None, *, file: str | Path | None = None) -> Any:
    """Load a trained model for inference.

    Args:
        name: A run folder (its `model/`), a model folder, an official checkpoint (`vtr models`, as in
            "videomamba_middle.25m_f8"), "open_clip:MODEL/PRETRAINED", or a hub id `owner/name`.
        device: Where to put it; default: a GPU if there is one.
        file: The file of an official checkpoint, where it is on this machine already.

    Returns:
        A VideoTextModel; a RecognitionModel for official checkpoints without text; an OpenClipModel.
    """
    path = Path(name)
    if str(name).startswith(PREFIX):
        return OpenClipModel.load(str(name), device)
    if not path.is_dir() and registry.is_registered(str(name)):
        return load_checkpoint(str(name), file=file, device=device)
    if file is not None:
        raise UsageError(f"a file belongs to the name of an official checkpoint (vtr models), not to {str(name)!r}")
    if (path / "model").is_dir():
        path = path / "model"
    elif path.is_dir() and (path / "checkpoints").is_dir():
        raise VtrError(f"{path}: the run has no final model yet; finish it with --resume latest")
    if not path.is_dir():
        if str(name).count("/") == 1 and not str(name).startswith((".", "/", "runs/")):
            from huggingface_hub import snapshot_download

            try:
                path = Path(snapshot_download(str(name)))
            except Exception as error:  # no network, unknown id, gated: many kinds
                raise VtrError(
                    f"model {str(name)!r}: no such folder, and not on the hub ({type(error).__name__})"
                ) from error
        else:
            raise VtrError(
                f"model {str(name)!r}: no such folder; expected a run, a model folder, an official checkpoint "
                "(vtr models), open_clip:MODEL/PRETRAINED or a hub id owner/name"
            )
    if _kind(path) == "recognition":
        model: Any = RecognitionModel.from_pretrained(path)
    else:
        model = VideoTextModel.from_pretrained(path)
    with contextlib.suppress(OSError, ValueError, KeyError):  # where it is no official checkpoint
        model.registered = json.loads((path / "source.json").read_text())["name"]
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def needs_text(model: Any, name: object) -> None:
    """Refuse a model that has no text side.

    Raises:
        UsageError: It recognises images or actions, or is half of a pretraining.
    """
    if not hasattr(model, "encode_text"):
        raise UsageError(
            f"model {str(name)!r} has no text side: retrieval and search need a video-text model (vtr models)"
        )


def _kind(path: Path) -> str:
    try:
        return str(json.loads((path / "config.json").read_text()).get("kind", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # from_pretrained says what is wrong
