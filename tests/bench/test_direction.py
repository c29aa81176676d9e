"""Clips and captions that direction negatives are measured with."""

from __future__ import annotations

import torch

from bench.direction import HELD_OUT, TRAINING, draw
from vtr.data.direction import lexicon
from vtr.data.motion import PAIRS, MotionTask

SAMPLES = 400


def test_test_captions_hold_words_that_no_training_caption_has() -> None:
    task = MotionTask(size=16)
    known = {word for caption in draw(task, SAMPLES, 1, TRAINING).captions for word in caption.split()}
    for caption in draw(task, 20, 2, HELD_OUT).captions:
        assert set(caption.split()) - known, caption


def test_a_turned_caption_is_that_of_the_reversal_where_there_is_one() -> None:
    clips = draw(MotionTask(size=16), SAMPLES, 3, TRAINING)
    moving = [i for i, label in enumerate(clips.labels.tolist()) if label in {c for pair in PAIRS for c in pair}]
    assert 200 < len(moving) < SAMPLES
    for i, (said, back) in enumerate(zip(clips.captions, clips.reversals)):
        assert lexicon().turned(said) == (back if i in moving else "")


def test_a_reversed_clip_looks_like_a_clip_of_the_opposite_class() -> None:
    clips = draw(MotionTask(size=16, noise=0.0), 90, 4, TRAINING)
    places = clips.frames.float().mean(2)  # (N, T, S, S)
    rightwards = (clips.labels == 1).nonzero()[:, 0]
    change = (places[rightwards, -1] - places[rightwards, 0]).abs()
    assert (change.sum((1, 2)) > 0).all()
    assert not torch.equal(clips.frames[rightwards], clips.frames[rightwards].flip(1))
