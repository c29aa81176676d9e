"""Official state dicts of VideoMamba and UMT, in every published shape, to ours; strict, with an allow-list of what may differ."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vtr.errors import VtrError

# Tensors of official files that carry no weights of ours: a derived buffer, the tied copies of the word embeddings.
_IGNORED = (
    "text_encoder.embeddings.position_ids",
    "text_encoder.cls.predictions.decoder.weight",
    "text_encoder.cls.predictions.decoder.bias",
)
_IGNORED_PREFIXES = ("clip_teacher.", "distill_head.")  # the frozen teacher; a head of self-distillation
# What a file may lack: the retrieval files have no language head, the final ones no alignment branch.
_OPTIONAL = ("text_encoder.cls.", "vision_encoder.clip_decoder.", "clip_decoder.", "head.", "pool_norm.", "norm.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a .pth (weights only) or .safetensors file; the tensors by name, without the dicts and wrappers around them.

    Raises:
        VtrError: The file is missing, damaged or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise VtrError(f"checkpoint {path}: no such file")
    with path.open("rb") as file:
        start = file.read(64)
    head = start.lstrip()
    if not head:
        raise VtrError(f"checkpoint {path} is empty: the download did not finish")
    if head.startswith(b"version https://git-lfs"):
        raise VtrError(
            f"checkpoint {path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` or the hub"
        )
    if head.startswith(b"<"):
        raise VtrError(f"checkpoint {path} is a web page, not a checkpoint: download the file, not its page")
    try:
        loaded = load_file(path) if _is_safetensors(path, start) else _tensors_only(path)
    except VtrError:
        raise
    except Exception as error:  # zip, pickle and safetensors errors alike: the file is damaged or something else
        if "TorchScript" in str(error):
            raise VtrError(
                f"checkpoint {path} is a TorchScript program; expected its tensors: torch.save(torch.jit.load(FILE).state_dict(), OUT)"
            ) from error
        raise VtrError(
            f"checkpoint {path} cannot be read, it is damaged or cut: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    state = bare_names(_unwrapped(loaded))
    if not state:
        kept = [str(k) for k, v in loaded.items() if _holds_tensors(v)] if isinstance(loaded, Mapping) else []
        under = f" under a name of a model's, only under {', '.join(kept)}: save the one that is meant" if kept else ""
        raise VtrError(f"checkpoint {path} holds no tensors{under}")
    return state


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Whether a file is of safetensors, by its content: torch's are zip archives or pickles, whatever they are called.

    Raises:
        VtrError: It is of neither.
    """
    if start[8:9] == b"{":
        return True
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return False
    if start[:1] == b"{":
        raise VtrError(
            f"checkpoint {path} is JSON (an index of several files?): expected the file with the tensors, or one of all"
        )
    kinds = ((b"\x1f\x8b", "gzip-compressed: unpack it first"), (b"\x89HDF", "an HDF5 file, of Keras"))
    what = next((what for magic, what in kinds if start.startswith(magic)), "damaged, or no checkpoint")
    raise VtrError(f"checkpoint {path} is {what}; expected a file of torch.save or of safetensors")


def _tensors_only(path: Path) -> object:
    """The content of a .pth file, whatever its ending; nothing in it is run."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the old format, or a damaged one: the reader says so
        names = []
    # The settings that training scripts save beside the weights (args, config), as containers that do nothing.
    records: list[Callable[..., object] | tuple[Callable[..., object], str]] = []
    records += [Namespace] if "argparse.Namespace" in names else []
    records += [(OrderedDict, n) for n in names if n.rpartition(".")[2] in ("EasyDict", "AttrDict", "ConfigDict")]
    try:
        # A file, not its name: torch goes by the ending.
        with torch.serialization.safe_globals(records), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) and "Unsupported" not in str(error):
            raise
        known = {n for _, n in (r for r in records if isinstance(r, tuple))} | {"argparse.Namespace"}
        found = ", ".join(sorted(set(names) - known)[:3]) or "pickled code or objects"
        raise VtrError(
            f"checkpoint {path} holds more than tensors ({found}) and is not opened, for opening it could run code. Where "
            'you trust whoever made it, save its tensors alone: python -c "import torch; '
            f"c = torch.load('{path}', map_location='cpu', weights_only=False); c = c.state_dict() if hasattr(c, "
            "'state_dict') else next((c[k] for k in ('model', 'state_dict', 'module') if k in c), c); "
            "torch.save({k: v for k, v in c.items() if torch.is_tensor(v)}, 'tensors.pth')\""
        ) from error


# What training scripts keep the weights under, in a dict beside optimiser and epoch. Averaged weights are a model of their
# own: they are taken only from a file that has no others.
_CONTAINERS = (
    (
        "model",
        "module",
        "state_dict",
        "model_state_dict",
        "model_state",
        "net",
        "network",
        "state",
        "weights",
        "params",
    ),
    ("model_ema", "state_dict_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "params_ema"),
)
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # DDP, torch.compile, FSDP
_ATTRIBUTES = ("model", "net", "online_model", "ema_model", "model_ema", "ema")  # of a Lightning module; EMA ones last
_PATCHES = "patch_embed.proj.weight"
_COUNTERS = ("n_averaged", "initted", "step")  # that averaging keeps beside the weights


def _unwrapped(loaded: object) -> dict[str, Tensor]:
    """The tensors by name, out of the dicts that scripts put them in."""
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            return {}
        inner = next(
            (loaded[key] for keys in _CONTAINERS for key in keys if _holds_tensors(loaded.get(key))),
            None,
        )
        if inner is None or any(isinstance(v, Tensor) and v.ndim > 0 for v in loaded.values()):
            break
        loaded = inner
    return {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}


def _holds_tensors(value: object, depth: int = 3) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(v, Tensor) or (depth > 0 and _holds_tensors(v, depth - 1)) for v in value.values()
    )


def bare_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrapped the model: DDP's `module.`, torch.compile's `_orig_mod.`, Lightning's `model.` …

    In any order and number, and in the middle of a name too (a compiled encoder of a model that is not). Where both a
    model and its average are there, the model is taken.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        owner = ""
        while len(parts) > 1 and parts[0] in _ATTRIBUTES:
            owner = owner or parts[0]
            del parts[0]
        groups.setdefault(owner, {})[".".join(parts)] = value
    chosen = next((groups[owner] for owner in _ATTRIBUTES if owner in groups), {})
    rest = {k: v for k, v in groups.get("", {}).items() if not (k in _COUNTERS and v.numel() == 1)}
    named = {**rest, **chosen}
    # A part of somebody's model (`backbone.`, `visual.`): all names begin alike, and one of them tells where ours begin.
    fronts = {k.removesuffix(_PATCHES) for k in named if k.endswith(_PATCHES)}
    front = fronts.pop() if len(fronts) == 1 else ""
    return {k.removeprefix(front): v for k, v in named.items()} if all(k.startswith(front) for k in named) else named


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys: `norm_f` to `norm`, `text_encoder.bert.` to `text_encoder.`, image convolutions to 3-D."""
    out = {}
    for name, value in state.items():
        name = name.removeprefix("module.").replace("text_encoder.bert.", "text_encoder.").replace("norm_f.", "norm.")
        if name.endswith("patch_embed.proj.weight") and value.ndim == 4:
            value = value.unsqueeze(2)
        if name not in _IGNORED and not name.startswith(_IGNORED_PREFIXES):
            out[name] = value
    return out


def resize_positions(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate spatial (bicubic) and temporal (linear) embeddings to the sizes of `own`, as read from the tensors."""
    out = dict(state)
    for name, value in state.items():
        target = own.get(name)
        if target is None or target.shape == value.shape or value.ndim != 3 or value.shape[2] != target.shape[2]:
            continue
        if name.endswith("temporal_pos_embedding"):
            moved = F.interpolate(value.float().transpose(1, 2), target.shape[1], mode="linear", align_corners=False)
            out[name] = moved.transpose(1, 2).to(value.dtype)
        elif name.endswith("pos_embed"):
            old, new = int((value.shape[1] - 1) ** 0.5), int((target.shape[1] - 1) ** 0.5)
            grid = value[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
            out[name] = torch.cat([value[:, :1], grid.flatten(2).transpose(1, 2).to(value.dtype)], 1)
    return out


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor's values are weights as they are: floats, there, and none of them left out."""
    whole = value.layout is torch.strided and not value.is_meta
    return whole and value.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def load_official(
    module: nn.Module, state: dict[str, Tensor], origin: str = "checkpoint", optional: tuple[str, ...] = _OPTIONAL
) -> None:
    """Load an official state dict strictly: whatever is not on the allow-list and differs raises one line.

    Args:
        module: Its tensors have our names.
        state: Tensors with official names; position tables of other sizes are interpolated.
        origin: The file, for the message.
        optional: Prefixes of what may be missing; but all that begins with one of them, or nothing.
    """
    own = module.state_dict()
    state = resize_positions(to_ours(state), own)
    absent = tuple(p for p in optional if not any(k.startswith(p) for k in state))
    wrong = [f"{k} is unexpected" for k in state if k not in own]
    wrong += [f"{k} is missing" for k in own if k not in state and not k.startswith(absent)]
    wrong += [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    wrong += [
        f"{k} is {str(v.dtype).removeprefix('torch.')}{'' if v.layout is torch.strided and not v.is_meta else ' without values'}, "
        "expected float32, float64, float16 or bfloat16 (of a quantised file: the one that it was made of)"
        for k, v in state.items()
        if k in own and own[k].is_floating_point() and not _is_plain(v)
    ]
    wrong += [f"{k} holds NaN or infinity" for k, v in state.items() if _is_plain(v) and not torch.isfinite(v).all()]
    if wrong:
        raise VtrError(
            f"{origin}: {wrong[0]}" + (f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else "")
        )
    module.load_state_dict({**own, **state})


def describe(state: dict[str, Tensor]) -> dict[str, object]:
    """What an official state dict is a model of, read off its tensors; empty where it is no VideoMamba and no UMT."""
    state = to_ours(state)
    prefix = "vision_encoder." if any(k.startswith("vision_encoder.") for k in state) else ""
    for front in (f"{prefix}encoder.", prefix):
        if f"{front}blocks.0.attn.q_bias" in state:
            return _describe_umt(state, prefix, front)
    patch, positions = state.get(f"{prefix}patch_embed.proj.weight"), state.get(f"{prefix}pos_embed")
    if patch is None or positions is None or patch.ndim != 5 or positions.ndim != 3:
        return {}
    temporal, head = state.get(f"{prefix}temporal_pos_embedding"), state.get(f"{prefix}head.weight")
    if prefix:
        task = "retrieval"
    elif any(k.startswith("clip_decoder.") for k in state):
        task = "masked"
    else:
        task = "image" if temporal is None else "video"
    layers = {k[len(prefix) :].split(".")[1] for k in state if k.startswith(f"{prefix}layers.")}
    return {
        "model": "VideoMamba",
        "task": task,
        "width": patch.shape[0],
        "layers": len(layers),
        "image size": round((positions.shape[1] - 1) ** 0.5) * patch.shape[-1],
        "frames": 1 if temporal is None else temporal.shape[1] * patch.shape[2],
        "classes": 0 if head is None else head.shape[0],
    }


def _describe_umt(state: dict[str, Tensor], prefix: str, front: str) -> dict[str, object]:
    """As `describe`; the files do not say for how many frames and pixels they are, their positions are made anew."""
    patch = state.get(f"{front}patch_embed.proj.weight")
    if patch is None or patch.ndim != 5:
        return {}
    layers = {k[len(front) :].split(".")[1] for k in state if k.startswith(f"{front}blocks.")}
    if any(k.startswith("text_decoder.") for k in state):
        task = "question answering"
    elif any(k.startswith("text_encoder.") for k in state):
        task = "retrieval"
    else:
        task = "masked" if any(k.startswith(f"{prefix}clip_decoder.") for k in state) else "video"
    return {"model": "UMT", "task": task, "width": patch.shape[0], "layers": len(layers)}
