"""The generated motion task: what a single frame and a set of frames can tell, by construction."""

from __future__ import annotations

import torch

from vtr.data.motion import CLASSES, PAIRS, MotionTask, shuffled_frames, within_pairs

TASK = MotionTask(size=32, noise=0.0)


def test_clips_are_a_function_of_the_seed_and_every_class_is_as_frequent() -> None:
    clips, labels = TASK.draw(90, 3)
    again, _ = TASK.draw(90, 3)
    assert torch.equal(clips, again)
    assert clips.shape == (90, 8, 3, 32, 32)
    assert labels.bincount().tolist() == [10] * len(CLASSES)


def test_the_middle_frames_show_the_disc_at_rest_in_its_own_colour_whatever_the_class() -> None:
    _, labels, facts = TASK.scenes(900, 0)
    for frame in (3, 4):
        seen = facts[:, frame]
        assert torch.equal(seen, facts[:, 3])
        assert float(seen[:, :2].min()) >= 0.4
        assert float(seen[:, :2].max()) <= 0.6
        for label in range(len(CLASSES)):
            # White and black are the flashes: no class shows them here.
            assert not ((seen[labels == label, 2:] == 1).all(1) | (seen[labels == label, 2:] == 0).all(1)).any()


def test_reversed_classes_have_the_same_set_of_frames() -> None:
    _, labels, facts = TASK.scenes(900, 0)
    moved = facts - facts[:, 3:4]
    for a, b in PAIRS:
        for label, sign in ((a, 1), (b, -1)):
            rows = moved[labels == label]
            assert torch.allclose(rows[..., :2], -rows.flip(1)[..., :2], atol=1e-5), (label, sign)
        if a == 4:
            first, second = facts[labels == a, :, 2], facts[labels == b, :, 2]
            assert bool((first[:, 1] > first[:, 6]).all())
            assert bool((second[:, 1] < second[:, 6]).all())


def test_longer_clips_hold_the_same_action() -> None:
    clips, _, facts = MotionTask(size=32, noise=0.0, frames=32).scenes(9, 0)
    assert clips.shape[1] == 32
    assert facts.shape[1] == 32


def test_shuffling_keeps_the_frames_of_each_clip() -> None:
    clips, _ = TASK.draw(4, 0)
    mixed = shuffled_frames(clips, 0)
    for one, other in zip(clips.flatten(2).float().sum(2), mixed.flatten(2).float().sum(2)):
        assert torch.equal(one.sort().values, other.sort().values)
    assert not torch.equal(clips, mixed)


def test_within_pairs_counts_only_the_choice_between_a_class_and_its_reversal() -> None:
    labels = torch.tensor([0, 1, 6])
    scores = torch.zeros(3, len(CLASSES))
    scores[0, 0] = scores[1, 0] = 1.0  # right, wrong
    assert within_pairs(scores, labels) == 0.5
