"""The decoding process of `vtr.data.decode.isolated`: one request from stdin, frames to stdout."""

from __future__ import annotations

import json
import sys

from vtr.data.decode.frames import read_frames
from vtr.data.decode.isolated import send
from vtr.data.decode.types import DecodeError, Source, Span
from vtr.data.decode.windows import read_moments

_MEMORY = 8 << 30  # address space


def _child() -> None:
    """Answer one request."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # no such limits on this system: the time limit still holds
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    request = json.loads(stdin.readline())
    source: Source = stdin.read(request["bytes"]) if request["path"] is None else request["path"]

    def numbers(count: int) -> list[int]:
        send(stdout, {"there": count})
        return list(json.loads(stdin.readline())["wanted"])

    def spans(seconds: float) -> list[Span]:
        send(stdout, {"there": seconds})
        return [(start, end) for start, end in json.loads(stdin.readline())["wanted"]]

    timeout = request["timeout"]
    try:
        if "moments" in request:
            clips = read_moments(source, request["moments"], spans, least=request["least"], timeout=timeout)
        else:
            span = {"start": request["start"], "end": request["end"]}
            clips = iter([read_frames(source, numbers, backend=request["backend"], timeout=timeout, **span)])
        for clip in clips:
            send(stdout, {"shape": clip.frames.shape, "times": clip.times.tolist()}, clip.frames.tobytes())
        send(stdout, {"done": True})
    except DecodeError as error:
        send(stdout, {"error": error.cause})
    except ValueError as error:
        send(stdout, {"misuse": str(error)})
    except MemoryError:
        send(stdout, {"error": "needs more memory than a decoder may have"})


if __name__ == "__main__":
    _child()
