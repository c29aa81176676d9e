"""Flags settled before anything is built: names, numbers, stages without a teacher."""

from __future__ import annotations

import pytest

from vtr.errors import UsageError
from vtr.pretrain.recipes import recipe
from vtr.pretrain.resolve import resolve
from vtr.pretrain.settings import RunSettings


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"set": ("multimodal.mask=tub",)}, "'tube'"),
        ({"set": ("init=clear",)}, "clean"),
        ({"set": ("masked.video_mask_ratio=1.5",)}, "masked.video_mask_ratio 1.5"),
        ({"set": ("unmasked.vtc=-1",)}, "weight"),
        ({"set": ("unmasked.vtc=0", "unmasked.vtm=0", "unmasked.mlm=0", "unmasked.text=0")}, "no objective"),
        ({"set": ("batch_size=0",)}, "batch_size 0"),
        ({"precision": "fp64"}, "fp32"),
        ({"model": "tinny"}, "tiny"),
        ({"text": "bret"}, "bert"),
        ({"stage": "maksed"}, "masked"),
        ({"threads": -1}, "--threads -1"),
        ({"log_every": -1}, "--log-every -1"),
        ({"validate_samples": 0}, "--validate-samples 0"),
        ({"validate": "msrvtt"}, "--validate-every"),
        ({"teacher": "none"}, "masked stage only aligns"),
    ],
)
def test_what_means_nothing_is_refused_at_start(flags: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        resolve(RunSettings(corpus="demo", **flags))
    assert "\n" not in str(error.value)


def test_only_the_stages_that_run_are_judged() -> None:
    resolve(RunSettings(corpus="demo", stage="unmasked", set=("multimodal.mask=tub",)))


def test_without_a_teacher_the_multimodal_stage_runs_without_alignment_and_masks() -> None:
    chosen, stages = resolve(RunSettings(corpus="demo", stage="multimodal", teacher="none"))
    before = recipe("clean", "demo").multimodal
    assert (before.uta, before.mask) == (0.5, "attention")
    assert (chosen.multimodal.uta, chosen.multimodal.mask) == (0.0, "none")
    assert chosen.multimodal.vtc == before.vtc
    assert stages == ("multimodal",)
