"""The video encoders by name. A new one is a file with its configuration, class and sizes, and a line in FAMILIES."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from vtr.encoders.base import EncoderConfig, VideoEncoder
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMamba, VideoMambaConfig
from vtr.encoders.vit import VIT_SIZES, ViT, ViTConfig
from vtr.errors import UsageError, unknown_name


class Family(NamedTuple):
    """Encoders of one kind."""

    config: type[EncoderConfig]
    encoder: type[VideoEncoder]
    sizes: Mapping[str, EncoderConfig]  # by the name that `--model` takes; no name in two families


DEFAULT = "videomamba"  # of configurations that name no family, as all did when there was one
FAMILIES = {
    "videomamba": Family(VideoMambaConfig, VideoMamba, VIDEOMAMBA_SIZES),
    "vit": Family(ViTConfig, ViT, VIT_SIZES),
}


def named_encoders() -> dict[str, EncoderConfig]:
    """Every size of every family."""
    return {name: config for family in FAMILIES.values() for name, config in family.sizes.items()}


def find_encoder(name: str) -> EncoderConfig:
    """The configuration of this name.

    Raises:
        UsageError: There is none; the nearest is named.
    """
    known = named_encoders()
    if name not in known:
        raise unknown_name("model", name, known)
    return known[name]


def family_of(config: EncoderConfig) -> str:
    """The name of the family that a configuration is of."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_encoder(config: EncoderConfig) -> VideoEncoder:
    """An untrained encoder."""
    return FAMILIES[family_of(config)].encoder(config)


def config_to_dict(config: EncoderConfig) -> dict[str, object]:
    """As plain values for config.json; the default family goes without saying."""
    name = family_of(config)
    return ({} if name == DEFAULT else {"family": name}) | dataclasses.asdict(config)


def config_from_dict(values: object, where: str = "config.json, video") -> EncoderConfig:
    """What `config_to_dict` wrote.

    Args:
        values: The object that the file holds.
        where: It stands, for messages.

    Raises:
        UsageError: It is no object, or names an unknown family or key; the nearest is named.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected an object of sizes, got {values!r}")
    values = dict(values)
    name = values.pop("family", DEFAULT)
    if name not in FAMILIES:
        raise unknown_name(f"family in {where}:", str(name), FAMILIES)
    kind = FAMILIES[name].config
    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise unknown_name(f"key in {where}:", str(key), known)
    return kind(**values)
