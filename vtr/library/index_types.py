"""Kinds of index.faiss: a new one is a class here, or in a file of its own, and one line in TYPES.

n vectors of width w. All are inverted files: `nprobe` of their lists are looked at for a query.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypedDict

from vtr.errors import unknown_name

if TYPE_CHECKING:
    import faiss


class Description(TypedDict, total=False):
    """What index.faiss says of itself.

    Keys: type, count (segments), last (the highest segment id it may hold), lists, nprobe, refine (candidates for each
    hit that are re-scored exactly), lengths (whether the vectors differ in length, so that it holds unit vectors and words
    are scored again; missing in older ones, which hold the vectors as they are), code_bytes, trained_on (segments when it
    was trained), sample, recall_at_10, measured_on (segments when recall was measured), generation (of the database), library (its id), crc, bytes.
    """

    type: str
    count: int
    last: int
    lists: int
    nprobe: int
    refine: int
    lengths: bool
    code_bytes: int
    trained_on: int
    sample: int
    recall_at_10: float
    measured_on: int
    generation: int
    library: str | None
    crc: int
    bytes: int


class IndexType(ABC):
    """One way of keeping many vectors.

    Attributes:
        name: In the description.
        exact: Its scores are those of the vectors themselves: none need to be computed again.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    @abstractmethod
    def sizes(self, count: int, width: int, max_memory: int) -> Description | None:
        """What describes it for n vectors, or None where it takes more bytes while it is built and searched."""

    @abstractmethod
    def least(self, count: int, width: int) -> int:
        """Bytes below which `sizes` gives None."""

    @abstractmethod
    def make(self, coarse: faiss.Index, width: int, description: Description) -> faiss.IndexIVF:
        """An untrained index over inner products."""


class IvfFlat(IndexType):
    """The vectors themselves; its lists grow by doubling: twice the size while it is built."""

    name = "ivf-flat"
    exact = True

    def sizes(self, count: int, width: int, max_memory: int) -> Description | None:
        return {"type": self.name} if self.least(count, width) <= max_memory else None

    def least(self, count: int, width: int) -> int:
        return 2 * count * width * 4

    def make(self, coarse: faiss.Index, width: int, description: Description) -> faiss.IndexIVF:
        import faiss

        return faiss.IndexIVFFlat(coarse, width, description["lists"], faiss.METRIC_INNER_PRODUCT)


class IvfInt8(IndexType):
    """A byte for each number of a vector, in a third of the memory at most; hits are re-scored from the vectors."""

    name = "ivf-int8"
    exact = False

    def sizes(self, count: int, width: int, max_memory: int) -> Description | None:
        return {"type": self.name, "code_bytes": width} if self.least(count, width) <= max_memory else None

    def least(self, count: int, width: int) -> int:
        return 3 * count * (width + 8)

    def make(self, coarse: faiss.Index, width: int, description: Description) -> faiss.IndexIVF:
        import faiss

        kind = faiss.ScalarQuantizer.QT_8bit
        return faiss.IndexIVFScalarQuantizer(coarse, width, description["lists"], kind, faiss.METRIC_INNER_PRODUCT)


class IvfPq(IndexType):
    """Codes of the largest size that takes no more than a third of the memory; hits are re-scored from the vectors."""

    name = "ivf-pq"
    exact = False

    @staticmethod
    def _code_sizes(width: int) -> list[int]:
        return [width // part for part in (4, 8, 16, 32) if width % part == 0] or [1]

    def sizes(self, count: int, width: int, max_memory: int) -> Description | None:
        fitting = [s for s in self._code_sizes(width) if 2 * count * (s + 8) <= max_memory // 3 * 2]
        return {"type": self.name, "code_bytes": fitting[0]} if fitting else None

    def least(self, count: int, width: int) -> int:
        return 3 * count * (self._code_sizes(width)[-1] + 8)

    def make(self, coarse: faiss.Index, width: int, description: Description) -> faiss.IndexIVF:
        import faiss

        index = faiss.IndexIVFPQ(
            coarse, width, description["lists"], description["code_bytes"], 8, faiss.METRIC_INNER_PRODUCT
        )
        index.pq.cp.min_points_per_centroid = 1
        return index


# In order of preference: the first that fits into the memory is taken.
TYPES: dict[str, IndexType] = {t.name: t for t in (IvfFlat(), IvfInt8(), IvfPq())}


def index_type(name: str) -> IndexType:
    """A kind of index by its name; UsageError for one that does not exist."""
    if name not in TYPES:
        raise unknown_name("index type", name, TYPES)
    return TYPES[name]
