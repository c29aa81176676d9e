"""The training loop of one stage: fetch, step, check, log, validate, save."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vtr.data.stream import Batch, check_bad
from vtr.errors import VtrError
from vtr.pretrain.objectives import gathered, world_size
from vtr.pretrain.optim import learning_rate
from vtr.pretrain.recipes import Stage
from vtr.pretrain.sharding import clip_gradients


class RunLog:
    """`log.jsonl`: one object a line, appended by the main process; a resumed run cuts it to where it continues."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, **row: Any) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise VtrError(f"{self.path} cannot be written: {error.strerror}") from error

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else 0

    def cut(self, size: int) -> None:
        """Forget what was written after `size` bytes: those steps are done again."""
        if self.path is not None and self.path.is_file() and self.path.stat().st_size > size:
            os.truncate(self.path, size)


@dataclass(kw_only=True)
class Progress:
    """What a run carries along beside weights and positions."""

    seen: int = 0  # samples read, over all ranks and stages
    bad: int = 0  # of them dropped
    judged_seen: int = 0  # the same two since this call began: a run whose shards were repaired goes on
    judged_bad: int = 0
    best: float = -1.0  # of the validation
    bad_lines: list[str] = field(default_factory=list)  # this process's latest, for messages


def agree(values: list[float], device: torch.device) -> list[float]:
    """The sums over all ranks."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def everyone(error: VtrError | None, device: torch.device, more: list[float] | None = None) -> list[float]:
    """Exchange whether something failed: an error of any rank is raised on all of them, together.

    Args:
        error: What failed here, or None.
        more: Numbers whose sums over the ranks are returned.
    """
    failed, *sums = agree([float(error is not None), *(more or [])], device)
    if failed:
        if world_size() == 1:
            raise error if error is not None else VtrError("failed")
        said: list[Any] = [None] * world_size()
        dist.all_gather_object(said, None if error is None else str(error))
        lines = list(dict.fromkeys(f"rank {i}: {text}" for i, text in enumerate(said) if text))
        raise VtrError("; ".join(lines[:4]))
    return sums


def train_stage(
    *,
    name: str,
    stage: Stage,
    steps: int,
    first_step: int,
    done_before: int,
    batches: Iterator[Batch],
    step_function: Any,
    optimizer: torch.optim.Optimizer,
    accelerator: Any,
    teacher: Any,
    max_bad_fraction: float,
    progress: Progress,
    log: RunLog,
    log_every: int,
    save_every: int,
    save: Callable[[int, Batch], Path],
    validate_every: int = 0,
    validate: Callable[[], dict[str, float]] | None = None,
    keep_best: Callable[[dict[str, float], int, Batch], None] | None = None,
    stop_after: int | None = None,
) -> Batch | None:
    """Run `first_step … steps - 1` of a stage.

    Args:
        step_function: A `PretrainStep`.
        done_before: Steps of earlier stages, for the global step in logs and checkpoints.
        save: Called with (steps of this stage done, last batch) to write a checkpoint.
        validate: Retrieval on held-out data; called by all ranks, returns the same numbers on all.
        keep_best: Called with (those numbers, steps of this stage done, last batch).
        stop_after: Do at most so many steps (a dry run).

    Returns:
        The last batch, or None when there was nothing left to do.

    Raises:
        VtrError: On all ranks together: a loss or gradient is not finite (the message names the step, the keys and the
            last good checkpoint), data can't be read, a checkpoint can't be written.
    """
    from tqdm import tqdm

    main, device, model = accelerator.is_main_process, accelerator.device, step_function.model
    bar = tqdm(total=steps, initial=first_step, desc=name, file=sys.stderr, unit="step", disable=not main)
    waited = busy = 0.0
    samples = 0
    batch: Batch | None = None
    saved: Path | None = None
    end = steps if stop_after is None else min(steps, first_step + stop_after)
    for step in range(first_step, end):
        start = time.perf_counter()
        error = None
        try:
            batch = next(batches)
        except VtrError as caught:
            error = caught
        assert batch is not None or error is not None
        news = [0.0, 0.0] if error is not None or batch is None else [float(batch.seen), float(len(batch.bad))]
        seen, bad = everyone(error, device, news)
        assert batch is not None
        progress.seen += round(seen)
        progress.bad += round(bad)
        progress.judged_seen += round(seen)
        progress.judged_bad += round(bad)
        progress.bad_lines = (progress.bad_lines + batch.bad)[-3:]
        check_bad(
            progress.judged_seen, progress.judged_bad, max_bad_fraction, progress.bad_lines or ["(on another rank)"]
        )
        fetched = time.perf_counter()
        lr = learning_rate(step, steps, stage.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        losses = step_function(
            batch.frames.to(device, non_blocking=True),
            batch.captions,
            batch.ids.to(device),
            batch.meta,
            teacher,
            done_before + step,
            step >= stage.vtm_from * steps,
        )
        norm = clip_gradients(
            step_function.parameters(), stage.optim.clip_grad if stage.optim.clip_grad > 0 else float("inf")
        )
        # Losses and summed gradients are the same on all ranks: all of them stop here, or none.
        if not bool(torch.isfinite(losses["loss"]) & torch.isfinite(norm)):
            values = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise VtrError(
                f"{name} step {step}: the loss or its gradient is not finite ({values}, gradient norm "
                f"{float(norm):.4g}); samples {', '.join(batch.keys[:64])}; "
                + (
                    f"last good checkpoint {saved}"
                    if saved
                    else "no checkpoint of this call yet: --resume latest finds older ones"
                )
            )
        optimizer.step()
        done = time.perf_counter()
        waited, busy = waited + fetched - start, busy + done - start
        samples += len(batch.captions) * world_size()
        bar.update()
        if (step + 1) % log_every == 0 or step + 1 == end:
            row = {k: float(f"{v.item():.9g}") for k, v in losses.items()}  # nine digits: fp32 without loss
            ids = gathered(batch.ids.to(device)).cpu().numpy()
            speed, wait = samples / busy, waited / busy
            numbers = {"lr": lr, **row, "grad_norm": float(f"{float(norm):.9g}")}
            log.write(
                step=done_before + step + 1,
                stage=name,
                media=batch.media,
                batch=hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest(),  # the global batch, in order
                **numbers,
                bad=progress.bad,
                samples_per_s=round(speed, 1),
                data_wait=round(wait, 4),
                memory_gib=memory_gib(device),
                time=round(time.time(), 2),
            )
            accelerator.log({**numbers, "samples_per_s": speed, "data_wait": wait}, step=done_before + step + 1)
            bar.set_postfix_str(
                " ".join(f"{k} {v:.3f}" for k, v in row.items()) + f" lr {lr:.1e} {speed:.0f}/s wait {wait:.0%}",
                refresh=False,
            )
            waited = busy = 0.0
            samples = 0
        if validate is not None and validate_every and ((step + 1) % validate_every == 0 or step + 1 == steps):
            found = validate()
            model.train()
            log.write(step=done_before + step + 1, stage=name, validation=found, time=round(time.time(), 2))
            accelerator.log({f"validation/{k}": v for k, v in found.items()}, step=done_before + step + 1)
            bar.write(
                f"{name} step {step + 1}: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()), file=sys.stderr
            )
            if keep_best is not None:
                keep_best(found, step + 1, batch)
        if save_every and (step + 1) % save_every == 0 and step + 1 < end:
            saved = save(step + 1, batch)
    bar.close()
    return batch


def memory_gib(device: torch.device) -> float | None:
    """The most memory this process has held: of the GPU, else resident."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)
