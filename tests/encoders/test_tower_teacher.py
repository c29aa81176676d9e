"""Modern image towers as teachers: tokens after the final norm, masks from the pool, their own side and pixel statistics."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.tower_teacher import TowerTeacher
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.encoders.vit import ViTConfig
from vtr.pretrain.teacher import small_clip

HALF = (0.5, 0.5, 0.5)
TOWERS = {
    "SigLIP": ("vit_base_patch32_siglip_256", 32, 0),
    "PE-Core": ("vit_pe_core_tiny_patch16_384", 16, 1),
    "EVA": ("eva02_base_patch16_clip_224", 16, 1),
}


def tower(kind: str) -> nn.Module:
    """A random tower of this kind, two layers of 48 channels."""
    torch.manual_seed(0)
    return timm.create_model(TOWERS[kind][0], embed_dim=48, depth=2, num_heads=4, num_classes=0)


def teacher(kind: str, student: VideoMambaConfig | ViTConfig, mean: tuple[float, ...] = HALF) -> TowerTeacher:
    built = TowerTeacher(tower(kind), TOWERS[kind][1], HALF, HALF)
    built.fit(student, mean, HALF)
    return built


@pytest.mark.parametrize("kind", TOWERS)
def test_the_tokens_are_the_towers_own_at_the_side_that_gives_the_students_grid(kind: str) -> None:
    guide = teacher(kind, VideoMambaConfig(image_size=64))
    frames = torch.randn(2, 3, 3, 64, 64)
    out = guide(frames, 2)
    side, prefix = 4 * TOWERS[kind][1], TOWERS[kind][2]
    images = frames.flatten(0, 1)
    if side != 64:
        images = F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
    own = tower(kind).eval()
    own.set_input_size((side, side))  # type: ignore[operator]
    with torch.no_grad():
        known = own.forward_features(images)  # type: ignore[operator]
    assert (guide.width, guide.depth, out.layers.shape) == (48, 2, (2, 2, 1 + 3 * 16, 48))
    torch.testing.assert_close(out.tokens[:, 1:].reshape(6, 16, 48), known[:, prefix:])
    whole = known[:, 0] if prefix else known.mean(1)
    torch.testing.assert_close(out.tokens[:, 0], whole.unflatten(0, (2, 3)).mean(1))
    assert not torch.allclose(out.layers[0], out.layers[1])
    assert torch.equal(guide(frames).layers[0], out.layers[1])  # of one layer: the last
    assert not any(p.requires_grad for p in guide.parameters())


@pytest.mark.parametrize("kind", ["SigLIP", "PE-Core"])
def test_masks_are_drawn_by_the_attention_of_the_pool(kind: str) -> None:
    guide = teacher(kind, VideoMambaConfig(image_size=64))
    pool = guide.tower.get_submodule("attn_pool")
    seen: list[torch.Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: object) -> torch.Tensor:
        weights = sdpa(q, k, torch.eye(k.shape[2]).expand(*k.shape[:3], -1))  # values that give the weights back
        seen.append(weights.mean((1, 2)))
        return sdpa(q, k, v)

    frames = torch.randn(1, 2, 3, 64, 64)
    found = guide(frames).attention
    side = guide.image_size
    images = F.interpolate(frames[0], (side, side), mode="bicubic", align_corners=False) if side != 64 else frames[0]
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        tokens = guide.tower.forward_features(images)  # type: ignore[operator]
        patched.setattr(F, "scaled_dot_product_attention", watched)
        pool(tokens)
    torch.testing.assert_close(found, seen[-1][:, TOWERS[kind][2] :])


def test_a_tower_without_a_pool_has_no_attention_to_give() -> None:
    guide = teacher("EVA", VideoMambaConfig(image_size=64))
    assert not guide.attends
    assert guide(torch.randn(1, 1, 3, 64, 64)).attention.numel() == 0


def test_frames_normalised_for_the_student_are_seen_with_the_towers_statistics() -> None:
    pixels = torch.rand(1, 1, 3, 64, 64)
    mean = (0.4, 0.3, 0.2)
    same, other = (
        teacher("PE-Core", VideoMambaConfig(image_size=64)),
        teacher("PE-Core", ViTConfig(image_size=64), mean),
    )
    ours = (pixels - torch.tensor(mean).view(3, 1, 1)) / 0.5
    torch.testing.assert_close(other(ours).tokens, same((pixels - 0.5) / 0.5).tokens, rtol=1e-3, atol=1e-4)


def test_training_mode_does_not_reach_the_tower() -> None:
    guide = teacher("PE-Core", VideoMambaConfig(image_size=64))
    guide.train()
    assert not guide.tower.training


def test_clip_is_aligned_after_its_last_norm_with_a_student_without_cls_alone() -> None:
    clip = ClipTeacher.from_open_clip(small_clip(32, 14, 50, 16, 0))
    clip.fit(ViTConfig(image_size=64), HALF, HALF)
    assert (clip.post_norm, clip.image_size) == (True, 56)
    clip.fit(VideoMambaConfig(image_size=64), HALF, HALF)
    assert not clip.post_norm
