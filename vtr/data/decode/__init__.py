"""Media files to frames: one function in front of PyAV, PIL and decord, with a time limit and one-line errors."""

from __future__ import annotations

from vtr.data.decode.frames import probe, read_frames
from vtr.data.decode.types import Clip, DecodeError, MediaInfo, TimeLimit, Window
from vtr.data.decode.windows import Windows, read_moment, read_moments, read_windows, reduced_to

__all__ = [
    "Clip",
    "DecodeError",
    "MediaInfo",
    "TimeLimit",
    "Window",
    "Windows",
    "probe",
    "read_frames",
    "read_moment",
    "read_moments",
    "read_windows",
    "reduced_to",
]
