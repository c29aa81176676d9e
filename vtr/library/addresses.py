"""Videos at addresses (http, https, s3 …) into a library, each a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vtr.data.decode import DecodeError, TimeLimit
from vtr.data.uri import Access, Address, shown_uri
from vtr.library.files import shown
from vtr.library.ingest import AddReport
from vtr.library.pipeline import Job
from vtr.library.rows import Embedded, Facts, Failure
from vtr.library.settings import ALL, Work
from vtr.library.store import checksum

if TYPE_CHECKING:
    from vtr.library.library import Library

ORIGIN = "address"  # of these videos: they are no files, which `sync` and `verify` look at


def add_addresses(
    library: Library,
    uris: Sequence[str],
    *,
    access: Access | None = None,
    report: AddReport | None = None,
    keyframes: bool | None = None,
    work: Work = ALL,
) -> AddReport:
    """Index what lies at addresses; those are skipped whose size and time are as they were.

    What could not be had this time is not written down: what was indexed of it stays, and the next call tries again.

    Args:
        library: With its model.
        uris: Addresses.
        access: What may be fetched.
        report: What is added to, and returned.
        keyframes, work: As in `Library.add`.
    """
    report = AddReport() if report is None else report
    access = access or Access()
    with library.store.writing():
        library.set_windows(None, None, keyframes)
        with library.pipeline(work) as machine:
            for job, found in machine.run(_jobs(library, list(dict.fromkeys(uris)), access, report)):
                _record(library, job, found, report)
        library.update_index()
        library.calibrate()
    return report


Key = tuple[str, Facts]


def _jobs(library: Library, uris: Sequence[str], access: Access, report: AddReport) -> Iterator[Job[Key]]:
    for uri in uris:
        at = Address(uri, access)
        known = library.store.video_at(uri)
        try:
            facts = Facts(*at.facts(), None)
        except DecodeError as error:
            if isinstance(error, TimeLimit) or (known and known.failure is None):
                report.failed.append(shown(str(error)))
                continue
            facts = Facts(None, None, None)
        same = facts[:2] != (None, None) and known is not None and known.facts[:2] == facts[:2]
        if same and known is not None and known.failure is None:
            report.unchanged += 1
        else:
            yield Job(key=(uri, facts), source=at, name=at.name)


def _record(library: Library, key: Key, found: Embedded | Failure | None, report: AddReport) -> None:
    uri, facts = key
    if found is None or (isinstance(found, Failure) and found.kind != "unreadable"):
        report.failed.append(shown(found.reason if found else f"{shown_uri(uri)}: nothing was read"))
        return
    store = library.store
    failure = found if isinstance(found, Failure) else None
    spans = [] if isinstance(found, Failure) else found.spans
    with store.change():
        store.delete_path(uri)
        number = store.insert_video(
            uri,
            facts,
            spans,
            store.append(found.vectors, found.frames) if isinstance(found, Embedded) else 0,
            crc=None if isinstance(found, Failure) else checksum(found.vectors),
            duration=0.0 if isinstance(found, Failure) else found.duration,
            failure=failure,
            origin=ORIGIN,
            lacking="" if isinstance(found, Failure) else found.lacking,
        )
        if isinstance(found, Embedded) and found.looks is not None:
            store.set_looks(number, found.looks)
        if isinstance(found, Embedded) and found.tracks is not None:
            store.set_tracks(number, [(track, None) for track in found.tracks], beside=False)
    if failure is None:
        report.added += 1
        report.segments += len(spans)
    else:
        report.failed.append(shown(failure.reason))
