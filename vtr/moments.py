"""How well a library finds the moments that sentences tell of: `vtr search`, measured.

vtr index build anet/videos --model runs/m --out anet.library
python -m vtr.moments anet.library anet/val_1.json            # ActivityNet Captions: 17,505 sentences with times
python -m vtr.moments my.library my_moments.csv --rerank 50    # rows of video, start, end, sentence

In its own video the best span of a sentence is compared with the sentence's times (R@1 at an intersection over union of 0.3,
0.5, 0.7); in the whole library it is asked whether the right window comes first. What the library's windows would allow at
most, and what one of them at random reaches, stand beside.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from vtr.errors import UsageError, VtrError, reports_errors
from vtr.eval.annotations import video_id
from vtr.eval.moments import RANKS, Answer, Span, Told, moment_rows, read_moments
from vtr.library.found import Hits
from vtr.library.library import Library
from vtr.settings import parsed

_MOST = 1000  # windows of a video that are looked at


@dataclass(frozen=True, kw_only=True)
class MomentsSettings:
    """Measure how well a library finds the moments that sentences tell of."""

    library: tyro.conf.Positional[Path]
    """A library's folder, whatever its windows."""
    annotation: tyro.conf.Positional[Path]
    """ActivityNet Captions' val_1.json, or rows of video, start, end (seconds), sentence."""
    rerank: int = 0
    """Segments that the cross-modal decoder looks at again."""
    limit: int = 0
    """Only the first so many sentences, for a quick look (0 = all)."""
    allow_missing: bool = False
    """Go on without the sentences of videos that the library has not; the result then says so."""
    model: str | None = None
    """The library's model, where it has moved since."""
    json: bool = False
    """Print the result as JSON."""


def measure(library: Library, told: list[Told], rerank: int = 0) -> dict[str, float]:
    """The figures of `moment_rows` for sentences whose spans name the library's paths."""
    answers = []
    for one in tqdm(told, desc="moments", file=sys.stderr, unit="sentence", leave=False):
        here = f"path = {_quoted(one.span.video)}"
        own = _spans(library.search(one.sentence, 1, rerank=rerank, where=here))
        pooled = _spans(library.search(one.sentence, max(RANKS), rerank=rerank))
        windows = _spans(library.search(one.sentence, _MOST, all_moments=True, unmerged=True, where=here))
        answers.append(Answer(told=one, own=own[0] if own else None, pooled=pooled, windows=windows))
    return moment_rows(answers)


def _spans(hits: Hits) -> list[Span]:
    return [Span(hit.path, hit.start, hit.end) for hit in hits]


def _quoted(path: str) -> str:
    if '"' not in path:
        return f'"{path}"'
    if "'" not in path:
        return f"'{path}'"
    raise VtrError(f"{path}: a path with both kinds of quotes cannot be searched in alone; rename the file")


def placed(library: Library, told: list[Told]) -> tuple[list[Told], list[str]]:
    """The sentences with the library's paths for their videos, and the videos that it has not.

    Raises:
        VtrError: Two of the library's files have the id of one video.
    """
    paths: dict[str, str] = {}
    wanted = {video_id(t.span.video) for t in told}
    for path in library.read(lambda: library.store.paths_below("")):
        own = video_id(path)
        if own in wanted and own in paths:
            raise VtrError(
                f"{paths[own]} and {path} have the name of one video; expected one file of it in the library"
            )
        paths[own] = path
    there = [
        Told(span=t.span._replace(video=paths[video_id(t.span.video)]), sentence=t.sentence)
        for t in told
        if video_id(t.span.video) in paths
    ]
    return there, sorted({t.span.video for t in told if video_id(t.span.video) not in paths})


def check_times(library: Library, told: list[Told], annotation: Path) -> None:
    """Refuse times that are no seconds of these videos: frames, milliseconds, another cut.

    Raises:
        VtrError: More than a tenth of the sentences begin where their video has ended.
    """
    found = library.read(lambda: {p: library.store.video_at(p) for p in {t.span.video for t in told}})
    lasts = {path: video.duration for path, video in found.items() if video}
    late = [t.span for t in told if t.span.start >= lasts.get(t.span.video, float("inf"))]
    if len(late) > 0.1 * len(told):
        first = late[0]
        raise VtrError(
            f"{annotation}: {len(late)} of {len(told)} sentences begin where their video has ended (first: {first.start:g} in "
            f"{first.video}, which lasts {lasts[first.video]:.2f} s); expected times in seconds, not frames or milliseconds"
        )


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(MomentsSettings, argv, "python -m vtr.moments", __doc__ or "")
    if settings.rerank < 0 or settings.limit < 0:
        raise UsageError("--rerank and --limit are 0 or more")
    every = read_moments(settings.annotation)
    told = every[: settings.limit or None]
    with Library.open(settings.library, settings.model) as library:
        there, missing = placed(library, told)
        if missing and (not settings.allow_missing or not there):
            shown = ", ".join(missing[:10])
            raise VtrError(
                f"{settings.library} has none of {len(missing)} videos of {settings.annotation} ({shown}); index them, or go on "
                "without their sentences: --allow-missing"
            )
        check_times(library, there, settings.annotation)
        rows = measure(library, there, settings.rerank)
        facts = {
            "library": str(settings.library),
            "model": library.settings.fingerprint[:12],
            "sentences": len(there),
            "videos": len({t.span.video for t in there}),
            "rerank": settings.rerank,
        }
    less = f"{len(there)} of {len(every)} sentences, not comparable" if len(there) < len(every) else ""
    if settings.json:
        print(json.dumps({**facts, "comparable": f"no: {less}" if less else "", **rows}))
        return 0
    print(
        f"{settings.library}: {facts['sentences']} sentences of {facts['videos']} videos"
        + (f" ({less})" if less else "")
    )
    for name, value in rows.items():
        print(f"{name:<36}{value:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
