"""Multi-view tests of recognition models: per-view results, and merging that gives every video one vote.

S segments, C crops, K classes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtr.data.decode import DecodeError
from vtr.data.recognition import Item, crop_views, read_item, sample_test
from vtr.errors import VtrError


@dataclass(frozen=True, kw_only=True)
class ViewScore:
    """One view of one video (or window of it).

    Attributes:
        name: Of the video, folders included: two files of one name in different folders stay apart.
        label: The truth.
        window: Seconds at which the window begins; 0 for whole videos.
        scores: (K,) probabilities, or (1,) a regression's output.
    """

    name: str
    label: float
    window: float
    segment: int
    crop: int
    scores: Tensor


@torch.no_grad()
def score_views(
    model: Any,
    items: Sequence[Item],
    recipe: Any,
    *,
    views: tuple[int, int],
    autocast: Any,
    batch: int = 12,
    workers: int = 2,
    progress: bool = False,
) -> tuple[list[ViewScore], list[str]]:
    """Score every view of every item; a file that cannot be read is listed, not replaced.

    Args:
        model: A `RecognitionModel`.
        recipe: frames, pixels, sampling, crop_ratio, classes are used.
        views: Segments and crops.
        batch: Views at once.
    """
    from concurrent.futures import ThreadPoolExecutor
    from itertools import islice

    from tqdm import tqdm

    segments, crops = views

    def read(item: Item) -> list[Tensor] | str:
        counts: list[int] = []

        def pick(n: int) -> list[int]:
            counts.append(n)
            found: list[int] = []
            for s in range(segments):
                found += sample_test(recipe.sampling, n, recipe.frames, s, segments)
            return found

        try:
            frames = read_item(item, pick)
        except (DecodeError, OSError) as error:
            return str(error)
        parts = frames.split(recipe.frames)
        return [crop_views(part, recipe.pixels, crops, recipe.crop_ratio) for part in parts]

    model.eval()
    results: list[ViewScore] = []
    bad: list[str] = []
    waiting: list[tuple[Item, int, int, Tensor]] = []

    def flush() -> None:
        if not waiting:
            return
        with autocast():
            logits = model.classify(torch.stack([w[3] for w in waiting])).float().cpu()
        scores = logits.softmax(-1) if recipe.classes else logits
        for (item, segment, crop, _), row in zip(waiting, scores):
            results.append(
                ViewScore(
                    name=item.name, label=item.label, window=item.start or 0.0, segment=segment, crop=crop, scores=row
                )
            )
        waiting.clear()

    bar = tqdm(total=len(items), desc="test", unit="clip", file=sys.stderr, disable=not progress)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        rest = iter(items)
        # A few clips ahead of the model, never all of them.
        ahead = [(item, pool.submit(read, item)) for item in islice(rest, 2 * max(1, workers))]
        while ahead:
            item, future = ahead.pop(0)
            ahead += [(more, pool.submit(read, more)) for more in islice(rest, 1)]
            found = future.result()
            bar.update()
            if isinstance(found, str):
                bad.append(found)
                continue
            for segment, clips in enumerate(found):
                for crop, clip in enumerate(clips):
                    waiting.append((item, segment, crop, clip))
                    if len(waiting) >= batch:
                        flush()
        flush()
    bar.close()
    return results, bad


def merged(results: Sequence[ViewScore]) -> tuple[list[str], Tensor, Tensor]:
    """Names, labels (N,) and mean scores (N, K) of the videos: the mean over all views of all windows."""
    by_name: dict[str, list[ViewScore]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    names = sorted(by_name)
    labels = torch.tensor([by_name[n][0].label for n in names], dtype=torch.float64)
    scores = torch.stack([torch.stack([r.scores for r in by_name[n]]).double().mean(0) for n in names])
    return names, labels, scores


def metrics(labels: Tensor, scores: Tensor, classes: int) -> dict[str, float]:
    """top1 and top5 in percent, or the mean squared error of a regression. Ties count as wrong half of the time."""
    if not classes:
        return {"mse": float(((scores[:, 0] - labels) ** 2).mean())}
    own = scores.gather(1, labels.long()[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    found = {}
    for k in (1, 5):
        # Of the `equal` classes with the same score, any may come first.
        share = ((k - above).clamp(min=0).double() / (equal + 1)).clamp(max=1)
        found[f"top{k}"] = 100 * float(share.mean())
    return found


def report(results: Sequence[ViewScore], recipe: Any, views: tuple[int, int], bad: Sequence[str]) -> dict[str, Any]:
    """All figures of a test: merged, of single views, and of each segment and crop."""
    if not results:
        raise VtrError("the test has no readable video")
    names, labels, scores = merged(results)
    single: dict[str, dict[str, float]] = {}
    for segment in range(views[0]):
        for crop in range(views[1]):
            own = [r for r in results if (r.segment, r.crop) == (segment, crop)]
            if own:
                # Windows of one video share a view's vote, as in the whole.
                single[f"segment {segment}, crop {crop}"] = metrics(*merged(own)[1:], recipe.classes)
    return {
        "videos": len(names),
        "views": f"{views[0]}x{views[1]}",
        "merged": metrics(labels, scores, recipe.classes),
        "per_view": single,
        "unreadable": len(bad),
        "unreadable_first": list(bad[:20]),
    }


def write_views(folder: Path, results: Sequence[ViewScore]) -> None:
    """views.jsonl (what each row is) and views.safetensors (its scores, fp32), for one's own merging."""
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        keys = ("name", "label", "window", "segment", "crop")
        lines = [json.dumps({k: getattr(r, k) for k in keys}) for r in results]
        for name, write in (
            ("views.jsonl", lambda p: p.write_text("\n".join(lines) + "\n")),
            ("views.safetensors", lambda p: save_file({"scores": torch.stack([r.scores for r in results])}, p)),
        ):
            partial = folder / f"{name}.{os.getpid()}.tmp"
            write(partial)
            os.replace(partial, folder / name)
    except OSError as error:
        raise VtrError(f"{folder}: results cannot be written ({error.strerror})") from error
