"""Other students and other teachers through the same run: UMT's encoder, modern towers, what does not go together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from torch import nn

import vtr
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.tower_teacher import TowerTeacher
from vtr.encoders.vit import VIT_SIZES, ViTConfig
from vtr.errors import UsageError
from vtr.pretrain.recipes import recipe
from vtr.pretrain.resolve import resolve
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.teacher import teacher_of
from vtr.pretrain.train import train

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TIMM = {"timm_model_pretrained": False, "timm_pool": "map"}
TOWERS = {
    "PE": {**TIMM, "image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_proj": None},
    "SigLIP2": {**TIMM, "image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256", "timm_proj": "none"},
}


@pytest.fixture
def reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Random weights of an open_clip model with a timm tower of two layers, as what `--teacher` takes."""
    create = timm.create_model
    small = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **{**more, **small}))

    def make(kind: str) -> str:
        config = {"embed_dim": 48, "vision_cfg": TOWERS[kind], "text_cfg": TEXT, "custom_text": True}
        (tmp_path / f"vtr-{kind}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"vtr-{kind}.json")
        torch.manual_seed(0)
        torch.save(open_clip.create_model(f"vtr-{kind}").state_dict(), tmp_path / f"{kind}.pt")
        return f"vtr-{kind}/{tmp_path / kind}.pt"

    return make


def settings(root: Path, out: Path, *more: str, **changes: object) -> RunSettings:
    values = {
        "corpus": "demo", "data_root": root, "out": out, "demo_clips": 96, "demo_images": 48, "workers": 0, "threads": 1,
        "log_every": 1, "steps": 1, "set": ("warmup.steps=0", "batch_size=8", *more),
    }  # fmt: skip
    return RunSettings(**{**values, **changes})  # type: ignore[arg-type]


def losses(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("kind", TOWERS)
def test_a_masked_stage_learns_from_a_modern_tower_and_resumes(
    kind: str, reduced: Callable[[str], str], demo_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    given = settings(demo_root, out, stage="masked", teacher=reduced(kind), steps=12, save_every=6)
    train(given)
    rows = losses(out)
    assert rows[-1]["uta"] < rows[0]["uta"]
    assert vtr.load(out, "cpu").config.video.align_dim == 48
    (out / "checkpoints" / "step-00000012.pt").unlink()
    train(dataclasses.replace(given, resume="latest"))
    assert [row["step"] for row in losses(out)] == list(range(1, 13))
    assert losses(out)[-1]["uta"] == pytest.approx(rows[-1]["uta"], rel=1e-4)


def test_a_stage_that_needs_no_teacher_goes_on_at_the_width_of_the_one_before(
    reduced: Callable[[str], str], demo_root: Path, tmp_path: Path
) -> None:
    given = settings(demo_root, tmp_path / "run", "stages=['multimodal','unmasked']", teacher=reduced("PE"))
    given = dataclasses.replace(given, set=(*given.set[:2], 'stages=["multimodal","unmasked"]'), save_every=1)
    train(given)
    (tmp_path / "run" / "checkpoints" / "step-00000002.pt").unlink()
    train(dataclasses.replace(given, resume="latest", accept_changes=False))
    assert vtr.load(tmp_path / "run", "cpu").config.video.align_dim == 48


def test_umts_encoder_is_trained_by_all_stages_of_a_recipe(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ViTConfig(image_size=64, dim=64, depth=3, num_frames=4, pool="avg", align_layers=6)
    monkeypatch.setitem(VIT_SIZES, "umt_base", small)
    out = tmp_path / "run"
    train(settings(demo_root, out, "align_layers=2", model="umt_base", text="scratch", checkpointing=True))
    rows = losses(out)
    assert [row["stage"] for row in rows] == list(recipe("clean", "demo").stages)
    assert rows[0]["uta"] > 0
    model = vtr.load(out, "cpu")
    assert isinstance(model.config.video, ViTConfig)
    assert (model.config.video.align_layers, model.config.video.pool_norm) == (2, True)


def test_umts_students_are_aligned_in_six_layers_unless_told_otherwise() -> None:
    assert resolve(RunSettings(corpus="5M", model="umt_large"))[0].align_layers == 6
    assert resolve(RunSettings(corpus="5M", model="umt_large", set=("align_layers=2",)))[0].align_layers == 2
    assert resolve(RunSettings(corpus="5M", model="middle"))[0].align_layers == 1


def test_a_tower_without_attention_is_told_to_be_masked_without(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = timm.create_model("eva02_base_patch16_clip_224", embed_dim=48, depth=2, num_heads=4, num_classes=0)
    half = (0.5, 0.5, 0.5)
    monkeypatch.setattr("vtr.pretrain.train.load_teacher", lambda _: TowerTeacher(tower, 16, half, half))
    given = settings(demo_root, tmp_path / "run", stage="masked", teacher="EVA/x")
    with pytest.raises(UsageError, match=r"no attention that masks could be drawn from.*--set mask=tube"):
        train(given)
    train(dataclasses.replace(given, set=(*given.set, "mask=tube")))
    assert losses(tmp_path / "run")[0]["uta"] > 0


def test_a_tower_that_is_no_vision_transformer_is_refused() -> None:
    vision = {"image_size": 64, "timm_model_name": "fastvit_mci0", "timm_model_pretrained": False, "timm_pool": "avg"}
    mobile = open_clip.CustomTextCLIP(16, vision | {"timm_proj": None}, TEXT)  # as MobileCLIP2 is
    resnet = open_clip.CLIP(16, {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32}, TEXT)
    for model in (mobile, resnet):
        with pytest.raises(UsageError, match=r"--teacher x: its image tower \(\w+\) gives no patch tokens"):
            teacher_of(model, "x")


def test_the_tower_of_openai_stays_the_released_teacher() -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    plain: nn.Module = open_clip.CLIP(16, vision, TEXT)
    assert isinstance(teacher_of(plain, "x"), ClipTeacher)
