"""Official checkpoints by name: a registry as data, fetched or taken from a file, converted once, loaded strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from vtr.errors import UsageError, VtrError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import torch

_REGISTRY = Path(__file__).resolve().parent.parent / "data_manifests" / "checkpoints" / "videomamba.toml"
_VOCABULARY = "google-bert/bert-base-uncased"  # the text tower's words; on the hub
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "bert-base-uncased_tokenizer.json", "bert-base-uncased_vocab.txt")
_ALIGN_DIM = 512  # of the CLIP teacher that masked and multimodal files are aligned with
_TASKS = {
    "image": "image classification",
    "video": "action recognition",
    "masked": "masked pretraining",
    "retrieval": "text-video retrieval",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One official file: where it is, what it holds, what it is known to reach."""

    name: str
    repository: str
    file: str
    task: str  # image | video | masked | retrieval
    data: str
    size: str  # tiny | small | middle | base
    image_size: int
    frames: int
    classes: int = 0
    init: str = ""
    top1: float | None = None
    views: str = ""
    defects: tuple[str, ...] = ()


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(_REGISTRY.read_text())


def registry() -> dict[str, Checkpoint]:
    """Every official checkpoint by its name `model.tag`."""
    table = _table()
    return {
        name: Checkpoint(name=name, repository=table["repository"], **{**row, "defects": tuple(row.get("defects", ()))})
        for name, row in table["checkpoint"].items()
    }


def is_registered(name: str) -> bool:
    """Whether a model's name is that of an official checkpoint, or looks like a misspelt one."""
    return name.startswith("videomamba_") and "/" not in name


def find(name: str) -> Checkpoint:
    """The checkpoint of this name.

    Raises:
        UsageError: There is none; the nearest is named.
    """
    known = registry()
    if name not in known:
        raise unknown_name("model", name, known)
    return known[name]


def cache_folder() -> Path:
    """Where converted models lie, and files put there by hand: `$VTR_CACHE`, else ~/.cache/vtr/models."""
    return Path(os.environ.get("VTR_CACHE", "~/.cache/vtr/models")).expanduser()


def load_checkpoint(
    name: str,
    *,
    file: str | Path | None = None,
    vocabulary: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Any:
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
    import torch

    from vtr.model import VideoTextModel
    from vtr.recognition import RecognitionModel

    checkpoint = find(name)
    folder = cache_folder() / name
    with _alone(folder):  # the ranks of one evaluation all come here
        source = _source(folder)
        if source is None or (file is not None and source["sha256"] != _sha256(Path(file))):
            path = Path(file) if file is not None else _fetched(checkpoint.repository, checkpoint.file, checkpoint)
            convert(checkpoint, path, folder, vocabulary)
    kind: Any = VideoTextModel if checkpoint.task == "retrieval" else RecognitionModel
    model = kind.from_pretrained(folder)
    model.registered = name
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _alone(folder: Path) -> Any:
    """A lock on a model's folder."""
    from filelock import FileLock

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
    import torch

    from vtr.encoders.official import describe, load_official, read_checkpoint

    state = read_checkpoint(path)
    _compare(checkpoint, path, describe(state))
    with torch.random.fork_rng(devices=[]):
        # What a file lacks (the language head, say) gets the same values in every conversion: one fingerprint.
        torch.manual_seed(0)
        model, optional = _built(checkpoint, state, vocabulary)
    load_official(_target(checkpoint, model), state, str(path), optional)
    for defect in checkpoint.defects:
        print(f"{checkpoint.name}: {defect}: {_table()['defects'][defect]}", file=sys.stderr)
    (folder / "source.json").unlink(missing_ok=True)  # until the new one is whole
    model.save_pretrained(folder)
    source = {
        "name": checkpoint.name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        "converted": time.strftime("%Y-%m-%d"),
        "defects": list(checkpoint.defects),
        "lacks": [p for p in optional if not any(k.startswith(p) for k in _names(state))],
    }
    partial = folder / f"source.json.{os.getpid()}.tmp"
    partial.write_text(json.dumps(source, indent=1) + "\n")
    os.replace(partial, folder / "source.json")
    print(f"{checkpoint.name}: converted to {folder}", file=sys.stderr)


def _names(state: dict[str, Any]) -> list[str]:
    from vtr.encoders.official import to_ours

    return list(to_ours(state))


def _compare(checkpoint: Checkpoint, path: Path, found: dict[str, object]) -> None:
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES

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


def _built(checkpoint: Checkpoint, state: dict[str, Any], vocabulary: str | Path | None) -> tuple[Any, tuple[str, ...]]:
    """A model of the promised sizes, and what its file may lack."""
    from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
    from vtr.model import VideoTextModel
    from vtr.recognition import RecognitionConfig, RecognitionModel

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


def _retrieval_config(video: Any) -> Any:
    """The released retrieval models: BERT-base with three cross-modal layers, 512 joint dimensions."""
    from vtr.encoders.bert import BertConfig
    from vtr.model import ModelConfig

    return ModelConfig(video=video, text=BertConfig(vision_width=video.dim))


def _target(checkpoint: Checkpoint, model: Any) -> Any:
    return model if checkpoint.task == "retrieval" else model.encoder


def _tokenizer(checkpoint: Checkpoint, vocabulary: str | Path | None) -> Any:
    from vtr.data.text import Tokenizer

    if vocabulary is None:
        found = [cache_folder() / n for n in _VOCABULARY_FILES if (cache_folder() / n).is_file()]
        vocabulary = found[0] if found else _fetched(_VOCABULARY, "tokenizer.json", checkpoint)
    return Tokenizer.load(vocabulary)


def _hints(checkpoint: Checkpoint) -> str:
    """What is known of a row whose file is hard to get right."""
    known = [d for d in checkpoint.defects if d in ("wrong-link", "name-by-analogy")]
    return "".join(f"; known of this row: {_table()['defects'][d]}" for d in known)


def _fetched(repository: str, file: str, checkpoint: Checkpoint) -> Path:
    """A file put into the cache folder by hand, or from the hub."""
    by_hand = cache_folder() / file
    if by_hand.is_file():
        return by_hand
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        reach_hub()  # the library would try for half a minute
        return Path(hf_hub_download(repository, file, etag_timeout=10))
    except Exception as error:  # no network, gated, renamed: many kinds
        raise VtrError(
            f"{checkpoint.name}: {file} of {repository} cannot be downloaded ({type(error).__name__}); "
            f"fetch https://huggingface.co/{repository}/resolve/main/{file} elsewhere and put it at "
            f"{by_hand}{_hints(checkpoint)}"
        ) from error


def reach_hub() -> None:
    """Raise where the hub's name is not known: there is no network."""
    import socket
    import urllib.request
    from urllib.parse import urlparse

    from huggingface_hub import constants

    if not urllib.request.getproxies():  # a proxy resolves names itself
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)


def _source(folder: Path) -> dict[str, Any] | None:
    """What a finished conversion was made of."""
    try:
        source = json.loads((folder / "source.json").read_text())
        return source if (folder / "model.safetensors").is_file() and "sha256" in source else None
    except (OSError, json.JSONDecodeError):
        return None


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise VtrError(f"checkpoint {path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _known_results(name: str) -> list[str]:
    """Published retrieval results, one line a benchmark."""
    from vtr.eval.benchmarks import benchmark_names, load_protocol

    lines = []
    for benchmark in benchmark_names():
        for row in load_protocol(benchmark).published:
            if row.model == name:
                figures = ["/".join(f"{v:g}" for v in getattr(row, d)) for d in ("t2v", "v2t")]
                lines.append(
                    f"{benchmark}: text to video {figures[0]}, video to text {figures[1]}"
                    + (f" ({row.note})" if row.note else "")
                )
    return lines


@dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """List the official checkpoints; with a name: all that is known of it."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, or parts of names to list fewer; open_clip lists what that library has."""
    get: bool = False
    """Fetch and convert it, so that it loads offline."""
    file: Path | None = None
    """The official file, where it is on this machine already."""
    vocabulary: Path | None = None
    """BERT's tokenizer.json or vocab.txt, where it is on this machine already."""
    json: bool = False
    """Print as JSON."""


def models(settings: ModelsSettings) -> int:
    """`vtr models`."""
    if settings.get or settings.file or settings.vocabulary:
        if len(settings.names) != 1:
            raise UsageError("--get, --file and --vocabulary need one name: vtr models NAME --get")
        model = load_checkpoint(settings.names[0], file=settings.file, vocabulary=settings.vocabulary, device="cpu")
        count = sum(p.numel() for p in model.parameters())
        print(f"{settings.names[0]}: ready, {count / 1e6:.1f} M parameters, {cache_folder() / settings.names[0]}")
        return 0
    if settings.names and settings.names[0].startswith("open_clip"):
        return _baselines(settings)
    known = registry()
    chosen = {n: c for n, c in known.items() if not settings.names or any(word in n for word in settings.names)}
    if not chosen:
        raise unknown_name("model", settings.names[0], known)
    if settings.json:
        print(json.dumps({n: dataclasses.asdict(c) for n, c in chosen.items()}))
        return 0
    if len(chosen) == 1:
        print(_details(next(iter(chosen.values()))))
        return 0
    print(f"{'name':<42}{'trained on':<14}{'px':>4}{'frames':>8}{'top-1':>7}  {'here':<6}file")
    for name, c in chosen.items():
        here = "yes" if _source(cache_folder() / name) else ""
        top1 = f"{c.top1:.1f}" if c.top1 else ("R@1" if c.task == "retrieval" else "")
        mark = " *" if c.defects else ""
        print(f"{name:<42}{c.data:<14}{c.image_size:>4}{c.frames:>8}{top1:>7}  {here:<6}{c.file}{mark}")
    print("R@1: zero-shot retrieval, see vtr models NAME    *: something is known of the file, see vtr models NAME")
    print("Baselines of open_clip: vtr models open_clip")
    return 0


def _baselines(settings: ModelsSettings) -> int:
    """The weights that open_clip knows, as names for `vtr.load`."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    words = [w.removeprefix("open_clip").removeprefix(":") for w in settings.names]
    for model, tag in open_clip.list_pretrained():
        name = f"open_clip:{model}/{tag}"
        if all(word in name for word in words):
            repository, _, file = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
            files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
            here = any(isinstance(try_to_load_from_cache(repository, f), str) for f in files if repository)
            row = {"name": name, "here": here, "repository": repository}
            print(json.dumps(row) if settings.json else f"{name:<64}{'yes' if here else '':<6}{repository}")
    return 0


def _details(c: Checkpoint) -> str:
    rows = {
        "task": f"{_TASKS[c.task]}, {c.data}"
        + (f", {c.classes} classes" if c.classes else "")
        + (f", from {c.init}" if c.init else ""),
        "model": f"VideoMamba {c.size}, {c.image_size} px, {c.frames} frame{'s' * (c.frames > 1)}",
        "source": f"{c.repository}, {c.file}",
        "here": str(cache_folder() / c.name)
        if _source(cache_folder() / c.name)
        else "no (vtr models NAME --get [--file FILE])",
    }
    if c.top1:
        rows["known"] = f"top-1 {c.top1:.1f} %" + (f", {c.views}" if c.views else "")
    lines = [c.name] + [f"  {key:<8}{value}" for key, value in rows.items()]
    lines += [f"  known   {line}" for line in _known_results(c.name)]
    lines += [f"  defect  {d}: {_table()['defects'][d]}" for d in c.defects]
    return "\n".join(lines)


COMMANDS = {"models": (ModelsSettings, models)}
