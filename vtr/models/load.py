"""The door to every model: a run, a model folder, an official checkpoint, open_clip's, sentence-transformers', a hub id."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from huggingface_hub import snapshot_download

from vtr.errors import UsageError, VtrError
from vtr.models import registry
from vtr.models.base import VideoTextEncoder
from vtr.models.folder import read_config
from vtr.models.hub import offline_if_unreachable
from vtr.models.official import load_checkpoint
from vtr.models.recognition import KIND, RecognitionModel
from vtr.models.video_text import VideoTextModel

if TYPE_CHECKING:
    from vtr.models.open_clip import OpenClipModel
    from vtr.models.sentence_transformers import SentenceTransformerModel

LoadedModel: TypeAlias = "VideoTextModel | OpenClipModel | SentenceTransformerModel | RecognitionModel"


def load(name: str | Path, device: str | torch.device | None = None, *, file: str | Path | None = None) -> LoadedModel:
    """Load a trained model for inference.

    Args:
        name: A run folder (its `model/`), a model folder, an official checkpoint (`vtr models`, as in
            "videomamba_middle.25m_f8" or "umt_base.25m"), "open_clip:MODEL/PRETRAINED",
            "sentence-transformers:OWNER/NAME" (or a folder in place of it), or a hub id `owner/name`.
        device: Where to put it; default: a GPU if there is one.
        file: The file of an official checkpoint, where it is on this machine already.

    Returns:
        A VideoTextModel; a RecognitionModel for official checkpoints without text; an OpenClipModel or a
        SentenceTransformerModel. `load_encoder` returns only what has a text side.

    Raises:
        UsageError: The name is misspelt, or `file` belongs to no official checkpoint.
        VtrError: There is nothing of that name, or it is damaged.

    >>> import vtr
    >>> vtr.load("runs/demo", "cpu").config.embed_dim
    16
    """
    if str(name).startswith(registry.OPEN_CLIP):
        from vtr.models.open_clip import OpenClipModel  # seconds of imports that only these models need

        return OpenClipModel.load(str(name), device)
    if str(name).startswith(registry.SENTENCE_TRANSFORMERS):
        from vtr.models.sentence_transformers import SentenceTransformerModel

        return SentenceTransformerModel.load(str(name), device)
    if not Path(name).is_dir() and registry.is_registered(str(name)):
        return load_checkpoint(str(name), file=file, device=device)
    if file is not None:
        raise UsageError(f"a file belongs to the name of an official checkpoint (vtr models), not to {str(name)!r}")
    path = _folder(name)
    kind = RecognitionModel if read_config(path).get("kind") == KIND else VideoTextModel
    model: VideoTextModel | RecognitionModel = kind.from_pretrained(path)
    with contextlib.suppress(OSError, ValueError, KeyError):  # where it is no official checkpoint
        model.registered = json.loads((path / "source.json").read_text())["name"]
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_encoder(name: str | Path, device: str | torch.device | None = None) -> VideoTextEncoder:
    """As `load`, of models that have a text side.

    Raises:
        UsageError: It recognises images or actions, or is half of a pretraining.
    """
    return needs_text(load(name, device), name)


def needs_text(model: LoadedModel | VideoTextEncoder, name: object) -> VideoTextEncoder:
    """Refuse a model that has no text side.

    Raises:
        UsageError: It recognises images or actions, or is half of a pretraining.
    """
    if isinstance(model, RecognitionModel):
        raise UsageError(
            f"model {str(name)!r} has no text side: retrieval and search need a video-text model (vtr models)"
        )
    return model


def _folder(name: str | Path) -> Path:
    """The model folder that a path or a hub id names."""
    path = Path(name)
    if (path / "model").is_dir():
        return path / "model"
    if path.is_dir():
        if (path / "checkpoints").is_dir():
            raise VtrError(f"{path}: the run has no final model yet; finish it with --resume latest")
        return path
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "runs/")):
        try:
            with offline_if_unreachable():
                return Path(snapshot_download(str(name), allow_patterns=[*VideoTextModel.files, "source.json"]))
        except Exception as error:  # no network, unknown id, gated: many kinds
            raise VtrError(
                f"model {str(name)!r}: no such folder, and not on the hub ({type(error).__name__})"
            ) from error
    raise VtrError(
        f"model {str(name)!r}: no such folder; expected a run, a model folder, an official checkpoint "
        "(vtr models), open_clip:MODEL/PRETRAINED, sentence-transformers:OWNER/NAME or a hub id owner/name"
    )
