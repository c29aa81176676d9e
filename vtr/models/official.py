"""Official checkpoints by name: a registry as data, fetched or taken from a file, converted once, loaded strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TypeAlias

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download
from torch import Tensor

from vtr.data.text import Tokenizer
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import BertConfig
from vtr.encoders.official import describe, load_official, read_checkpoint, to_ours
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.models.bert import DEFAULT, names_of
from vtr.models.hub import cached, reach_hub
from vtr.models.recognition import RecognitionConfig, RecognitionModel
from vtr.models.registry import Checkpoint, cache_folder, find, source_of, table
from vtr.models.video_text import ModelConfig, VideoTextModel

OfficialModel: TypeAlias = "VideoTextModel | RecognitionModel"

_VOCABULARY = DEFAULT  # the text tower's words; on the hub
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "bert-base-uncased_tokenizer.json", "bert-base-uncased_vocab.txt")
_ALIGN_DIM = 512  # of the CLIP teacher that masked and multimodal files are aligned with


def load_checkpoint(
    name: str,
    *,
    file: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: str | torch.device | None = None,
) -> OfficialModel:
    """Load an official checkpoint; the first time it is fetched and converted to safetensors.

    Args:
        name: As in `registry()`.
        file: The official file, where it is on this machine already.
        vocabulary: BERT's tokenizer.json or vocab.txt, likewise (retrieval models).
        device: Where to put the model; default: a GPU if there is one.

    Returns:
        A VideoTextModel (retrieval) or a RecognitionModel.

    Raises:
        UsageError: There is no such checkpoint.
        VtrError: The file can't be fetched, is damaged, or is not that of this name.
    """
    checkpoint = find(name)
    folder = cache_folder() / name
    with _alone(folder):  # the ranks of one evaluation all come here
        source = source_of(folder)
        if source is None or (file is not None and source["sha256"] != _sha256(Path(file))):
            path = Path(file) if file is not None else _fetched(checkpoint.repository, checkpoint.file, checkpoint)
            convert(checkpoint, path, folder, vocabulary)
    kind = VideoTextModel if checkpoint.task == "retrieval" else RecognitionModel
    model: OfficialModel = kind.from_pretrained(folder)
    model.registered = name
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _alone(folder: Path) -> FileLock:
    """A lock on a model's folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{folder}.lock")
    except OSError as error:
        raise VtrError(f"{folder.parent}: cannot be written ({error.strerror}); name another with VTR_CACHE") from error


def convert(checkpoint: Checkpoint, path: Path, folder: Path, vocabulary: str | Path | None = None) -> None:
    """Check an official file against what its name promises and write it as a model folder.

    Raises:
        VtrError: It is damaged, or not the file of this name; the message says what differs.
    """
    state = read_checkpoint(path)
    _compare(checkpoint, path, describe(state))
    with torch.random.fork_rng(devices=[]):
        # What a file lacks (the language head, say) gets the same values in every conversion: one fingerprint.
        torch.manual_seed(0)
        model, optional = _built(checkpoint, state, vocabulary)
    load_official(model.encoder if isinstance(model, RecognitionModel) else model, state, str(path), optional)
    for defect in checkpoint.defects:
        print(f"{checkpoint.name}: {defect}: {table()['defects'][defect]}", file=sys.stderr)
    (folder / "source.json").unlink(missing_ok=True)  # until the new one is whole
    model.save_pretrained(folder)
    source = {
        "name": checkpoint.name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        "converted": time.strftime("%Y-%m-%d"),
        "defects": list(checkpoint.defects),
        "lacks": [p for p in optional if not any(k.startswith(p) for k in to_ours(state))],
    }
    with write_atomically(folder / "source.json") as partial:
        partial.write_text(json.dumps(source, indent=1) + "\n")
    print(f"{checkpoint.name}: converted to {folder}", file=sys.stderr)


def _compare(checkpoint: Checkpoint, path: Path, found: dict[str, object]) -> None:
    if not found:
        raise VtrError(
            f"{path} is no VideoMamba: it has no patch_embed.proj.weight and pos_embed of the expected shape"
        )
    size = VIDEOMAMBA_SIZES[checkpoint.size]
    promised = {
        "task": checkpoint.task,
        "width": size.dim,
        "layers": size.depth,
        "image size": checkpoint.image_size,
        "frames": 32 if "temporal-32" in checkpoint.defects and found["frames"] == 32 else checkpoint.frames,
        "classes": checkpoint.classes,
    }
    differs = [f"{k} is {found[k]}, expected {v}" for k, v in promised.items() if found[k] != v]
    if differs:
        raise VtrError(
            f"{path} is not the file of {checkpoint.name} ({checkpoint.file}): {'; '.join(differs)}{_hints(checkpoint)}"
        )


def _built(
    checkpoint: Checkpoint, state: dict[str, Tensor], vocabulary: str | Path | None
) -> tuple[OfficialModel, tuple[str, ...]]:
    """A model of the promised sizes, and what its file may lack."""
    video = dataclasses.replace(
        VIDEOMAMBA_SIZES[checkpoint.size],
        image_size=checkpoint.image_size,
        num_frames=checkpoint.frames,
        num_classes=checkpoint.classes,
        temporal=checkpoint.task != "image",
        pool="cls+avg",
        pool_norm=checkpoint.task == "retrieval",
        align_dim=_ALIGN_DIM if any("clip_decoder." in k for k in state) else 0,
        init="official",
    )
    if checkpoint.task != "retrieval":
        return RecognitionModel(RecognitionConfig(video=video)), ()
    tokenizer = _tokenizer(checkpoint, vocabulary)
    config = _retrieval_config(video)
    if tokenizer.vocab_size != config.text.vocab_size:
        raise VtrError(
            f"{checkpoint.name}: the vocabulary has {tokenizer.vocab_size} words, bert-base-uncased's {config.text.vocab_size}"
        )
    return VideoTextModel(config, tokenizer), ("text_encoder.cls.",)


def _retrieval_config(video: EncoderConfig) -> ModelConfig:
    """The released retrieval models: BERT-base with three cross-modal layers, 512 joint dimensions."""
    return ModelConfig(video=video, text=BertConfig(vision_width=video.dim))


def _tokenizer(checkpoint: Checkpoint, vocabulary: str | Path | None) -> Tokenizer:
    if vocabulary is None:
        found = [cache_folder() / n for n in _VOCABULARY_FILES if (cache_folder() / n).is_file()]
        vocabulary = found[0] if found else _fetched(_VOCABULARY, "tokenizer.json", checkpoint)
    return Tokenizer.load(vocabulary)


def _hints(checkpoint: Checkpoint) -> str:
    """What is known of a row whose file is hard to get right."""
    known = [d for d in checkpoint.defects if d in ("wrong-link", "name-by-analogy")]
    return "".join(f"; known of this row: {table()['defects'][d]}" for d in known)


def _fetched(repository: str, file: str, checkpoint: Checkpoint) -> Path:
    """A file put into the cache folder by hand, or from the hub."""
    by_hand = cache_folder() / file
    if by_hand.is_file():
        return by_hand
    for name in names_of(repository) if repository == _VOCABULARY else (repository,):
        found = cached(name, file)
        if found is not None:
            return found
    try:
        reach_hub()  # the library would try for half a minute
        return Path(hf_hub_download(repository, file, etag_timeout=10))
    except Exception as error:  # no network, gated, renamed: many kinds
        raise VtrError(
            f"{checkpoint.name}: {file} of {repository} cannot be downloaded ({type(error).__name__}); "
            f"fetch https://huggingface.co/{repository}/resolve/main/{file} elsewhere and put it at "
            f"{by_hand}{_hints(checkpoint)}"
        ) from error


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise VtrError(f"checkpoint {path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
