"""Media files to frames: one function in front of PyAV, PIL and decord, with a time limit and one-line errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vtr.data.decode.decord import read_frames_decord
from vtr.data.decode.heif import HeifReader
from vtr.data.decode.image import ImageReader
from vtr.data.decode.isolated import read_frames_isolated
from vtr.data.decode.picture import display_matrix, turn_of
from vtr.data.decode.pyav import VideoReader
from vtr.data.decode.sniff import image_format, not_media, read_head, source_bytes
from vtr.data.decode.types import (
    CLOSE,
    MAX_CLIP_BYTES,
    Clip,
    Deadline,
    DecodeError,
    Held,
    MediaInfo,
    Pick,
    Player,
    Shot,
    Source,
    Stored,
    chosen,
    source_name,
    span_of,
)
from vtr.errors import unknown_name

_BACKENDS = ("auto", "pyav", "decord")
SCAN_BYTES = 32 << 20  # files up to this size are read whole to know each frame's time, larger ones are entered
_MOST_IMAGE = 1 << 30  # bytes of an image that lies elsewhere, which is fetched whole
_REACH = 8.0  # seconds that are decoded rather than jumped over
Picture = tuple[float, np.ndarray]  # time on the timeline, (H, W, 3)


def open_media(
    source: Source, deadline: Deadline, *, threads: int | None = None, least: int | None = None
) -> ImageReader | HeifReader | VideoReader:
    """The reader for a source, after the checks that need its first bytes alone."""
    name = source_name(source)
    head = read_head(source)
    cause = not_media(head, source_bytes(source))
    if cause:
        raise DecodeError(name, cause)
    raw_stream = isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".mjpg", ".mjpeg")
    kind = image_format(head)
    if kind and not raw_stream:
        if isinstance(source, Stored):
            source = Held.of(source, _MOST_IMAGE)
        try:
            return ImageReader(source, deadline, least)
        except DecodeError:
            if kind != "avif":  # HEIC and the like: FFmpeg may know them where PIL does not
                raise
        tiled = HeifReader.of(source, deadline, least)
        if tiled is not None:
            return tiled
    return VideoReader(source, deadline, head, threads)


def probe(source: Source, *, timeout: float = 30.0) -> MediaInfo:
    """Facts about a file. Its packets are read and its first frame is decoded, so they hold for the decoder too.

    Raises:
        DecodeError: It gives no frame.
    """
    deadline = Deadline(source_name(source), timeout)
    with open_media(source, deadline) as reader:
        if isinstance(reader, VideoReader):
            return _probe_video(reader)
        count = sum(1 for _ in reader.play())
        return MediaInfo(
            kind="video" if count > 1 else "image",
            width=reader.width,
            height=reader.height,
            duration=reader.length(),
            fps=count / reader.length() if count > 1 else 0.0,
            frames=count,
            rotation=reader.rotation,
            codec=reader.codec,
        )


def _probe_video(reader: VideoReader) -> MediaInfo:
    count = len(reader.scan())
    if not reader.regular:
        count = sum(1 for _ in reader.play()) or count
    length = reader.length()
    for _, shot in reader.play():
        pixels = shot.pixels()
        still = length == 0
        return MediaInfo(
            kind="image" if still else "video",
            width=pixels.shape[1],
            height=pixels.shape[0],
            duration=0.0 if still else length,
            fps=0.0 if still else count / max(reader.picture_end - reader.begin, 1e-3),
            frames=max(count, 1),
            rotation=turn_of(display_matrix(shot.frame)),
            codec=reader.codec,
        )
    raise DecodeError(reader.name, reader.why_no_frames(count))


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
    """Chosen frames of a video or an image, by their number.

    Frames are counted in display order; those that an edit list hides or that are too damaged to decode do not count.
    Nothing is decoded past the last frame that is needed, unless damage on the way makes the count uncertain. A span of
    a long file costs what the span costs: the file is entered at a key frame before it.

    Args:
        source: A path, or the file's bytes.
        pick: Gets the number of frames (between start and end) and returns the indices wanted, in any order,
            repeated or not. It is called again where the file turns out to hold fewer frames than its packets promise.
        start, end: Only frames that begin at start <= time < end, in seconds on the file's timeline, as a player counts
            them; where none does, the frame on display at the start.
        timeout: Seconds without progress (more of the file read, a frame decoded) after which DecodeError is raised.
            In-process it is asked for between packets and reads.
        backend: "pyav", "decord" (fewer formats, no time limit inside it; refuses files that it counts otherwise), or
            "auto".
        threads: Decoder threads; None: one for small pictures, up to four for large ones.
        isolated: Decode in a process of its own, bounded in memory, killed when the time limit has passed in all: for
            files from strangers.

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
        return _through_decord(source, pick, start, end, deadline)
    with open_media(source, deadline, threads=threads) as reader:
        if isinstance(reader, VideoReader):
            return _from_video(reader, source_bytes(source), pick, start, end)
        return _from_image(reader, pick, start, end)


def _through_decord(source: Source, pick: Pick, start: float | None, end: float | None, deadline: Deadline) -> Clip:
    try:
        with open_media(source, deadline, threads=1) as reader:
            if isinstance(reader, VideoReader):
                return read_frames_decord(reader, source, pick, start=start, end=end, deadline=deadline)
    except DecodeError as error:
        said = error.cause.startswith(("decord", "the decord"))
        raise error if said else DecodeError(error.name, f"not for decord: {error.cause}") from None
    raise DecodeError(source_name(source), "decord reads no images: use the pyav backend")


def stack(pixels: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Frames of one clip as one array; a stream that changes size half-way is brought to the size of the first.

    One picture many times is not copied: the array's first stride is then 0.
    """
    first = pixels[0]
    if all(p is first for p in pixels):
        return np.lib.stride_tricks.as_strided(first, (len(pixels), *first.shape), (0, *first.strides))
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


def _from_image(reader: ImageReader | HeifReader, pick: Pick, start: float | None, end: float | None) -> Clip:
    if reader.frames == 1:  # a still is shown at any time
        wanted = chosen(pick, 1)
        pixels = next(reader.play())[1].pixels()
        return Clip(frames=stack([pixels] * len(wanted), reader.name), times=np.zeros(len(wanted)))
    times = np.asarray([at for at, _ in reader.play()])
    low, high = span_of(times, start, end, reader.name, reader.length())
    wanted = [low + i for i in chosen(pick, high - low)]
    kept = {i: shot.pixels() for i, (_, shot) in enumerate(reader.play()) if i in set(wanted)}
    return Clip(frames=stack([kept[i] for i in wanted], reader.name), times=times[wanted])


def _from_video(reader: VideoReader, size: int, pick: Pick, start: float | None, end: float | None) -> Clip:
    entering = start is not None and size > SCAN_BYTES
    times = _span_times(reader, start or 0.0, end) if entering else np.zeros(0)
    if len(times) == 0:
        entering = False
        times = reader.scan()
    if reader.regular and not entering and start is None:
        return _counted(reader, times, pick, end)
    if not reader.regular:
        packets = len(times)
        times = np.asarray([at for at, _ in reader.play()])
        if reader.used_threads > 1 and len(times) < packets:
            reader.single_thread()  # it loses fewer damaged frames
            times = np.asarray([at for at, _ in reader.play()])
        if len(times) == 0:
            raise DecodeError(reader.name, reader.why_no_frames(packets))
    elif len(times) == 0:
        times = np.zeros(1)  # perhaps the decoder finds a frame where the demuxer marked none as shown
    length = (reader.claimed_end or float("inf")) if entering else reader.length()
    low, high = span_of(times, start, end, reader.name, length)
    wanted = [float(times[low + i]) for i in chosen(pick, high - low)]
    order = sorted(set(wanted))
    shown = dict(zip(order, pictures_at(reader, order)))
    frames = stack([shown[t][1] for t in wanted], reader.name)
    return Clip(frames=frames, times=np.asarray([shown[t][0] for t in wanted]))


def _span_times(reader: VideoReader, start: float, end: float | None) -> np.ndarray:
    """Times of frames in and just before a span of a long file; empty where the whole file must be read for them."""
    reader.survey()
    last = end if end is not None else reader.claimed_end
    if not reader.enterable or last is None:
        return np.zeros(0)
    return reader.times_between(start, last)


def pictures_at(reader: Player, targets: Sequence[float]) -> list[Picture]:
    """What is on display at each of these ascending times: (time at which that frame begins, its pixels).

    Before the first frame that frame counts, after the last one the last. Equal frames are the same array.

    Raises:
        DecodeError: There is no frame, or the pictures exceed the memory limit.
    """
    found = _pictures(reader, targets, sure=False)
    if found is None:
        found = _pictures(reader, targets, sure=True)
    assert found is not None
    return found


def _pictures(reader: Player, targets: Sequence[float], *, sure: bool) -> list[Picture] | None:
    """As `pictures_at`; None where a jump into the file met damage on the way, which may be the jump's."""
    out: list[Picture] = []
    frames: Iterator[tuple[float, Shot]] = iter(())
    shown: tuple[float, Shot] | None = None
    coming: tuple[float, Shot] | None = None
    taken: tuple[float, Shot] | None = None
    for target in targets:
        far = shown is not None and coming is not None and target - coming[0] > _REACH and reader.enterable
        if shown is None or far:
            frames = reader.play_from(target, sure=sure)
            shown, coming = next(frames, None), next(frames, None)
        if shown is None:
            raise DecodeError(reader.name, reader.why_no_frames(0))
        while coming is not None and coming[0] <= target + CLOSE:
            shown, coming = coming, next(frames, None)
            if reader.entered and not sure and shown[1].is_corrupt:
                return None
        if shown is not taken:
            out.append((shown[0], shown[1].pixels()))
            taken = shown
            if out[-1][1].nbytes * len(out) > MAX_CLIP_BYTES:
                raise DecodeError(reader.name, f"{len(targets)} frames exceed the memory limit")
        else:
            out.append(out[-1])
    return out


def _counted(reader: VideoReader, times: np.ndarray, pick: Pick, end: float | None) -> Clip:
    """Frames of a whole video by their number, where packets say how many there are; damage may show that they lied."""
    packets = len(times)
    if packets == 0:
        times = np.zeros(1)  # perhaps the decoder finds a frame where the demuxer marked none as shown
    found: dict[int, Picture] = {}
    for attempt in range(2):
        low, high = span_of(times, None, end, reader.name, float(times[-1]))
        wanted = [low + i for i in chosen(pick, high - low)]
        if any(i not in found for i in wanted):
            found, seen = _collect(reader, times, set(wanted), exact=attempt > 0)
            if seen is None:
                break
            if len(seen) == 0:
                raise DecodeError(reader.name, reader.why_no_frames(packets))
            if len(seen) != len(times):
                times = seen
                continue
        break
    else:
        low, high = span_of(times, None, end, reader.name, float(times[-1]))
    if any(i not in found for i in wanted):
        raise DecodeError(reader.name, f"only {len(times)} frames could be decoded, and not the same ones twice")
    frames = stack([found[i][1] for i in wanted], reader.name)
    return Clip(frames=frames, times=np.asarray([found[i][0] for i in wanted]))


def _collect(
    reader: VideoReader, times: np.ndarray, wanted: set[int], exact: bool
) -> tuple[dict[int, Picture], np.ndarray | None]:
    """Decode until the wanted frames are there.

    Returns:
        Times and pixels by index, and the times of all frames where the whole video was decoded, else None.
    """
    order = sorted(wanted)
    gaps = np.diff([0.0, *times[order]])
    if reader.trusted and reader.enterable and not exact and gaps.max() > _REACH:
        pictures = pictures_at(reader, [float(t) for t in times[order]])
        if all(abs(at - times[i]) < CLOSE for i, (at, _) in zip(order, pictures)):
            return dict(zip(order, pictures)), None
    found: dict[int, Picture] = {}
    seen: list[float] = []
    damaged = False
    for at, shot in reader.play():
        index = len(seen)
        seen.append(at)
        # A decoder with several threads drops damaged frames without a word: then the times shift.
        late = reader.trusted and (index >= len(times) or abs(at - times[index]) > CLOSE)
        damaged = damaged or (not exact and bool(late or reader.errors))
        if damaged and reader.used_threads > 1:
            break
        if index in wanted:
            found[index] = at, shot.pixels()
            if found[index][1].nbytes * len(found) > MAX_CLIP_BYTES:
                raise DecodeError(reader.name, f"{len(wanted)} frames exceed the memory limit")
        if index >= order[-1] and (exact or (reader.trusted and not damaged)):
            return found, None
    if reader.used_threads > 1 and (damaged or len(seen) < len(times)):
        reader.single_thread()  # it loses fewer frames, and says so
        return _collect(reader, times, wanted, exact)
    return found, np.asarray(seen)
