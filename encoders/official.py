"""Official VideoMamba state dicts, in every published shape, to ours; strict, with an allow-list of what may differ."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
    """Read a .pth (weights only) or .safetensors file and unwrap {'model' | 'module' | 'state_dict': …}.

    Raises:
        VtrError: The file is missing, damaged or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise VtrError(f"checkpoint {path}: no such file")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise VtrError(f"checkpoint {path} is empty: the download did not finish")
    if head.startswith(b"version https://git-lfs"):
        raise VtrError(
            f"checkpoint {path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` or the hub"
        )
    if head.startswith(b"<"):
        raise VtrError(f"checkpoint {path} is a web page, not a checkpoint: download the file, not its page")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_records(path)):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors errors alike: the file is damaged or something else
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            raise VtrError(
                f"checkpoint {path} holds more than tensors (pickled code or objects) and is not opened"
            ) from error
        raise VtrError(
            f"checkpoint {path} cannot be read, it is damaged or cut: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    for key in ("model", "module", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise VtrError(f"checkpoint {path} holds no tensors")
    return state


def _records(path: Path) -> list[Any]:
    """The settings that training scripts save beside the weights (args, config), as containers that do nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the old format, or a damaged one: the reader says so
        return []
    out: list[Any] = [Namespace] if "argparse.Namespace" in names else []
    return out + [
        (OrderedDict, name) for name in names if name.rpartition(".")[2] in ("EasyDict", "AttrDict", "ConfigDict")
    ]


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
        f"{k} holds NaN or infinity" for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()
    ]
    if wrong:
        raise VtrError(
            f"{origin}: {wrong[0]}" + (f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else "")
        )
    module.load_state_dict({**own, **state})


def describe(state: dict[str, Tensor]) -> dict[str, object]:
    """What an official state dict is a model of, read off its tensors; empty where it is no VideoMamba."""
    state = to_ours(state)
    prefix = "vision_encoder." if any(k.startswith("vision_encoder.") for k in state) else ""
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
        "task": task,
        "width": patch.shape[0],
        "layers": len(layers),
        "image size": round((positions.shape[1] - 1) ** 0.5) * patch.shape[-1],
        "frames": 1 if temporal is None else temporal.shape[1] * patch.shape[2],
        "classes": 0 if head is None else head.shape[0],
    }
