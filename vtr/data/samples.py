"""Single samples of a corpus: their caption, id and frames, or why they can't be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtr.data.cleaning import clean_caption
from vtr.data.decode import DecodeError, read_frames
from vtr.data.manifests import Corpus
from vtr.data.media import VIDEO
from vtr.data.order import MediaOrder, StreamSettings, drawn
from vtr.data.sampling import picker
from vtr.data.shard_reader import ShardCache
from vtr.data.shards import RULE, RawSample
from vtr.data.transforms import eval_frames, train_frames
from vtr.data.whole import cut_off


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a batch knows of one sample beside its frames."""

    key: str  # "member/shard#key", for people
    caption: str  # cleaned
    id: int
    meta: dict[str, object]


class Unusable(NamedTuple):
    """A sample that can't be used."""

    key: str  # as of a `Sample`, or its place where it has none
    reason: str
    id: int | None = None  # None where it can't be read at all

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def sample_id(member: str, key: str) -> int:
    """63 bits of (corpus member, key)."""
    return int.from_bytes(hashlib.blake2b(f"{member}\0{key}".encode(), digest_size=8).digest(), "big") >> 1


class SampleReader:
    """Reads the samples of a corpus by where they stand in its shards; of one process, any of its threads.

    Args:
        media: The media types that are read.
        unread: Media are not read: the ids that are known, with the reason why they can't be used, or "". None: they are.

    Attributes:
        orders: Of each medium.
    """

    def __init__(
        self, corpus: Corpus, settings: StreamSettings, media: Iterable[str], unread: Mapping[int, str] | None = None
    ) -> None:
        self.settings, self._unread = settings, unread
        self._cache = ShardCache(settings.cache)
        self.orders = {
            medium: MediaOrder([m for m in corpus.members if m.media in (medium, "auto")], settings, medium)
            for medium in media
        }
        self._doubled = {m.name: m.doubled for m in corpus.members}
        self._places = {
            m.name: {shard: i for i, shard in enumerate(m.shards)} if m.doubled or m.doubled is None else {}
            for m in corpus.members
        }

    def read(self, media: str, reference: tuple[int, int, int]) -> tuple[Sample, Tensor] | Unusable:
        """The sample of (epoch, shard, index) and its frames, or why it can't be used."""
        epoch, shard, index = reference
        member, path = self.orders[media].shards[shard]
        where = f"{member}/{path.rsplit('/', 1)[-1]}#"
        raw = self._cache.read(path, index, media=self._unread is None)
        if isinstance(raw, str):
            return Unusable(f"{where}{index}", raw)
        key = raw.key if not raw.nth else f"{raw.key}\0{raw.nth}"
        doubled = self._doubled[member]
        if doubled is None or raw.key in doubled:
            key += f"\0{self._places[member][path]}"
        number = sample_id(member, key)
        caption = self._caption(raw, number, epoch)
        frames = self._frames(raw, media, caption, number, epoch)
        if isinstance(frames, str):
            return Unusable(where + raw.key, frames, number)
        return Sample(key=where + raw.key, caption=clean_caption(caption), id=number, meta=raw.meta), frames

    def _frames(self, raw: RawSample, media: str, caption: str, number: int, epoch: int) -> Tensor | str:
        s = self.settings
        if s.captions and not caption:
            return raw.fault
        if self._unread is not None:
            reason = self._unread.get(number, "it could not be read when the features were made")
            return reason or torch.empty(0, dtype=torch.uint8)
        if not raw.media:
            return f"no image or video (its members: {raw.made_of}; {RULE})"
        if media == "image" and raw.extension in VIDEO and raw.extension != "gif":
            return f"a video ({raw.extension}) in a member of images"
        lacking = cut_off(raw.media, thorough=False)
        if lacking:  # a decoder would take the frames that are left for the clip that the caption is of
            return lacking
        rng = drawn(s.seed, "sample", epoch, number)
        choose = picker(
            s.frames if media == "video" else 1, None if s.middle_frames else rng, official=s.official_frames
        )

        def pick(n: int) -> list[int]:
            if media == "video" and n == 1:
                raise DecodeError(raw.key, "a single picture in a member of videos")
            return choose(n)

        try:
            clip = read_frames(raw.media, pick, timeout=s.timeout, threads=1 if s.decode_threads > 1 else None)
        except DecodeError as error:
            return str(error)
        if s.crop_scale is None and not s.flip:
            return eval_frames(clip.frames, s.size)
        return train_frames(clip.frames, s.size, rng, scale=s.crop_scale, flip=s.flip)

    def _caption(self, raw: RawSample, number: int, epoch: int) -> str:
        """Its caption; of several one an epoch, drawn apart from the frames."""
        if len(raw.captions) < 2:
            return raw.caption or ""
        return raw.captions[int(drawn(self.settings.seed, "caption", epoch, number).integers(len(raw.captions)))]
