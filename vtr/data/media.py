"""The endings of media files, which everything that looks for files goes by."""

from __future__ import annotations

from pathlib import PurePath

VIDEO = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "flv", "gif", "mpg", "3gp", "ogv", "wmv")
IMAGE = ("jpg", "jpeg", "png", "webp", "bmp")
# Rarer ones that are read, but looked for after those above.
MORE_VIDEO = ("mpeg", "ts", "m2ts", "mts", "ogg", "3g2", "asf", "vob", "f4v", "divx", "mjpg", "mjpeg", "y4m", "mxf")
MORE_IMAGE = ("tif", "tiff", "avif", "heic", "ppm")


def ending(name: str | PurePath) -> str:
    """The ending of a name in lower case where it is one of a media file, else ""."""
    last = PurePath(name).suffix[1:].lower()
    return last if last in (*VIDEO, *IMAGE, *MORE_VIDEO, *MORE_IMAGE) else ""


def is_image(name: str | PurePath) -> bool:
    """Whether a name has the ending of a picture."""
    return ending(name) in (*IMAGE, *MORE_IMAGE)
