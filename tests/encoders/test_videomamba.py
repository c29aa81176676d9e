"""VideoMamba: sizes, positions, masks, recipes, parity with the official implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vtr.encoders.masking import KINDS, make_mask
from vtr.encoders.official import load_official, read_checkpoint
from vtr.encoders.parity import compare, main
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMamba, VideoMambaConfig
from vtr.errors import UsageError, VtrError

SMALL = VideoMambaConfig(image_size=32, dim=32, depth=3, num_frames=4, pool_norm=True, align_dim=8)


def millions(config: VideoMambaConfig) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in VideoMamba(config).parameters()) / 1e6


@pytest.mark.parametrize(
    ("size", "image", "video"),
    [("tiny", 7.148, 7.034), ("small", 25.797, 25.569), ("middle", 74.217, 73.876), ("base", 97.598, None)],
)
def test_parameter_counts_are_the_published_ones(size: str, image: float, video: float | None) -> None:
    config = VIDEOMAMBA_SIZES[size]
    assert millions(replace(config, num_classes=1000, temporal=False, num_frames=1)) == pytest.approx(image, abs=5e-4)
    if video is not None:
        assert millions(replace(config, num_classes=400)) == pytest.approx(video, abs=5e-4)


def test_outputs_match_the_official_implementation(shared: Path) -> None:
    for path in sorted((shared / "official_parity").glob("*.safetensors")):
        errors = compare(path)
        assert errors
        assert max(errors.values()) < 1e-4, (path.name, errors)


def test_parity_of_a_file_that_is_none_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no")
    assert main([str(path)]) == 1
    assert "x.safetensors" in capsys.readouterr().err


def test_a_masked_sequence_keeps_the_visible_tokens_and_aligns_them() -> None:
    torch.manual_seed(0)
    encoder = VideoMamba(SMALL)
    mask = make_mask("tube", 2, 4, 2, 2, 0.5, torch.Generator().manual_seed(0))
    out = encoder(torch.randn(2, 4, 3, 32, 32), mask)
    assert out.tokens.shape == (2, 8, 32)
    assert out.aligned is not None
    assert out.aligned.shape == (1, 2, 9, 8)


def test_pooling_by_frame_and_by_clip() -> None:
    encoder = VideoMamba(SMALL).eval()
    video = torch.randn(2, 4, 3, 32, 32)
    assert encoder(video, keep_temporal=True).pooled.shape == (2, 4, 32)
    assert encoder(video).pooled.shape == (2, 1, 32)


def test_a_stem_makes_each_token_of_its_own_patch_alone() -> None:
    torch.manual_seed(0)
    model = VideoMamba(replace(SMALL, stem=8))
    video = torch.randn(1, 2, 3, 32, 32)
    other = video.clone()
    other[:, :, :, 16:, :16] += 1
    changed = (model.patch_embed(video) != model.patch_embed(other)).any(2)[0]  # (T, h, w)
    assert changed.tolist() == [[[False, False], [True, False]]] * 2
    with pytest.raises(UsageError, match="multiple of 4"):
        VideoMamba(replace(SMALL, stem=8, patch_size=14))


def test_other_sizes_frame_counts_and_images_are_accepted() -> None:
    encoder = VideoMamba(SMALL).eval()
    for frames, h, w in ((1, 32, 32), (7, 32, 32), (4, 48, 64), (2, 64, 16)):
        out = encoder(torch.randn(1, frames, 3, h, w))
        assert out.tokens.shape[1] == frames * (h // 16) * (w // 16)
        assert torch.isfinite(out.tokens).all()


def test_interpolating_to_the_own_size_changes_nothing() -> None:
    encoder = VideoMamba(SMALL)
    assert encoder._spatial(2, 2) is encoder.pos_embed
    assert encoder._temporal(4) is encoder.temporal_pos_embedding


def test_drop_path_is_a_linear_rule() -> None:
    encoder = VideoMamba(replace(SMALL, drop_path=0.4))
    assert [layer.drop_path for layer in encoder.layers] == pytest.approx([0.0, 0.2, 0.4])


def test_the_two_recipes_differ_in_dt_and_in_what_is_aligned() -> None:
    official, clean = VideoMamba(replace(SMALL, init="official")), VideoMamba(SMALL)
    assert (official.layers[0].mixer.dt_proj.bias == 0).all()
    step = torch.nn.functional.softplus(clean.layers[0].mixer.dt_proj.bias)
    assert (step > 9e-4).all()
    assert (step < 0.11).all()
    mask = torch.zeros(1, 17, dtype=torch.bool)
    for encoder, trained in ((official, False), (clean, True)):
        encoder.zero_grad()
        aligned = encoder(torch.randn(1, 4, 3, 32, 32), mask).aligned
        assert aligned is not None
        aligned.square().sum().backward()
        gradient = encoder.layers[-1].mixer.out_proj.weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) is trained


@pytest.mark.parametrize(
    ("kind", "visible"), [("random", 314), ("tube", 320), ("frame_row", 336), ("clip_row", 336), ("attention", 320)]
)
def test_masks_leave_the_published_number_of_tokens_and_repeat_by_seed(kind: str, visible: int) -> None:
    attention = torch.rand(3 * 8, 196)
    masks = [make_mask(kind, 3, 8, 14, 14, 0.8, torch.Generator().manual_seed(s), attention) for s in (1, 1, 2)]
    assert masks[0].shape == (3, 1 + 1568)
    assert ((~masks[0][:, 1:]).sum(1) == visible).all()
    assert not masks[0][:, 0].any()
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_row_masks_drop_whole_rows_and_tube_masks_the_same_patches_in_every_frame() -> None:
    g = torch.Generator().manual_seed(0)
    rows = make_mask("frame_row", 2, 4, 6, 5, 0.5, g)[:, 1:].view(2, 4, 6, 5)
    assert (rows.all(-1) == rows.any(-1)).all()
    assert (rows.all(-1).sum(-1) == 3).all()
    clip = make_mask("clip_row", 2, 4, 6, 5, 0.5, g)[:, 1:].view(2, 4, 6, 5)
    assert (clip.all(-1).sum((1, 2)) == 12).all()
    tube = make_mask("tube", 2, 4, 6, 5, 0.5, g)[:, 1:].view(2, 4, 30)
    assert (tube == tube[:, :1]).all()


def test_attention_masks_favour_what_the_teacher_looks_at() -> None:
    attention = torch.full((64, 16), 0.01)
    attention[:, :4] = 1.0
    mask = make_mask("attention", 64, 1, 4, 4, 0.75, torch.Generator().manual_seed(0), attention)[:, 1:]
    assert (~mask[:, :4]).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["att", "rows", ""])
def test_an_unknown_mask_is_refused(kind: str) -> None:
    assert kind not in KINDS
    with pytest.raises(UsageError):
        make_mask(kind, 1, 1, 2, 2, 0.5, torch.Generator())


@pytest.mark.parametrize("wrapper", [None, "model", "module"])
def test_a_checkpoint_of_another_frame_count_loads_in_every_published_shape(
    wrapper: str | None, tmp_path: Path
) -> None:
    source = VideoMamba(replace(SMALL, num_frames=8, image_size=64))
    state = {
        k.replace("norm.weight", "norm_f.weight") if k == "norm.weight" else k: v
        for k, v in source.state_dict().items()
    }
    torch.save({wrapper: state} if wrapper else state, tmp_path / "x.pth")
    target = VideoMamba(SMALL)
    load_official(target, read_checkpoint(tmp_path / "x.pth"))
    assert torch.equal(target.layers[1].mixer.A_b_log, source.layers[1].mixer.A_b_log)
    assert torch.equal(target.norm.weight, source.norm.weight)


def test_a_checkpoint_with_a_missing_or_foreign_tensor_is_refused(tmp_path: Path) -> None:
    state = VideoMamba(SMALL).state_dict()
    del state["layers.0.mixer.A_log"]
    with pytest.raises(VtrError, match="A_log is missing"):
        load_official(VideoMamba(SMALL), state)
    with pytest.raises(VtrError, match="unexpected"):
        load_official(VideoMamba(SMALL), {**VideoMamba(SMALL).state_dict(), "surprise": torch.zeros(1)})
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(VtrError, match=r"cut\.pth"):
        read_checkpoint(tmp_path / "cut.pth")
