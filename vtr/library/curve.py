"""How well a video fits a query from moment to moment, from what is stored of it: nothing is decoded.

From the vectors of single frames where the library keeps them, else from those of its segments. n segments, F frames, w width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtr.errors import UsageError, VtrError
from vtr.files import write_atomically
from vtr.library.rows import Span

_FINEST = 0.125  # seconds of a step
_MOST = 100_000  # steps of a curve
_SMOOTH = 0.5  # seconds to each side over which a curve is averaged before its ends are looked for
_SHARE = 0.6
_STANDS_OUT = 5.0  # standard deviations of what is averaged away
_NEAR = 0.6  # seconds to a cut


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Scores of a video from moment to moment.

    Attributes:
        path: Of the video.
        start, step: Seconds of the first value's beginning, and between two.
        scores: (n,) float32; NaN where nothing is known.
        exact: Whether it is from frames; else from segments.
        notes: What could not be done as it was asked for, one line each.
    """

    path: str
    start: float
    step: float
    scores: np.ndarray
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def times(self) -> np.ndarray:
        """The middles of the steps, in seconds."""
        middles: np.ndarray = self.start + self.step * (np.arange(len(self.scores)) + 0.5)
        return middles

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON: `null` where nothing is known."""
        scores = [None if np.isnan(s) else round(float(s), 4) for s in self.scores]
        known = {"path": self.path, "start": self.start, "step": self.step, "exact": self.exact}
        return {**known, "scores": scores, "notes": [*self.notes]}


def curve_of(path: str, spans: Sequence[Span], scores: np.ndarray, *, exact: bool) -> Curve:
    """The curve of a video's segments, each in as many equal steps as it has scores; where they overlap, their mean.

    Args:
        path: Of the video.
        spans: n, of any order.
        scores: (n, F) of the frames, NaN where one is not known; (n, 1) of the segments.
        exact: As in `Curve`.
    """
    starts, ends = (np.array([s[i] for s in spans], np.float64) for i in (0, 1))
    begin, end, count = float(starts.min()), float(ends.max()), scores.shape[1]
    step = max(_FINEST, float((ends - starts).min()) / (2 * count), (end - begin) / _MOST)
    steps = max(1, round((end - begin) / step))
    step = (end - begin) / steps if end > begin else step
    total, known = np.zeros(steps), np.zeros(steps)
    middles = begin + step * (np.arange(steps) + 0.5)
    for first, last, row in zip(starts, ends, scores):
        low, high = np.searchsorted(middles, (first, last))
        high = max(int(high), int(low) + (last <= first))
        part = middles[low:high]
        places = np.clip(((part - first) / max(last - first, 1e-9) * count).astype(int), 0, count - 1)
        values = row[places]
        total[low:high] += np.nan_to_num(values)
        known[low:high] += ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(known > 0, total / known, np.nan)
    return Curve(path=path, start=begin, step=step, scores=mean.astype(np.float32), exact=exact)


def refined(curve: Curve, span: Span, between: Span, cuts: Sequence[float] = ()) -> Span:
    """A hit's span with finer ends: from its best place as far as the curve keeps more than _SHARE of its height.

    Its height is that of the hit's better quarter over the lowest tenth of what is around it. Where the one hardly stands
    out, nothing tells where it ends, and the span stays as it is.

    Args:
        curve: Of the hit and its neighbours.
        span: Of the hit.
        between: What the ends must not leave.
        cuts: Where shots begin: one that is near is the end.
    """
    known = ~np.isnan(curve.scores)
    times, scores = curve.times[known], curve.scores[known]
    inside = (times > span.start) & (times < span.end)
    allowed = (times > between.start) & (times < between.end)
    if inside.sum() < 2 or inside.all():
        return span
    side = max(1, round(_SMOOTH / curve.step))
    smooth = np.convolve(np.pad(scores, side, mode="edge"), np.full(2 * side + 1, 1 / (2 * side + 1)), mode="valid")
    high, low = np.quantile(smooth[inside], 0.75), np.quantile(smooth, 0.1)
    if high - low < _STANDS_OUT * np.std(scores - smooth):
        return span
    above = np.where(allowed, smooth - (low + _SHARE * (high - low)), -np.inf)
    peak = int(np.flatnonzero(inside)[np.argmax(smooth[inside])])
    first = peak - int(np.argmax(np.cumsum(above[: peak + 1][::-1])))
    last = peak + int(np.argmax(np.cumsum(above[peak:])))
    start, end = float(times[first]) - curve.step / 2, float(times[last]) + curve.step / 2
    return Span(max(between.start, _nearest(start, cuts)), min(between.end, _nearest(end, cuts)))


def _nearest(at: float, cuts: Sequence[float]) -> float:
    nearest = min(cuts, key=lambda cut: abs(cut - at), default=at)
    return nearest if abs(nearest - at) <= _NEAR else at


def cuts_of(spans: Sequence[Span]) -> list[float]:
    """Where segments begin or end and none goes on: the cuts of a film that was cut along its shots."""
    ends = {end for span in spans for end in span}
    return sorted(at for at in ends if not any(start < at < end for start, end in spans))


def write_curve(curve: Curve, title: str, out: Path) -> None:
    """Write a curve as a picture (.png) or as JSON.

    Raises:
        UsageError: Another ending.
        VtrError: It cannot be written.
    """
    if out.suffix.lower() not in (".png", ".json"):
        raise UsageError(lambda say: f"{say.given('curve_out', out)}: expected a name that ends in .png or .json")
    try:
        with write_atomically(out) as partial:
            if out.suffix.lower() == ".json":
                partial.write_text(json.dumps({"query": title, **curve.as_dict()}) + "\n")
            else:
                partial.write_bytes(_picture(curve, title))
    except OSError as error:
        raise VtrError(f"{out}: cannot be written ({error.strerror})") from error


def _picture(curve: Curve, title: str) -> bytes:
    from PIL import Image, ImageDraw

    width, height, edge = 1200, 300, 40
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    low, high = float(np.nanmin(curve.scores)), float(np.nanmax(curve.scores))
    begin, lasts = curve.start, curve.step * len(curve.scores)
    across, up = (width - 2 * edge) / max(lasts, 1e-9), (height - 2 * edge) / max(high - low, 1e-9)
    draw.text((edge, 8), title.encode("latin-1", "replace").decode("latin-1")[:180], fill="black")
    draw.line([(edge, height - edge), (width - edge, height - edge)], fill="gray")
    for place in range(11):
        x = edge + place / 10 * (width - 2 * edge)
        draw.text((x - 12, height - edge + 6), f"{begin + place / 10 * lasts:.1f}s", fill="gray")
    for y, value in ((edge, high), (height - edge, low)):
        draw.text((2, y - 6), f"{value:.2f}", fill="gray")
    points = [
        (edge + (at - begin) * across, height - edge - (score - low) * up)
        for at, score in zip(curve.times, curve.scores)
        if not np.isnan(score)
    ]
    draw.line(points if len(points) > 1 else points * 2, fill=(30, 90, 200), width=2)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
