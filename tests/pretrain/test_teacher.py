"""The CLIP teacher's weights: which activation they are loaded with, and names that mean nothing."""

from __future__ import annotations

import pytest

from vtr.errors import UsageError, VtrError
from vtr.pretrain.teacher import load_teacher


@pytest.mark.parametrize(("name", "wanted"), [("ViT-B-16/openai", True), ("ViT-B-16/laion2b_s34b_b88k", False)])
def test_openai_weights_are_built_with_their_own_activation(name, wanted, monkeypatch):
    import open_clip

    asked = {}

    def create_model(*args, **options):
        asked.update(options)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(VtrError, match="stop here"):
        load_teacher(name)
    assert asked["force_quick_gelu"] is wanted
    assert asked["require_pretrained"]
    assert asked["weights_only"]


def test_a_teacher_without_weights_is_refused():
    with pytest.raises(UsageError, match="names no weights"):
        load_teacher("ViT-B-16")


def test_an_unknown_teacher_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="ViT-B-16"):
        load_teacher("ViT-B-61/openai")


def test_missing_weights_name_the_file_its_place_and_the_ways_without(monkeypatch):
    import open_clip

    def create_model(*args, **options):
        raise RuntimeError("Failed to download weights from the HF Hub")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(VtrError) as error:
        load_teacher("ViT-B-16/openai")
    said = str(error.value)
    for words in (
        "open_clip_model.safetensors",
        "models--timm--vit_base_patch16_clip_224.openai",
        "hf download timm/vit_base_patch16_clip_224.openai",
        "--teacher none",
    ):
        assert words in said
    assert "\n" not in said
