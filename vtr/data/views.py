"""Views of one labelled clip: the released samplers, reading, crops and augmentation.

B batch, T frames, S segments (clips along time), C crops.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vtr.data.decode import DecodeError, read_frames
from vtr.data.decode.types import Pick
from vtr.data.labels import IMAGES, Item
from vtr.data.transforms import crop_box
from vtr.errors import UsageError, unknown_name

# ---- sampling -----------------------------------------------------------------------------------------------------


def sample_train(kind: str, n: int, count: int, rng: np.random.Generator) -> list[int]:
    """Frame numbers of a training clip: one at random of each of `count` stretches (docs/notes/videomamba.md)."""
    if kind == "ssv2":
        step = n // count
        if step > 0:
            return [i * step + int(rng.integers(step)) for i in range(count)]
        return sorted(int(i) for i in rng.integers(n, size=count)) if n > 1 else [0] * count
    seg = (n - 1) / count
    borders = [round(seg * i) for i in range(count + 1)]
    return [min(n - 1, int(rng.integers(a, max(a, b) + 1))) for a, b in itertools.pairwise(borders)]


def sample_test(kind: str, n: int, count: int, segment: int, segments: int) -> list[int]:
    """Frame numbers of test clip `segment` of `segments`; of one: the validation rule (docs/notes/videomamba.md).

    The released SSV2 sampler knows two test clips (start and middle of each stretch); here any number divides it evenly.
    """
    if kind == "ssv2":
        tick = n / count
        shift = tick / 2 if segments == 1 else tick * segment / segments
        return [min(n - 1, int(shift + tick * i)) for i in range(count)]
    seg = (n - 1) / count
    shift = int(seg / 2) if segments == 1 else int(seg / (segments + 1) * (segment + 1))
    return [min(n - 1, round(seg * i) + shift) for i in range(count)]


# ---- reading ------------------------------------------------------------------------------------------------------


def read_item(item: Item, pick: Pick) -> Tensor:
    """Frames (T, 3, H, W) uint8 of an item: of a media file, or of a folder of numbered pictures.

    Raises:
        DecodeError: It gives no frames.
    """
    if not item.path.is_dir():
        clip = read_frames(item.path, pick, start=item.start, end=item.end)
        return torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)
    there = (p for p in item.path.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    files = sorted(
        there, key=lambda p: [int(w) if w.isdecimal() else w for w in re.split(r"(\d+)", p.name)]
    )  # 2 before 10
    if not files:
        raise DecodeError(str(item.path), "no pictures in this folder")
    chosen = [read_frames(files[i], lambda n: [0]).frames[0] for i in pick(len(files))]
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)


# ---- views --------------------------------------------------------------------------------------------------------


def crop_views(frames: Tensor, pixels: int, crops: int, crop_ratio: float = 1.0) -> Tensor:
    """(T, 3, H, W) uint8 -> (C, T, 3, S, S): the short side resized, crops along the long one (one: the middle)."""
    side = round(pixels / crop_ratio)
    still = len(frames) == 1 and crop_ratio < 1
    mode = tv.InterpolationMode.BICUBIC if still else tv.InterpolationMode.BILINEAR
    frames = tv.resize(frames, [side], antialias=still, interpolation=mode)
    top, left = frames.shape[-2] - pixels, frames.shape[-1] - pixels
    places = [(top / 2, left / 2)]
    if crops > 1:
        along = [i / (crops - 1) for i in range(crops)]
        places = [(top * a, left / 2) if top > left else (top / 2, left * a) for a in along]
    return torch.stack([frames[..., round(y) : round(y) + pixels, round(x) : round(x) + pixels] for y, x in places])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[np.random.Generator]:
    """Make the global generators that augmentation libraries draw from a function of the sample, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield np.random.default_rng(seed)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Augment:
    """Training views of a clip: the same geometry and colours for all of its frames.

    Args:
        pixels: Side of the result.
        policy: timm's name of an automatic augmentation, "" for none.
        order: "augment first" or "crop first".
        scale: Share of the area of a random crop.
        flip: Mirror half of the clips.
        erase: Probability of filling a random box with noise (the same box in all frames).
    """

    def __init__(
        self, pixels: int, *, policy: str, order: str, scale: tuple[float, float], flip: bool, erase: float
    ) -> None:
        self.pixels, self.scale, self.flip, self.erase = pixels, scale, flip, erase
        if order not in ("augment first", "crop first"):
            raise unknown_name("order of augmentation", order, ("augment first", "crop first"))
        self.crop_first = order == "crop first"
        self.policy = policy
        if policy:
            self._policy()

    def _policy(self) -> Callable[[Image.Image], Image.Image]:
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        how = {"translate_const": int(self.pixels * 0.45), "interpolation": Image.Resampling.BICUBIC}
        make = rand_augment_transform if self.policy.startswith("rand") else auto_augment_transform
        try:
            return make(self.policy, how)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(f"augment {self.policy!r}: not an augmentation that timm knows ({error})") from None

    def __call__(self, frames: Tensor, seed: int, mean: Tensor, std: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 -> (T, 3, S, S) float, normalised; a function of the frames and the seed."""
        from timm.data.random_erasing import RandomErasing

        with seeded(seed) as rng:
            if self.crop_first:
                frames = self._coloured(self._cropped(frames, rng), seed)
            else:
                frames = self._cropped(self._coloured(frames, seed), rng)
            clip = (frames.float() / 255 - mean) / std
            if self.erase > 0:
                # One picture of 3 T channels: one box, noise of its own in every frame.
                box = RandomErasing(self.erase, mode="pixel", max_count=1, device="cpu")
                clip = box(clip.flatten(0, 1)).unflatten(0, (-1, 3))
        return clip

    def _cropped(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        box = crop_box(frames.shape[-2], frames.shape[-1], rng, self.scale)
        mode = tv.InterpolationMode.BICUBIC if self.crop_first else tv.InterpolationMode.BILINEAR
        out = tv.resized_crop(frames, *box, [self.pixels, self.pixels], interpolation=mode, antialias=True)
        return out.flip(-1) if self.flip and rng.random() < 0.5 else out

    def _coloured(self, frames: Tensor, seed: int) -> Tensor:
        if not self.policy:
            return frames
        policy = self._policy()
        out = []
        for frame in frames:
            with seeded(seed + 1):  # the same draws for every frame
                picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
                try:
                    out.append(np.asarray(policy(picture)))
                except ValueError as error:
                    if "bits must be" not in str(error):
                        raise
                    # Policy v0 may posterise to 0 bits: black, as older Pillows had it; newer ones refuse.
                    out.append(np.zeros((picture.height, picture.width, 3), np.uint8))
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


def mix(
    clips: Tensor, labels: Tensor, classes: int, *, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of a batch, one of them at random where both are on.

    Args:
        clips: (B, T, 3, S, S).
        labels: (B,) int64.
        mixup, cutmix: Parameters of their Beta distributions, 0 = off.

    Returns:
        Clips, and target distributions (B, classes).
    """
    target = torch.nn.functional.one_hot(labels, classes).float()
    if len(clips) < 2 or (mixup <= 0 and cutmix <= 0):
        return clips, target
    with seeded(seed) as rng:
        ways: list[v2.Transform] = []
        if mixup > 0:
            ways.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix > 0:
            ways.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        mixed, target = ways[int(rng.integers(len(ways)))](tv_tensors.Video(clips), labels)
    return mixed.as_subclass(Tensor), target
