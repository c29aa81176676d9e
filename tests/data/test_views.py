"""Views of a labelled clip: the released samplers, reading, crops, augmentation, mixing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtr.data.labels import load_split
from vtr.data.views import Augment, crop_views, mix, read_item, sample_test, sample_train
from vtr.errors import UsageError


@pytest.mark.parametrize("name", ["img_{:05d}.jpg", "{}.jpg"])
def test_raw_frames_are_a_folder_of_pictures(name: str, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "._x.jpg").touch()
    for i in range(11):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / "clip" / name.format(i), quality=100)
    (tmp_path / "train.csv").write_text("clip 5 7\n")
    item = load_split("ssv2", tmp_path, "train").items[0]
    assert item.label == 7
    frames = read_item(item, lambda n: [0, n - 1])
    assert frames.shape == (2, 3, 8, 8)
    assert frames.float().mean((1, 2, 3)).tolist() == pytest.approx([0, 200], abs=2)


def test_the_kinetics_sampler_follows_the_released_index_table() -> None:
    # n 300, 8 frames: seg = 37.375
    assert sample_test("segments", 300, 8, 0, 1) == [18, 55, 93, 130, 168, 205, 242, 280]
    assert sample_test("segments", 300, 8, 0, 4) == [7, 44, 82, 119, 157, 194, 231, 269]
    assert sample_test("segments", 300, 8, 3, 4)[-1] == 291
    rng = np.random.default_rng(0)
    draws = np.array([sample_train("segments", 300, 8, rng) for _ in range(300)])
    borders = [round(299 / 8 * i) for i in range(9)]
    assert (draws >= borders[:-1]).all()
    assert (draws <= borders[1:]).all()
    assert sample_train("segments", 1, 4, rng) == [0, 0, 0, 0]


def test_the_ssv2_sampler_follows_the_released_index_table() -> None:
    # n 40, 8 frames: tick 5; clip 0 at the starts, clip 1 in the middles, validation in the middles.
    assert sample_test("ssv2", 40, 8, 0, 2) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert sample_test("ssv2", 40, 8, 1, 2) == sample_test("ssv2", 40, 8, 0, 1) == [2, 7, 12, 17, 22, 27, 32, 37]
    found = sample_train("ssv2", 5, 8, np.random.default_rng(0))
    assert found == sorted(found)
    assert max(found) < 5


def test_test_crops_lie_along_the_longer_side() -> None:
    frames = torch.zeros(2, 3, 40, 80, dtype=torch.uint8)
    frames[..., 40:] = 200
    views = crop_views(frames, 20, 3)
    assert views.shape == (3, 2, 3, 20, 20)
    means = views.float().mean((1, 2, 3, 4)).tolist()
    assert means[0] == 0
    assert means[1] == pytest.approx(100, abs=6)
    assert means[2] == 200
    assert torch.equal(crop_views(frames, 20, 1)[0], views[1])


def test_augmentation_is_a_function_of_the_seed_and_the_same_for_all_frames() -> None:
    frame = torch.randint(0, 255, (1, 3, 40, 60), dtype=torch.uint8)
    frames = frame.expand(3, -1, -1, -1).contiguous()
    augment = Augment(
        24, policy="rand-m7-n4-mstd0.5-inc1", order="augment first", scale=(0.2, 1.0), flip=True, erase=0.0
    )
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    before = torch.get_rng_state()
    one, again, other = (augment(frames, seed, mean, std) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[0], one[2])
    erase = Augment(24, policy="", order="crop first", scale=(1.0, 1.0), flip=False, erase=1.0)
    clip = erase(torch.zeros_like(frames), 0, mean, std)
    boxes = (clip != 0).any(1)
    assert bool(boxes.any())
    assert torch.equal(boxes[0], boxes[1])  # one box,
    assert not torch.equal(clip[0], clip[1])  # noise of its own
    with pytest.raises(UsageError, match="not an augmentation"):
        Augment(24, policy="random-m7", order="crop first", scale=(1.0, 1.0), flip=False, erase=0.0)


def test_mixing_keeps_targets_distributions_and_is_off_where_asked() -> None:
    clips, labels = torch.rand(4, 2, 3, 8, 8), torch.tensor([0, 1, 2, 2])
    mixed, target = mix(clips, labels, 5, mixup=0.8, cutmix=1.0, seed=0)
    assert mixed.shape == clips.shape
    assert target.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert torch.equal(mix(clips, labels, 5, mixup=0.8, cutmix=1.0, seed=0)[0], mixed)
    same, hard = mix(clips, labels, 5, mixup=0.0, cutmix=0.0, seed=0)
    assert same is clips
    assert hard.argmax(1).tolist() == labels.tolist()
