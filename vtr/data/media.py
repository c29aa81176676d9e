"""The endings of media files, which everything that looks for files goes by."""

from __future__ import annotations

from pathlib import PurePath

VIDEO = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "flv", "gif", "mpg", "3gp", "ogv", "wmv")
IMAGE = ("jpg", "jpeg", "png", "webp", "bmp")
# Rarer ones that are read, but looked for after those above.
MORE_VIDEO = ("mpeg", "ts", "m2ts", "mts", "ogg", "3g2", "asf", "vob", "f4v", "divx", "mjpg", "mjpeg", "y4m", "mxf")
MORE_IMAGE = ("tif", "tiff", "avif", "heic", "ppm")
# Those that are known where a file has them, and never tried.
_RARE_VIDEO = [
    "qt",
    "mk3d",
    "xvid",
    "apng",
    "mpe",
    "mp2v",
    "m1v",
    "m2v",
    "mpv",
    "evo",
    "m2t",
    "tp",
    "trp",
    "mod",
    "tod",
    "3gpp",
    "ogm",
    "wtv",
    "dvr-ms",
    "rm",
    "rmvb",
    "dv",
    "dif",
    "gxf",
    "amv",
    "nut",
    "nsv",
    "bik",
    "roq",
    "insv",
    "h261",
    "h263",
    "h264",
    "avc",
    "h265",
    "hevc",
    "vvc",
    "ivf",
    "obu",
    "av1",
    "mj2",
]
_RARE_IMAGE = [
    "jpe",
    "jfif",
    "jif",
    "dib",
    "avifs",
    "heics",
    "heif",
    "heifs",
    "hif",
    "jxl",
    "jp2",
    "j2k",
    "jpx",
    "pgm",
    "pbm",
    "pnm",
    "tga",
    "qoi",
    "pcx",
    "insp",
]
_NUMBERS = ("264", "265", "360")  # in a list they are more often part of a name than its ending

IMAGES = frozenset((*IMAGE, *MORE_IMAGE, *_RARE_IMAGE))
_NAMED = IMAGES | {*VIDEO, *MORE_VIDEO, *_RARE_VIDEO}
MEDIA = _NAMED | {*_NUMBERS}  # of a file that is there


def ending(name: str | PurePath) -> str:
    """The ending of a name in lower case where it is one of a media file, else ""."""
    last = PurePath(name).suffix[1:].lower()
    return last if last in _NAMED else ""


def is_image(name: str | PurePath) -> bool:
    """Whether a name has the ending of a picture."""
    return ending(name) in IMAGES
