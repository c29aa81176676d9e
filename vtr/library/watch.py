"""A library that follows its folders: `vtr index watch`. What is written, renamed or removed there is so in the library
once it rests; half-written files are left alone until then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtr.data.media import MEDIA
from vtr.data.subtitles import ENDINGS
from vtr.errors import VtrError
from vtr.library.scan import below
from vtr.library.settings import ALL, Work
from vtr.library.store import BeingWritten

if TYPE_CHECKING:
    from watchfiles import Change

    from vtr.library.ingest import AddReport
    from vtr.library.library import Library

REST = 2.0  # seconds without a change after which a file counts as written
EVERY = 600.0  # seconds after which folders are looked at whatever was heard of them
_TICK = 500  # milliseconds between looks at what is not at rest yet
_PATIENCE = 10.0  # seconds until something that failed is tried again
# File systems that tell nobody, or only some, of what others write.
_MUTE = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse",
    "afp",
    "vboxsf",
    "drvfs",
    "ceph",
    "gluster",
    "lustre",
    "virtiofs",
    "prl_fs",
)

_State = tuple[int, int] | None  # size and time of a file; None: it is not there


def needs_polling(folder: Path) -> bool:
    """Whether a folder lies on a file system that does not tell of all changes."""
    import psutil  # which wants modules that not every system has

    place = os.path.realpath(folder)
    mounts = [m for m in psutil.disk_partitions(all=True) if below(place, m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""
    return kind.startswith(_MUTE)


class _Unrest:
    """Paths that have changed, and since when each is as it is."""

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._seen: dict[str, tuple[_State, float]] = {}

    def heard(self, path: str, *, new: bool) -> None:
        """Something has happened to a path; with `new`, to all that is in it, of which nothing more may be told."""
        self._seen[path] = _state(path), time.monotonic()
        if new:
            for inside in _within(path):
                self._seen.setdefault(inside, (_state(inside), time.monotonic()))

    def fresh(self, folder: str) -> None:
        """Files that may be being written now, as far as their times tell."""
        for path in _within(folder):
            state = _state(path)
            if state is not None and abs(time.time() - state[1] / 1e9) < self._rest:
                self._seen[path] = state, time.monotonic()

    def look(self) -> tuple[set[str], set[str]]:
        """Paths that are at rest now, and those that are not."""
        now, rested = time.monotonic(), set[str]()
        for path, (state, since) in self._seen.items():
            if (found := _state(path)) != state:
                self._seen[path] = found, now
            elif now - since >= self._rest:
                rested.add(path)
        return rested, set(self._seen) - rested

    def done(self, paths: set[str]) -> None:
        """Forget paths that were dealt with, unless they have changed again."""
        for path in paths:
            if path in self._seen and self._seen[path][0] == _state(path):
                del self._seen[path]


def _within(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in names if _counts(name))


def _state(path: str) -> _State:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _counts(name: str) -> bool:
    ending = os.path.splitext(name)[1].lower()
    return ending in ENDINGS or ending[1:] in MEDIA


def _told(_: Change, path: str) -> bool:
    """Whether a change matters: of media, subtitles and folders (one that is gone cannot be told from a file)."""
    return _counts(path) or os.path.isdir(path) or (not os.path.splitext(path)[1] and not os.path.exists(path))


def watch(
    library: Library,
    folders: Sequence[str | Path],
    *,
    poll: bool | None = None,
    rest: float = REST,
    stop: threading.Event | None = None,
    problem: Callable[[str], None] = print,
    work: Work = ALL,
) -> Iterator[AddReport]:
    """Bring a library up to date with folders, again whenever something in them has changed and rests, until `stop`.

    Gives a report of each time something was done; the first, of the start, always.

    Args:
        library: The library; others may search it meanwhile.
        folders: As of `Library.sync`, quick: a file counts as changed where its size or time has.
        poll: Look at the folders again and again rather than be told by the system; None: where it does not tell.
        rest: Seconds for which a file must not have changed.
        stop: Ends it.
        problem: Gets a line for what could not be done and will be tried again: a folder that is not there, another
            process that writes to the library.
        work: As in `Library.add`.

    Raises:
        VtrError: Of the start: a folder does not exist.
    """
    places = [os.path.abspath(f) for f in folders]
    polling = any(map(needs_polling, map(Path, places))) if poll is None else poll
    stop, unrest = stop or threading.Event(), _Unrest(rest)
    ears = _Ears(places, polling, stop)  # from here on: nothing that happens during the first sync is missed
    for place in places:
        unrest.fresh(place)
    while True:
        try:
            empty = library.store.empty()
            report = library.sync(places, quick=True, may_be_empty=empty, leave=unrest.look()[1], work=work)
            break
        except BeingWritten as error:
            problem(str(error))
            if stop.wait(_PATIENCE):
                return
    yield report
    looked, again, held = time.monotonic(), 0.0, 0.0
    for heard in ears:
        for path, new in heard:
            unrest.heard(path, new=new)
        if ears.turned():
            looked = -EVERY
        rested, moving = unrest.look()
        now = time.monotonic()
        if now < again or not (rested or now - looked > EVERY):
            continue
        gone = {path for path in rested if _state(path) is None}
        if gone and moving:  # what is gone may be what is coming, under another name: not for ever, though
            held = held or now
            if now - held < 10 * rest:
                continue
        held = 0.0
        try:
            empty = not polling and all(_told_of(library, place, gone) for place in places)
            report = library.sync(places, quick=True, may_be_empty=empty, leave=moving, work=work)
        except VtrError as error:
            problem(str(error))
            again = now + _PATIENCE
            continue
        unrest.done(rested)
        looked = time.monotonic()
        if report.added or report.moved or report.removed or report.spoken or report.failed:
            yield report


class _Ears:
    """What happens in folders; where another disk or another folder has come to the place of one, in that.

    Args:
        places: Their full paths.
        polling: Look again and again.
        stop: Ends it.
    """

    def __init__(self, places: Sequence[str], polling: bool, stop: threading.Event) -> None:
        self._places, self._polling, self._stop = places, polling, stop
        self._listen()

    def _listen(self) -> None:
        import watchfiles

        self._there = [_identity(place) for place in self._places]
        self._changes = watchfiles.watch(
            *[p for p in self._places if os.path.isdir(p)] or self._places,
            watch_filter=_told,
            debounce=_TICK,
            step=50,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=self._stop,
            force_polling=self._polling,
            poll_delay_ms=1000,
            raise_interrupt=True,
        )
        next(self._changes, None)

    def __iter__(self) -> Iterator[list[tuple[str, bool]]]:
        """Of half a second each, what has changed, and whether it is new."""
        while (heard := next(self._changes, None)) is not None:
            yield [(os.path.abspath(path), change.name == "added") for change, path in sorted(heard)]

    def turned(self) -> bool:
        """Whether something else has come to the place of a folder; it is listened to from then on."""
        there = [_identity(place) for place in self._places]
        if there == self._there or None in there:
            return False
        self._changes.close()
        self._listen()
        return True


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(folder)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _told_of(library: Library, folder: str, gone: set[str]) -> bool:
    """Whether all files of a folder were seen to go, one by one or with theirs: not so where a disk was taken away."""
    known = library.store.paths_below(folder)
    return os.path.isdir(folder) and all(
        any(below(path, g) for g in gone) for path in known if not os.path.exists(path)
    )
