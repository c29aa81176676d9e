"""Media files to frames: one function in front of PyAV, PIL and decord, with a time limit and one-line errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtr.data.decode.decord import read_frames_decord
from vtr.data.decode.image import ImageReader
from vtr.data.decode.isolated import read_frames_isolated
from vtr.data.decode.pyav import VideoReader, display_matrix, turn_of
from vtr.data.decode.sniff import image_format, not_media, read_head, source_bytes
from vtr.data.decode.types import (
    CLOSE,
    MAX_CLIP_BYTES,
    Clip,
    Deadline,
    DecodeError,
    MediaInfo,
    Pick,
    Source,
    Window,
    chosen,
    source_name,
    span_of,
)
from vtr.errors import unknown_name

_BACKENDS = ("auto", "pyav", "decord")


def _open(source: Source, deadline: Deadline, threads: int | None = None) -> ImageReader | VideoReader:
    """The reader for a source, after the checks that need its first bytes alone."""
    name = source_name(source)
    head = read_head(source)
    cause = not_media(head, source_bytes(source))
    if cause:
        raise DecodeError(name, cause)
    raw_stream = isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".mjpg", ".mjpeg")
    kind = image_format(head)
    if kind and not raw_stream:
        try:
            return ImageReader(source, deadline)
        except DecodeError:
            if kind != "avif":  # HEIC and the like: FFmpeg may know them where PIL does not
                raise
    return VideoReader(source, deadline, head, threads)


def probe(source: Source, *, timeout: float = 30.0) -> MediaInfo:
    """Facts about a file. Its packets are read and its first frame is decoded, so they hold for the decoder too.

    Raises:
        DecodeError: It gives no frame.
    """
    deadline = Deadline(source_name(source), timeout)
    with _open(source, deadline) as reader:
        if isinstance(reader, ImageReader):
            times = [at for at, _ in reader.read()]
            step = times[-1] / (len(times) - 1) if len(times) > 1 else 0.0
            return MediaInfo(
                kind="video" if len(times) > 1 else "image",
                width=reader.width,
                height=reader.height,
                duration=times[-1] + step,
                fps=1 / step if step else 0.0,
                frames=len(times),
                rotation=reader.rotation,
                codec=reader.codec,
            )
        times_array = reader.scan()
        for _, frame in reader.frames():
            pixels = reader.rgb(frame)
            count = len(times_array)
            duration = _duration(times_array, reader.fps)
            still = count < 2
            return MediaInfo(
                kind="image" if still else "video",
                width=pixels.shape[1],
                height=pixels.shape[0],
                duration=0.0 if still else duration,
                fps=0.0 if still else count / duration,
                frames=max(count, 1),
                rotation=turn_of(display_matrix(frame)),
                codec=reader.codec,
            )
        raise DecodeError(reader.name, reader.why_no_frames(len(times_array)))


def _duration(times: np.ndarray, fps: float) -> float:
    """Length of a video: its last frame lasts as long as the frames do on average."""
    if len(times) < 2:
        return 1.0 / fps
    return float(times[-1] * len(times) / (len(times) - 1)) or len(times) / fps


def read_frames(
    source: Source,
    pick: Pick,
    *,
    start: float | None = None,
    end: float | None = None,
    timeout: float = 30.0,
    backend: str = "auto",
    threads: int | None = None,
    isolated: bool = False,
) -> Clip:
    """Chosen frames of a video or an image.

    Frames are counted in display order; those that an edit list hides or that are too damaged to decode do not count.
    Nothing is decoded past the last frame that is needed, unless damage on the way makes the count uncertain.

    Args:
        source: A path, or the file's bytes.
        pick: Gets the number of frames (between start and end) and returns the indices wanted, in any order,
            repeated or not. It is called again where the file turns out to hold fewer frames than its packets promise.
        start, end: Only frames shown at start <= time < end, in seconds from the first frame.
        timeout: Seconds after which DecodeError is raised. In-process it is asked for between packets and reads.
        backend: "pyav", "decord" (no edit lists, fewer formats, no time limit inside it), or "auto".
        threads: Decoder threads; None: one for small pictures, up to four for large ones.
        isolated: Decode in a process of its own, bounded in memory, killed at the time limit: for files from strangers.

    Raises:
        DecodeError: The file gives no frame, in time.
        ValueError: `pick` returned no index, or one that is out of range.
    """
    if backend not in _BACKENDS:
        raise unknown_name("decode backend", backend, _BACKENDS)
    name = source_name(source)
    if isolated:
        return read_frames_isolated(source, pick, start=start, end=end, timeout=timeout, backend=backend)
    deadline = Deadline(name, timeout)
    if backend == "decord":
        return read_frames_decord(source, pick, start=start, end=end, deadline=deadline)
    with _open(source, deadline, threads) as reader:
        if isinstance(reader, ImageReader):
            return _from_image(reader, pick, start, end)
        return _from_video(reader, pick, start, end)


def _stack(pixels: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Frames of one clip as one array; a stream that changes size half-way is brought to the size of the first."""
    first = pixels[0]
    if len(pixels) * first.nbytes > MAX_CLIP_BYTES:
        raise DecodeError(name, f"{len(pixels)} frames of {first.shape[1]}x{first.shape[0]} exceed the memory limit")
    if any(p.shape != first.shape for p in pixels):
        from PIL import Image

        size = (first.shape[1], first.shape[0])
        pixels = [
            p if p.shape == first.shape else np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC))
            for p in pixels
        ]
    return np.stack(pixels)


def _from_image(reader: ImageReader, pick: Pick, start: float | None, end: float | None) -> Clip:
    if reader.frames == 1:  # a still is shown at any time
        wanted = chosen(pick, 1)
        pixels = next(reader.read())[1]
        return Clip(frames=_stack([pixels] * len(wanted), reader.name), times=np.zeros(len(wanted)))
    shown = list(reader.read())
    times = np.asarray([at for at, _ in shown])
    low, high = span_of(times, start, end, reader.name, float(times[-1]) + 0.1)
    wanted = [low + i for i in chosen(pick, high - low)]
    return Clip(frames=_stack([shown[i][1] for i in wanted], reader.name), times=times[wanted])


def _from_video(reader: VideoReader, pick: Pick, start: float | None, end: float | None) -> Clip:
    times = reader.scan()
    packets = len(times)
    if packets == 0:
        times = np.zeros(1)  # perhaps the decoder finds a frame where the demuxer marked none as shown
    found: dict[int, np.ndarray] = {}
    at: dict[int, float] = {}
    for attempt in range(2):
        low, high = span_of(times, start, end, reader.name, _duration(times, reader.fps))
        wanted = [low + i for i in chosen(pick, high - low)]
        if any(i not in found for i in wanted):
            found, at, seen = _collect(reader, times, set(wanted), exact=attempt > 0)
            if seen is None:
                break
            if len(seen) == 0:
                raise DecodeError(reader.name, reader.why_no_frames(packets))
            if len(seen) != len(times):
                times = seen
                continue
        break
    else:
        low, high = span_of(times, start, end, reader.name, _duration(times, reader.fps))
    if any(i not in found for i in wanted):
        raise DecodeError(reader.name, f"only {len(times)} frames could be decoded, and not the same ones twice")
    frames = _stack([found[i] for i in wanted], reader.name)
    return Clip(frames=frames, times=np.asarray([at[i] for i in wanted]))


def _collect(
    reader: VideoReader, times: np.ndarray, wanted: set[int], exact: bool
) -> tuple[dict[int, np.ndarray], dict[int, float], np.ndarray | None]:
    """Decode until the wanted frames are there.

    Returns:
        Pixels by index, times by index, and the times of all frames where the whole video was decoded, else None.
    """
    first, last = min(wanted), max(wanted)
    if reader.seekable and not exact and times[first] > 5.0:
        found, at = _collect_by_time(reader, times, wanted)
        if len(found) == len(wanted):
            return found, at, None
    found, at = {}, {}
    seen: list[float] = []
    damaged = False
    for stamp, frame in reader.frames():
        index = len(seen)
        seen.append(stamp if stamp is not None else index / reader.fps)
        # A decoder with several threads drops damaged frames without a word: then the times shift.
        late = reader.seekable and (index >= len(times) or abs(seen[-1] - times[index]) > CLOSE)
        damaged = damaged or (not exact and bool(late or reader.errors))
        if damaged and reader.used_threads > 1:
            break
        if index in wanted:
            found[index] = reader.rgb(frame)
            at[index] = seen[-1]
            if found[index].nbytes * len(found) > MAX_CLIP_BYTES:
                raise DecodeError(reader.name, f"{len(wanted)} frames exceed the memory limit")
        if index >= last and (exact or (reader.trusted and not damaged)):
            return found, at, None
    if reader.used_threads > 1 and (damaged or len(seen) < len(times)):
        reader.single_thread()  # it loses fewer frames, and says so
        return _collect(reader, times, wanted, exact)
    return found, at, np.maximum.accumulate(np.asarray(seen)) if seen else np.zeros(0)


def _collect_by_time(
    reader: VideoReader, times: np.ndarray, wanted: set[int]
) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """The wanted frames from the key frame before them, recognised by their times; fewer where that fails."""
    found: dict[int, np.ndarray] = {}
    at: dict[int, float] = {}
    last = max(wanted)
    for stamp, frame in reader.frames(seek=float(times[min(wanted)])):
        if stamp is None or reader.errors or frame.is_corrupt:
            # Some files lack what the first frames after a seek refer to: decoding from the start is right there.
            break
        index = int(np.argmin(np.abs(times - stamp)))
        if abs(times[index] - stamp) < CLOSE and index in wanted:
            found[index], at[index] = reader.rgb(frame), stamp
        if index >= last:
            break
    return found, at


def read_windows(
    path: Source,
    *,
    window: float,
    stride: float,
    frames: int,
    size: int,
    timeout: float = 30.0,
    antialias: bool = False,
    threads: int | None = None,
) -> Iterator[Window]:
    """A video as overlapping windows of `frames` middle frames each, in one pass and constant memory.

    Args:
        path: A path, or the file's bytes.
        window, stride: Length and distance of windows in seconds. The last one ends with the video; a video no longer
            than one window, and an image, give one.
        frames: T, frames per window.
        size: S, pixels: frames are resized to S x S as the test protocol does.
        timeout: Seconds without a new window after which DecodeError is raised (a long film may take longer in all).
        antialias: As in `transforms.eval_frames`.
        threads: Decoder threads, as in `read_frames`.

    Raises:
        DecodeError: Not one window could be decoded, or the time limit was passed.
    """
    from vtr.data.sampling import middle_frames, window_spans
    from vtr.data.transforms import eval_frames

    deadline = Deadline(source_name(path), timeout)
    with _open(path, deadline, threads) as reader:
        if isinstance(reader, ImageReader):
            clip = _from_image(reader, lambda n: middle_frames(n, frames), None, None)
            length = 0.0 if reader.frames == 1 else float(clip.times[-1]) + 0.1
            yield Window(start=0.0, end=length, frames=eval_frames(clip.frames, size, antialias))
            return
        times = reader.scan()
        if len(times) == 0:
            raise DecodeError(reader.name, reader.why_no_frames(0))
        length = _duration(times, reader.fps)
        if len(times) == 1:
            length = 0.0
        plans = []
        for begin, finish in window_spans(length, window, stride):
            low, high = span_of(times, begin, finish if finish < length else None, reader.name, length)
            plans.append(_Plan(begin, finish, [float(times[low + i]) for i in middle_frames(high - low, frames)]))
        deadline.restart()
        yielded = 0
        for plan in _fill(reader, plans, lambda pixels: eval_frames(pixels[None], size, antialias)[0]):
            import torch

            yielded += 1
            yield Window(start=plan.start, end=plan.end, frames=torch.stack(plan.slots))
            deadline.restart()
        if not yielded:
            raise DecodeError(reader.name, reader.why_no_frames(len(times)))


class _Plan:
    """A window under way: the times of the frames it still lacks, and those it has."""

    def __init__(self, start: float, end: float, targets: list[float]) -> None:
        self.start, self.end, self.targets = start, end, targets
        self.slots: list[Any] = []

    def offer(self, at: float) -> int:
        """How many of the missing slots a frame shown at this time serves."""
        due = 0
        for target in self.targets[len(self.slots) :]:
            if at < target - CLOSE:
                break
            due += 1
        return due


def _fill(reader: VideoReader, plans: list[_Plan], convert: Any) -> Iterator[_Plan]:
    """Decode once and yield each plan, in order, when its frames are there; those that get none are left out."""
    waiting = list(reversed(plans))
    active: list[_Plan] = []
    for count, (stamp, frame) in enumerate(reader.frames()):
        at = stamp if stamp is not None else count / reader.fps
        while waiting and at >= waiting[-1].targets[0] - CLOSE:
            active.append(waiting.pop())
        picture = None
        for plan in active:
            due = plan.offer(at)
            # A frame after the window's end is none of its content: what is missing is filled from what it has.
            if due and (at < plan.end + CLOSE or at <= plan.targets[0] + CLOSE):
                picture = convert(reader.rgb(frame)) if picture is None else picture
                plan.slots.extend([picture] * due)
        while active and (len(active[0].slots) == len(active[0].targets) or at > active[0].end + CLOSE):
            done = active.pop(0)
            if done.slots:
                done.slots.extend([done.slots[-1]] * (len(done.targets) - len(done.slots)))
                yield done
        if not waiting and not active:
            return
    for plan in active:
        if plan.slots:
            plan.slots.extend([plan.slots[-1]] * (len(plan.targets) - len(plan.slots)))
            yield plan
