"""The training loop of one stage: fetch, step, check, log, save."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vtr.errors import VtrError
from vtr.pretrain.objectives import world_size
from vtr.pretrain.optim import learning_rate
from vtr.pretrain.recipes import Stage


class RunLog:
    """`log.jsonl`: one object a line, appended by the main process."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, **row: Any) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def all_finite(value: torch.Tensor) -> bool:
    """Whether `value` is finite on every rank, so that all ranks stop together."""
    flag = torch.isfinite(value.detach()).float().reshape(1)
    if world_size() > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def train_stage(
    *,
    name: str,
    stage: Stage,
    steps: int,
    first_step: int,
    done_before: int,
    batches: Iterator[Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Any,
    teacher: Any,
    seed: int,
    log: RunLog,
    log_every: int,
    save_every: int,
    save: Callable[[int, Any], Path],
) -> Any:
    """Run `first_step … steps - 1` of a stage.

    Args:
        module: The prepared `PretrainStep`.
        done_before: Steps of earlier stages, for the global step in logs and checkpoints.
        save: Called with (steps of this stage done, last batch) to write a checkpoint.

    Returns:
        The last batch, or None when there was nothing left to do.

    Raises:
        VtrError: A loss is not finite; the message names the step, the keys and the last good checkpoint.
    """
    from tqdm import tqdm

    main = accelerator.is_main_process
    bar = tqdm(total=steps, initial=first_step, desc=name, file=sys.stderr, unit="step", disable=not main)
    waited = busy = 0.0
    samples = 0
    batch = last = None
    saved: Path | None = None
    for step in range(first_step, steps):
        start = time.perf_counter()
        batch = next(batches)
        fetched = time.perf_counter()
        lr = learning_rate(step, steps, stage.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # The draws of a step depend on (seed, stage, step, rank) alone: a resumed run repeats them.
        step_seed = hash((seed, done_before + step, accelerator.process_index)) % (2**62)
        torch.manual_seed(step_seed)
        with accelerator.autocast():
            losses = module(
                batch.frames.to(accelerator.device, non_blocking=True),
                batch.captions,
                batch.ids.to(accelerator.device),
                batch.meta,
                teacher,
                step_seed,
                step >= stage.vtm_from * steps,
            )
        loss = losses["loss"]
        if not all_finite(loss):
            values = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise VtrError(
                f"{name} step {step}: the loss is not finite ({values}); samples {', '.join(batch.keys)}; "
                + (
                    f"last good checkpoint {saved}"
                    if saved
                    else "no checkpoint of this call yet: --resume latest finds older ones"
                )
            )
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = None
        if stage.optim.clip_grad > 0:
            norm = accelerator.clip_grad_norm_(module.parameters(), stage.optim.clip_grad)
        optimizer.step()
        last = batch
        done = time.perf_counter()
        waited, busy, samples = (
            waited + fetched - start,
            busy + done - start,
            samples + len(batch.captions) * world_size(),
        )
        bar.update()
        if (step + 1) % log_every == 0 or step + 1 == steps:
            row = {k: round(v.item(), 5) for k, v in losses.items()}
            speed, wait = samples / busy, waited / busy
            log.write(
                step=done_before + step + 1,
                stage=name,
                media=batch.media,
                lr=lr,
                **row,
                grad_norm=None if norm is None else round(float(norm), 4),
                samples_per_s=round(speed, 1),
                data_wait=round(wait, 4),
                time=round(time.time(), 2),
            )
            bar.set_postfix_str(
                " ".join(f"{k} {v:.3f}" for k, v in row.items()) + f" lr {lr:.1e} {speed:.0f}/s wait {wait:.0%}",
                refresh=False,
            )
            waited = busy = 0.0
            samples = 0
        if save_every and (step + 1) % save_every == 0 and step + 1 < steps:
            saved = save(step + 1, batch)
    bar.close()
    return last
