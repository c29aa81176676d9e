"""One unit of `vtr embed` on its way to a part: its jobs for the pipeline, and what came of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vtr.data.shards import iterate_samples
from vtr.data.uri import Access, Address, is_uri
from vtr.errors import UsageError, VtrError
from vtr.library.files import clean_metadata, sha256, shown
from vtr.library.parts import Part, PartVideo, Source, read_heading, read_part, write_part
from vtr.library.pipeline import Job
from vtr.library.rows import Embedded, Facts, Failure, Metadata
from vtr.library.settings import LibrarySettings
from vtr.library.work import Item, Unit, of_unit

if TYPE_CHECKING:
    from vtr.data.shards import RawSample


class UnitWork:
    """One unit on its way to a part: its jobs for the pipeline, and what came of them.

    Args:
        out: Folder of the parts.
        unit: What is to be done.
        items: What was named, by name.
        settings: Of model and windows.
        access: What may be fetched.
    """

    def __init__(
        self, out: Path, unit: Unit, items: Mapping[str, Item], settings: LibrarySettings, access: Access
    ) -> None:
        self.out, self.unit, self.settings, self.access = out, unit, settings, access
        self.todo = of_unit(unit, items)
        self._planned = {s.name: s for s in unit.sources}
        self.videos: list[PartVideo] = []
        self.vectors: list[np.ndarray] = []
        self.sources: list[Source] = list(unit.kept)
        self.failed: list[str] = []
        self.damaged = ""

    def jobs(self) -> Iterator[Job[Key]]:
        """What is to be decoded, in order; `take` wants the results in the same order."""
        old = self._old()
        for source in self.unit.kept:
            self._keep(old, source.name)
        before = old.sources if old else {}
        for item, source in self.todo:
            known = before.get(item.name)
            same = known is not None and not known.again and source.bytes is not None
            if same and known is not None and (known.bytes, known.modified) == (source.bytes, source.modified):
                self._keep(old, item.name, item.metadata)
                self.sources.append(source)
            elif item.kind == "shard":
                self.sources.append(source)
                yield from self._samples(item)
            else:
                yield self._job(item, source)

    def take(self, video: PartVideo, found: Embedded | Failure | None) -> None:
        """The result of a job."""
        if isinstance(found, Embedded) and self.unit.kind != "shard" and not is_uri(video.path):
            found = self._looked_at(video, found)
        if isinstance(found, Embedded) and len(found.spans):
            video.spans, video.duration, video.lacking = found.spans, found.duration, found.lacking
            self.vectors.append(found.vectors)
        else:
            failure = found if isinstance(found, Failure) else video.failure
            failure = failure or Failure(reason=f"{video.path}: no frames")
            video.failure = dataclasses.replace(failure, reason=" ".join(failure.reason.split()))
            self.failed.append(shown(video.failure.reason))
        self.videos.append(video)
        if self.unit.kind != "shard":
            again = video.failure is not None and video.failure.kind != "unreadable"
            self.sources.append(dataclasses.replace(self._planned[video.path], again=again))

    def _looked_at(self, video: PartVideo, found: Embedded) -> Embedded | Failure:
        """A file's content hash; it must be the file that the plan speaks of."""
        planned = self._planned[video.path]
        try:
            digest = found.sha256 or sha256(Path(video.path))
            video.facts = Facts(planned.bytes, planned.modified, digest)
            now = os.stat(video.path)
        except OSError as error:
            return Failure(reason=f"{video.path}: {error.strerror}", kind="unopened")
        if (now.st_size, now.st_mtime) != (planned.bytes, planned.modified):
            return Failure(reason=f"{video.path}: changed since the call began; call again", kind="unopened")
        return found

    def write(self, precision: str = "fp32", parity: float | None = None) -> int:
        """Write the part; returns its segments."""
        width = self.settings.width
        vectors = np.concatenate([np.zeros((0, width), np.float32), *self.vectors])
        part = Part(videos=self.videos, vectors=vectors)
        origin, unit = {**self.settings.origin, "precision": precision, "parity": parity}, self.unit
        write_part(self.out / unit.name, part, origin=origin, unit=unit.id, sources=self.sources)
        return len(vectors)

    def _job(self, item: Item, source: Source) -> Job[Key]:
        video = PartVideo(path=item.name, facts=Facts(source.bytes, source.modified, None), metadata=item.metadata)
        at = Address(item.name, self.access) if item.kind == "uri" else Path(item.name)
        return Job(key=video, source=at, name="" if item.kind == "file" else at.name)

    def _samples(self, item: Item) -> Iterator[Job[Key]]:
        try:
            opened = Address(item.name, self.access).open() if is_uri(item.name) else None
            for sample in iterate_samples(item.name, opened=opened):
                own = f"{item.name}/{sample.key}.{sample.extension or 'none'}"
                video = PartVideo(path=own, metadata=_meta(sample))
                if sample.media:
                    video.facts = Facts(len(sample.media), None, _hash(sample.media))
                    yield Job(key=video, source=sample.media, name=own)
                else:
                    video.failure = Failure(reason=f"{own}: no video or image in the sample")
                    yield Job(key=video, source=None)
        except (VtrError, OSError) as error:
            self.damaged = shown(str(error))

    # -- what the part holds already ----------------------------------------------------------------------------------

    def _old(self) -> _Old | None:
        path = self.out / self.unit.name
        if not path.is_file():
            return None
        try:
            return _Old(path, self.settings.width)
        except VtrError:
            return None

    def _keep(self, old: _Old | None, name: str, metadata: Metadata | None = None) -> None:
        for video, vectors in old.of(name) if old else ():
            if metadata is not None:
                video.metadata = metadata
            self.videos.append(video)
            self.vectors.append(vectors)


class _Old:
    """A part as it was, by its sources."""

    def __init__(self, path: Path, width: int) -> None:
        self.sources = {s.name: s for s in read_heading(path).sources}
        part = read_part(path, width)
        ends = np.cumsum([len(v.spans) for v in part.videos]).tolist()
        self._videos = [(video, part.vectors[end - len(video.spans) : end]) for video, end in zip(part.videos, ends)]

    def of(self, source: str) -> Iterator[tuple[PartVideo, np.ndarray]]:
        for video, vectors in self._videos:
            if video.path == source or video.path.startswith(f"{source}/"):
                yield video, vectors


def _hash(media: bytes) -> str:
    return hashlib.sha256(media).hexdigest()


def _meta(sample: RawSample) -> Metadata:
    values = {k: v for k, v in sample.meta.items() if isinstance(v, str | int | float)}
    if sample.caption:
        values["caption"] = sample.caption
    try:
        return clean_metadata(values, sample.key)
    except UsageError:
        return {}


Key = PartVideo | UnitWork  # of a job: a video, or the end of a unit
