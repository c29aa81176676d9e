"""Text tracks inside videos: mov_text, SubRip, WebVTT, ASS; those that are pictures are no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr.data.decode.container import open_container
from vtr.data.decode.types import Deadline, Source, source_name
from vtr.data.subtitles import Cue, Track, plain
from vtr.errors import VtrError

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

_CODECS = {"mov_text", "subrip", "srt", "webvtt", "ass", "ssa", "text"}
_PATIENCE = 60.0  # seconds without progress


def read_tracks(source: Source) -> list[Track]:
    """Text tracks inside a video; none where there are none, or where the file cannot be opened."""
    import av

    try:
        with open_container(source, Deadline(source_name(source), _PATIENCE)) as container:
            streams = [s for s in container.streams if s.type == "subtitle" and _codec(s) in _CODECS]
            if not streams:
                return []
            cues: dict[int, list[Cue]] = {s.index: [] for s in streams}
            problem = ""
            try:
                for packet in container.demux(streams):
                    try:
                        cue = _cue_of(packet)
                    except (av.error.FFmpegError, ValueError):
                        at = float((packet.pts or 0) * (packet.time_base or 0))
                        problem = problem or f"what is said at {at:.3f} s is damaged; left out"
                        continue
                    if cue is not None:
                        cues[packet.stream_index].append(cue)
            except (av.error.FFmpegError, ValueError) as error:
                problem = f"the file can be read no further ({getattr(error, 'strerror', None) or error})"
            return [
                Track(name=_track_name(s, n), cues=sorted(set(cues[s.index])), problem=problem)
                for n, s in enumerate(streams, 1)
            ]
    except (av.error.FFmpegError, ValueError, RuntimeError, VtrError, OSError):
        return []  # why it cannot be read is said by those who read its pictures


def _codec(stream: Stream) -> str:
    context = getattr(stream, "codec_context", None)
    return str(getattr(context, "name", ""))


def _track_name(stream: Stream, number: int) -> str:
    language = stream.language
    return f"track {number}" + (f" ({language})" if language and language != "und" else "")


def _cue_of(packet: Packet) -> Cue | None:
    """Text and times of a packet of a text track; the containers that have them stamp with a player's times."""
    if packet.pts is None or not packet.size or packet.time_base is None:
        return None
    start = max(0.0, float(packet.pts * packet.time_base))
    lasts = float((packet.duration or 0) * packet.time_base)
    texts = []
    for found in packet.decode():
        for rect in getattr(found, "rects", (found,)):  # PyAV before 16 has them in sets
            said = getattr(rect, "dialogue", b"") or getattr(rect, "text", b"")
            texts.append(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said))
    said = plain("\n".join(texts))
    return Cue(start, start + lasts, said) if said else None
