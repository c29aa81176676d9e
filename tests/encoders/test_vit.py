"""UMT's encoder: fixed positions, masks, per-frame pooling, drop path; its outputs are in the parity files."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import WORDS, small_model
from vtr.encoders import draws
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.registry import find_encoder
from vtr.encoders.videomamba import sinusoid
from vtr.encoders.vit import ViT, ViTConfig, position_table
from vtr.errors import UsageError
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.recipes import Stage
from vtr.pretrain.step import PretrainStep
from vtr.pretrain.teacher import small_clip

SMALL = ViTConfig(image_size=32, dim=64, depth=3, num_frames=4, heads=4, pool="avg", pool_norm=True)


def vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(dataclasses.replace(SMALL, **changes)).eval()  # type: ignore[arg-type]


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    for name, millions in (("umt_base", 85.637), ("umt_large", 303.074)):
        with torch.device("meta"):
            model = ViT(find_encoder(name))  # type: ignore[arg-type]
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.001)


def test_positions_count_on_from_frame_to_frame_and_are_in_no_checkpoint() -> None:
    table = position_table(3, 2, 2, 2, 64)
    assert torch.equal(table, sinusoid(12, 64))
    assert torch.equal(position_table(1, 2, 2, 2, 64), table[:4])
    assert not [name for name in vit().state_dict() if "pos" in name]


def test_positions_of_other_frames_are_interpolated_along_time_alone() -> None:
    made = position_table(4, 2, 2, 2, 64).unflatten(0, (4, 4))
    longer = position_table(8, 2, 2, 2, 64, 4).unflatten(0, (8, 4))
    torch.testing.assert_close(longer[0], made[0])  # clamped at both ends
    torch.testing.assert_close(longer[7], made[3])
    torch.testing.assert_close(longer[1], 0.75 * made[0] + 0.25 * made[1])


@torch.no_grad()
def test_frames_of_another_size_get_interpolated_positions() -> None:
    assert vit()(torch.randn(1, 2, 3, 48, 64)).tokens.shape == (1, 2 * 3 * 4, 64)


@torch.no_grad()
def test_a_mask_that_drops_nothing_changes_nothing() -> None:
    model, video = vit(align_dim=8, align_layers=2), torch.randn(2, 4, 3, 32, 32)
    masked = model(video, torch.zeros(2, 17, dtype=torch.bool))
    torch.testing.assert_close(masked.tokens, model(video).tokens)
    assert masked.aligned is not None
    assert masked.aligned.shape == (2, 2, 16, 8)
    assert model(video).aligned is None


def test_a_mask_without_the_column_of_cls_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 17\)"):
        vit()(torch.randn(2, 4, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool))


@torch.no_grad()
def test_each_frame_is_pooled_by_itself_when_asked() -> None:
    model, video = vit(pool_norm=False), torch.randn(2, 4, 3, 32, 32)
    out = model(video, keep_temporal=True)
    torch.testing.assert_close(out.pooled, out.tokens.unflatten(1, (4, 4)).mean(2))
    torch.testing.assert_close(out.cls, out.tokens.mean(1))


def test_drop_path_is_tied_to_rows_and_grows_with_depth() -> None:
    model, video = vit().train(), torch.randn(6, 2, 3, 32, 32)
    model.set_drop_path(0.5)
    assert [block.drop1.rate for block in model.blocks] == [0, 0.25, 0.5]
    seeds = torch.arange(6)
    with draws.rows(seeds):
        whole = model(video).tokens
    with draws.rows(seeds[2:4]):
        part = model(video[2:4]).tokens
    torch.testing.assert_close(whole[2:4], part, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, model.eval()(video).tokens)


def test_recomputed_activations_give_the_same_gradients() -> None:
    video, found = torch.randn(2, 4, 3, 32, 32), []
    for checkpointing in (False, True):
        model = vit(drop_path=0.3, checkpointing=checkpointing).train()
        with draws.rows(torch.arange(2)):
            model(video).tokens.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 30
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("changes", "says"), [({"heads": 5}, "5 heads"), ({"pool": "cls"}, "no CLS token")])
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        vit(**changes)


def test_a_teacher_at_its_own_resolution_resizes_without_antialiasing() -> None:
    torch.manual_seed(0)
    clip = small_clip(32, 16, 50, 16, 0).eval()
    frames = torch.randn(2, 2, 3, 48, 48)
    small = F.interpolate(frames.flatten(0, 1), (32, 32), mode="bicubic", align_corners=False).unflatten(0, (2, 2))
    own = ClipTeacher.from_open_clip(clip, post_norm=True, image_size=32)
    other = ClipTeacher.from_open_clip(clip, post_norm=True)
    torch.testing.assert_close(own(frames).tokens, other(small).tokens)
    plain = ClipTeacher.from_open_clip(clip, image_size=32)
    assert plain(frames).tokens.shape == own(frames).tokens.shape == (2, 1 + 2 * 4, 64)
    assert not torch.allclose(plain(frames).tokens, own(frames).tokens)


def test_it_is_trained_by_the_same_step_as_every_encoder() -> None:
    torch.manual_seed(0)
    like = small_model()
    video = dataclasses.replace(SMALL, dim=32, align_dim=64, align_layers=2)
    model = VideoTextModel(dataclasses.replace(like.config, video=video), like.tokenizer).train()
    teacher = ClipTeacher.from_open_clip(small_clip(32, 16, 50, 16, 0), post_norm=True)
    stage = Stage(mask="attention", video_mask_ratio=0.5, uta=1.0, vtc=1.0, vtm=1.0, mlm=1.0)
    step = PretrainStep(model, stage)
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    frames = torch.randint(0, 255, (4, 4, 3, 32, 32), dtype=torch.uint8)
    losses = []
    for number in range(8):
        optimizer.zero_grad(set_to_none=True)
        found = step(frames, WORDS, torch.arange(4), [{}] * 4, teacher, number)
        assert set(found) >= {"uta", "vtc", "vtm", "mlm"}
        optimizer.step()
        losses.append(float(found["uta"]))
    assert losses[-1] < losses[0]
