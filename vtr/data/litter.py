"""What lies among files and is nobody's: what systems, NAS boxes and cameras keep for themselves, and unfinished downloads."""

from __future__ import annotations

import os

from vtr.data.media import MEDIA

# What a program is still writing; the second list comes before the file's own ending, as in film.temp.mp4.
_PARTIAL = frozenset(
    [
        ".part",
        ".crdownload",
        ".download",
        ".opdownload",
        ".partial",
        ".ytdl",
        ".tmp",
        ".temp",
        ".!ut",
        ".!qb",
        ".bc!",
        ".aria2",
    ]
)
_UNFINISHED = frozenset({".temp", ".tmp"})
_PREVIEWS = (".trickplay", ".lrdata")  # endings of folders of previews that players and photo programs make
# Folders that systems and NAS boxes keep for themselves: previews, deleted files, indexes.
_SYSTEM = frozenset(
    {
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "@synologydrive",
        "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "__macosx",
        ".trashes", ".thumbnails", ".@__thumb", ".spotlight-v100", ".fseventsd", "lost.dir", "network trash folder",
        "temporary items",
    }
)  # fmt: skip


def folder_left_out(name: str, inside: str, include_hidden: bool) -> str | None:
    """Why a folder is none of a person's own, None where it is.

    Args:
        name: Of the folder.
        inside: Ending of the one that it lies in.
        include_hidden: Also those whose names begin with a dot.
    """
    if inside.lower() == ".photoslibrary" and name.lower() not in ("originals", "masters"):
        return "previews of a .photoslibrary"
    if os.path.splitext(name)[1].lower() in _PREVIEWS:
        return f"*{os.path.splitext(name)[1].lower()}"
    if name.lower() in _SYSTEM or name.lower().startswith(".trash"):
        return name
    return ".*" if name.startswith(".") and not include_hidden else None


def file_left_out(name: str, beside: set[str], include_hidden: bool) -> str | None:
    """Why a file is no media file of a person's own, None where it is; `beside` are all names of its folder."""
    stem, ending = os.path.splitext(name)
    ending = ending.lower()
    if name.startswith("._"):
        return "._*"  # what macOS writes beside a file where its file system has no place for it
    if ending in _PARTIAL:
        return ending
    if os.path.splitext(stem)[1].lower() in _UNFINISHED and ending[1:] in MEDIA:
        return os.path.splitext(stem)[1].lower() + ".*"
    if f"{name}.aria2" in beside:
        return "*.aria2 beside it"
    if name.startswith(".") and not include_hidden:
        return name if name in (".DS_Store",) else ".*"
    if ending[1:] in MEDIA:
        return None
    return ending or "no ending"
