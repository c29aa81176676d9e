"""A library made of parts, or brought up to date with them; no model is needed."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from tqdm import tqdm

from vtr.errors import VtrError
from vtr.library.library import Library
from vtr.library.parts import ENDING, Part, read_heading, read_part, read_settings
from vtr.library.rows import Failure
from vtr.library.store import Store, checksum


def build_from(folder: Path, out: Path, *, max_memory: int | None = None, token_cache: int | None = None) -> Library:
    """Make a library of embeddings, or bring one up to date with them.

    Each part is one transaction: a killed call goes on with the next one. A video that several parts hold is that of the
    newest one.
    """
    settings = read_settings(folder)
    parts = sorted(folder.glob(f"*{ENDING}"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    if not parts:
        raise VtrError(f"{folder}: no embeddings yet; run vtr embed until it is done")
    library = Library.create_from(out, settings, max_memory=max_memory, token_cache=token_cache)
    often = 0.1 if sys.stderr.isatty() else 30.0
    store = library.store
    with store.writing():
        for path in tqdm(parts, desc="index", unit="part", file=sys.stderr, mininterval=often):
            facts = path.stat()
            own = (facts.st_size, facts.st_mtime)
            if store.imported(path.name) == own:
                continue
            part, of = read_part(path, settings.width), read_heading(path).origin
            if isinstance(of.get("precision"), str):
                parity = of.get("parity")
                library.note_precision(str(of["precision"]), parity if isinstance(parity, float) else None)
            with store.change():
                store.begin_import(path.name, *own)
                _import(store, path, part)
        library.update_index()
        library.calibrate(model=False)
    return library


def _import(store: Store, path: Path, part: Part) -> None:
    row = store.append(part.vectors) if len(part.vectors) else 0
    done = 0
    for video in part.videos:
        count = len(video.spans)
        failure = video.failure or (None if count else Failure(reason=f"{video.path}: no segment"))
        store.delete_path(video.path)
        try:
            store.insert_video(
                video.path,
                video.facts,
                video.spans,
                row + done,
                crc=checksum(part.vectors[done : done + count]),
                duration=video.duration,
                failure=failure,
                metadata=video.metadata,
                origin=path.name,
                lacking=video.lacking,
            )
        except sqlite3.IntegrityError as error:
            raise VtrError(f"{path}: {video.path} cannot be taken in ({error})") from error
        done += count
