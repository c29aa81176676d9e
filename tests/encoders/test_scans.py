"""Scan orders: permutations that come back, masks, shapes; spatial-first moves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vtr.encoders import scans, videomamba
from vtr.encoders.masking import make_mask
from vtr.encoders.scans import SCANS, layer_orders, permuted, temporal_first
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import UsageError

SMALL = VideoMambaConfig(image_size=32, dim=32, depth=4, num_frames=3, align_dim=8, num_classes=5)


@pytest.mark.parametrize(("frames", "patches"), [(3, 4), (1, 6), (5, 1), (4, 9)])
def test_temporal_first_is_by_patch_then_frame_and_comes_back(frames: int, patches: int) -> None:
    tokens = torch.randn(2, 1 + frames * patches, 7)
    order = temporal_first(frames, patches, tokens.device)
    turned = permuted(tokens, order.forth)
    assert torch.equal(turned[:, 0], tokens[:, 0])  # CLS stays
    grid = tokens[:, 1:].unflatten(1, (frames, patches))
    assert torch.equal(turned[:, 1:], grid.transpose(1, 2).flatten(1, 2))
    assert torch.equal(permuted(turned, order.back), tokens)


def test_with_masks_the_visible_tokens_keep_their_temporal_first_order_and_come_back() -> None:
    mask = make_mask("random", 3, 4, 2, 3, 0.5, torch.Generator().manual_seed(0))
    tokens = torch.arange(25).expand(3, -1)[~mask].view(3, -1, 1).float()
    order = temporal_first(4, 6, tokens.device, mask)
    turned = permuted(tokens, order.forth)
    for row in turned[:, 1:, 0].long() - 1:
        keys = [(int(i) % 6, int(i) // 6) for i in row]
        assert keys == sorted(keys)
    assert torch.equal(permuted(turned, order.back), tokens)


@pytest.mark.parametrize("scan", SCANS)
def test_every_scan_has_the_same_parameters_and_outputs_in_spatial_order(scan: str) -> None:
    torch.manual_seed(0)
    reference = VideoMamba(SMALL)
    model = VideoMamba(replace(SMALL, scan=scan))
    model.load_state_dict(reference.state_dict())
    video = torch.randn(2, 3, 3, 32, 32)
    mask = make_mask("tube", 2, 3, 2, 2, 0.5, torch.Generator().manual_seed(0))
    out = model(video, mask)
    assert out.tokens.shape == (2, 6, 32)
    assert out.aligned is not None
    assert torch.isfinite(out.aligned).all()
    # Whatever the order of the scan, each position keeps its own token: with mixers off, all scans agree.
    for net in (model, reference):
        for layer in net.layers:
            torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    assert torch.allclose(model(video).tokens, reference(video).tokens, atol=1e-6)


def test_scans_differ_but_agree_on_a_single_frame() -> None:
    torch.manual_seed(0)
    reference = VideoMamba(SMALL).eval()
    for scan in list(SCANS)[1:]:
        model = VideoMamba(replace(SMALL, scan=scan)).eval()
        model.load_state_dict(reference.state_dict())
        clip = torch.randn(1, 3, 3, 32, 32)
        assert not torch.allclose(model.classify(clip), reference.classify(clip), atol=1e-5)
        assert torch.allclose(model.classify(clip[:, :1]), reference.classify(clip[:, :1]), atol=1e-6)


def test_temporal_first_equals_spatial_first_of_a_video_with_time_and_place_exchanged() -> None:
    # Four frames of four patches in a row: the grid of times and places turned over, the scans change roles.
    mixer = videomamba.BiMamba(SMALL)
    tokens = torch.randn(1, 17, 32)
    order = temporal_first(4, 4, tokens.device)
    exchanged = torch.cat([tokens[:, :1], tokens[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)], 1)
    assert torch.allclose(mixer(mixer.in_proj(permuted(tokens, order.forth))), mixer(mixer.in_proj(exchanged)))


def test_spatial_first_never_permutes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("spatial-first moved tokens")

    monkeypatch.setattr(videomamba, "permuted", forbidden)
    monkeypatch.setattr(videomamba, "temporal_first", forbidden)
    VideoMamba(SMALL).classify(torch.randn(1, 3, 3, 32, 32))
    with pytest.raises(AssertionError):
        VideoMamba(replace(SMALL, scan="temporal")).classify(torch.randn(1, 3, 3, 32, 32))


def test_the_mixed_scans_use_the_orders_they_are_named_for() -> None:
    assert layer_orders("spatial_temporal", 4) == ("spatial", "spatial", "temporal", "temporal")
    assert layer_orders("temporal_spatial", 4) == ("temporal", "temporal", "spatial", "spatial")
    assert layer_orders("alternating", 3) == ("spatial", "temporal", "spatial")
    with pytest.raises(UsageError, match="did you mean 'temporal'"):
        layer_orders("tempora", 4)
    assert scans.SCANS["spatial"][1] == 65.1


def test_checkpointing_changes_nothing_in_any_scan() -> None:
    for scan in ("spatiotemporal_v1", "alternating"):
        torch.manual_seed(0)
        model = VideoMamba(replace(SMALL, scan=scan)).train()
        clip = torch.randn(1, 3, 3, 32, 32)
        grads = []
        for checkpointing in (False, True):
            model.checkpointing = checkpointing
            model.zero_grad()
            model.classify(clip).sum().backward()
            grads.append(model.patch_embed.proj.weight.grad.clone())
        assert torch.allclose(*grads, atol=1e-6)
