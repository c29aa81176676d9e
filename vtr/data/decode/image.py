"""Still and animated images through PIL: upright (EXIF), on white where transparent, RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np

from vtr.data.decode.types import MAX_PIXELS, Deadline, DecodeError, Source, source_name


class ImageReader:
    """The frames of one image file, in order. PIL opens lazily, so a forged size is refused before any decoding."""

    def __init__(self, source: Source, deadline: Deadline) -> None:
        from PIL import Image, UnidentifiedImageError

        # PIL warns about each damaged tag; whether there are pixels is what counts, and that is checked here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self.name = source_name(source)
        self._deadline = deadline
        self._file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else open(source, "rb")  # noqa: SIM115
        try:
            self._image = Image.open(self._file)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self._file.close()
            raise DecodeError(self.name, f"an image that cannot be opened: {error}") from None
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            self.close()
            raise DecodeError(self.name, f"an image of {width}x{height} pixels, more than the limit of {MAX_PIXELS}")
        self.codec = str(self._image.format or "image").lower()
        # An MPO is a photo with a preview or a second eye behind it, a TIFF may have pages: neither is a video.
        self.frames = int(getattr(self._image, "n_frames", 1)) if self.codec in ("webp", "png", "avif") else 1
        self.rotation = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(self._orientation(), 0)
        turned = self.rotation in (90, 270)
        self.width, self.height = (height, width) if turned else (width, height)

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

    def read(self) -> Iterator[tuple[float, np.ndarray]]:
        """(time in s, (H, W, 3) uint8) of each frame."""
        clock = 0.0
        for index in range(self.frames):
            self._deadline.check()
            try:
                if index:
                    self._image.seek(index)
                pixels = self._rgb()
                shown = float(self._image.info.get("duration", 0) or 0) / 1000
            except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
                if index:
                    return
                raise DecodeError(self.name, f"a damaged {self.codec} image: {error}") from None
            yield clock, pixels
            clock += shown or 0.1

    def _rgb(self) -> np.ndarray:
        from PIL import Image

        image: Image.Image = self._image
        if image.mode.startswith("I;16") or image.mode == "I":
            wide = np.asarray(image)
            image = Image.fromarray((wide >> 8 if wide.max(initial=0) > 255 else wide).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            over = image.convert("RGBA")
            flat = Image.new("RGBA", over.size, (255, 255, 255, 255))
            flat.alpha_composite(over)
            image = flat
        image = image.convert("RGB")
        return _upright(np.array(image, dtype=np.uint8), self._orientation())


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) turned and mirrored as an EXIF orientation 1..8 asks for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
