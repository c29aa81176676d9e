"""Official checkpoints by name: a registry as data, fetched or taken from a file, converted once, loaded strictly."""

from __future__ import annotations

import contextlib
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
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from vtr.data.text import Tokenizer
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import Bert, BertConfig
from vtr.encoders.official import describe, load_official, read_checkpoint, to_ours
from vtr.encoders.registry import find_encoder
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.models.bert import DEFAULT, names_of
from vtr.models.hub import cached, reach_hub
from vtr.models.recognition import RecognitionConfig, RecognitionModel
from vtr.models.registry import Checkpoint, cache_folder, find, known_defect, source_of
from vtr.models.video_text import ModelConfig, VideoTextModel

OfficialModel: TypeAlias = "VideoTextModel | RecognitionModel"

_VOCABULARY = DEFAULT  # the text tower's words; on the hub
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "bert-base-uncased_tokenizer.json", "bert-base-uncased_vocab.txt")
# Of masked and multimodal files: the width of the CLIP teacher's tokens, and the layers that are aligned with it.
_ALIGNED = {"VideoMamba": (512, 1), "umt_base": (512, 6), "umt_large": (768, 6)}
_TASK_WORDS = {"qa": "question answering"}
_LARGE = 1024  # width of the encoder that is released with BERT-large


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
        model, whole, optional = _built(checkpoint, state, vocabulary)
    if checkpoint.task == "qa":  # a text decoder has no place in any model of ours
        state = {k: v for k, v in state.items() if not k.startswith("text_decoder.")}
    load_official(whole, state, str(path), optional)
    for defect in checkpoint.defects:
        print(f"{checkpoint.name}: {defect}: {known_defect(checkpoint, defect)}", file=sys.stderr)
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
        first = (
            "encoder.patch_embed.proj.weight" if checkpoint.model == "UMT" else "patch_embed.proj.weight and pos_embed"
        )
        raise VtrError(f"{path} is no {checkpoint.model}: it has no {first} of the expected shape{_hints(checkpoint)}")
    size = find_encoder(checkpoint.size)
    promised: dict[str, object] = {
        "model": checkpoint.model,
        "task": _TASK_WORDS.get(checkpoint.task, checkpoint.task),
        "width": size.dim,
        "layers": size.depth,
        "image size": checkpoint.image_size,
        "frames": 32 if "temporal-32" in checkpoint.defects and found.get("frames") == 32 else checkpoint.frames,
        "classes": checkpoint.classes,
    }
    # UMT's files say nothing of image size and frames: their positions are not in them.
    differs = [f"{k} is {found[k]}, expected {v}" for k, v in promised.items() if k in found and found[k] != v]
    if differs:
        raise VtrError(
            f"{path} is not the file of {checkpoint.name} ({checkpoint.file}): {'; '.join(differs)}{_hints(checkpoint)}"
        )


def _built(
    checkpoint: Checkpoint, state: dict[str, Tensor], vocabulary: str | Path | None
) -> tuple[OfficialModel, nn.Module, tuple[str, ...]]:
    """A model of the promised sizes, the module that holds what the file does, and what the file may lack."""
    size = find_encoder(checkpoint.size)
    aligned = any("clip_decoder." in k for k in state) or (checkpoint.model == "UMT" and checkpoint.task == "masked")
    width, layers = _ALIGNED.get(checkpoint.size, _ALIGNED["VideoMamba"])
    video = dataclasses.replace(
        size,
        image_size=checkpoint.image_size,
        num_frames=checkpoint.frames,
        num_classes=checkpoint.classes,
        pool="cls+avg",
        pool_norm=checkpoint.task in ("retrieval", "qa"),
        align_dim=width if aligned else 0,
        align_layers=layers if aligned else 1,
        init="official",
    )
    if isinstance(video, VideoMambaConfig):
        video = dataclasses.replace(video, temporal=checkpoint.task != "image")
    if checkpoint.task != "retrieval":
        model = RecognitionModel(RecognitionConfig(video=video))
        if checkpoint.task != "qa":
            return model, model.encoder, ()
        # The text encoder is held against what it should be, and left out.
        text = Bert(_retrieval_config(video).text)
        return model, nn.ModuleDict({"vision_encoder": model.encoder, "text_encoder": text}), ("text_encoder.cls.",)
    tokenizer = _tokenizer(checkpoint, vocabulary)
    config = _retrieval_config(video)
    if tokenizer.vocab_size != config.text.vocab_size:
        raise VtrError(
            f"{checkpoint.name}: the vocabulary has {tokenizer.vocab_size} words, bert-base-uncased's {config.text.vocab_size}"
        )
    built = VideoTextModel(config, tokenizer)
    return built, built, ("text_encoder.cls.",)


def _retrieval_config(video: EncoderConfig) -> ModelConfig:
    """The released retrieval models: BERT-base with three cross-modal layers and 512 joint dimensions, or UMT-L's."""
    if video.dim != _LARGE:
        return ModelConfig(video=video, text=BertConfig(vision_width=video.dim))
    large = BertConfig(hidden=1024, layers=24, fusion_layer=19, heads=16, intermediate=4096, vision_width=video.dim)
    return ModelConfig(video=video, text=large, embed_dim=768)


def _tokenizer(checkpoint: Checkpoint, vocabulary: str | Path | None) -> Tokenizer:
    if vocabulary is None:
        found = [cache_folder() / n for n in _VOCABULARY_FILES if (cache_folder() / n).is_file()]
        vocabulary = found[0] if found else _fetched(_VOCABULARY, "tokenizer.json", checkpoint)
    return Tokenizer.load(vocabulary)


def _hints(checkpoint: Checkpoint) -> str:
    """What is known of a row whose file is hard to get right."""
    known = [d for d in checkpoint.defects if d in ("wrong-link", "name-by-analogy", "once-vqa")]
    return "".join(f"; known of this row: {known_defect(checkpoint, d)}" for d in known)


def _fetched(repository: str, file: str, checkpoint: Checkpoint) -> Path:
    """A file put into the cache folder by hand, or from the hub."""
    by_hand = cache_folder() / file
    if by_hand.is_file():
        return by_hand
    words = repository == _VOCABULARY
    places = [f"{folder}/{file}".lstrip("/") for folder in (("",) if words else checkpoint.folders)]
    for name in names_of(repository) if words else (repository,):
        for place in places:
            found = cached(name, place)
            if found is not None:
                return found
    try:
        reach_hub()  # the library would try for half a minute
        for place in places[:-1]:
            with contextlib.suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, place, etag_timeout=10))
        return Path(hf_hub_download(repository, places[-1], etag_timeout=10))
    except Exception as error:  # no network, gated, renamed: many kinds
        raise VtrError(
            f"{checkpoint.name}: {file} of {repository} cannot be downloaded ({type(error).__name__}); "
            f"fetch https://huggingface.co/{repository}/resolve/main/{places[0]} elsewhere and put it at "
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
