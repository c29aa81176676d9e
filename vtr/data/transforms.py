"""Decoded frames to network-size uint8 tensors: plain resize for tests, shared random crop and flip for training."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from torch.nn import functional

# Larger clips are resized frame by frame, so that the float copy of a long 4K clip never exists as a whole.
_CHUNK_BYTES = 64 << 20
_room = threading.local()


def _as_tensor(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) uint8 view."""
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"expected uint8 frames (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    return frames.permute(0, 3, 1, 2)


def _resize(frames: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, S, S) uint8, bicubic in float, rounded. Equal sizes are passed through."""
    if frames.shape[-2:] == (size, size):
        return frames.contiguous()
    per_frame = frames[0].numel() * 4
    chunk = max(1, _CHUNK_BYTES // max(per_frame, 1))
    out = torch.empty(frames.shape[0], 3, size, size, dtype=torch.uint8)
    for first in range(0, frames.shape[0], chunk):
        part = _as_float(frames[first : first + chunk])
        scaled = functional.interpolate(
            part, size=(size, size), mode="bicubic", align_corners=False, antialias=antialias
        )
        # Bicubic overshoots at edges: clamp before the cast, or white wraps round to black.
        out[first : first + chunk] = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return out


def _as_float(frames: torch.Tensor) -> torch.Tensor:
    """(T, 3, H, W) uint8 -> float32, in memory that this thread's next call uses again.

    Fresh memory for each frame costs many times what is done with it, and so does another order of its channels.
    """
    count, _, height, width = frames.shape
    needed = frames.numel()
    if needed * 4 > _CHUNK_BYTES or frames.stride(1) != 1:
        return frames.float().contiguous()
    room: torch.Tensor | None = getattr(_room, "floats", None)
    if room is None or len(room) < needed:
        with torch.inference_mode(False):  # it outlives the call: an inference tensor could not be written outside
            room = _room.floats = torch.empty(needed)
    return room[:needed].view(count, height, width, 3).permute(0, 3, 1, 2).copy_(frames)


def _resize_whole(frames: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    """As `_resize`, in whole numbers: within one level of it without antialiasing, and ten times as fast."""
    if frames.shape[-2:] == (size, size):
        return frames.contiguous()
    # (T, 3, H, W) views of (T, H, W, 3) are what torch's vectorised path wants.
    scaled = functional.interpolate(frames, size=(size, size), mode="bicubic", align_corners=False, antialias=antialias)
    return scaled.contiguous()


def eval_frames(frames: np.ndarray | torch.Tensor, size: int, antialias: bool = False) -> torch.Tensor:
    """Frames at exactly S x S, aspect ratio not kept, bicubic (the test protocol).

    Args:
        frames: (T, H, W, 3) uint8.
        size: S in pixels. Frames that have it already are not resampled.
        antialias: False reproduces the published protocol; True looks better when shrinking a lot.

    Returns:
        (T, 3, S, S) uint8, contiguous.
    """
    if isinstance(frames, np.ndarray) and len(frames) > 1 and frames.strides[0] == 0:  # one picture T times
        return eval_frames(frames[:1], size, antialias).repeat(len(frames), 1, 1, 1)
    return _resize(_as_tensor(frames), size, antialias)


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random crop (top, left, height, width) that covers a share `scale` of the area with an aspect in `ratio`.

    Ten tries, then the largest central crop whose aspect lies in `ratio`: the rule of torchvision's RandomResizedCrop.
    """
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def train_frames(
    frames: np.ndarray | torch.Tensor,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] | None = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    antialias: bool = False,
) -> torch.Tensor:
    """A random crop resized to S x S and a random mirror image, the same for all frames of the clip.

    Args:
        frames: (T, H, W, 3) uint8.
        size: S in pixels.
        rng: Source of randomness.
        scale: Share of the area the crop covers; None: the whole frame, no crop.
        ratio: Aspect ratios (width / height) of the crop.
        flip: Probability of mirroring left and right; 0 (or False) where captions say "left" and "right".
        antialias: As in `eval_frames`.

    Returns:
        (T, 3, S, S) uint8, contiguous.
    """
    clip = _as_tensor(frames)
    if scale is not None:
        top, left, h, w = crop_box(clip.shape[-2], clip.shape[-1], rng, scale, ratio)
        clip = clip[..., top : top + h, left : left + w]
    out = _resize_whole(clip, size, antialias)
    if flip and rng.random() < float(flip):
        out = out.flip(-1)
    return out
