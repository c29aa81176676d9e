"""Files and texts to vectors: what of a library needs torch and a decoder; imported when a model is first needed.

n windows, T frames, S pixels, w width of the embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtr.data.cleaning import clean_caption
from vtr.data.decode import DecodeError, Windows, probe, read_moment, read_moments, read_windows, reduced_to
from vtr.data.decode.shots import grid_of
from vtr.data.decode.types import Source
from vtr.data.decode.windows import LONG
from vtr.data.transforms import eval_frames
from vtr.errors import UsageError, VtrError
from vtr.library.files import media_source, shown
from vtr.library.settings import LibrarySettings
from vtr.models.base import TextFeatures
from vtr.models.load import load_encoder

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

__all__ = [
    "BATCH",
    "CPU_BATCH",
    "clean_caption",
    "cut_of",
    "embed_example",
    "embed_file",
    "encoded",
    "encoded_texts",
    "example_frames",
    "frames_of",
    "load_encoder",
]

BATCH = 16  # windows that are encoded together
CPU_BATCH = 2  # on a CPU: what is made of more leaves its caches
EXAMPLE_WINDOWS = 32  # of a clip that is searched by


def settings_of(
    model: VideoTextEncoder, model_path: str | None, window: float, stride: float, segments: str = "windows"
) -> LibrarySettings:
    """What a library or a folder of embeddings writes down of a model."""
    return LibrarySettings(
        model=model_path,
        fingerprint=model.fingerprint(),
        width=int(model.config.embed_dim),
        window=window,
        stride=stride,
        frames=int(model.config.video.num_frames),
        cutting=segments,
    )


def frame_count(model: VideoTextEncoder) -> int:
    """F: vectors of single frames that a model gives of a window.

    Raises:
        UsageError: It gives one vector of all frames.
    """
    size = model.config.video.image_size
    blank = torch.zeros(1, model.config.video.num_frames, 3, size, size, dtype=torch.uint8)
    count = encoded(model, blank, every=True).shape[1] - 1
    if count < 2:
        raise UsageError(
            lambda say: f"{say.name('frame_vectors')}: this model gives one vector of all frames of a segment"
        )
    return count


def encoded(
    model: VideoTextEncoder, frames: Tensor | Sequence[Tensor], *, bf16: bool = False, every: bool = False
) -> np.ndarray:
    """Vectors (n, w) of n windows: frames uint8 (n, T, 3, S, S), encoded under bf16 autocast where that is asked for.

    With `every` (n, 1 + F, w): behind each those of its frames.
    """
    model.eval()
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        batch = frames if isinstance(frames, Tensor) else torch.stack(list(frames))
        parts = batch.split(CPU_BATCH) if model.device.type == "cpu" else (batch,)
        out = np.concatenate([_vectors(model, part, every=every) for part in parts])
    if not np.isfinite(out).all():
        raise VtrError("the model gives embeddings that are not finite: is it a trained one?")
    return out


def _vectors(model: VideoTextEncoder, frames: Tensor, *, every: bool) -> np.ndarray:
    found = model.encode_video(frames)
    vectors = found.embedding
    if every:
        vectors = torch.cat([vectors[:, None], found.frame_embeddings], 1)
    return vectors.float().cpu().numpy()


def encoded_texts(model: VideoTextEncoder, texts: Sequence[str]) -> TextFeatures:
    """Features of texts."""
    model.eval()  # loaded outside: parameters made in inference mode could never be trained
    with torch.inference_mode():
        return model.encode_text(list(texts))


def cut_short(model: VideoTextEncoder, texts: Sequence[str]) -> list[str]:
    """One line for each text that is longer than the model takes."""
    return [
        f"pictures were searched for the first {model.text_limit()} tokens of {shown(text)[:40]!r}…: the model takes no more"
        for text in dict.fromkeys(texts)
        if model.cut([text])
    ]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How files are cut into windows: see `vtr.data.decode.read_windows`."""

    window: float
    stride: float
    frames: int
    size: int
    antialias: bool
    keyframes: bool = False
    cutting: str = "windows"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, 3, S, S) of a window."""
        return self.frames, 3, self.size, self.size

    def windows(self, source: Source, *, alone: bool = False, thorough: bool = False) -> Windows:
        """The windows of a file, decoded by one thread unless it is alone."""
        return read_windows(
            source,
            window=self.window,
            stride=self.stride,
            frames=self.frames,
            size=self.size,
            antialias=self.antialias,
            keyframes=self.keyframes,
            threads=None if alone else 1,
            thorough=thorough,
            segments=self.cutting,
        )


def cut_of(settings: LibrarySettings, model: VideoTextEncoder) -> Cut:
    """How files are cut into windows for a library and its model."""
    return Cut(
        window=settings.window,
        stride=settings.stride,
        frames=settings.frames,
        size=model.config.video.image_size,
        antialias=model.config.antialias,
        keyframes=settings.keyframes,
        cutting=settings.cutting,
    )


def embed_file(source: str | Path | bytes, settings: LibrarySettings, model: VideoTextEncoder) -> np.ndarray:
    """Vectors (n, w) of all segments of a file, in this process: as they are indexed.

    Raises:
        DecodeError: The file gives no frames.
    """
    cut = cut_of(settings, model)
    windows = iter(cut.windows(source, alone=True))
    out = []
    while batch := [window.frames for window in itertools.islice(windows, BATCH)]:
        out.append(encoded(model, torch.stack(batch)))
    if not out:
        raise DecodeError(str(source) if isinstance(source, str | Path) else "upload", "no frames")
    return np.concatenate(out)


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
        return Example(embed_file(media, settings, model), [])
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
    lasts: float | None = None,
    isolated: bool = False,
) -> Tensor:
    """The frames that stand for a video or an image, or for a part of it: uint8 (T, 3, S, S); see `Searcher.frames_of`."""
    size = model.config.video.image_size
    clip = read_moment(
        source if isinstance(source, bytes) else media_source(str(source)),
        settings.frames,
        start=start,
        end=end,
        lasts=lasts,
        least=reduced_to(size),
        isolated=isolated,
        grid=_grid(settings, lasts) if start is not None else 0.0,
    )
    return eval_frames(clip.frames, size, antialias=model.config.antialias)


def _grid(settings: LibrarySettings, lasts: float | None) -> float:
    """Seconds between two looks at a film that was cut along its shots; 0 for one that was not."""
    along = settings.cutting == "shots" or (settings.cutting == "auto" and (lasts or 0.0) > LONG)
    return grid_of(settings.window, settings.frames) if along else 0.0
