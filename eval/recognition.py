"""Multi-view tests of recognition models: per-view results, and merging that gives every video one vote.

S segments, C crops, K classes.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from vtr.data.decode import DecodeError
from vtr.data.labels import Item
from vtr.data.views import crop_views, read_item, sample_test
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.models.recognition import RecognitionModel


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


class _Classes(Protocol):
    @property
    def classes(self) -> int:
        """Their number; 0: a regression."""


class ViewRecipe(_Classes, Protocol):
    """What is asked of a task's recipe."""

    @property
    def frames(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    @property
    def sampling(self) -> str: ...
    @property
    def crop_ratio(self) -> float: ...


@torch.no_grad()
def score_views(
    model: RecognitionModel,
    items: Sequence[Item],
    recipe: ViewRecipe,
    *,
    views: tuple[int, int],
    autocast: Callable[[], AbstractContextManager[object]],
    batch: int = 12,
    workers: int = 2,
    progress: bool = False,
) -> tuple[list[ViewScore], list[str]]:
    """Score every view of every item; a file that cannot be read is listed, not replaced.

    Args:
        views: Segments and crops.
        autocast: Context of the forward passes.
        batch: Views at once.
    """
    model.eval()
    results: list[ViewScore] = []
    bad: list[str] = []
    waiting: list[tuple[ViewScore, Tensor]] = []

    def flush() -> None:
        if not waiting:
            return
        with autocast():
            logits = model.classify(torch.stack([clip for _, clip in waiting])).float().cpu()
        scores = logits.softmax(-1) if recipe.classes else logits
        results.extend(replace(view, scores=row) for (view, _), row in zip(waiting, scores))
        waiting.clear()

    with tqdm(total=len(items), desc="test", unit="clip", file=sys.stderr, disable=not progress) as bar:
        for item, found in _read(items, recipe, views, max(1, workers)):
            bar.update()
            if isinstance(found, str):
                bad.append(found)
                continue
            for (segment, crop), clip in found.items():
                view = ViewScore(
                    name=item.name,
                    label=item.label,
                    window=item.start or 0.0,
                    segment=segment,
                    crop=crop,
                    scores=_NONE,
                )
                waiting.append((view, clip))
                if len(waiting) >= batch:
                    flush()
        flush()
    return results, bad


_Views = dict[tuple[int, int], Tensor]
"""The clips (T, 3, S, S) of an item, by segment and crop."""
_NONE = torch.zeros(0)


def _read(
    items: Sequence[Item], recipe: ViewRecipe, views: tuple[int, int], workers: int
) -> Iterator[tuple[Item, _Views | str]]:
    """Items with their views, or the reason why they cannot be read, in order; a few ahead of their use, never all."""
    segments, crops = views

    def pick(n: int) -> list[int]:
        return [i for s in range(segments) for i in sample_test(recipe.sampling, n, recipe.frames, s, segments)]

    def read(item: Item) -> _Views | str:
        try:
            frames = read_item(item, pick)
        except (DecodeError, OSError) as error:
            return str(error)
        return {
            (segment, crop): clip
            for segment, part in enumerate(frames.split(recipe.frames))
            for crop, clip in enumerate(crop_views(part, recipe.pixels, crops, recipe.crop_ratio))
        }

    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        ahead = deque((item, pool.submit(read, item)) for item in islice(rest, 2 * workers))
        while ahead:
            item, future = ahead.popleft()
            ahead.extend((more, pool.submit(read, more)) for more in islice(rest, 1))
            yield item, future.result()


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
    """top1 and (of more than five classes) top5 in percent, or the mean squared error of a regression; ties count fairly."""
    if not classes:
        return {"mse": float(((scores[:, 0] - labels) ** 2).mean())}
    own = scores.gather(1, labels.long()[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    found = {}
    for k in (1, 5) if classes > 5 else (1,):
        # Of the `equal` classes with the same score, any may come first.
        share = ((k - above).clamp(min=0).double() / (equal + 1)).clamp(max=1)
        found[f"top{k}"] = 100 * float(share.mean())
    return found


def report(
    results: Sequence[ViewScore], recipe: _Classes, views: tuple[int, int], bad: Sequence[str]
) -> dict[str, Any]:
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
    keys = ("name", "label", "window", "segment", "crop")
    lines = [json.dumps({k: getattr(r, k) for k in keys}) for r in results]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / "views.jsonl") as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with write_atomically(folder / "views.safetensors") as partial:
            save_file({"scores": torch.stack([r.scores for r in results])}, partial)
    except OSError as error:
        raise VtrError(f"{folder}: results cannot be written ({error.strerror})") from error
