"""Recipes, overrides, schedule and parameter groups."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from vtr.errors import UsageError
from vtr.pretrain.optim import build_optimizer, learning_rate, parameter_groups
from vtr.pretrain.recipes import DIFFERENCES, Optim, recipe
from vtr.pretrain.settings import RunSettings
from vtr.settings import apply_overrides, from_mapping, parsed


def test_official_recipe_has_the_published_hyperparameters() -> None:
    r = recipe("official", "5M")
    assert (r.masked.optim.lr, r.masked.optim.betas, r.masked.batch_size) == (1.2e-3, (0.9, 0.95), 2048)
    assert (r.multimodal.optim.lr, r.multimodal.epochs, r.multimodal.mlm_probability) == (4e-4, 10, 0.5)
    assert (r.unmasked.optim.lr, r.unmasked.epochs, r.unmasked.uta) == (8e-5, 1, 0.0)
    assert r.gather_ranks == 16


def test_the_masked_stage_of_a_large_corpus_sees_as_many_clips_as_the_papers_of_a_small_one(tmp_path: Path) -> None:
    r = recipe("clean", "25M")
    assert r.masked.steps * r.masked.batch_size == pytest.approx(800 * 240_436, rel=1e-4)
    own = recipe("clean", str(tmp_path)).masked
    assert (own.steps, own.epochs) == (0, 800)


def test_the_table_of_differences_is_what_the_recipes_do() -> None:
    clean, official = recipe("clean", "5M"), recipe("official", "5M")

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if not dataclasses.is_dataclass(value):
            return {prefix.rstrip("."): value}
        names = [f.name for f in dataclasses.fields(value)]
        return {k: v for n in names for k, v in flat(getattr(value, n), f"{prefix}{n}.").items()}

    ours, theirs = flat(clean), flat(official)
    optional = ("refine.", "matching.")  # stages that a recipe does not run by itself, made like unmasked
    differ = {k for k in ours if ours[k] != theirs[k] and not (k.startswith(optional) and ".match_" not in k)}
    differ = {"matching.match_loss" if k.startswith(optional) else k for k in differ}
    listed = {d.setting for d in DIFFERENCES if d.setting}
    stages = {"masked.", "multimodal.", "unmasked."}
    assert {
        k.replace(s, "multimodal.") if k.startswith(s) else k for k in differ for s in stages if k.startswith(s)
    } | {k for k in differ if not k.startswith(tuple(stages))} == listed
    assert all(d.why for d in DIFFERENCES)


def test_an_unknown_setting_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="weight_decay"):
        apply_overrides(recipe("clean", "5M"), ["masked.optim.weight_decy=0.1"])


@pytest.mark.parametrize("text", ["masked.steps", "=3", "masked=3", "masked.steps=many", "masked.steps.x=1"])
def test_a_bad_override_is_one_clear_line(text: str) -> None:
    with pytest.raises(UsageError) as error:
        apply_overrides(recipe("clean", "5M"), [text])
    assert "\n" not in str(error.value)


def test_an_override_changes_one_value_and_keeps_the_rest() -> None:
    before = recipe("clean", "demo")
    after = apply_overrides(before, ["unmasked.optim.lr=1e-4", "multimodal.mask=tube"])
    assert after.unmasked.optim.lr == 1e-4
    assert after.multimodal.mask == "tube"
    assert after.masked == before.masked


def test_a_table_from_toml_sets_nested_values() -> None:
    r = from_mapping(recipe("clean", "demo"), {"seed": 7, "masked": {"optim": {"lr": 1}}})
    assert (r.seed, r.masked.optim.lr) == (7, 1.0)


def test_unknown_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="clean"):
        recipe("clear", "5M")


def test_learning_rate_warms_up_peaks_and_ends_at_the_floor() -> None:
    optim = Optim(lr=1.0, warmup_fraction=0.1, min_lr_ratio=0.01)
    values = [learning_rate(s, 100, optim) for s in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == pytest.approx(1.0)
    assert values[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))
    assert values[-1] >= 0.01


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.A_log = nn.Parameter(torch.zeros(3, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_state_is_decayed_only_in_the_official_recipe() -> None:
    toy = Toy()
    clean = parameter_groups(toy, Optim())
    assert [len(g["params"]) for g in clean] == [1, 2]
    official = parameter_groups(toy, Optim(decay_state=True))
    assert [len(g["params"]) for g in official] == [2, 1]


def test_frozen_parameters_have_no_optimiser_state() -> None:
    held = sum(len(g["params"]) for g in build_optimizer(Toy(), Optim()).param_groups)
    assert held == 3


def test_settings_given_in_several_flags_all_count(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--corpus", "demo", "--set", "a=1", "b=2", "--out", "runs/x", "--set=c=3", "--set", "d=4", "--steps", "5"]
    found = parsed(RunSettings, words)
    assert found.set == ("a=1", "b=2", "c=3", "d=4")
    assert (found.corpus, str(found.out), found.steps) == ("demo", "runs/x", 5)
    assert capsys.readouterr().err == ""
    assert parsed(RunSettings, ["--steps", "5", "--corpus", "demo", "--steps=6"]).steps == 6
    assert capsys.readouterr().err == "note: --steps is given twice: the last counts\n"
