"""Decord as a second decoder, for files it counts as the clock does: it knows no edit lists, turns or pixel shapes."""

from __future__ import annotations

import io

import numpy as np

from vtr.data.decode.picture import HDR, display_matrix
from vtr.data.decode.pyav import VideoReader
from vtr.data.decode.types import MAX_CLIP_BYTES, Clip, Deadline, DecodeError, Pick, Source, chosen, opened, span_of

_AGREE = 2e-3  # seconds within which decord's times, which are float32, must be the clock's


def read_frames_decord(
    reader: VideoReader, source: Source, pick: Pick, *, start: float | None, end: float | None, deadline: Deadline
) -> Clip:
    """As `vtr.data.decode.read_frames`, through decord. Its own hangs can be ended only by `isolated=True`.

    Args:
        reader: The same file through PyAV, which says when its frames are shown.
        source, pick, start, end: As in `read_frames`.
        deadline: Asked before and after decord is at work.

    Raises:
        DecodeError: Decord cannot read the file, or would give other frames or times.
    """
    name = reader.name
    try:
        import decord
    except ImportError:
        raise DecodeError(name, "the decord backend was asked for, but decord is not installed") from None
    decord.logging.set_level(decord.logging.QUIET)
    times = reader.scan()
    frame = next((shot.frame for _, shot in reader.play()), None)
    if frame is None:
        raise DecodeError(name, reader.why_no_frames(len(times)))
    if display_matrix(frame) is not None or frame.color_trc in HDR:
        raise DecodeError(name, "decord would show it turned or in wrong light: use the pyav backend")
    if reader.painter.size(frame) != (frame.width, frame.height):
        raise DecodeError(name, "decord would show its pixels as squares, which they are not: use the pyav backend")
    try:
        # As bytes always: decord would read a meaning into some file names.
        with opened(source) as file:
            data = file.read()
        decoder = decord.VideoReader(io.BytesIO(data), num_threads=1)
        count = len(decoder)
        if count < 1:
            raise DecodeError(name, "decord finds no frame")
        stamps = np.asarray(decoder.get_frame_timestamp(list(range(count))), dtype=np.float64)[:, 0]
        if not reader.regular or count != len(times) or np.abs(stamps - stamps[0] - times + times[0]).max() > _AGREE:
            raise DecodeError(name, "decord counts its frames or times otherwise than a player: use the pyav backend")
        low, high = span_of(times, start, end, name, reader.length())
        wanted = [low + i for i in chosen(pick, high - low)]
        deadline.check()
        height, width = decoder[wanted[0]].shape[:2]
        if len(wanted) * height * width * 3 > MAX_CLIP_BYTES:
            raise DecodeError(name, f"{len(wanted)} frames of {width}x{height} exceed the memory limit")
        frames = np.asarray(decoder.get_batch(wanted).asnumpy(), dtype=np.uint8)
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, DecodeError) or (isinstance(error, ValueError) and "pick returned" in str(error)):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise DecodeError(name, f"decord: {lines[0] if lines else 'error'}") from None
    deadline.progress()
    return Clip(frames=frames, times=times[wanted])
