"""Who does what, among processes that share a folder and nothing else: claims, signs of life, claims of the dead.

Each process keeps a file `….alive` that it touches every few seconds; a claim is a file that can be made only once and
names its owner. Times are compared as the shared file system counts them, so that clocks may differ. Two processes that
do the same work after all (one was believed dead and was not) cost time and harm nothing: results are whole files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Literal

_BEAT = 5.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one after which a process counts as dead
_TRIES = 3  # processes that may die over one piece of work


class Claims:
    """This process among those that work in `folder`; to be entered before anything is claimed."""

    def __init__(self, folder: Path, *, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        self.name = f"{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Claims:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._alive(self.name).touch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._alive(self.name).unlink(missing_ok=True)

    def take(self, what: str) -> Literal["mine", "taken", "given up"]:
        """Claim a piece of work: "taken" while a living process has it, "given up" once several have died over it."""
        claim = self.folder / f"{what}.claim"
        if self._make(claim):
            return "mine"
        owner = self._owner(claim)
        if owner is None or not self.dead(owner, claim):
            return "taken"
        if len(list(self.folder.glob(f"{what}.*.lost"))) >= _TRIES - 1:
            return "given up"
        lost = self.folder / f"{what}.{self.name}.lost"
        try:
            os.rename(claim, lost)
        except OSError:
            return "taken"  # another was quicker
        if self._owner(lost) != owner:  # another was quicker, and it is that one's claim that was moved
            with contextlib.suppress(OSError):
                os.rename(lost, claim)
            return "taken"
        return "mine" if self._make(claim) else "taken"

    def release(self, what: str) -> None:
        """Give a claim back."""
        with contextlib.suppress(OSError):
            (self.folder / f"{what}.claim").unlink()

    def fail(self, what: str) -> None:
        """Tell the others that a piece of work cannot be done now."""
        (self.folder / f"{what}.failed").touch()

    def failed(self, what: str) -> bool:
        """Whether another has told so."""
        return (self.folder / f"{what}.failed").exists()

    def dead(self, owner: str, claim: Path) -> bool:
        """Whether the owner of a claim has ended, or has given no sign of life for too long."""
        machine, number, _ = owner.split(".") if owner.count(".") == 2 else ("", "0", "")
        if machine == _machine() and not _runs(int(number)):
            return True
        own = self._alive(self.name)
        own.touch()
        now, seen = _modified(own), _modified(self._alive(owner)) if owner else None
        if seen is None:  # it has not written its name yet, or took its sign away with a claim still there
            seen = _modified(claim)
        return now is not None and seen is not None and now - seen > self.patience

    def others(self) -> bool:
        """Whether another living process works here."""
        signs = [p for p in self.folder.glob("*.alive") if p.name != self._alive(self.name).name]
        return any(not self.dead(p.name.removesuffix(".alive"), p) for p in signs)

    def _alive(self, name: str) -> Path:
        return self.folder / f"{name}.alive"

    def _make(self, claim: Path) -> bool:
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the last of the others has just cleared it away
            self.folder.mkdir(parents=True, exist_ok=True)
            return False
        with os.fdopen(handle, "w") as file:
            file.write(self.name)
        return True

    @staticmethod
    def _owner(claim: Path) -> str | None:
        """Whose it is; "" where it was made but not yet written, None where it has gone."""
        try:
            return claim.read_text().strip()
        except OSError:
            return None

    def _live(self) -> None:
        while not self._over.wait(_BEAT):
            with contextlib.suppress(OSError):  # a full disk or a lost mount: what is written next says so
                self._alive(self.name).touch()


def _machine() -> str:
    """This machine, and what of it this process sees: processes of another container have other numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname().replace(".", "-")


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with contextlib.suppress(OSError):  # killed, and not yet fetched by its parent
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _modified(path: Path) -> float | None:
    try:
        with path.open("rb") as file:  # opened, so that a network file system looks again
            return os.fstat(file.fileno()).st_mtime
    except IsADirectoryError:
        return None
    except OSError:
        return None
