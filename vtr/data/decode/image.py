"""Still and animated images through PIL: upright (EXIF), on white where transparent, RGB; photos reduced as they load."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vtr.data.decode.picture import HDR, WIDE, standard_range
from vtr.data.decode.types import MAX_PIXELS, Deadline, DecodeError, Source, Still, opened, source_name

if TYPE_CHECKING:
    from PIL import Image

_SHORTEST = 0.010  # seconds: frames that claim to last no longer are shown for a tenth of a second, as in browsers
_USUAL = 0.1
_UNTOLD = 2  # of primaries and transfer
_HEAD = 64 << 10  # bytes within which a file tells how its light is coded
_MOST_PIXELS = 1 << 30  # a JPEG may have so many, because it is reduced while it is decoded


class ImageReader:
    """The frames of one image file, in order. PIL opens lazily, so a forged size is refused before any decoding.

    Args:
        source: A path, or the file's bytes.
        deadline: Limit on the time without progress.
        least: Pixels that neither side needs to exceed: the picture may then come at a half, a third … of its size.
    """

    fps = 1 / _USUAL
    claimed_end: float | None = None
    entered = enterable = False

    def __init__(self, source: Source, deadline: Deadline, least: int | None = None) -> None:
        from PIL import Image, UnidentifiedImageError

        # PIL warns about each damaged tag; whether there are pixels is what counts, and that is checked here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self.name = source_name(source)
        self._deadline = deadline
        self._length = 0.0
        self._file = opened(source)
        try:
            self._image: Image.Image = _jpeg(self._file) or Image.open(self._file)
        except Image.DecompressionBombError:
            self._file.close()
            raise DecodeError(self.name, f"an image of too many pixels: {_too_large()}") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            self._file.close()
            raise DecodeError(self.name, f"an image that cannot be opened: {error}") from None
        width, height = self._image.size
        self.codec = str(self._image.format or "image").lower()
        if width * height > (_MOST_PIXELS if self.codec == "jpeg" else MAX_PIXELS):
            self.close()
            raise DecodeError(self.name, f"an image of {width}x{height} pixels: {_too_large()}")
        # An MPO is a photo with a preview or a second eye behind it, a TIFF may have pages: neither is a video.
        self.frames = int(getattr(self._image, "n_frames", 1)) if self.codec in ("webp", "png", "avif") else 1
        # The picture for programs that know no animation may be none of it.
        self._first = 1 if self.frames > 1 and getattr(self._image, "default_image", False) else 0
        self.frames -= self._first
        self.rotation = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(self._orientation(), 0)
        turned = self.rotation in (90, 270) and self.codec != "tiff"  # whose size PIL gives as it is shown
        self.width, self.height = (height, width) if turned else (width, height)
        self._least = least
        self._light = self._told_light()
        self._draft(least)

    def _told_light(self) -> tuple[int, int]:
        """Primaries and transfer (ITU-T H.273) as an AVIF or a PNG tells them; PIL passes them over. (2, 2): untold."""
        if self.codec not in ("avif", "png"):
            return _UNTOLD, _UNTOLD
        place = self._file.tell()
        self._file.seek(0)
        head = self._file.read(_HEAD)
        self._file.seek(place)
        if self.codec == "png":
            found = head.find(b"cICP") + 4
            return (head[found], head[found + 1]) if 4 <= found < len(head) - 1 else (_UNTOLD, _UNTOLD)
        found = head.find(b"colrnclx") + 8
        return (head[found + 1], head[found + 3]) if 8 <= found < len(head) - 3 else (_UNTOLD, _UNTOLD)

    def _draft(self, least: int | None) -> None:
        """Have a JPEG decoded at a half, a quarter or an eighth of its size, which costs as little."""
        width, height = self._image.size
        if self.codec == "jpeg" and (least is not None or width * height > MAX_PIXELS):
            scale = 1 if least is None else max(1, min(width, height) // least)
            while width * height > MAX_PIXELS * scale**2:
                scale *= 2
            self._image.draft("RGB", (width // scale, height // scale))
            if self._image.size[0] * self._image.size[1] > MAX_PIXELS:
                self.close()
                raise DecodeError(self.name, f"an image of {width}x{height} pixels: {_too_large()}")

    def _orientation(self) -> int:
        try:
            return int(self._image.getexif().get(0x0112, 1))
        except (OSError, ValueError, SyntaxError, TypeError):
            return 1  # damaged EXIF: show the picture as stored

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._image.close()
        self._file.close()

    def play(self) -> Iterator[tuple[float, Still]]:
        """Each frame with its time in seconds."""
        clock = 0.0
        for index in range(self._first, self._first + self.frames):
            self._deadline.check()
            try:
                if index or self.frames > 1:
                    self._image.seek(index)
                pixels = self._rgb()
                shown = float(self._image.info.get("duration", 0) or 0) / 1000
            except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
                if index > self._first:
                    return
                raise DecodeError(self.name, f"a damaged {self.codec} image: {error}") from None
            self._deadline.progress()
            at, clock = clock, clock + (shown if shown > _SHORTEST else _USUAL)
            self._length = max(self._length, clock)
            yield at, Still(pixels)

    def play_from(self, moment: float, *, sure: bool = False) -> Iterator[tuple[float, Still]]:
        """As `play`: an animation builds each frame on the one before."""
        return self.play()

    def length(self) -> float:
        """Seconds the animation lasts, once it was played; 0 for a still."""
        return self._length if self.frames > 1 else 0.0

    def why_no_frames(self, packets: int) -> str:
        """The cause to name where not one frame came out."""
        return f"a {self.codec} image without a picture"

    def _rgb(self) -> np.ndarray:
        from PIL import Image

        image: Image.Image = self._image
        if image.mode.startswith("I;16") or image.mode == "I":
            wide = np.asarray(image)
            deep = self.codec == "png" or wide.max(initial=0) > 255  # a PNG of 16 bits uses them all
            image = Image.fromarray((wide >> 8 if deep else wide).clip(0, 255).astype(np.uint8))
        elif image.mode == "F":  # white is 1, or the most that 8 or 16 bits hold
            light = np.nan_to_num(np.asarray(image))
            top = light.max(initial=0)
            white = 1 if top <= 1 else 255 if top <= 255 else 65535
            image = Image.fromarray((light * (255 / white) + 0.5).clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            over = image.convert("RGBA")
            flat = Image.new("RGBA", over.size, (255, 255, 255, 255))
            flat.alpha_composite(over)
            image = flat
        pixels = reduced(image.convert("RGB"), self._least)
        primaries, transfer = self._light
        if transfer in HDR:
            pixels = standard_range(pixels.astype(np.uint16) * 257, transfer, wide=primaries in (WIDE, _UNTOLD))
        return _upright(pixels, self._orientation())


def reduced(image: Image.Image, least: int | None) -> np.ndarray:
    """uint8 (H, W, 3) of an RGB image, by a whole factor smaller where both sides still have `least` pixels then."""
    factor = 1 if least is None else min(image.size) // least
    return np.array(image.reduce(factor) if factor > 1 else image)


def _jpeg(file: BinaryIO) -> Image.Image | None:
    """A JPEG opened without PIL's own limit of pixels, which does not know that it will be reduced; else None."""
    from PIL.JpegImagePlugin import JpegImageFile

    head = file.read(3)
    file.seek(0)
    return JpegImageFile(file) if head == b"\xff\xd8\xff" else None


def _too_large() -> str:
    return f"more than the {MAX_PIXELS / 1e6:.0f} million that are decoded; save it smaller, or as JPEG"


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) turned and mirrored as an EXIF orientation 1..8 asks for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
