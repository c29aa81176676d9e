"""Frame transforms: the resize of the test protocol, and crops and flips shared by all frames of a clip."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import InterpolationMode, resize

from vtr.data.transforms import crop_box, eval_frames, train_frames


def noise(t: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(90, 130), (20, 31), (1, 1), (32, 57)])
def test_the_resize_is_that_of_torchvision(height: int, width: int, antialias: bool) -> None:
    frames = noise(3, height, width)
    # In float, as torchvision 0.16 did on uint8 input: later versions take a coarser whole-number path on some CPUs.
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    wanted = resize(tensor, [32, 32], InterpolationMode.BICUBIC, antialias=antialias).round().clamp(0, 255).byte()
    assert torch.equal(eval_frames(frames, 32, antialias), wanted)


def test_frames_of_the_right_size_are_not_resampled() -> None:
    frames = noise(2, 32, 32)
    out = eval_frames(frames, 32)
    assert np.array_equal(out.permute(0, 2, 3, 1).numpy(), frames)
    assert out.is_contiguous()
    same = train_frames(frames, 32, np.random.default_rng(0), scale=None, flip=0)
    assert torch.equal(same, out)


def test_overshoot_at_edges_does_not_wrap_round() -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, :, 4:] = 255
    out = eval_frames(frames, 32)[0, 0].int()
    assert (out[:, :12] <= 20).all()
    assert (out[:, -12:] >= 235).all()


def test_large_clips_are_resized_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(5, 40, 50)
    whole = eval_frames(frames, 24)
    monkeypatch.setattr("vtr.data.transforms._CHUNK_BYTES", 40 * 50 * 12 * 2)
    assert torch.equal(eval_frames(frames, 24), whole)


def test_all_frames_of_a_clip_get_the_same_crop_and_flip() -> None:
    frames = np.repeat(noise(1, 60, 80), 4, axis=0)
    for seed in range(8):
        out = train_frames(frames, 32, np.random.default_rng(seed))
        assert out.shape == (4, 3, 32, 32)
        assert all(torch.equal(out[0], other) for other in out[1:])


def test_no_flip_keeps_left_left() -> None:
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, :, :20] = 255
    sides = set()
    for seed in range(20):
        kept = train_frames(frames, 16, np.random.default_rng(seed), scale=(0.9, 1.0), flip=0).float()
        assert kept[..., :4].mean() > kept[..., -4:].mean()
        free = train_frames(frames, 16, np.random.default_rng(seed), scale=(0.9, 1.0), flip=0.5).float()
        sides.add(bool(free[..., :4].mean() > free[..., -4:].mean()))
    assert sides == {True, False}


def test_a_flip_mirrors_every_frame() -> None:
    frames = noise(2, 16, 16)
    out = train_frames(frames, 16, np.random.default_rng(0), scale=None, flip=1.0)
    assert np.array_equal(out.permute(0, 2, 3, 1).numpy(), frames[:, :, ::-1])


@pytest.mark.parametrize(("height", "width"), [(240, 320), (1, 1), (10, 900), (900, 10)])
def test_crops_lie_inside_and_keep_to_their_share(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        top, left, h, w = crop_box(height, width, rng)
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        assert h >= 1
        assert w >= 1
        if (height, width) == (240, 320):
            assert 0.49 < h * w / (240 * 320) <= 1.0
            assert 0.74 < w / h < 1.35


def test_the_same_seed_gives_the_same_pixels() -> None:
    frames = noise(2, 50, 70)
    first, second = (train_frames(frames, 32, np.random.default_rng(9)) for _ in range(2))
    assert torch.equal(first, second)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8 frames"):
        eval_frames(np.zeros((2, 3, 8, 8), np.uint8), 8)


def test_frames_resized_in_inference_mode_leave_nothing_behind_that_others_cannot_use() -> None:
    frames = np.full((2, 60, 130, 3), 90, np.uint8)
    seen: list[torch.Tensor] = []

    def work() -> None:  # a thread of its own: the room for the floats is one a thread
        with torch.inference_mode():
            seen.append(eval_frames(frames, 32, antialias=False))
        seen.append(eval_frames(frames, 32, antialias=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(*seen)
