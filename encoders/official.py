"""Official VideoMamba state dicts, in every published shape, to ours; strict, with an allow-list of what may differ."""

from __future__ import annotations

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
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors errors alike: the file is damaged or something else
        raise VtrError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from error
    for key in ("model", "module", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise VtrError(f"checkpoint {path} holds no tensors")
    return state


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys: `norm_f` to `norm`, `text_encoder.bert.` to `text_encoder.`, image convolutions to 3-D."""
    out = {}
    for name, value in state.items():
        name = name.removeprefix("module.").replace("text_encoder.bert.", "text_encoder.").replace("norm_f.", "norm.")
        if name.endswith("patch_embed.proj.weight") and value.ndim == 4:
            value = value.unsqueeze(2)
        if name not in _IGNORED and not name.startswith("clip_teacher."):
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


def load_official(module: nn.Module, state: dict[str, Tensor], origin: str = "checkpoint") -> None:
    """Load an official state dict strictly: whatever is not on the allow-list and differs raises one line."""
    own = module.state_dict()
    state = resize_positions(to_ours(state), own)
    wrong = [f"{k} is unexpected" for k in state if k not in own]
    wrong += [f"{k} is missing" for k in own if k not in state and not k.startswith(_OPTIONAL)]
    wrong += [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    if wrong:
        raise VtrError(
            f"{origin}: {wrong[0]}" + (f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else "")
        )
    module.load_state_dict({**own, **state})
