"""What a fine-tuning starts from: an untrained encoder of a size, and trained weights put into it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

import vtr.models.load
from vtr.encoders.base import EncoderConfig, VideoEncoder
from vtr.encoders.official import load_official, read_checkpoint, to_ours
from vtr.encoders.registry import find_encoder, named_encoders
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import UsageError, unknown_name
from vtr.models.recognition import RecognitionConfig, RecognitionModel
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.recognition.tasks import TuneRecipe


def check_size(size: str) -> None:
    """Refuse a size that does not exist.

    Raises:
        UsageError: The nearest one is in it.
    """
    if size not in (*named_encoders(), "demo"):
        raise unknown_name("model", size, (*named_encoders(), "demo"))


def build_model(size: str, recipe: TuneRecipe, names: tuple[str, ...] = ()) -> RecognitionModel:
    """An untrained `RecognitionModel` of a named size for a recipe.

    Args:
        names: Of the classes, where they have names.
    """
    base: EncoderConfig = find_encoder(size) if size != "demo" else VideoMambaConfig(dim=96, depth=4, image_size=64)
    if recipe.pixels % base.patch_size:
        raise UsageError(f"pixels {recipe.pixels}: expected a multiple of the patch size {base.patch_size}")
    video = dataclasses.replace(
        base,
        image_size=recipe.pixels,
        num_frames=recipe.frames,
        num_classes=recipe.classes or 1,
        drop_path=recipe.drop_path,
        pool="cls",
    )
    if isinstance(video, VideoMambaConfig):
        video = dataclasses.replace(video, temporal=recipe.frames > 1)
    return RecognitionModel(RecognitionConfig(video=video, class_names=names))


def sees_time(config: EncoderConfig) -> bool:
    """Whether an encoder tells frames apart, or is one of images."""
    return config.temporal if isinstance(config, VideoMambaConfig) else config.num_frames > 1


def initial_weights(name: str) -> dict[str, Tensor]:
    """Encoder tensors, by our names, of an official model, a run, a model folder or a checkpoint file."""
    path = Path(name)
    if path.is_file():
        state = to_ours(read_checkpoint(path))
    else:
        state = dict(vtr.models.load.load(name, "cpu").state_dict())
    for prefix in ("vision_encoder.", "encoder."):
        if any(k.startswith(prefix) for k in state):
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def load_initial(encoder: VideoEncoder, state: dict[str, Tensor], origin: str) -> list[str]:
    """Load weights of an image, masked, video or video-text model into an encoder with a classifier; strict.

    Positions of other sizes are interpolated as their tensors say; a 2-D patch embedding is put in the middle of the
    tube; a head of other classes and what only pretraining needs are left out.

    Returns:
        Lines that say what is new or was left out.

    Raises:
        VtrError: Anything else is missing, unexpected or of another shape.
    """
    own = encoder.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(("clip_decoder.", "pool_norm."))}
    said = [
        f"{origin}: without {k.split('.')[0]}" for k in sorted({k.split(".")[0] + "." for k in state if k not in kept})
    ]
    if "head.weight" in kept and kept["head.weight"].shape != own["head.weight"].shape:
        said.append(f"{origin}: its head of {len(kept['head.weight'])} classes is left out, the new one is random")
        kept = {k: v for k, v in kept.items() if not k.startswith("head.")}
    elif "head.weight" not in kept:
        said.append(f"{origin}: no head in it, the new one is random")
    if "temporal_pos_embedding" in kept and "temporal_pos_embedding" not in own:
        kept.pop("temporal_pos_embedding")
        said.append(f"{origin}: a video model made an image model, without its temporal positions")
    if "temporal_pos_embedding" in own and "temporal_pos_embedding" not in kept:
        kept["temporal_pos_embedding"] = torch.zeros_like(own["temporal_pos_embedding"])
        said.append(f"{origin}: an image model inflated to {own['temporal_pos_embedding'].shape[1]} frames")
    patch = kept.get("patch_embed.proj.weight")
    tube = own["patch_embed.proj.weight"].shape[2]
    if patch is not None and patch.ndim == 5 and patch.shape[2] == 1 and tube > 1:
        wide = torch.zeros(*patch.shape[:2], tube, *patch.shape[3:], dtype=patch.dtype)
        wide[:, :, tube // 2] = patch[:, :, 0]
        kept["patch_embed.proj.weight"] = wide
    load_official(encoder, kept, origin, optional=("head.",))
    return said


def initialise(model: RecognitionModel, settings: TuneSettings, recipe: TuneRecipe) -> list[str]:
    """Give a model the weights of --init; lines that say what is new or was left out.

    Raises:
        UsageError: The recipe starts from trained weights, and none are given.
    """
    if settings.init is None:
        if recipe.start != "scratch" and not settings.scratch and not settings.dry_run and settings.resume is None:
            raise UsageError(
                f"this recipe starts from {recipe.start}: give it with --init, or --scratch to start from random weights"
            )
        return []
    state = initial_weights(settings.init)
    there, wanted = size_of(state), size_of(model.encoder.state_dict())
    if there and wanted and there != wanted:
        raise UsageError(
            f"{settings.init} has {there[1]} layers of width {there[0]}, --model {settings.model or 'tiny'} has {wanted[1]} of "
            f"{wanted[0]}: name the size of the model that --init gives with --model"
        )
    return load_initial(model.encoder, state, settings.init)


def size_of(state: dict[str, Tensor]) -> tuple[int, int] | None:
    """(width, layers) of an encoder's tensors, None where they do not say."""
    if "cls_token" not in state:
        return None
    layers = {key.split(".")[1] for key in state if key.startswith("layers.")}
    return state["cls_token"].shape[-1], len(layers)
