"""Subtitle files beside the videos of a library: which there are, and whether they have changed since they were read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vtr.data.decode.tracks import read_tracks
from vtr.data.media import is_image
from vtr.data.subtitles import ENDINGS, UNREAD, Track, beside, read_file
from vtr.library.files import shown
from vtr.library.store import Store
from vtr.library.words import Beside, problem_line


class SubtitleFiles:
    """What is said in the files of one `add` or `sync`.

    Args:
        store: Of the library.
        notes: Get a line for what could not be taken as it stands.

    Attributes:
        unread: Subtitle files of formats that are not read.
    """

    def __init__(self, store: Store, notes: list[str]) -> None:
        self.store, self.notes = store, notes
        self.unread = set[str]()
        self._folders: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}  # by folder and media file

    def take(self, video: int, path: str, tracks: Sequence[Track] | None) -> None:
        """Note what is said in a video that was taken in: in it and beside it. Within `change`."""
        if tracks is not None:
            self.store.set_tracks(video, [(track, None) for track in tracks], beside=False)
            self._note(path, tracks)
        self._read(video, path)

    def refresh(self, video: int, path: str, *, hashed: bool) -> bool:
        """Read the subtitles of a video again where they have changed; returns whether they had.

        Args:
            hashed: Compare their content and not only their size and time.
        """
        changed = self._changed(video, path, hashed)
        if not self.store.was_heard(video) and any(span.end > span.start for span in self.store.spans_of(video)[0]):
            tracks = read_tracks(Path(path))  # of what an older vtr took in
            with self.store.change():
                self.store.set_tracks(video, [(track, None) for track in tracks], beside=False)
            self._note(path, tracks)
        if changed:
            with self.store.change():
                self._read(video, path)
        return changed

    def _changed(self, video: int, path: str, hashed: bool) -> bool:
        known = self.store.files_beside(video)
        names = self._names(path)
        if sorted(known) != names:
            return True
        for name in names:
            file = Path(path).parent / name
            before = known[name]
            try:
                facts = file.stat()
                now = Beside(bytes=facts.st_size, modified=facts.st_mtime, sha256=before.sha256)
                if now == before and not hashed:
                    continue
                if hashlib.sha256(read_file(file)[1]).hexdigest() != before.sha256:
                    return True
                if now != before:
                    with self.store.db:
                        self.store.touch_track(video, name, now)
            except OSError:
                if before.sha256 is not None:
                    return True
        return False

    def _names(self, path: str) -> list[str]:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            try:
                names = os.listdir(folder)
            except OSError:
                names = []
            self._folders[folder] = _of_films(beside(names)), _of_films(beside(names, UNREAD))
        read, unread = self._folders[folder]
        self.unread.update(os.path.join(folder, n) for n in unread.get(name, []))
        return sorted(read.get(name, []))

    def note_unread(self) -> None:
        """Note how many subtitle files are of formats that are not read."""
        if self.unread:
            kinds = Counter(os.path.splitext(name)[1].lower() for name in self.unread)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            first, read = shown(min(self.unread)), " and ".join(ENDINGS)
            self.notes.append(f"subtitles of formats that are not read, only {read} are: {told} (first: {first})")

    def _read(self, video: int, path: str) -> None:
        found: list[tuple[Track, Beside | None]] = []
        for name in self._names(path):
            file = Path(path).parent / name
            try:
                facts = file.stat()
                track, data = read_file(file)
                state = Beside(bytes=facts.st_size, modified=facts.st_mtime, sha256=hashlib.sha256(data).hexdigest())
            except OSError as error:
                track = Track(name=name, cues=[], problem=f"cannot be read ({error.strerror})")
                state = Beside(bytes=None, modified=None, sha256=None)
            found.append((self._bounded(video, track), state))
        self.store.set_tracks(video, found, beside=True)
        self._note(path, [track for track, _ in found])

    def _bounded(self, video: int, track: Track) -> Track:
        """The same track, saying so where it goes on after the video's end."""
        known = self.store.video(video)
        late = [cue for cue in track.cues if known is not None and cue.start >= max(known.duration, 0.001)]
        if not late or known is None or known.duration == 0:
            return track
        line = f"{len(late)} cues come after the end ({late[0].start:.1f} s of {known.duration:.1f} s)"
        return Track(name=track.name, cues=track.cues, problem="; ".join(filter(None, (track.problem, line))))

    def _note(self, path: str, tracks: Sequence[Track]) -> None:
        self.notes += [shown(problem_line(path, t.name, t.problem)) for t in tracks if t.problem]


def _of_films(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Subtitles by file; a picture that is called as a film (its poster) has none of the film's."""
    films = {name for owner, names in found.items() if not is_image(owner) for name in names}
    return {o: [name for name in names if name not in films or not is_image(o)] for o, names in found.items()}
