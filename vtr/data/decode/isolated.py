"""Decode in a process of its own, bounded in memory and killed at the time limit: for files from strangers.

The two talk through pipes: lines of JSON, then raw pixels. Nothing that the child says is executed or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import numpy as np

from vtr.data.decode.types import MAX_CLIP_BYTES, Clip, DecodeError, Pick, Source, Span, source_name
from vtr.files import import_root

_Answer = dict[str, list[int]]
_CHILD = ("-m", "vtr.data.decode.child")
_GRACE = 2.0  # seconds for the child to start and to say itself that the time is over


def read_frames_isolated(
    source: Source, pick: Pick, *, start: float | None, end: float | None, timeout: float, backend: str
) -> Clip:
    """As `vtr.data.decode.read_frames`, in a child process. A crash of the decoder becomes a DecodeError."""
    request: dict[str, object] = {"start": start, "end": end, "timeout": timeout, "backend": backend}
    [clip] = _asked(source, request, timeout, lambda count: [int(i) for i in pick(int(count))])
    return clip


def read_moments_isolated(
    source: Source, count: int, spans: Callable[[float], Sequence[Span]], *, least: int | None, timeout: float
) -> Iterator[Clip]:
    """As `vtr.data.decode.read_moments`, in one child process."""
    request: dict[str, object] = {"moments": count, "least": least, "timeout": timeout}
    yield from _asked(source, request, timeout, spans)


def _asked(
    source: Source, request: dict[str, object], timeout: float, wanted: Callable[[float], Sequence[object]]
) -> Iterator[Clip]:
    """What the child answers; `wanted` is asked once it has told how much there is, and says what of it is wanted."""
    name = source_name(source)
    body = bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else None
    request["path"] = os.path.abspath(str(source)) if body is None else None
    request["bytes"] = len(body or b"")
    root = str(import_root())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    child = subprocess.Popen(
        [sys.executable, *_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        child.kill()

    timer = threading.Timer(timeout + _GRACE, kill)
    timer.start()
    try:
        send(child.stdin, request, body or b"")
        while True:
            line = child.stdout.readline(1 << 16)
            answer = json.loads(line or b'{"error": "the decoder crashed or ran out of memory"}')
            if "there" in answer:
                send(child.stdin, {"wanted": wanted(answer["there"])})
            elif "shape" in answer:
                yield _receive(child.stdout, answer)
            elif "misuse" in answer:
                raise ValueError(answer["misuse"])
            elif "done" in answer:
                return
            else:
                cause = f"killed at the time limit of {timeout:g} s" if killed.is_set() else str(answer["error"])
                raise DecodeError(name, cause)
    except (BrokenPipeError, json.JSONDecodeError, EOFError):
        cause = f"killed at the time limit of {timeout:g} s" if killed.is_set() else "the decoder crashed"
        raise DecodeError(name, cause) from None
    finally:
        timer.cancel()
        child.kill()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # the child is gone with the rest of its input unread
            child.stdin.close()
        child.wait()


def send(pipe: IO[bytes], message: Mapping[str, object], body: bytes = b"") -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes], answer: _Answer) -> Clip:
    shape = tuple(int(n) for n in answer["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    if len(shape) != 4 or shape[3] != 3 or not 0 < size <= MAX_CLIP_BYTES:
        raise EOFError
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return Clip(
        frames=np.frombuffer(data, dtype=np.uint8).reshape(shape).copy(),
        times=np.asarray(answer["times"], dtype=np.float64),
    )
