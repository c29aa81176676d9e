"""Files and texts to vectors: what of a library needs torch and a decoder; imported when a model is first needed.

n windows, T frames, S pixels, w width of the embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vtr.data.cleaning import clean_caption
from vtr.data.decode import DecodeError, Window, Windows, probe, read_moment, read_moments, read_windows, reduced_to
from vtr.data.transforms import eval_frames
from vtr.errors import VtrError
from vtr.library.files import media_source
from vtr.library.rows import Embedded, Span
from vtr.library.settings import LibrarySettings
from vtr.models.base import TextFeatures
from vtr.models.load import load_encoder

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

__all__ = [
    "BATCH",
    "clean_caption",
    "embed_example",
    "embed_file",
    "encode_windows",
    "encoded",
    "encoded_texts",
    "example_frames",
    "frames_of",
    "load_encoder",
]

BATCH = 16  # windows that are encoded together
EXAMPLE_WINDOWS = 32  # of a clip that is searched by
K = TypeVar("K")


def settings_of(model: VideoTextEncoder, model_path: str | None, window: float, stride: float) -> LibrarySettings:
    """What a library or a folder of embeddings writes down of a model."""
    return LibrarySettings(
        model=model_path,
        fingerprint=model.fingerprint(),
        width=int(model.config.embed_dim),
        window=window,
        stride=stride,
        frames=int(model.config.video.num_frames),
    )


def encoded(model: VideoTextEncoder, batch: Sequence[Tensor]) -> np.ndarray:
    """Vectors (n, w) of frames: n uint8 tensors (T, 3, S, S)."""
    model.eval()
    with torch.inference_mode():
        out = model.encode_video(torch.stack(list(batch))).embedding.float().cpu().numpy()
    if not np.isfinite(out).all():
        raise VtrError("the model gives embeddings that are not finite: is it a trained one?")
    return out


def encoded_texts(model: VideoTextEncoder, texts: Sequence[str]) -> TextFeatures:
    """Features of texts."""
    model.eval()  # loaded outside: parameters made in inference mode could never be trained
    with torch.inference_mode():
        return model.encode_text(list(texts))


def windows_of(source: str | Path | bytes, settings: LibrarySettings, model: VideoTextEncoder) -> Windows:
    """The windows of a file, each with its frames uint8 (T, 3, S, S).

    Raises:
        DecodeError: The file gives no frames.
    """
    return read_windows(
        source,
        window=settings.window,
        stride=settings.stride,
        frames=settings.frames,
        size=model.config.video.image_size,
        antialias=model.config.antialias,
    )


def encode_windows(
    model: VideoTextEncoder, windows: Iterable[tuple[K, Window]]
) -> Iterator[tuple[K, Span, np.ndarray]]:
    """Spans and vectors (w,) of windows, in their order, each with the key it came with; encoded BATCH at a time."""
    source = iter(windows)
    while batch := list(itertools.islice(source, BATCH)):
        vectors = encoded(model, [window.frames for _, window in batch])
        for (key, window), vector in zip(batch, vectors):
            yield key, Span(window.start, window.end), vector


def embed_file(source: str | Path | bytes, settings: LibrarySettings, model: VideoTextEncoder) -> Embedded:
    """All segments of a file.

    Raises:
        DecodeError: The file gives no frames.
    """
    windows = windows_of(source, settings, model)
    parts = [(span, vector) for _, span, vector in encode_windows(model, ((None, window) for window in windows))]
    if not parts:
        raise DecodeError(str(source) if isinstance(source, str | Path) else "upload", "no frames")
    return Embedded(spans=[s for s, _ in parts], vectors=np.stack([v for _, v in parts]), duration=windows.duration)


class Example(NamedTuple):
    """Vectors (m, w) of what a query gives as an example, and what could not be looked at."""

    vectors: np.ndarray
    notes: list[str]


def embed_example(source: str | Path | bytes, settings: LibrarySettings, model: VideoTextEncoder) -> Example:
    """Vectors of a clip's windows, as they would be indexed; of a long film some of them, evenly spread.

    Raises:
        DecodeError: The file gives no frames.
    """
    media = source if isinstance(source, bytes) else media_source(str(source))
    if len(_windows_at(probe(media).duration, settings)) <= EXAMPLE_WINDOWS:
        return Example(embed_file(media, settings, model).vectors, [])
    frames, notes = example_frames(source, settings, model)
    return Example(np.concatenate([encoded(model, part) for part in frames.split(BATCH)]), notes)


def example_frames(
    source: str | Path | bytes, settings: LibrarySettings, model: VideoTextEncoder, *, isolated: bool = False
) -> tuple[Tensor, list[str]]:
    """Frames uint8 (m, T, 3, S, S) of the windows that stand for a clip, and what could not be looked at.

    Args:
        isolated: Decode in a bounded process: for files from strangers.
    """
    size, notes = model.config.video.image_size, list[str]()

    def spans(seconds: float) -> list[tuple[float | None, float | None]]:
        windows = _windows_at(seconds, settings)
        if len(windows) <= EXAMPLE_WINDOWS:
            return windows
        name = "upload" if isinstance(source, bytes) else str(source)
        notes.append(
            f"{name}: {EXAMPLE_WINDOWS} of its {len(windows)} windows, evenly spread, stand for it: "
            "give a clip of the moment itself"
        )
        return [windows[i] for i in np.linspace(0, len(windows) - 1, EXAMPLE_WINDOWS).round().astype(int)]

    media = source if isinstance(source, bytes) else media_source(str(source))
    clips = read_moments(media, settings.frames, spans, least=reduced_to(size), isolated=isolated)
    return torch.stack([eval_frames(clip.frames, size, antialias=model.config.antialias) for clip in clips]), notes


def _windows_at(seconds: float, settings: LibrarySettings) -> list[tuple[float | None, float | None]]:
    """Starts and ends of the windows of a file that lasts so long."""
    more = max(0, math.ceil((seconds - settings.window) / settings.stride - 1e-6))
    if not more:
        return [(None, None)]
    starts = [*(n * settings.stride for n in range(more)), seconds - settings.window]
    return [(at, at + settings.window) for at in starts]


def frames_of(
    source: str | Path | bytes,
    settings: LibrarySettings,
    model: VideoTextEncoder,
    start: float | None = None,
    end: float | None = None,
    *,
    isolated: bool = False,
) -> Tensor:
    """The frames that stand for a video or an image, or for a part of it: uint8 (T, 3, S, S); see `Searcher.frames_of`."""
    size = model.config.video.image_size
    clip = read_moment(
        source if isinstance(source, bytes) else media_source(str(source)),
        settings.frames,
        start=start,
        end=end,
        least=reduced_to(size),
        isolated=isolated,
    )
    return eval_frames(clip.frames, size, antialias=model.config.antialias)
