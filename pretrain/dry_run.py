"""A run that writes nothing: resolve every shard, count, plan, and measure a few steps of each stage."""

from __future__ import annotations

from pathlib import Path

from vtr.pretrain.plan import check_complete, expectation, plan, stage_steps
from vtr.pretrain.resolve import resolve, run_folder
from vtr.pretrain.settings import RunSettings
from vtr.pretrain.stop import Stop
from vtr.pretrain.train import Place, Run, join_ranks
from vtr.pretrain.watch import Watch

STEPS = 20  # measured of each stage


def dry_run(settings: RunSettings, watch: Watch | None = None) -> Path:
    """Print what a run would do and how long it would take; returns where it would be kept.

    Raises:
        VtrError: Shards are missing and `allow_missing` is off, or what else would end the run.
    """
    chosen, stages = resolve(settings)
    out = run_folder(settings)
    run = Run(settings, chosen, stages, out, join_ranks(settings, out, watch), watch.request if watch else Stop())
    run.prepare_corpus()
    if run.ranks.main:
        print(run.corpus.table())
    check_complete(run.corpus, allow_missing=settings.allow_missing)
    chosen = run.recipe
    text = plan(run.corpus, chosen, stages, settings.plan_ranks or run.ranks.size, settings.workers)
    if run.ranks.main:
        print(text, flush=True)
    if settings.plan_ranks:
        return out
    run.prepare_model()
    measured = []
    for index, name in enumerate(stages):
        steps = stage_steps(getattr(chosen, name), run.corpus)
        measured.append((name, steps, run.stage(Place(name, index, steps, 0), None, most=STEPS)))
    if run.ranks.main:
        print(expectation(measured, run.ranks.device))
    return out
