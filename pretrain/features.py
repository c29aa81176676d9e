"""Features of frozen encoders, computed once: what a stage with `keep_features` reads in the place of videos.

The samples, in the order of the shards, are cut into parts; the ranks share the parts, a file each, which are the same
whatever the number of ranks. A run that is killed goes on with the parts that are there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from vtr.data.manifests import Corpus
from vtr.data.order import StreamSettings
from vtr.data.samples import Sample, SampleReader, Unusable
from vtr.data.stream import media_weights
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.pretrain.objectives.base import Features
from vtr.pretrain.recipes import Stage
from vtr.pretrain.step import PretrainStep
from vtr.pretrain.stop import Stop
from vtr.ranks import Ranks

PART = 32  # samples of a part, which are encoded at once
_OPEN = 256  # parts that are held open
_AHEAD = 2  # parts that are decoded before they are needed
_OFTEN = 3  # times that a sample is encoded, from which it pays to keep what comes of it

Result = tuple[Sample, Tensor] | Unusable


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples that are encoded at once: of one medium, some numbers of its samples in the order of the shards."""

    media: str
    first: int
    last: int  # + 1

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.media}-{self.first:09d}.safetensors"


class KeptFeatures:
    """The features of a corpus in a folder.

    Args:
        folder: Where `keep` has written the parts.
        parts: All of them.

    Attributes:
        reasons: Of every sample that was read, by its id: why it can't be used, "" where it can.

    Raises:
        VtrError: A part is missing or damaged.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.reasons: dict[int, str] = {}
        self._places: dict[int, tuple[str, int]] = {}
        self._opened = functools.lru_cache(_OPEN)(lambda name: safe_open(folder / name, "pt"))
        for part in parts:
            noted = _notes(folder / part.name)
            if noted is None:
                raise VtrError(f"{folder / part.name}: missing or damaged; all ranks must see the folder of the run")
            ids, bad = noted
            for number, reason in bad.items():
                self.reasons.setdefault(number, reason)
            for row, number in enumerate(ids):
                self.reasons[number] = ""
                self._places.setdefault(number, (part.name, row))

    def of(self, ids: Tensor) -> Features:
        """The features of a batch, ids (n,) of one medium."""
        places = [self._places[number] for number in ids.tolist()]
        video, tokens = (
            torch.cat([self._opened(name).get_slice(kind)[row : row + 1] for name, row in places])
            for kind in ("video", "tokens")
        )
        return Features(video, tokens)


def _notes(path: Path) -> tuple[list[int], dict[int, str]] | None:
    """Ids and bad samples of a part; None where it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["notes"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
    return notes["ids"], {int(k): reason for k, reason in notes["bad"].items()}


class Keeper:
    """Makes what of a corpus' features is not there yet, all ranks together.

    Args:
        folder: Of the parts; all ranks see it.
        step: Of a frozen stage.
        reading: How the stage reads the corpus; for features frames are the middle ones, neither cropped nor mirrored.
        threads: That decode.
    """

    def __init__(
        self, folder: Path, step: PretrainStep, corpus: Corpus, reading: StreamSettings, ranks: Ranks, *, threads: int
    ) -> None:
        self.folder, self._step, self._ranks, self._threads = folder, step, ranks, threads
        self._reading = replace(reading, middle_frames=True, crop_scale=None, flip=False)
        self._corpus = corpus
        self._reader = SampleReader(corpus, self._reading, media_weights(corpus, reading))
        self._ends = {m: np.cumsum(order.sizes) for m, order in self._reader.orders.items()}
        self.parts = [
            Part(media=m, first=first, last=min(first + PART, int(ends[-1])))
            for m, ends in self._ends.items()
            for first in range(0, int(ends[-1]), PART)
        ]

    def run(self, stop: Stop, *, again: bool) -> KeptFeatures | None:
        """All features; None where the user asked for the end before all were there.

        Args:
            again: Features that an earlier call of this run has left are used.

        Raises:
            VtrError: On all ranks: they can't be written, or do not fit.
        """
        ranks = self._ranks
        ranks.main_only(lambda: self._prepare(again))
        todo = ranks.gathered([p for p in self.parts if _notes(self.folder / p.name) is None])[0]
        mine = todo[ranks.rank :: ranks.size]
        self._step.model.eval()
        total, left = (sum(p.last - p.first for p in parts) for parts in (self.parts, todo))
        bar = tqdm(
            total=total, initial=total - left, desc="features", file=sys.stderr, unit="sample", disable=not ranks.main
        )
        with bar, stop.listening(), ThreadPoolExecutor(self._threads) as pool:
            read = self._decoded(mine, pool)
            for turn in range(-(-len(todo) // ranks.size)):
                error, done = None, 0
                try:
                    if turn < len(mine):
                        size = self._make(mine[turn], next(read))
                        done = mine[turn].last - mine[turn].first
                        if turn == 0:
                            self._need_space(size * (len(mine) - 1) * ranks.size)
                except Exception as caught:
                    error = caught
                made, asked = ranks.settle(error, [float(done), float(stop.asked)])
                bar.update(int(made))
                if asked:
                    pool.shutdown(cancel_futures=True)
                    return None
        return ranks.together(lambda: KeptFeatures(self.folder, self.parts))

    def _prepare(self, again: bool) -> None:
        identity = self._identity()
        note = self.folder / "identity.txt"
        if not (again and note.is_file() and note.read_text() == identity):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(identity)

    def _identity(self) -> str:
        """A digest of what the features depend on."""
        reading = replace(self._reading, workers=0, decode_threads=1, cache=None)
        words = (reading, self._corpus.fingerprint(), self._step.stage.keep_temporal, self._ranks.precision)
        digest = hashlib.blake2b(repr(words).encode(), digest_size=16)
        for name, value in sorted(self._step.frozen_weights().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _decoded(self, parts: Sequence[Part], pool: ThreadPoolExecutor) -> Iterator[list[Result]]:
        """The samples of the parts in turn, some parts ahead of their use."""
        ahead: deque[list[Future[Result]]] = deque()
        for part in parts:
            ahead.append([pool.submit(self._read, part.media, n) for n in range(part.first, part.last)])
            if len(ahead) > _AHEAD:
                yield [f.result() for f in ahead.popleft()]
        while ahead:
            yield [f.result() for f in ahead.popleft()]

    def _read(self, media: str, number: int) -> Result:
        ends = self._ends[media]
        shard = int(np.searchsorted(ends, number, side="right"))
        return self._reader.read(media, (0, shard, number - (int(ends[shard - 1]) if shard else 0)))

    @torch.no_grad()
    def _make(self, part: Part, read: Sequence[Result]) -> int:
        """Encode and write a part; returns its bytes."""
        good = [one for one in read if not isinstance(one, Unusable)]
        bad = [one for one in read if isinstance(one, Unusable) and one.id is not None]
        tensors: dict[str, Tensor] = {}
        if good:
            model, temporal = self._step.model, self._step.stage.keep_temporal
            frames = torch.stack([frames for _, frames in good]).to(model.device)
            with self._ranks.autocast():
                found = model.encode_video(model.normalise(frames), keep_temporal=temporal)
            tensors = {"video": found.frame_embeddings.cpu().contiguous(), "tokens": found.tokens.cpu().contiguous()}
        notes = {"ids": [sample.id for sample, _ in good], "bad": {str(one.id): one.reason for one in bad}}
        try:
            with write_atomically(self.folder / part.name) as partial:
                save_file(tensors, partial, {"notes": json.dumps(notes)})
        except (OSError, SafetensorError) as error:
            raise VtrError(f"{self.folder}: features can't be written ({error})") from error
        return sum(t.nbytes for t in tensors.values())

    def _need_space(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise VtrError(
                f"{self.folder}: features of all samples need {size / 2**30:.1f} GiB more, {free / 2**30:.1f} are free; give "
                "another --out, or leave keep_features off"
            )


def keeping_note(name: str, stage: Stage, steps: int, samples: int) -> str:
    """What to say of a frozen stage that encodes each sample again and again, or ""."""
    times = steps * stage.batch_size / samples
    if stage.keep_features or not stage.frozen or stage.direction_negatives or times < _OFTEN:
        return ""
    return (
        f"note: stage {name} encodes each sample {times:.0f} times; with --set {name}.keep_features=true it does so once, "
        "and reads what came of it"
    )
