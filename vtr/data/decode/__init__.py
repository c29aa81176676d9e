"""Media files to frames: one function in front of PyAV, PIL and decord, with a time limit and one-line errors."""

from __future__ import annotations

from vtr.data.decode.frames import probe, read_frames, read_windows
from vtr.data.decode.types import Clip, DecodeError, MediaInfo, TimeLimit, Window

__all__ = ["Clip", "DecodeError", "MediaInfo", "TimeLimit", "Window", "probe", "read_frames", "read_windows"]
