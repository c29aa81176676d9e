"""Recipes fitted to own data: sensible for 70 samples and for 70 million, and what the user sets stays."""

from __future__ import annotations

import pytest

from vtr.data.manifests import Corpus, CorpusMember
from vtr.errors import UsageError
from vtr.pretrain.fit import fit_line, fitted, given_keys, is_fitted
from vtr.pretrain.plan import check_stages, published_corpus, stage_steps
from vtr.pretrain.recipes import STAGES, Recipe, recipe
from vtr.settings import apply_overrides


def corpus(**media: int) -> Corpus:
    members = []
    for name, samples in media.items():
        sizes = tuple([1000] * (samples // 1000) + ([samples % 1000] if samples % 1000 else []))
        shards = tuple(f"{i}.tar" for i in range(len(sizes)))
        members.append(CorpusMember(name=name, media=name, shards=shards, sizes=sizes))
    return Corpus(name="mine", members=tuple(members))


def steps(chosen: Recipe, data: Corpus) -> list[int]:
    return [stage_steps(getattr(chosen, s), data) for s in STAGES]


@pytest.mark.parametrize("samples", [2, 3, 5, 17, 70, 333, 7_000, 99_999, 700_000, 70_000_000])
def test_a_corpus_of_any_size_gets_a_plan_that_runs_and_trains_every_stage(samples: int) -> None:
    data = corpus(auto=samples)
    chosen = fitted(recipe("clean", "mine.csv"), data, STAGES)
    check_stages(data, chosen, STAGES, 1)
    done = steps(chosen, data)
    assert min(done) >= 100
    if samples < 1000:
        assert max(done) <= 1.2 * min(done)  # not 3,500 masked and 4 unmasked
    assert chosen.streams * 4 <= max(4, samples)


def test_data_as_large_as_the_papers_keeps_the_papers_values() -> None:
    data = corpus(video=2_500_000, image=2_500_000)
    paper = recipe("clean", "5M")
    chosen = fitted(recipe("clean", "mine.toml"), data, STAGES)
    assert steps(chosen, data) == steps(paper, data)
    assert (chosen.streams, chosen.unmasked.batch_size) == (paper.streams, paper.unmasked.batch_size)
    clips = corpus(video=240_436)
    chosen = fitted(recipe("clean", "k400.toml"), clips, ("masked",))
    assert (chosen.masked.epochs, chosen.masked.batch_size) == (800, 2048)


def test_more_data_than_the_papers_largest_is_read_as_much_as_that() -> None:
    data, largest = corpus(video=70_000_000), corpus(video=25_000_000)
    ours, theirs = (steps(fitted(recipe("clean", "mine"), c, STAGES), c) for c in (data, largest))
    assert ours == theirs


def test_what_the_user_sets_is_kept_and_the_rest_goes_with_it() -> None:
    sets = ["streams=10", "multimodal.epochs=3", "unmasked.steps=7"]
    base = apply_overrides(recipe("clean", "mine.csv"), sets)
    chosen = fitted(base, corpus(auto=70), STAGES, given_keys(sets))
    assert (chosen.streams, chosen.multimodal.epochs, chosen.unmasked.steps) == (10, 3, 7)
    assert chosen.multimodal.batch_size == 10
    assert given_keys(["batch-size=8"], steps=5) == {f"{s}.{k}" for s in STAGES for k in ("batch_size", "steps")}


def test_a_rare_medium_decides_the_batch_since_a_step_reads_one_medium() -> None:
    chosen = fitted(recipe("clean", "mine.toml"), corpus(video=70, image=100_000), STAGES)
    assert chosen.multimodal.batch_size == 16
    assert chosen.streams <= 16


def test_one_sample_is_refused_and_named_corpora_are_left_alone() -> None:
    with pytest.raises(UsageError, match="two or more"):
        fitted(recipe("clean", "mine.csv"), corpus(auto=1), STAGES)
    assert not is_fitted("5M", published_corpus("5M"))
    assert is_fitted("5M", corpus(video=500))
    assert is_fitted("mine.csv", corpus(video=500))


def test_the_plan_is_one_line() -> None:
    data = corpus(auto=70)
    line = fit_line(fitted(recipe("clean", "mine.csv"), data, STAGES), data, STAGES)
    assert "\n" not in line
    assert "plan for 70 samples: masked 438 steps of 16" in line
