"""Ends a run everywhere when one of its processes dies or hangs, with the cause on every log.

Each rank's watcher is a thread: it writes a heartbeat to a small key-value store that rank 0 keeps (torch's TCPStore),
reads the other ranks' heartbeats and the cause that a failing rank left there, and ends the process when either says
so, also while the main thread waits inside a collective that will never finish.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from vtr.pretrain.stop import Stop

_BEAT = 2.0  # seconds between heartbeats
_SILENCE = 20.0  # seconds after which a rank counts as gone; torchrun then gives a hung one 30 s more


class Watch:
    """Watches the ranks of a run from `start` to `stop`.

    Args:
        rank, world: This process among how many.
        store: A torch.distributed store; default: one of its own beside the process group's.
        beat, silence: Seconds between heartbeats, and without one until a rank counts as gone.
        leave: Called with the cause when the run must end; default: say it and end the process with exit code 1.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Any = None,
        *,
        beat: float = _BEAT,
        silence: float = _SILENCE,
        leave: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.world, self.beat, self.silence = rank, world, beat, silence
        self._store, self._leave = store, leave or self._exit
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = threading.Event()
        self._wake: tuple[int, int] | None = None  # a pipe that the arrival of SIGTERM writes to
        self.request = Stop()  # for the loop: an orderly end that the user asks for

    @classmethod
    def of_environment(cls) -> Watch:
        """Of this process, as the launcher has numbered it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def start(self) -> Watch:
        """Begin; a single process has nothing to watch."""
        if self.world > 1:
            self._store = self._store or _own_store()
            self._store.set(f"beat/{self.rank}", str(time.time()))
            self._store.set(f"process/{self.rank}", f"{_machine()} {os.getpid()}")
            with contextlib.suppress(ValueError):  # not the main thread: a test
                # Python runs handlers in the main thread, which may wait inside a collective: the pipe wakes ours.
                read, write = os.pipe()
                os.set_blocking(write, False)
                signal.signal(signal.SIGTERM, lambda number, frame: None)
                signal.set_wakeup_fd(write, warn_on_full_buffer=False)
                self._wake = (read, write)
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()
        return self

    @property
    def active(self) -> bool:
        """Whether it watches: several ranks, started and not stopped."""
        return self._thread is not None

    def fail(self, cause: str) -> None:
        """Tell the other ranks why this one ends; the rank that keeps the store waits until they have read it."""
        if self._thread is None:
            return
        self._done.set()
        with contextlib.suppress(Exception):
            if self._store.add("failed", 1) == 1:
                self._store.set("cause", f"rank {self.rank} on {socket.gethostname()}: {cause}")
            if self.rank == 0:
                time.sleep(2.5 * self.beat)

    def cause(self, wait: float) -> str | None:
        """What another rank has said it ends for, asked for up to `wait` seconds."""
        end = time.monotonic() + wait
        while self._thread is not None and time.monotonic() < end:
            with contextlib.suppress(Exception):
                found = self._cause()
                if found is not None:
                    return found
            time.sleep(0.2)
        return None

    def gone(self, wait: float) -> list[int]:
        """The other ranks whose heartbeat does not change within `wait` seconds, and who are not done."""
        others = [r for r in range(self.world) if r != self.rank]
        try:
            before = {r: self._store.get(f"beat/{r}") for r in others if self._store.check([f"beat/{r}"])}
            end = time.monotonic() + wait
            silent = [r for r, beat in before.items() if beat != b"done"]
            while silent and time.monotonic() < end:
                time.sleep(0.2)
                silent = [r for r in silent if self._store.get(f"beat/{r}") == before[r]]
            return silent
        except Exception:  # the store went with rank 0
            return [0]

    def stop(self) -> None:
        """End watching: this rank is done, and silence from it is no fault."""
        if self._thread is None:
            return
        with contextlib.suppress(Exception):
            self._store.set(f"beat/{self.rank}", "done")
        self._done.set()
        self._thread.join(timeout=10 * self.beat)
        self._thread = None
        with contextlib.suppress(ValueError):
            if self._wake is not None:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _pause(self) -> bool:
        """Wait one beat; False when watching is over."""
        if self._wake is None:
            return not self._done.wait(self.beat)
        ready, _, _ = select.select([self._wake[0]], [], [], self.beat)
        if ready and signal.SIGTERM in os.read(self._wake[0], 64) and not self._done.is_set():
            cause = self.cause(2 * self.beat)
            if cause is None:
                gone = self.gone(2.5 * self.beat)
                cause = f"rank {', '.join(map(str, gone))} is gone" if gone else None
            if cause is not None or not self.request.asked:  # else the loop ends, with a checkpoint
                self._leave(
                    cause or "told to stop (SIGTERM): the launcher does so when another rank or a node has died"
                )
        return not self._done.is_set()

    def _run(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}
        lost_store = 0.0
        while self._pause():
            now = time.monotonic()
            try:
                self._store.set(f"beat/{self.rank}", str(time.time()))
                cause = self._cause()
                lost_store = 0.0
                if cause is None:
                    for other in range(self.world):
                        if other == self.rank:
                            continue
                        key = f"beat/{other}"
                        beat = self._store.get(key) if self._store.check([key]) else b""
                        if beat == b"done":
                            continue
                        if heard.get(other, (None, 0.0))[0] != beat:
                            heard[other] = (beat, now)
                        elif now - heard[other][1] > self.silence:
                            cause = f"rank {other} has not been heard of for {self.silence:.0f} s"
                            self._end(other)
                            break
            except Exception as error:  # the store lives in rank 0's process
                lost_store = lost_store or now
                cause = None
                if now - lost_store > 2 * self.beat:
                    cause = f"rank 0 is gone (its store does not answer: {str(error).splitlines()[0][:80]})"
            if cause is not None and not self._done.is_set():
                self._leave(cause)
                return

    def _cause(self) -> str | None:
        return self._store.get("cause").decode() if self._store.check(["cause"]) else None

    def _end(self, other: int) -> None:
        """Kill a rank that hangs, if it is on this machine: its launcher would wait half a minute for it."""
        with contextlib.suppress(Exception):
            machine, pid = self._store.get(f"process/{other}").decode().rsplit(" ", 1)
            if machine == _machine() and machine and int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)

    def _exit(self, cause: str) -> None:
        if not self._said.is_set():
            self._said.set()
            print(f"vtr: rank {self.rank} stops: {cause}; --resume latest continues", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may wait for ever inside a collective


def _machine() -> str:
    """What processes that see each other's ids have in common; "" where that cannot be told."""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() + os.readlink("/proc/self/ns/pid")
    return ""


def _own_store() -> Any:
    """A TCPStore on rank 0, its port told to the others through the process group's."""
    import torch.distributed as dist

    rank = dist.get_rank()
    host: list[Any] = [os.environ.get("MASTER_ADDR", "127.0.0.1"), 0]
    store = None
    if rank == 0:
        store = dist.TCPStore(
            host[0], 0, None, True, timeout=timedelta(seconds=20), wait_for_workers=False, multi_tenant=True
        )
        host[1] = store.port
    dist.broadcast_object_list(host, src=0)
    return store or dist.TCPStore(host[0], host[1], None, False, timeout=timedelta(seconds=20), wait_for_workers=False)
