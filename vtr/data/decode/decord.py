"""Decord as a second decoder, for files known to be plain: it ignores edit lists and has no time limit inside it."""

from __future__ import annotations

import io

import numpy as np

from vtr.data.decode.sniff import not_media, read_head, source_bytes
from vtr.data.decode.types import (
    MAX_CLIP_BYTES,
    Clip,
    Deadline,
    DecodeError,
    Pick,
    Source,
    chosen,
    source_name,
    span_of,
)


def read_frames_decord(
    source: Source, pick: Pick, *, start: float | None, end: float | None, deadline: Deadline
) -> Clip:
    """As `vtr.data.decode.read_frames`, through decord. Its own hangs can be ended only by `isolated=True`."""
    name = source_name(source)
    cause = not_media(read_head(source), source_bytes(source))
    if cause:
        raise DecodeError(name, cause)
    try:
        import decord
    except ImportError:
        raise DecodeError(name, "the decord backend was asked for, but decord is not installed") from None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # As bytes always: decord would read a meaning into some file names.
        data = source if isinstance(source, (bytes, bytearray, memoryview)) else _read(str(source))
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        count = len(reader)
        if count < 1:
            raise DecodeError(name, "decord finds no frame")
        stamps = np.asarray(reader.get_frame_timestamp(list(range(count))), dtype=np.float64)[:, 0]
        times = np.maximum.accumulate(stamps - stamps[0])
        low, high = span_of(times, start, end, name, float(times[-1] + 1 / (reader.get_avg_fps() or 25.0)))
        wanted = [low + i for i in chosen(pick, high - low)]
        deadline.check()
        height, width = reader[wanted[0]].shape[:2]
        if len(wanted) * height * width * 3 > MAX_CLIP_BYTES:
            raise DecodeError(name, f"{len(wanted)} frames of {width}x{height} exceed the memory limit")
        frames = np.asarray(reader.get_batch(wanted).asnumpy(), dtype=np.uint8)
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, ValueError) and "pick returned" in str(error):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise DecodeError(name, f"decord: {lines[0] if lines else 'error'}") from None
    deadline.check()
    return Clip(frames=frames, times=times[wanted])


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
