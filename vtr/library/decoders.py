"""Decoding processes: each cuts one file after the other into windows, which it leaves in memory shared with its owner.

They are forked, so that they begin at once. A file that kills its decoder, or makes it take too much memory or time, costs
that file. The owner hears JSON alone: nothing that a decoder says is executed or unpickled.

T frames, S pixels.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from vtr.data.decode import DecodeError, TimeLimit, Windows
from vtr.data.decode.tracks import read_tracks
from vtr.data.decode.types import Deadline, Source
from vtr.data.subtitles import Cue
from vtr.data.whole import cut_off
from vtr.errors import VtrError
from vtr.library.encode import Cut
from vtr.library.files import sha256
from vtr.library.near import pictures_of
from vtr.library.rows import Failure
from vtr.threads import GRPC_FORKS, cores, ranks_here

Opener = Callable[[], Source]

_SLOTS = 8  # windows that a process may have decoded ahead
_MOST = 16  # processes, unless more are asked for
_MEMORY = 8 << 30  # bytes that a process may take beyond what it begins with
_STANDSTILL = 90  # seconds without any progress after which a process ends itself, whatever it is at
_BEHIND = 10  # niceness beside threads that encode: one of them that waits for a core keeps all of them waiting
_DIE_WITH_OWNER = 1  # Linux's PR_SET_PDEATHSIG


class Message(TypedDict, total=False):
    """What a decoder says of a file: a window (slot, start, end, where the file claims to end, tiny pictures in base64), its end, a failure, or
    that it begins anew and all before is void."""

    slot: int
    looks: str
    start: float
    end: float
    claimed: float
    duration: float
    lacking: str
    sha256: str
    tracks: list[tuple[str, list[Cue], str]]
    reason: str
    kind: str
    again: bool


def default_workers() -> int:
    """As many decoding processes as serve on this machine; 0 where none can be forked."""
    return min(_MOST, max(1, cores() // ranks_here())) if forkable() else 0


def forkable() -> bool:
    """Whether this process can be forked safely. One in which gRPC runs cannot, unless its own support of forks is off: it
    starts threads in what is forked, which end it, and a sound file would be blamed."""
    beside_grpc = "grpc" in sys.modules and os.environ.get(GRPC_FORKS) != "0"
    return sys.platform == "linux" and not beside_grpc


def opened(source: Source | Opener) -> Source:
    """What to decode."""
    return source() if callable(source) else source


def failure_of(error: Exception, name: str) -> Failure:
    """An error of a file as a library remembers it; others are raised again."""
    if isinstance(error, DecodeError):
        reason = f"{name}: {error.cause}" if name else str(error)
        return Failure(reason=reason, kind="slow" if isinstance(error, TimeLimit) else "unreadable")
    if isinstance(error, OSError):
        return Failure(reason=f"{name or error.filename}: {error.strerror or error}", kind="unopened")
    if isinstance(error, VtrError):
        return Failure(reason=f"{name}: {error}" if name and name not in str(error) else str(error), kind="unopened")
    if isinstance(error, MemoryError):
        return Failure(reason=f"{name}: needs more memory than a decoder may have", kind="crashed")
    raise error


class Decoder:
    """A decoding process, as its owner sees it.

    Args:
        cut: How files are cut.
        behind: Whether what encodes needs the same cores; it goes first.

    Attributes:
        pipe: Becomes readable when the process says something or is gone.
        busy: Whether it has a file.
    """

    def __init__(self, cut: Cut, *, behind: bool = False) -> None:
        self._room = mmap.mmap(-1, _SLOTS * int(np.prod(cut.shape)))  # anonymous: gone with the two processes
        self._slots = np.frombuffer(self._room, np.uint8).reshape(_SLOTS, *cut.shape)
        self.pipe, theirs = Pipe()
        self.busy = False
        owner = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _become_decoder(owner, theirs)
                os.nice(_BEHIND * behind)
                _Work(cut, theirs, self._slots).go_on()
            except BaseException:
                os._exit(1)
            os._exit(0)
        theirs.close()

    def start(self, source: Source | Opener, name: str, *, alone: bool) -> None:
        """Give it a file; see `told`."""
        self.busy = True
        with contextlib.suppress(OSError):  # where it is gone, that is heard
            self.pipe.send((source, name, alone))

    def hear(self) -> Message | None:
        """What it says next; None where it is gone."""
        try:
            said: Message = json.loads(self.pipe.recv_bytes())
            return said
        except (EOFError, OSError):
            return None

    def frames(self, slot: int) -> np.ndarray:
        """A window (T, 3, S, S) where it lies in the shared memory."""
        frames: np.ndarray = self._slots[slot]
        return frames

    def release(self, slot: int) -> None:
        """Let the next window take its place."""
        with contextlib.suppress(OSError):
            self.pipe.send(slot)

    def end(self) -> str:
        """Make sure that it is gone; returns how it ended, in words."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.pipe.close()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _become_decoder(owner: int, pipe: Connection) -> None:
    """Make a forked process one that decodes and nothing else, and that ends with its owner."""
    gc.freeze()  # nothing of the owner's is closed or finalised here
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_OWNER, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(0)
    for name in os.listdir("/proc/self/fd"):  # locks and databases of the owner above all
        if int(name) > 2 and int(name) != pipe.fileno():
            with contextlib.suppress(OSError):
                os.close(int(name))
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        with open("/proc/self/statm") as facts:
            now = int(facts.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, now + _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # a pool of the owner's would not be here
    Deadline.watch(_STANDSTILL)


def told(cut: Cut, source: Source | Opener, name: str, *, alone: bool) -> Iterator[tuple[Message, torch.Tensor | None]]:
    """What a decoder says of a file, each window with its frames (T, 3, S, S).

    Args:
        cut: How it is cut.
        source: What to decode.
        name: How errors name it.
        alone: No other file waits: more than one thread may decode it.
    """
    try:
        media = opened(source)
        windows = cut.windows(media, alone=alone)
        yield from _of_windows(windows)
        if windows.damaged:
            # Several threads lose more of a damaged file, and not always the same; what is passed over changes patches.
            yield {"again": True}, None
            windows = cut.windows(media, thorough=True)
            yield from _of_windows(windows)
        Deadline.rest()
        end: Message = {"duration": windows.duration, "lacking": windows.lacking}
        if isinstance(media, str | Path):
            end["lacking"], end["sha256"] = cut_off(media, thorough=False) or windows.lacking, sha256(Path(media))
        tracks = read_tracks(media) if windows.duration else []
        end["tracks"] = [(track.name, list(track.cues), track.problem) for track in tracks]
        yield end, None
    except Exception as error:
        found = failure_of(error, name)
        yield {"reason": found.reason, "kind": found.kind or "unreadable"}, None


def _of_windows(windows: Windows) -> Iterator[tuple[Message, torch.Tensor | None]]:
    for window in windows:
        looks = base64.b64encode(pictures_of(window.frames.numpy()).tobytes()).decode()
        yield {"start": window.start, "end": window.end, "claimed": windows.claimed, "looks": looks}, window.frames


class _Work:
    """What a decoding process does."""

    def __init__(self, cut: Cut, pipe: Connection, slots: np.ndarray) -> None:
        self.cut, self.pipe, self.slots = cut, pipe, slots
        self.free = list(range(len(slots)))

    def go_on(self) -> None:
        """Decode what the owner asks for, until it is gone."""
        while True:
            try:
                asked = self.pipe.recv()
                if isinstance(asked, int):
                    self.free.append(asked)
                else:
                    self._decode(*asked)
            except (EOFError, OSError):
                return

    def _decode(self, source: Source | Opener, name: str, alone: bool) -> None:
        try:
            for message, frames in told(self.cut, source, name, alone=alone):
                Deadline.rest()  # what follows is in the owner's time
                if frames is not None:
                    while not self.free:
                        self.free.append(self.pipe.recv())
                    message["slot"] = self.free.pop()
                    self.slots[message["slot"]] = frames.numpy()
                self._say(message)
        except (EOFError, OSError):
            raise
        except Exception as error:
            Deadline.rest()
            self._say({"reason": f"{name}: {type(error).__name__}: {error}", "kind": "crashed"})

    def _say(self, message: Message) -> None:
        self.pipe.send_bytes(json.dumps(message).encode())


class Decoders:
    """Decoding processes, started as they are needed.

    Args:
        cut: How files are cut.
        most: Processes.
        still: A context in which nobody computes in another thread: a process is forked in it.
        behind: As of a `Decoder`.
    """

    def __init__(
        self, cut: Cut, most: int, still: Callable[[], AbstractContextManager[None]], *, behind: bool = False
    ) -> None:
        self._cut, self.most, self._still, self._behind = cut, most, still, behind
        self.all: list[Decoder] = []

    def idle(self) -> Decoder:
        """One that has no file; a new one where all have. Ask `spare` first."""
        found = next((d for d in self.all if not d.busy), None)
        if found is None:
            with self._still():
                found = Decoder(self._cut, behind=self._behind)
            self.all.append(found)
        return found

    def spare(self) -> int:
        """How many more could be at work."""
        return self.most - sum(d.busy for d in self.all)

    def lost(self, decoder: Decoder) -> str:
        """Give up one that is gone; returns how it ended, in words."""
        self.all.remove(decoder)
        return decoder.end()

    def close(self) -> None:
        """End all."""
        while self.all:
            self.all.pop().end()
