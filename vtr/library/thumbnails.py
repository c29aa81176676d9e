"""Small pictures of moments for pages and notebooks that need nothing else: JPEG as data: addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from vtr.data.decode import DecodeError, read_moment
from vtr.errors import VtrError
from vtr.library.files import media_source

THREE = ((1, 480), (0, 240), (2, 240))  # of three frames of a moment: the middle one large, those around it small


def pictures(
    path: str, start: float, end: float, lasts: float, sizes: Sequence[tuple[int, int]] = THREE
) -> tuple[list[str], str]:
    """Frames of a moment as data: addresses, of an image one; or none, and why.

    Args:
        start, end: Seconds; equal for an image.
        lasts: Seconds of the whole file.
        sizes: For each picture which of the moment's frames it is, counted from 0, and its most pixels.
    """
    still = end <= start
    sizes = sizes[:1] if still else sizes
    count = max(place for place, _ in sizes) + 1
    largest = max(most for _, most in sizes)
    try:
        moment = (None, None) if still else (start, end)
        clip = read_moment(media_source(path), count, start=moment[0], end=moment[1], lasts=lasts, least=largest)
    except DecodeError as error:
        return [], error.cause
    except (VtrError, OSError, ValueError) as error:
        return [], str(error)
    sources = []
    for place, most in sizes:
        image = Image.fromarray(clip.frames[place])
        image.thumbnail((most, most))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        sources.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return sources, ""
