"""How well near copies are told from other clips: real clips written anew, each compared with its original and all others.

python -m bench.near_copies CLIPS --size 224
python -m bench.near_copies CLIPS data/demo/benchmark/videos --size 64 --most 150

Every clip's first seconds are written again: with another codec, at half the size, with high compression, with bars above
and below, with a margin cut off; the windows of all are compared as hits of a search are.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import tyro
from tqdm import tqdm

from bench.command import parsed, table
from vtr.data.decode import DecodeError, probe, read_moment
from vtr.errors import UsageError, reports_errors
from vtr.library.encode import Cut
from vtr.library.near import Looks, looks_of, pictures_of, same_looks
from vtr.library.scan import find_media

_SECONDS, _RATE, _WIDE = 8.0, 8, 320  # of what is written again: seconds, frames a second, pixels

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class NearSettings:
    """Write clips anew and count which pairs are taken for the same."""

    clips: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CLIPS", help_behavior_hint="")]
    """Folders of clips."""
    size: int = 224
    """Pixels of the frames that an encoder is given."""
    most: int | None = None
    """Clips of each folder (default: all)."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A way to write a clip again."""

    codec: str
    options: dict[str, str]
    change: Change


def _half(frame: np.ndarray) -> np.ndarray:
    high, wide = (max(2, n // 4 * 2) for n in frame.shape[:2])
    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(width=wide, height=high).to_ndarray()


def _barred(frame: np.ndarray) -> np.ndarray:
    """A third of the height more, black."""
    bar = np.zeros((frame.shape[0] // 12 * 2, frame.shape[1], 3), np.uint8)
    return np.concatenate([bar, frame, bar])


def _cropped(frame: np.ndarray) -> np.ndarray:
    high, wide = frame.shape[0] // 32, frame.shape[1] // 32
    inner = frame[high : frame.shape[0] - high, wide : frame.shape[1] - wide]
    return np.ascontiguousarray(inner[: inner.shape[0] // 2 * 2, : inner.shape[1] // 2 * 2])


def _same(frame: np.ndarray) -> np.ndarray:
    return frame


_X264 = {"preset": "ultrafast", "crf": "26"}
_KINDS = {
    "other codec": _Kind(codec="mpeg4", options={"b": "1000000"}, change=_same),
    "half size": _Kind(codec="libx264", options=_X264, change=_half),
    "high compression": _Kind(codec="libx264", options={**_X264, "crf": "40"}, change=_same),
    "letterbox": _Kind(codec="libx264", options=_X264, change=_barred),
    "margin cut off": _Kind(codec="libx264", options=_X264, change=_cropped),
}


def _frames(path: Path) -> list[np.ndarray]:
    """Frames (H, W, 3) of a clip's first seconds as a player shows them, some a second."""
    lasts = min(_SECONDS, probe(path).duration)
    clip = read_moment(path, max(1, round(lasts * _RATE)), start=0.0, end=lasts)
    high, wide = clip.frames.shape[1:3]
    small = {"width": min(_WIDE, wide) // 2 * 2, "height": max(2, round(high * min(1, _WIDE / wide)) // 2 * 2)}
    return [av.VideoFrame.from_ndarray(f, format="rgb24").reformat(**small).to_ndarray() for f in clip.frames]


def _write(path: Path, frames: Sequence[np.ndarray], kind: _Kind) -> None:
    with av.open(str(path), "w") as container:
        first = kind.change(frames[0])
        stream = container.add_stream(kind.codec, rate=_RATE, options=kind.options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for place, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(kind.change(pixels), format="rgb24")
            frame.pts, frame.time_base = place * 1000 // _RATE, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _looks(path: Path, size: int) -> Looks:
    """Of a clip's first window."""
    cut = Cut(window=_SECONDS, stride=_SECONDS, frames=8, size=size, antialias=True)
    window = next(iter(cut.windows(path)))
    return looks_of(pictures_of(window.frames.numpy()), window.start, window.end)


def measure(settings: NearSettings) -> str:
    """The table.

    Raises:
        UsageError: There are no clips.
    """
    files = [f for folder in settings.clips for f in find_media([folder]).files[: settings.most]]
    if not files:
        raise UsageError(f"{', '.join(map(str, settings.clips)) or 'CLIPS'}: no clips; expected folders with videos")
    names: list[str] = []
    looks: dict[str, list[Looks]] = {name: [] for name in ("original", *_KINDS)}
    left_out = 0
    with tempfile.TemporaryDirectory(prefix="vtr-near-") as folder:
        for file in tqdm(files, desc="clips", file=sys.stderr):
            try:
                frames, made = _frames(file), {"original": _looks(file, settings.size)}
                for name, kind in _KINDS.items():
                    path = Path(folder) / "copy.mkv"
                    _write(path, frames, kind)
                    made[name] = _looks(path, settings.size)
            except (av.error.FFmpegError, DecodeError, StopIteration, IndexError) as error:
                left_out += 1
                print(f"{file.name}: {error}", file=sys.stderr)
                continue
            names.append(file.name)
            for name, found in made.items():
                looks[name].append(found)
    return _report(names, looks, left_out)


def _report(names: list[str], looks: dict[str, list[Looks]], left_out: int) -> str:
    """Copies against their originals; the originals and copies of each two clips, in every pairing, against each other."""
    rows: list[list[object]] = [
        [kind, len(names), sum(map(same_looks, looks["original"], looks[kind]))] for kind in _KINDS
    ]
    pairs = list(product(looks.values(), looks.values()))
    wrong = Counter(
        (a, b) for one, other in pairs for a, b in combinations(range(len(names)), 2) if same_looks(one[a], other[b])
    )
    total, right = len(_KINDS) * len(names), sum(int(str(row[2])) for row in rows)
    rows.append(["two clips", len(pairs) * len(names) * (len(names) - 1) // 2, wrong.total()])
    which = "".join(f"; {count} of {names[a]} and {names[b]}" for (a, b), count in wrong.most_common(5))
    note = f"recall {right / total:.3f} of {total} copies; {wrong.total()} pairs of two clips taken for the same{which}"
    return table(["pair", "pairs", "taken for the same"], rows) + f"\n\n{note}; {left_out} clips left out"


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    print(measure(parsed(NearSettings, __doc__, argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
