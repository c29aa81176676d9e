"""Files to windows to vectors: one stream of jobs in, their embeddings out in the same order.

n windows, T frames, S pixels, w width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from vtr.data.decode import DecodeError, TimeLimit
from vtr.data.decode.types import Source
from vtr.library.encode import embed_file
from vtr.library.rows import Embedded, Failure
from vtr.library.settings import LibrarySettings

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[K]):
    """Something to embed.

    Attributes:
        key: Given back with the result.
        source: A path, a file's bytes, or what gives one of them where it is decoded (a callable that can be pickled:
            it is called in the decoding process; OSError and VtrError of it are the file's failure). None: there is
            nothing to decode, and the result is None, in its place in the order.
        name: How errors name it; default: the path.
    """

    key: K
    source: Source | Callable[[], Source] | None
    name: str = ""


class Pipeline:
    """Embeds files with one model, with everything the machine has. Close it, or use it as a context.

    Args:
        model: The model.
        settings: Windows and frames; what a library or a folder of embeddings writes down.
        workers: Decoding processes; None: as many as serve here; 0: none, decode in this process.
        devices: Devices that encode, each with a copy of the model; empty: all GPUs where the model is on one,
            else where the model is.
        precision: "fp32", "bf16" or "auto" (bf16 on a GPU, else fp32).
    """

    def __init__(
        self,
        model: VideoTextEncoder,
        settings: LibrarySettings,
        *,
        workers: int | None = None,
        devices: Sequence[str] = (),
        precision: str = "auto",
    ) -> None:
        self.model, self.settings = model, settings

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes."""

    def run(self, jobs: Iterable[Job[K]]) -> Iterator[tuple[K, Embedded | Failure | None]]:
        """Results in the order of the jobs.

        Jobs are taken from the iterable only when there is somebody to decode them: at most a few more than are under
        way, so that it may claim them as it goes. Its exceptions, and those of the model, end the run.
        """
        for job in jobs:
            yield job.key, None if job.source is None else self._embedded(job)

    def _embedded(self, job: Job[K]) -> Embedded | Failure:
        name = job.name or str(job.source)
        try:
            source = job.source() if callable(job.source) else job.source
            assert source is not None
            return embed_file(source, self.settings, self.model)
        except TimeLimit as error:
            return Failure(reason=str(error), kind="slow")
        except DecodeError as error:
            return Failure(reason=f"{name}: {error.cause}" if job.name else str(error), kind="unreadable")
        except OSError as error:
            return Failure(reason=f"{name}: {error.strerror}", kind="unopened")
